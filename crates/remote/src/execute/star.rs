use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, select};
use sepal_core::{HostTensor, Ragged, Span, Want};
use sepal_route::{Hop, Pass, ServerId};
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use super::finite::{all_finite, check_grads, non_finite};
use super::prefix_cache::{record_prefix, with_prefix, without_prefix};
use super::strategy::{ForwardPass, Leg, Strategy, work};
use crate::command::{MicroBatchGrads, WantedGrads};
use crate::connection::ForwardRequest;
use crate::error::{CallError, GRADIENTS, HIDDEN_STATES, PROMPTS, RemoteError};
use crate::retry::RetryBudget;
use crate::servers::Servers;
use crate::step::Step;

/// Star path: every hop starts and ends at the client, which can continue from any of them.
pub(super) struct Star<'a> {
    servers: &'a Rc<Servers>,
}

/// Legs of a micro-batch with their inputs.
pub(super) struct StarTrace {
    prefix_len: usize,
    rows: Ragged,
    legs: Vec<StarLeg>,
}

struct StarLeg {
    leg: Leg,
    input: HostTensor,
    want: Want,
}

impl StarTrace {
    fn new(batch: &WireBatch) -> Self {
        Self { prefix_len: batch.prefix_len, rows: batch.rows.clone(), legs: Vec::new() }
    }

    /// Returns the batch that entered a leg.
    fn batch(&self, leg: &StarLeg) -> WireBatch {
        let (prefix_len, rows, hidden) = (self.prefix_len, self.rows.clone(), leg.input.clone());
        WireBatch { prefix_len, prefix_cached: false, rows, hidden }
    }
}

impl Strategy for Star<'_> {
    type Trace = StarTrace;
    type Error = RemoteError;

    async fn forward(&self, pass: ForwardPass<'_>, route: Vec<Hop>) -> Result<(HostTensor, StarTrace), RemoteError> {
        let mut trace = StarTrace::new(pass.batch);
        let output = self.advance(&mut trace, pass, self.servers.span, route).await?;
        self.check_finite(&trace, &output)?;
        Ok((output, trace))
    }

    /// Runs the legs backward, last first, until all wanted gradients are there. A leg whose server fails is repeated,
    /// forward from its input on the remaining servers, which may take several hops.
    async fn backward(
        &self,
        step: &Step,
        trace: &mut StarTrace,
        grad_output: HostTensor,
        want: WantedGrads,
    ) -> Result<MicroBatchGrads, RemoteError> {
        let mut grads = MicroBatchGrads::default();
        let mut grad_output = Some(grad_output);
        let mut budget = RetryBudget::default();
        let input_want = want.input_of(trace.prefix_len);
        let end = step.backward_end(input_want, self.servers.options().first_block);
        while let Some(mut star_leg) = trace.legs.pop() {
            let Some(grad) = grad_output.as_ref() else { break };
            let hop = star_leg.leg.hop;
            let input = if hop.span.start() <= end { input_want } else { InputGrad::All };
            let has_tape = star_leg.leg.live_tape(&self.servers.peer(hop.server)).is_some();
            if !has_tape {
                star_leg.leg.tape = None;
            }
            let leg_want = GradWant { input, tunables: want.tunables, dtype: self.servers.options().dtype() };
            match self.leg_backward(step, trace, &star_leg, grad, leg_want).await {
                Ok(leg_grads) => {
                    budget.reset();
                    if !all_finite(leg_grads.input.as_ref(), &leg_grads.tunables) {
                        // Its input was finite, so this server produced them.
                        return Err(non_finite(self.servers, hop, leg_grads.not_finite, GRADIENTS));
                    }
                    grads.tunables.extend(leg_grads.tunables);
                    grad_output = leg_grads.input;
                }
                Err(error) if has_tape && error.is_tape_expired() => {
                    tracing::debug!(span = %hop.span, "a tape expired; sending the inputs again");
                    star_leg.leg.tape = None;
                    trace.legs.push(star_leg);
                }
                Err(error) => {
                    self.servers.handle_failure(hop, error, &mut budget).await?;
                    let (batch, want) = (&trace.batch(&star_leg), star_leg.want);
                    let pass = ForwardPass { step, batch, want, keep_tape: true };
                    self.advance(trace, pass, hop.span, Vec::new()).await?;
                }
            }
        }
        grads.input = grad_output;
        Ok(grads)
    }
}

impl<'a> Star<'a> {
    pub(super) fn new(servers: &'a Rc<Servers>) -> Self {
        Self { servers }
    }

    /// Runs a batch forward again, with tapes.
    pub(super) async fn recompute(
        &self,
        step: &Step,
        span: Span,
        batch: &WireBatch,
        want: Want,
    ) -> Result<StarTrace, RemoteError> {
        let mut trace = StarTrace::new(batch);
        let pass = ForwardPass { step, batch, want, keep_tape: true };
        self.advance(&mut trace, pass, span, Vec::new()).await?;
        Ok(trace)
    }

