//! Choice of the calls that are checked.

use std::collections::{HashMap, HashSet};

use sepal_core::PublicKey;
use sepal_route::ServerId;

/// Steps of a newly met server in which the first call of each kind is checked. A server that repeats the results of the last
/// step lies from its second step on.
const FIRST_STEPS: u32 = 3;

/// Kind of a forward call. Each kind is checked at its own times, because a server may lie in one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CallKind {
    /// Call without a backward call.
    Prediction,
    /// Call whose backward call is checked with it.
    Training,
}

impl CallKind {
    pub(super) fn of(keep_tape: bool) -> Self {
        if keep_tape { Self::Training } else { Self::Prediction }
    }
}

/// Identity of a server behind an address: its key, or else its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    Key(PublicKey),
    /// Number of the connection.
    Connection(u64),
}

/// Sampler of calls: one of `1 / share` calls of each server and kind in a row, at a random place among them. A server
/// cannot predict the checks, and no gap between two of them exceeds `2 / share` calls.
#[derive(Debug)]
pub(super) struct Sampler {
    share: f64,
    servers: HashMap<(ServerId, CallKind), Calls>,
    /// Servers whose next call of any kind is checked.
    suspects: HashSet<ServerId>,
}

/// Calls of one kind to one server.
#[derive(Debug)]
struct Calls {
    identity: Identity,
    /// Number of steps in which the first call was checked, and the last of them.
    first_steps: u32,
    last_step: Option<u64>,
    count: u64,
    /// Number of checks by share, each in its own part of the calls.
    parts: u64,
    /// Count of calls after which the next check is due.
    due_after: f64,
}

impl Sampler {
    pub(super) fn new(share: f64) -> Self {
        Self { share, servers: HashMap::new(), suspects: HashSet::new() }
    }

    /// Counts a call in the step `version` and returns true if it is to be checked. `random` returns numbers from 0 to 1.
    pub(super) fn is_due(
        &mut self,
        server: ServerId,
        identity: Identity,
        kind: CallKind,
        version: u64,
        mut random: impl FnMut() -> f64,
    ) -> bool {
        let share = self.share;
        let mut start = |identity| Calls {
            identity,
            first_steps: 0,
            last_step: None,
            count: 0,
            parts: 0,
            due_after: random() / share,
        };
        let calls = self.servers.entry((server, kind)).or_insert_with(|| start(identity));
        if calls.identity != identity {
            *calls = start(identity);
        }
        calls.count += 1;
        let is_first_of_step = calls.first_steps < FIRST_STEPS && calls.last_step != Some(version);
        if is_first_of_step {
            calls.first_steps += 1;
            calls.last_step = Some(version);
        }
        let is_sampled = calls.count as f64 > calls.due_after;
        if is_sampled {
            calls.parts += 1;
            calls.due_after = (calls.parts as f64 + random()) / share;
        }
        is_first_of_step || is_sampled || self.suspects.remove(&server)
    }

    /// Checks the next call to a server.
    pub(super) fn suspect(&mut self, server: ServerId) {
        self.suspects.insert(server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: ServerId = ServerId(0);
    const KIND: CallKind = CallKind::Prediction;

    /// Returns the numbers of the checked calls, from 1, of `calls` in one step after the first steps.
    fn checked(share: f64, calls: usize, random: impl Fn() -> f64) -> Vec<usize> {
        let mut sampler = Sampler::new(share);
        let identity = Identity::Connection(1);
        let mut call = |version| sampler.is_due(SERVER, identity, KIND, version, &random);
        (0..u64::from(FIRST_STEPS)).for_each(|version| assert!(call(version), "the first call of a step"));
        (1..=calls).filter(|_| call(u64::MAX)).collect()
    }

    #[test]
    fn share_is_met_without_long_gaps() {
        for share in [0.02, 0.1, 0.3] {
            let checked = checked(share, 10_000, rand::random::<f64>);
            let expected = 10_000.0 * share;
            assert!((checked.len() as f64 - expected).abs() <= 2.0, "{} instead of {expected}", checked.len());
            let gap = checked.windows(2).map(|pair| pair[1] - pair[0]).max().expect("checks");
            assert!(gap as f64 <= 2.0 / share + 1.0, "{gap} at {share}");
        }
        assert_eq!(checked(1.0, 100, rand::random::<f64>).len(), 100);
    }

    #[test]
    fn checks_are_at_random_places() {
        let places: HashSet<Vec<usize>> = (0..8).map(|_| checked(0.02, 500, rand::random::<f64>)).collect();
        assert!(places.len() > 1, "{places:?}");
    }

    #[test]
    fn newly_met_server_is_checked_in_each_of_its_first_steps() {
        let mut sampler = Sampler::new(0.02);
        let key = |byte| Identity::Key(PublicKey([byte; 32]));
        // The next check by share is far away.
        let mut is_due = |identity, kind, version| sampler.is_due(SERVER, identity, kind, version, || 0.999);
        for kind in [CallKind::Prediction, CallKind::Training] {
            assert_eq!(
                [1, 1, 1, 2, 3, 4].map(|version| is_due(key(1), kind, version)),
                [true, false, false, true, true, false]
            );
        }
        assert!(is_due(key(2), KIND, 4), "it returned under another key");
        assert!(!is_due(key(2), KIND, 4));
    }

    #[test]
    fn suspect_is_checked_once() {
        let mut sampler = Sampler::new(0.02);
        let identity = Identity::Connection(1);
        let is_due = |sampler: &mut Sampler| sampler.is_due(SERVER, identity, KIND, 0, || 0.999);
        assert!(is_due(&mut sampler) && !is_due(&mut sampler));
        sampler.suspect(SERVER);
        assert!(is_due(&mut sampler) && !is_due(&mut sampler));
    }
}
