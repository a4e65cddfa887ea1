use crate::codec::DecodeError;
use crate::sepal_capnp as wire;

/// The name under which a server awaits a tensor from another one. Whoever knows it may send that tensor, so it is made
/// at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParcelKey(pub [u8; 16]);

impl ParcelKey {
    /// Reads a key.
    ///
    /// # Errors
    /// [`DecodeError::Key`] if it is not 16 bytes long.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        bytes.try_into().map(Self).map_err(|_| DecodeError::Key { found: bytes.len() })
    }
}

/// Where a result goes instead of to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The server, as the client reaches it.
    pub address: String,
    /// What that server awaits it under.
    pub key: ParcelKey,
}

/// A call's place in a chain of servers that hand tensors on to each other; the default is no chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relay {
    /// The input comes from another server.
    pub from: Option<ParcelKey>,
    /// The result goes to another server.
    pub next: Option<Next>,
}

impl Relay {
    /// Writes it.
    pub fn write(&self, mut builder: wire::relay::Builder<'_>) {
        if let Some(ParcelKey(key)) = &self.from {
            builder.set_from(key);
        }
        if let Some(Next { address, key: ParcelKey(key) }) = &self.next {
            builder.set_next_address(address);
            builder.set_next_key(key);
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not well formed.
    pub fn read(reader: wire::relay::Reader<'_>) -> Result<Self, DecodeError> {
        let from = if reader.has_from() { Some(ParcelKey::read(reader.get_from()?)?) } else { None };
        let next = if reader.has_next_address() {
            let (address, key) = (reader.get_next_address()?.to_str()?.to_owned(), reader.get_next_key()?);
            Some(Next { address, key: ParcelKey::read(key)? })
        } else {
            None
        };
        Ok(Self { from, next })
    }
}

#[cfg(test)]
mod tests {
    use capnp::message::Builder;

    use super::*;

    #[test]
    fn a_place_in_a_chain_survives() {
        let next = Next { address: "127.0.0.1:4000".into(), key: ParcelKey([2; 16]) };
        for relay in [
            Relay::default(),
            Relay { from: Some(ParcelKey([1; 16])), next: None },
            Relay { from: None, next: Some(next.clone()) },
            Relay { from: Some(ParcelKey([3; 16])), next: Some(next) },
        ] {
            let mut message = Builder::new_default();
            relay.write(message.init_root());
            assert_eq!(Relay::read(message.get_root_as_reader().expect("a root")).expect("a place"), relay);
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let mut message = Builder::new_default();
        message.init_root::<wire::relay::Builder<'_>>().set_from(&[1; 15]);
        let error = Relay::read(message.get_root_as_reader().expect("a root")).expect_err("refused");
        assert_eq!(error.to_string(), "a key of 15 bytes, expected 16");
    }
}
