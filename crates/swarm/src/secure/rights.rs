use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Rights of a connection at a server. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rights {
    /// Reads descriptions and loads of servers.
    Observer,
    /// Has blocks computed.
    Client,
    /// Serves blocks, and forwards results to other servers.
    Server,
}

/// Error of a text that names no rights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected rights: observer, client or server")]
pub struct RightsError;

impl Rights {
    /// All rights, in ascending order.
    pub const ALL: [Rights; 3] = [Rights::Observer, Rights::Client, Rights::Server];

    /// Name of the rights.
    pub fn name(self) -> &'static str {
        match self {
            Rights::Observer => "observer",
            Rights::Client => "client",
            Rights::Server => "server",
        }
    }

    /// Number of the rights in messages.
    pub fn code(self) -> u8 {
        match self {
            Rights::Observer => 1,
            Rights::Client => 2,
            Rights::Server => 3,
        }
    }

    /// Returns the rights of a number in messages.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|rights| rights.code() == code)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rights {
    type Err = RightsError;

    fn from_str(text: &str) -> Result<Self, RightsError> {
        Self::ALL.into_iter().find(|rights| rights.name() == text).ok_or(RightsError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_ordered_and_named() {
        assert!(Rights::Observer < Rights::Client && Rights::Client < Rights::Server);
        for rights in Rights::ALL {
            assert_eq!(rights.to_string().parse(), Ok(rights));
            assert_eq!(Rights::from_code(rights.code()), Some(rights));
        }
        assert_eq!("founder".parse::<Rights>(), Err(RightsError));
        assert_eq!((Rights::from_code(0), Rights::from_code(4)), (None, None));
    }
}
