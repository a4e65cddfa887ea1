//! Retry budgets of micro-batches, answers that one server alone is not believed, and backoff of relays.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use sepal_core::Span;
use sepal_route::{Hop, Pass, ServerId};
use sepal_wire::Retry;
use tokio::time::Instant;

use crate::error::{Refusal, RemoteError};

/// Delay before the first retry on the same server. It doubles.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// Maximum number of retries on the same server.
const MAX_RETRIES: u32 = 6;
/// First backoff of a relay between two servers. It doubles.
const FIRST_RELAY_BACKOFF: Duration = Duration::from_secs(1);
/// Longest backoff of a relay.
const MAX_RELAY_BACKOFF: Duration = Duration::from_mins(1);

/// Answer of a server that is believed once another server agrees: a refused request or non-finite numbers.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) hop: Hop,
    pub(crate) answer: DoubtfulAnswer,
}

#[derive(Debug, Clone)]
pub(crate) enum DoubtfulAnswer {
    Refusal(Refusal),
    /// Server, blocks and kind of the numbers.
    NonFinite(String, Span, &'static str),
}

impl Doubt {
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.answer, DoubtfulAnswer::Refusal(_))
    }

    fn is_about(&self, span: Span) -> bool {
        self.hop.span.start() < span.end() && span.start() < self.hop.span.end()
    }
}

/// Time, retries and doubts that consecutive failures of one pass of a micro-batch have left.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    pass: Pass,
    since: Option<Instant>,
    /// Retries on the same server, by server.
    retries: HashMap<ServerId, u32>,
    doubts: Vec<Doubt>,
    /// Servers that routes avoid while their answers are doubted.
    excluded: Vec<ServerId>,
    /// Error if no other server can decide on the doubts now.
    undecided: Option<RemoteError>,
}

impl RetryBudget {
    pub(crate) fn new(pass: Pass) -> Self {
        let (since, undecided) = (None, None);
        Self { pass, since, retries: HashMap::new(), doubts: Vec::new(), excluded: Vec::new(), undecided }
    }

    /// Returns the budget of forward passes that this pass needs again. They avoid the same servers.
    pub(crate) fn for_forward(&self) -> Self {
        Self { excluded: self.excluded.clone(), undecided: self.undecided.clone(), ..Self::new(Pass::Forward) }
    }

    pub(crate) fn pass(&self) -> Pass {
        self.pass
    }

    pub(crate) fn excluded(&self) -> &[ServerId] {
        &self.excluded
    }

    /// Restores time and retries after a successful call. The doubts stay until they are settled.
    pub(crate) fn reset(&mut self) {
        self.since = None;
        self.retries.clear();
    }

    /// Starts the time at the first failure.
    pub(crate) fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Returns the part of `wait` that is left. The time starts with the first failure or call of this.
    pub(crate) fn remaining(&mut self, wait: Duration) -> Duration {
        wait.saturating_sub(self.since.get_or_insert_with(Instant::now).elapsed())
    }

    /// Returns the delay before a retry on the same server; `None` if another server is needed.
    pub(crate) fn next_delay(&mut self, server: ServerId, retry: Retry) -> Option<Duration> {
        let retries = self.retries.entry(server).or_default();
        if retry == Retry::Here && *retries < MAX_RETRIES {
            *retries += 1;
            return Some(FIRST_DELAY * 2_u32.pow(*retries - 1));
        }
        self.retries.remove(&server);
        None
    }

    /// Returns the time of the failures if they have lasted for `wait`.
    pub(crate) fn exhausted_after(&self, wait: Duration) -> Option<Duration> {
        let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        (waited >= wait).then_some(waited)
    }

