//! Micro-batches on their way through the chain of servers, forward and back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sepal_core::{DType, HostTensor, NamedHostTensor, Ragged, Span, Want};
use sepal_route::{Hop, RouteError, Router, ServerId};
use sepal_wire::Retry;
use sepal_wire::codec::{GradWant, InputGrad, WireBatch};
use sepal_wire::sepal_capnp as wire;
use tokio::time::Instant;

use crate::error::{CallError, RemoteError};
use crate::peer::{Peer, Step};

/// The wait before the same server is asked again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The servers of one model, as the thread that speaks with them sees them.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) peers: Vec<Peer>,
    pub(crate) router: RefCell<Router>,
    pub(crate) started: Instant,
    /// How long a span may be without a server that answers.
    pub(crate) wait: Duration,
    pub(crate) wire_dtype: DType,
}

/// One micro-batch's way, kept for backward.
pub(crate) struct Chain {
    step: Arc<Step>,
    prefix_len: usize,
    rows: Ragged,
    legs: Vec<Leg>,
}

/// A hop that was made: what went in, and the server's tape of it.
struct Leg {
    hop: Hop,
    input: HostTensor,
    want: Want,
    tape: Option<wire::tape::Client>,
}

/// What a chain's backward gives.
pub(crate) struct ChainGrads {
    /// `[prefix_len, hidden]`.
    pub(crate) prefix: Option<HostTensor>,
    /// By the spans that they belong to.
    pub(crate) tunables: Vec<(Span, Vec<NamedHostTensor>)>,
}

/// Which gradients a client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientWant {
    pub(crate) prefix: bool,
    pub(crate) tunables: bool,
}

/// Failures in a row of one piece of work.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    here: u32,
    last: Option<String>,
}

impl Servers {
    /// Runs a micro-batch through all of `span`; what is needed for backward is kept if `keep`.
    pub(crate) async fn forward(
        &self,
        step: Arc<Step>,
        batch: WireBatch,
        span: Span,
        keep: bool,
        turn: usize,
    ) -> Result<(HostTensor, Chain), RemoteError> {
        let mut chain = Chain { step, prefix_len: batch.prefix_len, rows: batch.rows.clone(), legs: Vec::new() };
        let output = self.advance(&mut chain, batch, span, Want::LastOfRows, keep, turn).await?;
        self.check_finite(&chain, &output)?;
        Ok((output, chain))
    }

    /// Moves `batch` through `span`, adding legs to the chain. A server that fails is left, and the
    /// way goes on from the block where it stood.
    async fn advance(
        &self,
        chain: &mut Chain,
        mut batch: WireBatch,
        span: Span,
        want: Want,
        keep: bool,
        turn: usize,
    ) -> Result<HostTensor, RemoteError> {
        let mut at = span.start();
        let mut trouble = Trouble::default();
        loop {
            let rest = Span::new(at, span.end()).map_err(RemoteError::local)?;
            let hop = self.next_hop(rest, turn, &mut trouble).await?;
            let peer = &self.peers[hop.server.0];
            let is_last = hop.span.end() == span.end();
            let hop_want = if is_last { want } else { Want::All };
            match peer.forward(hop.span, &chain.step, &batch, hop_want, keep).await {
                Ok((output, tape)) => {
                    self.router.borrow_mut().succeeded(hop.server);
                    trouble = Trouble::default();
                    let input = std::mem::replace(&mut batch.hidden, output);
                    chain.legs.push(Leg { hop, input, want: hop_want, tape });
                    at = hop.span.end();
                    if is_last {
                        return Ok(batch.hidden);
                    }
                }
                Err(error) => self.judge(hop, error, &mut trouble).await?,
            }
        }
    }

    /// The next hop; waits for servers whose ban ends in time.
    async fn next_hop(&self, rest: Span, turn: usize, trouble: &mut Trouble) -> Result<Hop, RemoteError> {
        loop {
            let now = self.now_ms();
            let planned = self.router.borrow().plan(rest, turn, now);
            match planned {
                Ok(route) => return Ok(route[0]),
                Err(RouteError::Banned { block_idx, retry_at_ms }) => {
                    let since = *trouble.since.get_or_insert_with(Instant::now);
                    let pause = Duration::from_millis(retry_at_ms.saturating_sub(now).max(1));
                    if since.elapsed() + pause > self.wait {
                        let last = trouble.last.take().unwrap_or_else(|| "failed for another micro-batch".into());
                        return Err(RemoteError::NoServer { span: rest, waited: since.elapsed(), last });
                    }
                    tracing::warn!(block_idx, wait_ms = pause.as_millis() as u64, "waiting for a server");
                    tokio::time::sleep(pause).await;
                }
                Err(RouteError::Uncovered { missing }) => {
                    return Err(RemoteError::Uncovered { missing, unreachable: Vec::new() });
                }
                Err(error) => return Err(RemoteError::local(error)),
            }
        }
    }

