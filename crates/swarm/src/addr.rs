use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Address of a server: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Addr {
    /// `HOST:PORT`. A server that listens on port 0 gets a free port.
    Tcp(String),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// Error of text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("`{text}` is not an address; write HOST:PORT, for example 127.0.0.1:4000, or unix:/path/of/socket")]
pub struct AddrError {
    pub text: String,
}

impl FromStr for Addr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let error = || AddrError { text: text.to_owned() };
        let text = text.strip_prefix("tcp:").map_or(text, |address| address.trim_start_matches('/'));
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Addr::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(error());
        }
        Ok(Addr::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Tcp(host_port) => f.write_str(host_port),
            Addr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Addr {
    type Error = AddrError;

    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<Addr> for String {
    fn from(addr: Addr) -> Self {
        addr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addr_text_round_trip_is_exact() {
        for text in ["127.0.0.1:4000", "[::1]:80", "blocks.example:9", "unix:/a b/c"] {
            assert_eq!(text.parse::<Addr>().expect("an address").to_string(), text);
        }
        assert_eq!("tcp://h:1".parse::<Addr>().expect("an address"), Addr::Tcp("h:1".into()));
        for text in ["", "h", ":1", "h:x", "h:70000", "unix:", "http://h:1"] {
            assert!(text.parse::<Addr>().is_err(), "{text}");
        }
    }
}