    /// Moves a batch through `span` and adds the legs to the trace. If a server fails, the batch continues on others from
    /// the block that it has reached.
    async fn advance(
        &self,
        trace: &mut StarTrace,
        pass: ForwardPass<'_>,
        span: Span,
        route: Vec<Hop>,
    ) -> Result<HostTensor, RemoteError> {
        let mut batch = pass.batch.clone();
        let mut start = span.start();
        let mut route = VecDeque::from(route);
        let mut budget = RetryBudget::default();
        loop {
            let remaining = Span::new(start, span.end()).map_err(RemoteError::local)?;
            let next = route.pop_front().filter(|hop| self.servers.router().is_available(hop.server));
            let Some(hop) = next else {
                route = self.servers.wait_for_route(remaining, batch.positions(), &mut budget).await?.into();
                continue;
            };
            let is_last = hop.span.end() == span.end();
            let want = if is_last { pass.want } else { Want::All };
            match self.hedged_hop(hop, ForwardPass { batch: &batch, want, ..pass }).await {
                Ok((output, leg)) => {
                    budget.reset();
                    let input = std::mem::replace(&mut batch.hidden, output);
                    trace.legs.push(StarLeg { leg, input, want });
                    start = hop.span.end();
                    if is_last {
                        return Ok(batch.hidden);
                    }
                }
                Err(error) => {
                    self.servers.handle_failure(hop, error, &mut budget).await?;
                    route.clear();
                }
            }
        }
    }

    /// Runs one hop. With hedging, a straggler's batch is also sent to a replica, and the first answer is used.
    async fn hedged_hop(&self, hop: Hop, pass: ForwardPass<'_>) -> Result<(HostTensor, Leg), CallError> {
        let first = self.hop(hop, pass);
        let Some(delay) = self.hedge_delay(hop, pass.batch) else { return first.await };
        let second = async {
            tokio::time::sleep(delay).await;
            let replica = self.replica(hop, pass.batch)?;
            self.hop(replica, pass).await.ok()
        };
        let (mut first, mut second) = (pin!(first), pin!(second));
        match select(first.as_mut(), second.as_mut()).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((Some(answer), _)) => {
                self.servers.router().mark_straggler(hop.server);
                Ok(answer)
            }
            // There is no replica or it failed; the first call goes on.
            Either::Right((None, first)) => first.await,
        }
    }

    fn hedge_delay(&self, hop: Hop, batch: &WireBatch) -> Option<Duration> {
        let is_enabled = self.servers.options().hedge;
        is_enabled.then(|| self.servers.router().hedge_after(hop.server, work(Pass::Forward, hop, batch))).flatten()
    }

    /// Returns the same hop on another server.
    fn replica(&self, hop: Hop, batch: &WireBatch) -> Option<Hop> {
        let excluded: &[ServerId] = &[hop.server];
        let plan = self.servers.router().plan_avoiding(hop.span, &[batch.positions()], excluded).ok()?;
        plan.routes.concat().first().copied().filter(|replica| replica.span == hop.span)
    }

    async fn hop(&self, hop: Hop, pass: ForwardPass<'_>) -> Result<(HostTensor, Leg), CallError> {
        let ForwardPass { step, batch, want, keep_tape } = pass;
        let peer = self.servers.peer(hop.server);
        let session = peer.tuned_session(hop.span, step, batch).await?;
        let generation = peer.generation();
        let shortened = without_prefix(self.servers, pass, &[hop]);
        let sent = shortened.as_ref().unwrap_or(batch);
        let request = ForwardRequest { batch: sent, want, keep_tape, relay: &sepal_wire::Relay::default() };
        let call = peer.forward(&session, request);
        let mut output = self.servers.timed_call(hop.server, work(Pass::Forward, hop, sent), call).await?;
        let leg = Leg::new(hop, &mut output, peer.generation());
        let mut hidden = output.hidden.ok_or(CallError::Missing("an output"))?;
        if shortened.is_some() {
            let complete = with_prefix(step, hop.span, hidden, want);
            hidden = complete.ok_or(CallError::Missing("an output that fits the prefix"))?;
        } else if !keep_tape && batch.prefix_len > 0 {
            record_prefix(step, hop.span, batch, &hidden, want);
            peer.note_cached_prefix(hop.span, step, generation);
        }
        Ok((hidden, leg))
    }

    async fn leg_backward(
        &self,
        step: &Step,
        trace: &StarTrace,
        star_leg: &StarLeg,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<Grads, CallError> {
        let hop = star_leg.leg.hop;
        let peer = self.servers.peer(hop.server);
        let batch = trace.batch(star_leg);
        let grads = if let Some(tape) = &star_leg.leg.tape {
            let no_relay = sepal_wire::Relay::default();
            let call = peer.backward_tape(tape, Some(grad_output), want, &no_relay);
            self.servers.timed_call(hop.server, work(Pass::Backward, hop, &batch), call).await?
        } else {
            let session = peer.tuned_session(hop.span, step, &batch).await?;
            let call = peer.backward_stateless(&session, &batch, star_leg.want, grad_output, want);
            self.servers.timed_call(hop.server, work(Pass::Stateless, hop, &batch), call).await?
        };
        check_grads(step, hop.span, &batch, want, grads)
    }

    /// Returns the error of the first server with a non-finite output if the last output is not finite.
    fn check_finite(&self, trace: &StarTrace, output: &HostTensor) -> Result<(), RemoteError> {
        if output.is_finite() {
            return Ok(());
        }
        if trace.legs.first().is_some_and(|leg| !leg.input.is_finite()) {
            // The caller's own blocks return hidden states, which are not parameters.
            let what = if self.servers.options().first_block > 0 { HIDDEN_STATES } else { PROMPTS };
            return Err(RemoteError::NonFiniteInput { what, dtype: self.servers.options().dtype() });
        }
        let outputs = trace.legs.iter().skip(1).map(|leg| &leg.input).chain([output]);
        match trace.legs.iter().zip(outputs).find(|(_, output)| !output.is_finite()) {
            Some((StarLeg { leg, .. }, _)) => Err(non_finite(self.servers, leg.hop, leg.non_finite, HIDDEN_STATES)),
            None => Ok(()),
        }
    }
}
