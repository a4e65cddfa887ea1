//! Discovery on the local network in a build without the feature `lan`: no search starts.
//!
//! The items have the interface of the module that the feature adds.

use std::convert::Infallible;
use std::net::SocketAddr;

use sepal_core::NotBuilt;
use sepal_swarm::Sightings;

use crate::discovery::{Discovery, Member};
use crate::record::ServerRecord;

const ERROR: NotBuilt = NotBuilt { part: "the local network's servers", feature: "lan" };

/// Error of every use, because the build leaves this discovery out.
pub const NOT_BUILT: Option<NotBuilt> = Some(ERROR);

/// Error of multicast DNS.
pub type LanError = NotBuilt;

/// Discovery without values.
#[derive(Debug)]
pub struct Lan(Infallible);

impl Lan {
    /// Starts no search.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn start(_interface: Option<&str>) -> Result<Self, LanError> {
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

impl Discovery for Lan {
    fn members(&self) -> Vec<Member> {
        match self.0 {}
    }

    fn sightings(&self, _digest: &str) -> Sightings {
        match self.0 {}
    }

    fn withdraw(&self) {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_of_an_absent_feature_names_it() {
        assert_eq!(Lan::start(None).expect_err("not built"), ERROR);
    }
}
