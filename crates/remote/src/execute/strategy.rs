use sepal_core::{HostTensor, Want};
use sepal_route::{Hop, Pass, Work};
use sepal_wire::codec::WireBatch;

use crate::command::{MicroBatchGrads, WantedGrads};
use crate::connection::{ForwardOutput, Peer, Tape};
use crate::step::Step;
use crate::verify::PendingCheck;

/// Path of micro-batches through the servers of a route.
pub(super) trait Strategy {
    /// Record of a forward pass for its backward pass.
    type Trace;
    /// Error of an attempt.
    type Error;

    /// Runs a micro-batch forward. Returns the hidden states that the pass wants.
    async fn forward(&self, pass: ForwardPass<'_>, route: Vec<Hop>) -> Result<(HostTensor, Self::Trace), Self::Error>;

    /// Runs a micro-batch backward.
    async fn backward(
        &self,
        step: &Step,
        trace: &mut Self::Trace,
        grad_output: HostTensor,
        want: WantedGrads,
    ) -> Result<MicroBatchGrads, Self::Error>;
}

/// Arguments of a forward pass.
#[derive(Clone, Copy)]
pub(super) struct ForwardPass<'a> {
    pub(super) step: &'a Step,
    pub(super) batch: &'a WireBatch,
    /// Output of the last hop.
    pub(super) want: Want,
    pub(super) keep_tape: bool,
}

/// Completed hop of a forward pass, with the tape that it left on the server.
pub(super) struct Leg {
    pub(super) hop: Hop,
    pub(super) tape: Option<Tape>,
    /// Generation of the connection that holds the tape.
    pub(super) generation: u64,
    /// First block whose hidden states are not finite.
    pub(super) non_finite: Option<usize>,
    /// Check of the hop that waits for its backward call.
    pub(super) check: Option<PendingCheck>,
}

impl Leg {
    pub(super) fn new(hop: Hop, output: &mut ForwardOutput, generation: u64) -> Self {
        Self { hop, tape: output.tape.take(), generation, non_finite: output.non_finite, check: None }
    }

    /// Returns the tape, unless it was lost with its connection.
    pub(super) fn live_tape(&self, peer: &Peer) -> Option<&Tape> {
        self.tape.as_ref().filter(|_| peer.generation() == self.generation)
    }
}

/// Returns the work of one hop.
pub(super) fn work(pass: Pass, hop: Hop, batch: &WireBatch) -> Work {
    Work { pass, blocks: hop.span.len(), tokens: batch.positions() }
}
