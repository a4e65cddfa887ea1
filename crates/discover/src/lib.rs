//! Finding the servers of a model: in a peer-to-peer swarm that is joined with a ticket, or on the local network.
//!
//! This crate opens connections and says who is there; it knows nothing of what is said over them.
//!
//! Invariants: nothing outside the swarm is contacted unless a relay is configured; what a peer announces counts only
//! with its signature for this swarm; connections between peers are encrypted, their ends know who the other is, and a
//! server takes only those of members. On the local network nothing of that holds.

pub mod lan;
mod members;
mod notice;
pub mod p2p;

pub use members::Member;
pub use notice::Notice;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sepal_swarm::Sightings;

/// A way in which servers are found.
pub trait Discovery: fmt::Debug + Send + Sync {
    /// The servers that are known.
    fn members(&self) -> Vec<Member>;

    /// The servers of a model, by its digest, as they come and go.
    fn sightings(&self, digest: &str) -> Sightings;

    /// Takes back what was announced.
    fn withdraw(&self);
}

/// Waits until those who are there have become known: until no server has for a second and a half, or for eight seconds.
pub fn settle(discovery: &dyn Discovery) {
    const QUIET: Duration = Duration::from_millis(1500);
    const AT_MOST: Duration = Duration::from_secs(8);
    let (begun, mut since, mut known) = (Instant::now(), Instant::now(), 0);
    while since.elapsed() < QUIET && begun.elapsed() < AT_MOST {
        std::thread::sleep(Duration::from_millis(50));
        let now = discovery.members().len();
        if std::mem::replace(&mut known, now) != now {
            since = Instant::now();
        }
    }
}

/// A panic elsewhere leaves what is locked here usable: every change to it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