    /// Records a doubtful answer. Returns the error if another server has answered a call for some of its blocks in the same
    /// way before, or this one has.
    pub(crate) fn doubt(&mut self, doubt: Doubt) -> Option<RemoteError> {
        let span = doubt.hop.span;
        let is_alike = |other: &Doubt| other.is_refusal() == doubt.is_refusal() && other.is_about(span);
        let is_confirmed = self.doubts.iter().any(is_alike);
        self.doubts.push(doubt);
        if is_confirmed { self.doubtful_error(span) } else { None }
    }

    /// Avoids a server until the doubts are settled.
    pub(crate) fn exclude(&mut self, server: ServerId) {
        self.excluded.push(server);
    }

    /// Sets the error of a pass for which no other server is available now.
    pub(crate) fn set_undecided(&mut self, error: RemoteError) {
        self.undecided = Some(error);
    }

    pub(crate) fn undecided(&self) -> Option<RemoteError> {
        self.undecided.clone()
    }

    /// Returns the error of the last doubtful answer for blocks of `span`, with the like answers before it.
    pub(crate) fn doubtful_error(&self, span: Span) -> Option<RemoteError> {
        let answers: Vec<&Doubt> = self.doubts.iter().filter(|doubt| doubt.is_about(span)).collect();
        let last = answers.last()?;
        let (mut refusals, mut servers): (Vec<Refusal>, Vec<&str>) = (Vec::new(), Vec::new());
        for Doubt { answer, .. } in &answers {
            match answer {
                DoubtfulAnswer::Refusal(refusal) if !refusals.contains(refusal) => refusals.push(refusal.clone()),
                DoubtfulAnswer::NonFinite(server, ..) if !servers.contains(&server.as_str()) => {
                    servers.push(server.as_str());
                }
                _ => {}
            }
        }
        Some(match last.answer {
            DoubtfulAnswer::Refusal(_) => RemoteError::Refused { span: last.hop.span, refusals },
            DoubtfulAnswer::NonFinite(_, span, what) => {
                RemoteError::NonFinite { server: servers.join(" and "), span, what }
            }
        })
    }

    /// Removes and returns the doubts that another server's answer has settled.
    pub(crate) fn settle(&mut self, is_settled: impl FnMut(&Doubt) -> bool) -> Vec<Doubt> {
        if self.doubts.is_empty() {
            return Vec::new();
        }
        let (settled, open) = std::mem::take(&mut self.doubts).into_iter().partition::<Vec<Doubt>, _>(is_settled);
        self.doubts = open;
        let names = |doubts: &[Doubt], server: ServerId| doubts.iter().any(|doubt| doubt.hop.server == server);
        self.excluded.retain(|&server| names(&self.doubts, server) || !names(&settled, server));
        if !settled.iter().all(Doubt::is_refusal) {
            self.undecided = None;
        }
        settled
    }
}

/// Backoff of relays, by sender and receiver.
#[derive(Debug, Default)]
pub(crate) struct RelayBackoff(RefCell<HashMap<(ServerId, ServerId), Backoff>>);

#[derive(Debug, Clone, Copy)]
struct Backoff {
    until: Instant,
    next: Duration,
}

impl RelayBackoff {
    /// True if a pair of neighbours of the route failed recently.
    pub(crate) fn is_active(&self, route: &[Hop]) -> bool {
        let now = Instant::now();
        pairs(route).any(|pair| self.0.borrow().get(&pair).is_some_and(|backoff| now < backoff.until))
    }

    pub(crate) fn record_failure(&self, route: &[Hop]) {
        let now = Instant::now();
        for pair in pairs(route) {
            let mut backoffs = self.0.borrow_mut();
            let backoff = backoffs.entry(pair).or_insert(Backoff { until: now, next: FIRST_RELAY_BACKOFF });
            // Micro-batches that fail together count once.
            if backoff.until <= now {
                *backoff = Backoff { until: now + backoff.next, next: (2 * backoff.next).min(MAX_RELAY_BACKOFF) };
            }
        }
    }

    pub(crate) fn record_success(&self, route: &[Hop]) {
        pairs(route).for_each(|pair| {
            self.0.borrow_mut().remove(&pair);
        });
    }
}

