use sepal_core::{HostTensor, Span, Want};
use sepal_swarm::Receipt;
use sepal_wire::codec::{self, GradWant, Grads, WireBatch};
use sepal_wire::{Relay, Timing};

use super::answers::{ExpectedGrads, ExpectedTensor, check_block};
use super::handle::{Tape, TunedSession};
use super::peer::Peer;
use super::receipts::read_receipt;
use super::rpc::check_failure;
use crate::error::CallError;

/// Arguments of a forward call.
#[derive(Clone, Copy)]
pub(crate) struct ForwardRequest<'a> {
    pub(crate) batch: &'a WireBatch,
    /// Blocks of the session.
    pub(crate) span: Span,
    pub(crate) want: Want,
    pub(crate) keep_tape: bool,
    pub(crate) relay: &'a Relay,
}

/// Result of a forward call.
pub(crate) struct ForwardOutput {
    /// `None` if the server sends it to the next one.
    pub(crate) hidden: Option<HostTensor>,
    pub(crate) tape: Option<Tape>,
    /// First block whose hidden states are not finite.
    pub(crate) non_finite: Option<usize>,
    /// Receipt, if one was wanted and the server has a key.
    pub(crate) receipt: Option<Receipt>,
}

/// Result of a backward call.
pub(crate) struct BackwardOutput {
    pub(crate) grads: Grads,
    /// Receipt, if one was wanted and the server has a key.
    pub(crate) receipt: Option<Receipt>,
}

impl Peer {
    /// Runs a span forward.
    pub(crate) async fn forward(
        &self,
        tuned: &TunedSession,
        request: ForwardRequest<'_>,
    ) -> Result<(ForwardOutput, Timing), CallError> {
        let ForwardRequest { batch, span, want, keep_tape, relay } = request;
        self.check_want(want)?;
        let parts = &tuned.parts;
        let shape = [want.positions(batch.prefix_slots(), &batch.rows), self.shared.expected.hidden];
        let expected = ExpectedTensor { shape, dtype: self.dtype() };
        parts.expect_answer(expected.n_bytes());
        let mut request = tuned.client.forward_request();
        let mut params = request.get();
        match relay.from {
            None => codec::write_batch(params.reborrow().init_batch(), batch, parts),
            Some(_) => codec::write_rows(params.reborrow().init_batch(), batch),
        }
        params.set_want(codec::want_to_wire(want));
        params.set_keep_tape(keep_tape);
        params.set_dtype(codec::dtype_to_wire(self.dtype()));
        params.set_sign(self.wants_receipts() && relay.is_direct());
        relay.write(params.init_relay());
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        let hidden = match relay.next {
            None => Some(codec::read_tensor(results.get_output()?, parts)?),
            Some(_) => None,
        };
        if let Some(hidden) = &hidden {
            expected.check("hidden states of", hidden)?;
        }
        let tape = match (keep_tape, results.has_tape()) {
            (true, true) => Some(tuned.with_client(results.get_tape()?)),
            (true, false) => return Err(CallError::Missing("the tape")),
            (false, _) => None,
        };
        let non_finite = codec::block_from_wire(results.get_not_finite());
        check_block(non_finite, span)?;
        let receipt = read_receipt(results.has_receipt(), results.get_receipt())?;
        Ok((ForwardOutput { hidden, tape, non_finite, receipt }, Timing::read(results.get_timing()?)))
    }

    /// Runs a tape backward. `grad_output` is `None` if another server sends it.
    pub(crate) async fn backward_tape(
        &self,
        tape: &Tape,
        grad_output: Option<&HostTensor>,
        want: GradWant,
        expected: &ExpectedGrads,
        relay: &Relay,
    ) -> Result<(BackwardOutput, Timing), CallError> {
        let parts = &tape.parts;
        parts.expect_answer(expected.n_bytes());
        let mut request = tape.client.backward_request();
        let mut params = request.get();
        if let Some(grad_output) = grad_output {
            codec::write_tensor(params.reborrow().init_grad_output(), grad_output, parts);
        }
        codec::write_grad_want(params.reborrow().init_grad(), want);
        params.set_sign(self.wants_receipts() && relay.is_direct());
        relay.write(params.init_relay());
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        let grads = expected.check(codec::read_grads(results.get_grads()?, parts)?, self.protocol())?;
        let receipt = read_receipt(results.has_receipt(), results.get_receipt())?;
        Ok((BackwardOutput { grads, receipt }, Timing::read(results.get_timing()?)))
    }

    /// Runs a span forward again and then backward.
    pub(crate) async fn backward_stateless(
        &self,
        tuned: &TunedSession,
        batch: &WireBatch,
        want_output: Want,
        grad_output: &HostTensor,
        want: GradWant,
        expected: &ExpectedGrads,
    ) -> Result<(BackwardOutput, Timing), CallError> {
        let parts = &tuned.parts;
        parts.expect_answer(expected.n_bytes());
        let mut request = tuned.client.backward_request();
        let mut params = request.get();
        codec::write_batch(params.reborrow().init_batch(), batch, parts);
        params.set_want(codec::want_to_wire(want_output));
        codec::write_tensor(params.reborrow().init_grad_output(), grad_output, parts);
        params.set_sign(self.wants_receipts());
        codec::write_grad_want(params.init_grad(), want);
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        let grads = expected.check(codec::read_grads(results.get_grads()?, parts)?, self.protocol())?;
        let receipt = read_receipt(results.has_receipt(), results.get_receipt())?;
        Ok((BackwardOutput { grads, receipt }, Timing::read(results.get_timing()?)))
    }
}
