//! Micro-batches on their way through the chain of servers, forward and back.

use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use sepal_core::{HostTensor, NamedHostTensor, Ragged, Span, Want};
use sepal_route::{Hop, Pass, ServerId, Work};
use sepal_wire::Relay;
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use crate::error::{CallError, GRADIENTS, HIDDEN_STATES, PROMPTS, RemoteError};
use crate::held::Tape;
use crate::kept;
use crate::peer::Output;
use crate::relay::Relayed;
use crate::servers::{Servers, Trouble};
use crate::step::Step;

/// One micro-batch's way, kept for backward.
pub(crate) struct Chain {
    step: Arc<Step>,
    prefix_len: usize,
    rows: Ragged,
    legs: Vec<Leg>,
    /// Instead of legs, where servers handed on to each other.
    relayed: Option<Relayed>,
}

/// A hop that was made: what went in, and the server's tape of it.
struct Leg {
    hop: Hop,
    input: HostTensor,
    want: Want,
    tape: Option<Tape>,
    /// The first block whose hidden states were not finite.
    not_finite: Option<usize>,
    /// The connection that the tape belongs to.
    generation: u64,
}

/// What a chain's backward gives.
pub(crate) struct ChainGrads {
    /// Of what was wanted of the input: `[prefix_len, hidden]`, or of all positions.
    pub(crate) input: Option<HostTensor>,
    /// By the spans that they belong to.
    pub(crate) tunables: Vec<(Span, Vec<NamedHostTensor>)>,
}

impl ChainGrads {
    fn are_finite(&self) -> bool {
        let tunables = self.tunables.iter().flat_map(|(_, tunables)| tunables).map(|named| &named.tensor);
        self.input.iter().chain(tunables).all(HostTensor::is_finite)
    }
}

/// Which gradients a client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientWant {
    /// Of what goes into the first hop.
    pub(crate) input: InputGrad,
    pub(crate) tunables: bool,
}

impl ClientWant {
    /// The gradient of the first hop's input.
    pub(crate) fn input_of(self, prefix_len: usize) -> InputGrad {
        if self.input == InputGrad::Prefix && prefix_len == 0 { InputGrad::None } else { self.input }
    }
}

impl Servers {
    /// Runs a micro-batch through all of `span`, on `route` as long as it works; what is needed for backward is kept
    /// if `keep`.
    pub(crate) async fn forward(
        self: &Rc<Self>,
        step: Arc<Step>,
        batch: WireBatch,
        span: Span,
        keep: bool,
        route: Vec<Hop>,
    ) -> Result<(HostTensor, Chain), RemoteError> {
        let (prefix_len, rows) = (batch.prefix_len, batch.rows.clone());
        let mut chain = Chain { step, prefix_len, rows, legs: Vec::new(), relayed: None };
        if self.may_relay(&route) {
            match self.relay_forward(&chain.step, &batch, keep, &route).await {
                Ok((output, relayed)) if output.is_finite() => {
                    return Ok((output, Chain { relayed: Some(relayed), ..chain }));
                }
                // A second forward is not worth it where the numbers are expected to grow too large now and then.
                Ok((_, relayed)) if self.options().expects_overflow => {
                    return Err(self.non_finite_relay(&relayed, HIDDEN_STATES)?);
                }
                // Whose numbers are not finite is seen on the way through the client.
                Ok(_) => {}
                Err(broken) => self.relay_broke(&route, broken).await?,
            }
        }
        let output = self.advance(&mut chain, batch, span, Want::LastOfRows, keep, route).await?;
        self.check_finite(&chain, &output)?;
        Ok((output, chain))
    }

