//! Routing of tensors between servers.

use crate::codec::DecodeError;
use crate::sepal_capnp as wire;

/// Maximum bytes of a server's address. It is kept as long as its call waits.
const MAX_ADDRESS_BYTES: usize = 1024;

/// Key of the mailbox under which a server receives a tensor from another server. The key authorizes the sender, so clients
/// choose it at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MailboxKey(pub [u8; 16]);

impl MailboxKey {
    /// Reads a key.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        bytes.try_into().map(Self).map_err(|_| DecodeError::Key { found: bytes.len() })
    }
}

/// Server that receives a result in place of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTarget {
    /// Address by which the client reaches the server.
    pub address: String,
    /// Mailbox key at that server.
    pub key: MailboxKey,
}

/// Source of a call's input and target of its result in a chain of servers; the default is the caller for both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relay {
    /// Mailbox of the input, if another server sends it.
    pub from: Option<MailboxKey>,
    /// Target of the result, if it is another server.
    pub next: Option<RelayTarget>,
}

impl Relay {
    /// True if the call begins and ends at the caller.
    pub fn is_direct(&self) -> bool {
        self.from.is_none() && self.next.is_none()
    }

    /// Writes the source and the target.
    pub fn write(&self, mut builder: wire::relay::Builder<'_>) {
        if let Some(MailboxKey(key)) = &self.from {
            builder.set_from(key);
        }
        if let Some(RelayTarget { address, key: MailboxKey(key) }) = &self.next {
            builder.set_next_address(address);
            builder.set_next_key(key);
        }
    }

    /// Reads the source and the target.
    pub fn read(reader: wire::relay::Reader<'_>) -> Result<Self, DecodeError> {
        let from = if reader.has_from() { Some(MailboxKey::read(reader.get_from()?)?) } else { None };
        let next = if reader.has_next_address() {
            let (address, key) = (reader.get_next_address()?, MailboxKey::read(reader.get_next_key()?)?);
            if address.len() > MAX_ADDRESS_BYTES {
                let (found, limit) = (address.len(), MAX_ADDRESS_BYTES);
                return Err(DecodeError::TooMany { items: "bytes of an address", found, limit });
            }
            Some(RelayTarget { address: address.to_str()?.to_owned(), key })
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
    fn relay_round_trip_is_exact() {
        let next = RelayTarget { address: "127.0.0.1:4000".into(), key: MailboxKey([2; 16]) };
        for relay in [
            Relay::default(),
            Relay { from: Some(MailboxKey([1; 16])), next: None },
            Relay { from: None, next: Some(next.clone()) },
            Relay { from: Some(MailboxKey([3; 16])), next: Some(next) },
        ] {
            let mut message = Builder::new_default();
            relay.write(message.init_root());
            assert_eq!(Relay::read(message.get_root_as_reader().expect("a root")).expect("a relay"), relay);
        }
    }

    #[test]
    fn mailbox_key_of_wrong_length_is_refused() {
        let mut message = Builder::new_default();
        message.init_root::<wire::relay::Builder<'_>>().set_from(&[1; 15]);
        let error = Relay::read(message.get_root_as_reader().expect("a root")).expect_err("refused");
        assert_eq!(error.to_string(), "a key of 15 bytes, expected 16");
    }

    #[test]
    fn long_address_is_refused() {
        let next = RelayTarget { address: "a".repeat(MAX_ADDRESS_BYTES + 1), key: MailboxKey([2; 16]) };
        let mut message = Builder::new_default();
        Relay { from: None, next: Some(next) }.write(message.init_root());
        let error = Relay::read(message.get_root_as_reader().expect("a root")).expect_err("refused");
        assert_eq!(error.to_string(), "1025 bytes of an address, at most 1024 are read");
    }
}
