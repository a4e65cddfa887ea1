use sepal_core::{HostTensor, Want};
use sepal_wire::codec::{self, GradWant, Grads, WireBatch};
use sepal_wire::{Relay, Timing};

use super::handle::{Tape, TunedSession};
use super::peer::Peer;
use super::rpc::check_failure;
use crate::error::CallError;

/// Arguments of a forward call.
#[derive(Clone, Copy)]
pub(crate) struct ForwardRequest<'a> {
    pub(crate) batch: &'a WireBatch,
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
}

impl Peer {
    /// Runs a span forward.
    pub(crate) async fn forward(
        &self,
        tuned: &TunedSession,
        request: ForwardRequest<'_>,
    ) -> Result<(ForwardOutput, Timing), CallError> {
        let ForwardRequest { batch, want, keep_tape, relay } = request;
        self.check_want(want)?;
        let parts = &tuned.parts;
        let mut request = tuned.client.forward_request();
        let mut params = request.get();
        match relay.from {
            None => codec::write_batch(params.reborrow().init_batch(), batch, parts),
            Some(_) => codec::write_rows(params.reborrow().init_batch(), batch),
        }
        params.set_want(codec::want_to_wire(want));
        params.set_keep_tape(keep_tape);
        params.set_dtype(codec::dtype_to_wire(self.dtype()));
        relay.write(params.init_relay());
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        let hidden = match relay.next {
            None => Some(codec::read_tensor(results.get_output()?, parts)?),
            Some(_) => None,
        };
        let expected = [want.positions(batch.prefix_slots(), &batch.rows), self.shared.expected.hidden];
        if hidden.as_ref().is_some_and(|hidden| hidden.shape() != expected || hidden.dtype() != self.dtype()) {
            return Err(CallError::Missing("an output of the right shape and dtype"));
        }
        let tape = if keep_tape && results.has_tape() { Some(tuned.with_client(results.get_tape()?)) } else { None };
        let non_finite = codec::block_from_wire(results.get_not_finite());
        Ok((ForwardOutput { hidden, tape, non_finite }, Timing::read(results.get_timing()?)))
    }

    /// Runs a tape backward. `grad_output` is `None` if another server sends it.
    pub(crate) async fn backward_tape(
        &self,
        tape: &Tape,
        grad_output: Option<&HostTensor>,
        want: GradWant,
        relay: &Relay,
    ) -> Result<(Grads, Timing), CallError> {
        let parts = &tape.parts;
        let mut request = tape.client.backward_request();
        let mut params = request.get();
        if let Some(grad_output) = grad_output {
            codec::write_tensor(params.reborrow().init_grad_output(), grad_output, parts);
        }
        codec::write_grad_want(params.reborrow().init_grad(), want);
        relay.write(params.init_relay());
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        Ok((codec::read_grads(results.get_grads()?, parts)?, Timing::read(results.get_timing()?)))
    }

    /// Runs a span forward again and then backward.
    pub(crate) async fn backward_stateless(
        &self,
        tuned: &TunedSession,
        batch: &WireBatch,
        want_output: Want,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<(Grads, Timing), CallError> {
        let parts = &tuned.parts;
        let mut request = tuned.client.backward_request();
        let mut params = request.get();
        codec::write_batch(params.reborrow().init_batch(), batch, parts);
        params.set_want(codec::want_to_wire(want_output));
        codec::write_tensor(params.reborrow().init_grad_output(), grad_output, parts);
        codec::write_grad_want(params.init_grad(), want);
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        Ok((codec::read_grads(results.get_grads()?, parts)?, Timing::read(results.get_timing()?)))
    }
}