    /// Moves `batch` through `span`, adding legs to the chain. A server that fails is left, and the
    /// way goes on from the block where it stood.
    async fn advance(
        self: &Rc<Self>,
        chain: &mut Chain,
        mut batch: WireBatch,
        span: Span,
        want: Want,
        keep: bool,
        route: Vec<Hop>,
    ) -> Result<HostTensor, RemoteError> {
        let mut at = span.start();
        let mut route = VecDeque::from(route);
        let mut trouble = Trouble::default();
        loop {
            let rest = Span::new(at, span.end()).map_err(RemoteError::local)?;
            let next = route.pop_front().filter(|hop| self.router().is_available(hop.server));
            let hop = match next {
                Some(hop) => hop,
                None => {
                    route = self.route(rest, batch.positions(), &mut trouble).await?.into();
                    continue;
                }
            };
            let is_last = hop.span.end() == span.end();
            let hop_want = if is_last { want } else { Want::All };
            match self.hop(hop, &chain.step, &batch, hop_want, keep).await {
                Ok((server, output)) => {
                    trouble.over();
                    let input = std::mem::replace(&mut batch.hidden, output.hidden);
                    let Output { tape, not_finite, generation, .. } = output;
                    let hop = Hop { server, ..hop };
                    chain.legs.push(Leg { hop, input, want: hop_want, tape, not_finite, generation });
                    at = hop.span.end();
                    if is_last {
                        return Ok(batch.hidden);
                    }
                }
                Err(error) => {
                    self.judge(hop, error, &mut trouble).await?;
                    route.clear();
                }
            }
        }
    }

