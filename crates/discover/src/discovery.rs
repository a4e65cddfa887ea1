//! Common interface of all ways to find servers.

use std::fmt;
use std::time::{Duration, Instant};

use sepal_swarm::{Endpoint, Sightings};

use crate::record::ServerRecord;

/// Known server.
#[derive(Debug, Clone)]
pub struct Member {
    /// Name and address of the server.
    pub endpoint: Endpoint,
    /// Last record of the server.
    pub record: ServerRecord,
}

/// Source of servers.
pub trait Discovery: fmt::Debug + Send + Sync {
    /// Returns the servers that are known.
    fn members(&self) -> Vec<Member>;

    /// Returns the arrivals and departures of servers of a model, by the model's digest.
    fn sightings(&self, digest: &str) -> Sightings;

    /// Withdraws the announcement of the local server.
    fn withdraw(&self);
}

/// Waits until the number of known servers has not changed for 1.5 seconds, for at most 8 seconds.
pub fn wait_until_settled(discovery: &dyn Discovery) {
    const QUIET: Duration = Duration::from_millis(1500);
    const TIMEOUT: Duration = Duration::from_secs(8);
    let (started_at, mut changed_at, mut n_members) = (Instant::now(), Instant::now(), 0);
    while changed_at.elapsed() < QUIET && started_at.elapsed() < TIMEOUT {
        std::thread::sleep(Duration::from_millis(50));
        let current = discovery.members().len();
        if std::mem::replace(&mut n_members, current) != current {
            changed_at = Instant::now();
        }
    }
}
