use std::time::Duration;

/// How much one measurement weighs against all before it.
const WEIGHT: f64 = 0.3;
/// Seconds per token and block of a server of which nothing is known; only its ratio to latencies matters.
const NOMINAL_RATE: f64 = 50e-6;
/// Seconds per token on the way where nothing was measured, so that a hop is never free.
const NOMINAL_TRANSFER: f64 = 5e-6;
/// A call that takes this many times its usual time is late.
const LATE_FACTOR: f64 = 2.0;
/// A call that takes this many times its usual time is worth asking another server, too.
const HEDGE_FACTOR: f64 = 1.3;
/// What a call may be late by at least, for the chances of scheduling.
const LATE_SLACK: f64 = 0.3;

/// What a call does, since each takes its own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Forward.
    Forward,
    /// Backward of a graph that the server kept.
    Backward,
    /// Forward again, then backward.
    Stateless,
}

/// The size of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// What is done.
    pub pass: Pass,
    /// Blocks it goes through.
    pub blocks: usize,
    /// Positions of the batch, the prefix included.
    pub tokens: usize,
}

impl Work {
    fn token_blocks(self) -> f64 {
        (self.tokens * self.blocks).max(1) as f64
    }
}

/// What a call took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From sending to the answer, as the client saw it.
    pub total: Duration,
    /// Of that, in the server's queue, as the server says.
    pub queued: Duration,
    /// Of that, computing, as the server says.
    pub computed: Duration,
}

/// A running mean; `None` until the first measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + WEIGHT * (value - mean)));
    }
}

/// A server's measured speed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Speed {
    /// Seconds per token and block, by pass.
    rates: [Mean; 3],
    /// The same, as the server said before it was measured.
    stated: Option<f64>,
    /// Seconds of an empty call.
    round_trip: f64,
    /// Seconds per token on the way, beyond the round trip.
    transfer: Mean,
    /// Seconds that a call waits for other clients' calls.
    foreign: Mean,
}

impl Speed {
    pub(crate) fn new(round_trip: Duration, stated: Option<f64>) -> Self {
        let stated = stated.filter(|rate| rate.is_finite() && *rate > 0.0);
        Self { stated, round_trip: round_trip.as_secs_f64(), ..Self::default() }
    }

    /// Takes in what a call took; `ahead` is the time that our own calls ahead of it took.
    pub(crate) fn add(&mut self, work: Work, timing: Timing, ahead: f64) {
        // A server may say what it likes: its parts are at most the whole.
        let total = timing.total.as_secs_f64();
        let computed = timing.computed.as_secs_f64().min(total);
        let queued = timing.queued.as_secs_f64().min(total - computed);
        let on_the_way = total - computed - queued;
        self.round_trip = self.round_trip.min(on_the_way);
        self.transfer.add((on_the_way - self.round_trip) / work.tokens.max(1) as f64);
        self.rates[work.pass as usize].add(computed / work.token_blocks());
        self.foreign.add((queued - ahead).max(0.0));
    }

    /// The server was late: it is taken to be half as fast until it is measured again.
    pub(crate) fn mark_late(&mut self) {
        for rate in &mut self.rates {
            rate.0 = rate.0.map(|rate| 2.0 * rate);
        }
    }

    /// Seconds per token and block of a forward; `fallback` for a server that was never measured.
    pub(crate) fn rate(&self, fallback: Option<f64>) -> f64 {
        self.known_rate().or(fallback).unwrap_or(NOMINAL_RATE)
    }

    pub(crate) fn known_rate(&self) -> Option<f64> {
        self.rates[Pass::Forward as usize].0.or(self.stated)
    }

    /// Seconds that a call of so many tokens takes beside its computation.
    pub(crate) fn overhead(&self, tokens: usize) -> f64 {
        self.round_trip + self.transfer.0.unwrap_or(NOMINAL_TRANSFER) * tokens as f64 + self.foreign.0.unwrap_or(0.0)
    }

    /// Seconds of the computation alone, if such a pass was measured.
    pub(crate) fn compute(&self, work: Work) -> Option<f64> {
        self.rates[work.pass as usize].0.map(|rate| rate * work.token_blocks())
    }

    /// When a call that waits for `ahead` seconds of our own is late; `None` if the pass was never measured.
    pub(crate) fn late_after(&self, work: Work, ahead: f64) -> Option<Duration> {
        let usual = self.usual_seconds(work, ahead)?;
        Duration::try_from_secs_f64(LATE_FACTOR * usual + LATE_SLACK).ok()
    }

    /// After what time a replica is asked as well: a little more than the usual.
    pub(crate) fn hedge_after(&self, work: Work, ahead: f64) -> Option<Duration> {
        Duration::try_from_secs_f64(HEDGE_FACTOR * self.usual_seconds(work, ahead)?).ok()
    }

    fn usual_seconds(&self, work: Work, ahead: f64) -> Option<f64> {
        Some(self.compute(work)? + self.overhead(work.tokens) + ahead)
    }
}
