use std::time::Duration;

/// Weight of one measurement against all before it.
const WEIGHT: f64 = 0.3;
/// Seconds per token and block of an unknown server. Only the ratio to latencies matters.
const NOMINAL_RATE: f64 = 50e-6;
/// Seconds per token of an unmeasured transfer, so that a hop is never free.
const NOMINAL_TRANSFER: f64 = 5e-6;
/// Multiple of its usual time after which a call is late.
const LATE_FACTOR: f64 = 2.0;
/// Multiple of its usual time after which a call is hedged.
const HEDGE_FACTOR: f64 = 1.3;
/// Seconds added to the time after which a call is late, for variations of scheduling.
const LATE_SLACK: f64 = 0.3;

/// Kind of a call. Each has a speed of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Forward pass.
    Forward,
    /// Backward pass of a tape on the server.
    Backward,
    /// Forward pass again, then backward pass.
    Stateless,
}

/// Size of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Kind of the call.
    pub pass: Pass,
    /// Number of blocks.
    pub blocks: usize,
    /// Positions of the batch, including the prefix.
    pub tokens: usize,
}

impl Work {
    fn token_blocks(self) -> f64 {
        (self.tokens * self.blocks).max(1) as f64
    }
}

/// Measured times of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Time from the request to the answer, measured by the client.
    pub total: Duration,
    /// Time in the server's queue, reported by the server.
    pub queued: Duration,
    /// Time of the computation, reported by the server.
    pub computed: Duration,
}

/// Running mean; `None` before the first measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + WEIGHT * (value - mean)));
    }
}

/// Measured speed of a server, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Speed {
    /// Per token and block, by pass.
    rates: [Mean; 3],
    /// Per token and block, as the server reported before the first measurement.
    stated: Option<f64>,
    /// Of an empty call.
    round_trip: f64,
    /// Per token of a transfer, beyond the round trip.
    transfer: Mean,
    /// Of waiting for calls of other clients.
    foreign: Mean,
}

impl Speed {
    pub(crate) fn new(round_trip: Duration, stated: Option<f64>) -> Self {
        let stated = stated.filter(|rate| rate.is_finite() && *rate > 0.0);
        Self { stated, round_trip: round_trip.as_secs_f64(), ..Self::default() }
    }

    /// Adds the times of a call. `ahead` is the time of this client's calls that were queued before it.
    pub(crate) fn add(&mut self, work: Work, timing: Timing, ahead: f64) {
        // The server's figures are not trusted beyond the client's own.
        let total = timing.total.as_secs_f64();
        let computed = timing.computed.as_secs_f64().min(total);
        let queued = timing.queued.as_secs_f64().min(total - computed);
        let transfer = total - computed - queued;
        self.round_trip = self.round_trip.min(transfer);
        self.transfer.add((transfer - self.round_trip) / work.tokens.max(1) as f64);
        self.rates[work.pass as usize].add(computed / work.token_blocks());
        self.foreign.add((queued - ahead).max(0.0));
    }

    /// Halves the assumed speed of a late server until the next measurement.
    pub(crate) fn mark_late(&mut self) {
        for rate in &mut self.rates {
            rate.0 = rate.0.map(|rate| 2.0 * rate);
        }
    }

    /// Seconds per token and block of a forward pass, or `fallback` if it was never measured.
    pub(crate) fn rate(&self, fallback: Option<f64>) -> f64 {
        self.known_rate().or(fallback).unwrap_or(NOMINAL_RATE)
    }

    pub(crate) fn known_rate(&self) -> Option<f64> {
        self.rates[Pass::Forward as usize].0.or(self.stated)
    }

    /// Seconds of a call beside its computation.
    pub(crate) fn overhead(&self, tokens: usize) -> f64 {
        self.round_trip + self.transfer.0.unwrap_or(NOMINAL_TRANSFER) * tokens as f64 + self.foreign.0.unwrap_or(0.0)
    }

    /// Seconds of the computation, if such a pass was measured.
    pub(crate) fn compute(&self, work: Work) -> Option<f64> {
        self.rates[work.pass as usize].0.map(|rate| rate * work.token_blocks())
    }

    /// Time after which a call is late if `ahead` seconds of our own are queued before it; `None` if the pass was never
    /// measured.
    pub(crate) fn late_after(&self, work: Work, ahead: f64) -> Option<Duration> {
        let usual = self.usual_seconds(work, ahead)?;
        Duration::try_from_secs_f64(LATE_FACTOR * usual + LATE_SLACK).ok()
    }

    /// Time after which a replica gets the call as well.
    pub(crate) fn hedge_after(&self, work: Work, ahead: f64) -> Option<Duration> {
        Duration::try_from_secs_f64(HEDGE_FACTOR * self.usual_seconds(work, ahead)?).ok()
    }

    fn usual_seconds(&self, work: Work, ahead: f64) -> Option<f64> {
        Some(self.compute(work)? + self.overhead(work.tokens) + ahead)
    }
}
