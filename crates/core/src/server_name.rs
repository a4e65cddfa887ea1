use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Name of a server for people: 1 to 63 ASCII letters, digits, dots, hyphens and underscores, the first one a letter or
/// digit. Names are not unique and prove nothing; servers are identified by their endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerName(String);

impl ServerName {
    /// Greatest number of characters.
    pub const MAX_LEN: usize = 63;

    /// Returns the name that another machine states; `None` if it states none, or one of another form.
    pub fn from_peer(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Deserializes a name that another machine states, as [`from_peer`](Self::from_peer).
    ///
    /// # Errors
    /// The error of the deserializer, if the value is neither a text nor null.
    pub fn deserialize_from_peer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| Self::from_peer(&text)))
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not the name of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected 1 to {} ASCII letters, digits, dots, hyphens and underscores, the first one a letter or digit",
    ServerName::MAX_LEN
)]
pub struct ServerNameError;

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= Self::MAX_LEN && text.chars().all(is_allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ServerNameError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_have_a_restricted_alphabet() {
        for name in ["lab-3", "a", "0.rack_2", &"x".repeat(63)] {
            assert_eq!(name.parse::<ServerName>().map(|name| name.to_string()), Ok(name.to_owned()));
        }
        for name in ["", "-a", "a b", "a\u{1b}[2J", "ünd", "a\n", "a\u{202e}b", &"x".repeat(64)] {
            assert!(name.parse::<ServerName>().is_err() && ServerName::from_peer(name).is_none(), "{name:?}");
        }
    }
}
