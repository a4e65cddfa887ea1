use std::fmt;

use capnp::ErrorKind;

use crate::codec::DecodeError;

/// Texts before a text: that of an error which another process reports, and kinds of its causes.
const PREFIXES: [&str; 5] = ["remote exception: ", "Failed: ", "Overloaded: ", "Disconnected: ", "Unimplemented: "];

/// Error of the RPC system. It is shown without the general kind, which only decides about retries.
#[derive(Debug, Clone)]
pub struct RpcError(capnp::Error);

impl From<capnp::Error> for RpcError {
    fn from(error: capnp::Error) -> Self {
        Self(error)
    }
}

impl From<capnp::Error> for DecodeError {
    fn from(error: capnp::Error) -> Self {
        Self::Encoding(error.into())
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ErrorKind::{Disconnected, Failed, Overloaded, Unimplemented};
        let capnp::Error { kind, extra } = &self.0;
        let mut text = extra.as_str();
        while let Some(shorter) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            text = shorter;
        }
        match kind {
            Failed | Overloaded | Disconnected | Unimplemented if !text.is_empty() => f.write_str(text),
            kind if text.is_empty() => write!(f, "{kind}"),
            kind => write!(f, "{kind}: {text}"),
        }
    }
}

impl std::error::Error for RpcError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_kinds_are_not_shown_and_special_ones_are() {
        let text = |error: capnp::Error| RpcError::from(error).to_string();
        assert_eq!(text(capnp::Error::failed("no such key".to_owned())), "no such key");
        assert_eq!(text(capnp::Error::overloaded("remote exception: no memory".to_owned())), "no memory");
        let passed_on = "remote exception: Failed: remote exception: read a tensor";
        assert_eq!(text(capnp::Error::failed(passed_on.to_owned())), "read a tensor");
        assert_eq!(text(capnp::Error::disconnected(String::new())), "Disconnected");
        let special = ErrorKind::FieldNotFound;
        assert_eq!(text(capnp::Error::from_kind(special)), "field not found");
        assert_eq!(text(capnp::Error { kind: special, extra: "rows".to_owned() }), "field not found: rows");
    }
}
