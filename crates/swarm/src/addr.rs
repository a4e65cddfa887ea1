use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use sepal_core::PublicKey;
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

impl Addr {
    /// True if only this machine reaches the address: a Unix socket, an address of the loopback interface, or `localhost`.
    pub fn is_local(&self) -> bool {
        let Addr::Tcp(host_port) = self else { return true };
        let host = host_port.rsplit_once(':').map_or(host_port.as_str(), |(host, _)| host);
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        ip.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
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

/// Address of a listed server, with the public key that the server must have: `ADDR` or `ADDR#KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedServer {
    /// Address.
    pub addr: Addr,
    /// Expected key; `None` if every server with the secret is meant.
    pub key: Option<PublicKey>,
}

/// Error of text that names no listed server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
pub enum ListedServerError {
    /// Text without an address.
    #[error(transparent)]
    Addr(#[from] AddrError),
    /// Text that is no key after the address.
    #[error("`{text}` needs a public key of 64 hexadecimal digits after `#`")]
    Key { text: String },
}

impl FromStr for ListedServer {
    type Err = ListedServerError;

    fn from_str(text: &str) -> Result<Self, ListedServerError> {
        let Some((addr, key)) = text.rsplit_once('#') else { return Ok(Self { addr: text.parse()?, key: None }) };
        match key.parse() {
            Ok(key) => Ok(Self { addr: addr.parse()?, key: Some(key) }),
            // A path may have the character.
            Err(_) if text.starts_with("unix:") => Ok(Self { addr: text.parse()?, key: None }),
            Err(_) => Err(ListedServerError::Key { text: text.to_owned() }),
        }
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

    #[test]
    fn listed_server_has_an_address_and_perhaps_a_key() {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        for (text, addr, has_key) in [
            ("10.0.0.5:4000".to_owned(), "10.0.0.5:4000", false),
            (format!("10.0.0.5:4000#{key}"), "10.0.0.5:4000", true),
            ("unix:/a#b".to_owned(), "unix:/a#b", false),
            (format!("unix:/a#b#{key}"), "unix:/a#b", true),
        ] {
            let server = text.parse::<ListedServer>().expect("a server");
            let expected = has_key.then(|| key.parse::<PublicKey>().expect("a key"));
            assert_eq!((server.addr.to_string().as_str(), server.key), (addr, expected), "{text}");
        }
        let error = "h:1#abc".parse::<ListedServer>().expect_err("no key").to_string();
        assert!(error.contains("64 hexadecimal digits"), "{error}");
        let error = format!("h#{key}").parse::<ListedServer>().expect_err("no address").to_string();
        assert!(error.contains("is not an address"), "{error}");
    }

    #[test]
    fn local_addresses_are_those_of_this_machine() {
        for (text, is_local) in [
            ("127.0.0.1:4000", true),
            ("127.8.0.1:4000", true),
            ("[::1]:80", true),
            ("localhost:80", true),
            ("unix:/a", true),
            ("0.0.0.0:4000", false),
            ("[::]:80", false),
            ("10.0.0.5:4000", false),
            ("127.0.0.1.example:80", false),
            ("blocks.example:9", false),
        ] {
            assert_eq!(text.parse::<Addr>().expect("an address").is_local(), is_local, "{text}");
        }
    }
}