fn pairs(route: &[Hop]) -> impl Iterator<Item = (ServerId, ServerId)> {
    route.windows(2).map(|pair| (pair[0].server, pair[1].server))
}

#[cfg(test)]
mod tests {
    use sepal_wire::{Failure, FailureCode};

    use super::*;

    fn hop(server: usize, start: usize, end: usize) -> Hop {
        Hop { server: ServerId(server), span: Span::new(start, end).expect("a span") }
    }

    fn refused(hop: Hop) -> Doubt {
        let failure = Failure::new(FailureCode::InvalidRequest, format!("bad {}", hop.server.0));
        Doubt { hop, answer: DoubtfulAnswer::Refusal(Refusal { server: format!("s{}", hop.server.0), failure }) }
    }

    fn non_finite(hop: Hop) -> Doubt {
        Doubt { hop, answer: DoubtfulAnswer::NonFinite(format!("s{}", hop.server.0), hop.span, "gradients") }
    }

    #[test]
    fn retries_are_counted_by_server() {
        let mut budget = RetryBudget::new(Pass::Forward);
        let [a, b] = [0, 1].map(ServerId);
        for _ in 0..MAX_RETRIES {
            assert!(budget.next_delay(a, Retry::Here).is_some());
        }
        assert_eq!(budget.next_delay(b, Retry::Here), Some(FIRST_DELAY));
        assert_eq!(budget.next_delay(a, Retry::Here), None, "its retries are used up");
        assert_eq!(budget.next_delay(b, Retry::Here), Some(2 * FIRST_DELAY), "those of the other server are not");
        assert_eq!(budget.next_delay(b, Retry::Elsewhere), None);
    }

    #[test]
    fn request_is_wrong_once_two_servers_of_its_blocks_say_so() {
        let mut budget = RetryBudget::new(Pass::Forward);
        assert!(budget.doubt(refused(hop(0, 0, 2))).is_none());
        assert!(budget.doubt(refused(hop(1, 2, 3))).is_none(), "other blocks");
        assert!(budget.doubt(non_finite(hop(2, 0, 3))).is_none(), "another answer");
        let error = budget.doubt(refused(hop(3, 1, 3))).expect("confirmed");
        let text = error.to_string();
        assert!(
            ["s0 refused a call: bad 0", "s3 refused a call: bad 3"].iter().all(|part| text.contains(part)),
            "{text}"
        );
    }

    #[test]
    fn server_that_repeats_its_refusal_is_named_once() {
        let mut budget = RetryBudget::new(Pass::Backward);
        assert!(budget.doubt(refused(hop(0, 0, 2))).is_none());
        let error = budget.doubt(refused(hop(0, 0, 2))).expect("confirmed");
        assert_eq!(error.to_string(), "run blocks 0:2: server s0 refused a call: bad 0");
    }

    #[test]
    fn settled_doubts_readmit_their_servers_only() {
        let mut budget = RetryBudget::new(Pass::Backward);
        for doubt in [refused(hop(0, 0, 2)), non_finite(hop(1, 2, 3))] {
            budget.exclude(doubt.hop.server);
            assert!(budget.doubt(doubt).is_none());
        }
        budget.set_undecided(RemoteError::Stopped);
        let forward = budget.for_forward();
        assert_eq!((forward.excluded(), forward.pass()), (budget.excluded(), Pass::Forward));
        let settled = budget.settle(|doubt| doubt.hop.span.start() >= 2);
        assert_eq!(settled.iter().map(|doubt| doubt.hop.server).collect::<Vec<_>>(), [ServerId(1)]);
        assert_eq!(budget.excluded(), [ServerId(0)]);
        assert!(budget.undecided().is_none(), "no doubtful number is left");
        budget.reset();
        assert!(budget.doubtful_error(hop(0, 0, 1).span).is_some(), "success elsewhere settles nothing");
    }
}