    /// One hop; with hedging, a straggler is also given to a replica, and the first answer wins. Says who answered.
    async fn hop(
        &self,
        hop: Hop,
        step: &Step,
        batch: &WireBatch,
        want: Want,
        keep: bool,
    ) -> Result<(ServerId, Output), CallError> {
        let first = async { Ok((hop.server, self.hop_on(hop, step, batch, want, keep).await?)) };
        let Some(after) = self.hedge_after(hop, batch) else { return first.await };
        let second = async {
            tokio::time::sleep(after).await;
            let planned = self.router().plan_avoiding(hop.span, &[batch.positions()], &[hop.server]);
            let replica = planned.ok().and_then(|plan| plan.routes.concat().first().copied());
            match replica.filter(|replica| replica.span == hop.span) {
                Some(replica) => {
                    self.hop_on(replica, step, batch, want, keep).await.ok().map(|out| (replica.server, out))
                }
                None => None,
            }
        };
        let (mut first, mut second) = (pin!(first), pin!(second));
        match select(first.as_mut(), second.as_mut()).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((Some(answer), _)) => {
                self.router().mark_straggler(hop.server);
                Ok(answer)
            }
            // No replica, or it failed, which is no reason to give up the first.
            Either::Right((None, first)) => first.await,
        }
    }

    fn hedge_after(&self, hop: Hop, batch: &WireBatch) -> Option<Duration> {
        let work = Work { pass: Pass::Forward, blocks: hop.span.len(), tokens: batch.positions() };
        self.options().hedge.then(|| self.router().hedge_after(hop.server, work)).flatten()
    }

    async fn hop_on(
        &self,
        hop: Hop,
        step: &Step,
        batch: &WireBatch,
        want: Want,
        keep: bool,
    ) -> Result<Output, CallError> {
        let peer = self.peer(hop.server);
        let tuned = peer.patiently(None, peer.tuned(hop.span, step, batch)).await?;
        let generation = peer.generation();
        let may_go_without = !keep && !self.options().deterministic && peer.has_kept(hop.span, step);
        let short = if may_go_without { kept::without_prefix(step, hop.span, batch, want) } else { None };
        let sent = short.as_ref().unwrap_or(batch);
        let work = Work { pass: Pass::Forward, blocks: hop.span.len(), tokens: sent.positions() };
        let mut output = self.measured(hop.server, work, peer.forward(&tuned, sent, want, keep)).await?;
        if short.is_some() {
            let whole = kept::with_prefix(step, hop.span, output.hidden, want);
            output.hidden = whole.ok_or(CallError::Missing("an output that fits the prefix"))?;
        } else if !keep && batch.prefix_len > 0 {
            kept::see(step, hop.span, batch, &output.hidden, want);
            peer.note_kept(hop.span, step, generation);
        }
        Ok(output)
    }

    /// Runs a chain backward, last leg first. A leg whose server fails is made again, forward from
    /// its kept input on servers that are left, which may take several hops.
    pub(crate) async fn backward(
        self: &Rc<Self>,
        mut chain: Chain,
        grad_output: HostTensor,
        want: ClientWant,
    ) -> Result<ChainGrads, RemoteError> {
        if let Some(relayed) = chain.relayed.take() {
            match self.relay_backward(&chain.step, &relayed, &grad_output, want).await {
                Ok(grads) if grads.are_finite() => return Ok(grads),
                // Somebody between the first and the last; it is worth no second backward if the loss is only too large.
                Ok(_) if self.options().expects_overflow => {
                    return Err(self.non_finite_relay(&relayed, GRADIENTS)?);
                }
                Ok(_) => {}
                Err(broken) => self.relay_broke(&relayed.way_back(), broken).await?,
            }
            let span = relayed.span()?;
            self.advance(&mut chain, relayed.batch, span, Want::LastOfRows, true, Vec::new()).await?;
        }
        let mut grads = ChainGrads { input: None, tunables: Vec::new() };
        let mut grad_output = Some(grad_output);
        let mut trouble = Trouble::default();
        while let Some(mut leg) = chain.legs.pop() {
            let Some(grad) = grad_output.as_ref() else { break };
            let is_first = leg.hop.span.start() == self.options().first_block;
            let input = if is_first { want.input_of(chain.prefix_len) } else { InputGrad::All };
            if self.peer(leg.hop.server).generation() != leg.generation {
                // The server was left since: the tape went with its connection.
                leg.tape = None;
            }
            let asked = GradWant { input, tunables: want.tunables, dtype: self.options().dtype() };
            match self.leg_backward(&chain, &leg, grad, asked).await {
                Ok(found) => {
                    trouble.over();
                    self.check_finite_grads(leg.hop, &found)?;
                    grads.tunables.push((leg.hop.span, found.tunables));
                    grad_output = found.input;
                }
                Err(error) if leg.tape.is_some() && error.is_tape_expired() => {
                    tracing::debug!(span = %leg.hop.span, "a tape expired; sending the inputs again");
                    leg.tape = None;
                    chain.legs.push(leg);
                }
                Err(error) => {
                    self.judge(leg.hop, error, &mut trouble).await?;
                    let batch = leg_batch(&chain, &leg);
                    self.advance(&mut chain, batch, leg.hop.span, leg.want, true, Vec::new()).await?;
                }
            }
        }
        grads.input = grad_output;
        Ok(grads)
    }

    async fn leg_backward(
        &self,
        chain: &Chain,
        leg: &Leg,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<Grads, CallError> {
        let peer = self.peer(leg.hop.server);
        let batch = leg_batch(chain, leg);
        let (blocks, tokens) = (leg.hop.span.len(), batch.positions());
        if let Some(tape) = &leg.tape {
            let work = Work { pass: Pass::Backward, blocks, tokens };
            let no_relay = Relay::default();
            let call = peer.backward_tape(tape, Some(grad_output), want, &no_relay);
            let grads = self.measured(leg.hop.server, work, call).await?;
            return self.check_grads(&chain.step, leg.hop.span, &batch, want, grads);
        }
        let work = Work { pass: Pass::Stateless, blocks, tokens };
        let tuned = peer.patiently(None, peer.tuned(leg.hop.span, &chain.step, &batch)).await?;
        let call = peer.backward_stateless(&tuned, &batch, leg.want, grad_output, want);
        let grads = self.measured(leg.hop.server, work, call).await?;
        self.check_grads(&chain.step, leg.hop.span, &batch, want, grads)
    }

    /// Gradients that are what was asked for: a part that is missing would count as zero.
    pub(crate) fn check_grads(
        &self,
        step: &Step,
        span: Span,
        batch: &WireBatch,
        want: GradWant,
        grads: Grads,
    ) -> Result<Grads, CallError> {
        let positions = match want.input {
            InputGrad::All => Some(batch.positions()),
            InputGrad::Prefix => Some(batch.prefix_len),
            InputGrad::None => None,
        };
        let found = grads.input.as_ref().and_then(|grad| Some((*grad.shape().first()?, grad.dtype())));
        if found != positions.map(|positions| (positions, want.input_dtype())) {
            return Err(CallError::Missing("the gradient of the input that was asked for"));
        }
        let asked = step.tunables.iter().filter(|_| want.tunables);
        let all_there = asked.clone().count() == grads.tunables.len()
            && asked.zip(&grads.tunables).all(|(asked, found)| {
                let rest = &asked.tensor.shape()[1..];
                let shape = [&[span.len()], rest].concat();
                (&found.name, found.tensor.shape(), found.tensor.dtype())
                    == (&asked.name, &shape[..], want.tunables_dtype())
            });
        if !all_there {
            return Err(CallError::Missing("the gradients of the tunables that were asked for"));
        }
        Ok(grads)
    }

    /// Names the first server whose answer is not finite, if the last answer is not.
    fn check_finite(&self, chain: &Chain, output: &HostTensor) -> Result<(), RemoteError> {
        if output.is_finite() {
            return Ok(());
        }
        let outputs = chain.legs.iter().skip(1).map(|leg| &leg.input).chain([output]);
        if chain.legs.first().is_some_and(|leg| !leg.input.is_finite()) {
            // What the caller's own blocks gave is no parameter.
            let what = if self.options().first_block > 0 { HIDDEN_STATES } else { PROMPTS };
            return Err(RemoteError::NonFiniteInput { what, dtype: self.options().dtype() });
        }
        for (leg, output) in chain.legs.iter().zip(outputs) {
            if !output.is_finite() {
                return Err(self.non_finite(leg.hop, leg.not_finite, HIDDEN_STATES));
            }
        }
        Ok(())
    }

    /// Servers are given gradients that are finite: what comes back and is not was made so by `hop`.
    fn check_finite_grads(&self, hop: Hop, grads: &Grads) -> Result<(), RemoteError> {
        let tunables = grads.tunables.iter().map(|named| &named.tensor);
        match grads.input.iter().chain(tunables).all(HostTensor::is_finite) {
            true => Ok(()),
            false => Err(self.non_finite(hop, grads.not_finite, GRADIENTS)),
        }
    }

    /// Names the block, if the server does.
    fn non_finite(&self, hop: Hop, block_idx: Option<usize>, what: &'static str) -> RemoteError {
        let block = block_idx.and_then(|block_idx| Span::new(block_idx, block_idx + 1).ok());
        let span = block.filter(|&block| hop.span.covers(block)).unwrap_or(hop.span);
        RemoteError::NonFinite { server: self.label(hop.server), span, what }
    }

    /// One of the servers of a way, whichever it was.
    fn non_finite_relay(&self, relayed: &Relayed, what: &'static str) -> Result<RemoteError, RemoteError> {
        let mut servers: Vec<String> = relayed.way_back().iter().map(|hop| self.label(hop.server)).collect();
        servers.reverse();
        Ok(RemoteError::NonFinite { server: servers.join(" or "), span: relayed.span()?, what })
    }
}

/// What went into a leg.
fn leg_batch(chain: &Chain, leg: &Leg) -> WireBatch {
    WireBatch {
        prefix_len: chain.prefix_len,
        prefix_cached: false,
        rows: chain.rows.clone(),
        hidden: leg.input.clone(),
    }
}
