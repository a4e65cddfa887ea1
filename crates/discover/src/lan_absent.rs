//! Discovery on the local network in a build without the feature `lan`: no search starts.
//!
//! The items have the interface of the module that the feature adds.

use std::net::SocketAddr;

use sepal_core::NotBuilt;
use sepal_swarm::ClientSecurity;

use crate::absent::absent_discovery;
use crate::record::ServerRecord;

const ERROR: NotBuilt = NotBuilt { part: "the local network's servers", feature: "lan" };

/// Error of every use, because the build leaves this discovery out.
pub const NOT_BUILT: Option<NotBuilt> = Some(ERROR);

/// Error of multicast DNS.
pub type LanError = NotBuilt;

absent_discovery! {
    /// Discovery without values.
    Lan
}

impl Lan {
    /// Starts no search.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn start(_interface: Option<&str>, _security: Option<ClientSecurity>) -> Result<Self, LanError> {
        Err(ERROR)
    }

    /// Announces the local server.
    ///
    /// # Errors
    /// None, since there is no discovery.
    pub fn announce(
        &self,
        _addr: SocketAddr,
        _describe: impl Fn() -> Option<ServerRecord> + Send + 'static,
    ) -> Result<(), LanError> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_of_an_absent_feature_names_it() {
        assert_eq!(Lan::start(None, None).expect_err("not built"), ERROR);
    }
}