    /// What follows from a failed call: an error if it must not be repeated, a pause if the same
    /// server may be asked again, else the server is left.
    async fn judge(&self, hop: Hop, error: CallError, trouble: &mut Trouble) -> Result<(), RemoteError> {
        let peer = &self.peers[hop.server.0];
        let server = peer.endpoint.to_string();
        let retry = match error {
            CallError::WrongModel(error) => return Err(error),
            CallError::Failure(failure) if failure.retry == Retry::Never => {
                return Err(RemoteError::Refused { server, span: hop.span, failure });
            }
            ref other => other.retry(),
        };
        tracing::warn!(%server, span = %hop.span, %error, "a server failed");
        trouble.since.get_or_insert_with(Instant::now);
        trouble.last = Some(format!("server {server}: {error}"));
        if retry == Retry::Here && trouble.here < 6 {
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(trouble.here)).await;
            trouble.here += 1;
            return Ok(());
        }
        trouble.here = 0;
        if !error.keeps_connection() {
            peer.disconnect().await;
        }
        self.router.borrow_mut().failed(hop.server, self.now_ms());
        Ok(())
    }

    /// Runs a chain backward, last leg first. A leg whose server fails is made again, forward from
    /// its kept input on servers that are left, which may take several hops.
    pub(crate) async fn backward(
        &self,
        mut chain: Chain,
        grad_output: HostTensor,
        want: ClientWant,
        turn: usize,
    ) -> Result<ChainGrads, RemoteError> {
        let mut grads = ChainGrads { prefix: None, tunables: Vec::new() };
        let mut grad_output = Some(grad_output);
        let mut trouble = Trouble::default();
        while let Some(mut leg) = chain.legs.pop() {
            let Some(grad) = grad_output.as_ref() else { break };
            let is_first = leg.hop.span.start() == 0;
            let input = match (is_first, want.prefix && chain.prefix_len > 0) {
                (false, _) => InputGrad::All,
                (true, true) => InputGrad::Prefix,
                (true, false) => InputGrad::None,
            };
            let asked = GradWant { input, tunables: want.tunables, dtype: self.wire_dtype };
            match self.leg_backward(&chain, &leg, grad, asked).await {
                Ok(found) => {
                    self.router.borrow_mut().succeeded(leg.hop.server);
                    trouble = Trouble::default();
                    self.check_grad(&leg, found.input.as_ref())?;
                    grads.tunables.push((leg.hop.span, found.tunables));
                    grad_output = found.input;
                }
                Err(error) if error.is_tape_expired() => {
                    tracing::debug!(span = %leg.hop.span, "a tape expired; sending the inputs again");
                    leg.tape = None;
                    chain.legs.push(leg);
                }
                Err(error) => {
                    self.judge(leg.hop, error, &mut trouble).await?;
                    let batch = leg_batch(&chain, &leg);
                    self.advance(&mut chain, batch, leg.hop.span, leg.want, true, turn).await?;
                }
            }
        }
        grads.prefix = grad_output;
        Ok(grads)
    }

    async fn leg_backward(
        &self,
        chain: &Chain,
        leg: &Leg,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<sepal_wire::codec::Grads, CallError> {
        let peer = &self.peers[leg.hop.server.0];
        match &leg.tape {
            Some(tape) => peer.backward_tape(tape, grad_output, want).await,
            None => {
                let batch = leg_batch(chain, leg);
                peer.backward_stateless(leg.hop.span, &chain.step, &batch, leg.want, grad_output, want).await
            }
        }
    }

    /// Names the first server whose answer is not finite, if the last answer is not.
    fn check_finite(&self, chain: &Chain, output: &HostTensor) -> Result<(), RemoteError> {
        if is_finite(output) {
            return Ok(());
        }
        let outputs = chain.legs.iter().skip(1).map(|leg| &leg.input).chain([output]);
        if chain.legs.first().is_some_and(|leg| !is_finite(&leg.input)) {
            return Err(RemoteError::NonFiniteInput { what: "prompts" });
        }
        for (leg, output) in chain.legs.iter().zip(outputs) {
            if !is_finite(output) {
                return Err(self.non_finite(leg.hop, "hidden states"));
            }
        }
        Ok(())
    }

    fn check_grad(&self, leg: &Leg, grad: Option<&HostTensor>) -> Result<(), RemoteError> {
        match grad {
            Some(grad) if !is_finite(grad) => Err(self.non_finite(leg.hop, "gradients")),
            _ => Ok(()),
        }
    }

    fn non_finite(&self, hop: Hop, what: &'static str) -> RemoteError {
        RemoteError::NonFinite { server: self.label(hop.server), span: hop.span, what }
    }

    fn label(&self, server: ServerId) -> String {
        self.peers[server.0].endpoint.to_string()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What went into a leg.
fn leg_batch(chain: &Chain, leg: &Leg) -> WireBatch {
    WireBatch { prefix_len: chain.prefix_len, rows: chain.rows.clone(), hidden: leg.input.clone() }
}

fn is_finite(tensor: &HostTensor) -> bool {
    let exponent = |mask: u16| move |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]) & mask != mask;
    let data = tensor.data();
    match tensor.dtype() {
        DType::F32 => {
            data.chunks_exact(4).all(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]).is_finite())
        }
        DType::F16 => data.chunks_exact(2).all(exponent(0x7c00)),
        DType::Bf16 => data.chunks_exact(2).all(exponent(0x7f80)),
    }
}

/// Shared with the tasks of one thread.
pub(crate) type SharedServers = Rc<Servers>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_found_in_every_dtype() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let bytes = |value: f32| match dtype {
                DType::F32 => value.to_le_bytes().to_vec(),
                DType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                DType::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            };
            let tensor = |value: f32| {
                let data = [bytes(1.0), bytes(value)].concat();
                HostTensor::new(dtype, vec![2], data.into()).expect("fits")
            };
            assert!(is_finite(&tensor(-60_000.0)));
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(!is_finite(&tensor(value)), "{value} as {dtype}");
            }
        }
    }
}
