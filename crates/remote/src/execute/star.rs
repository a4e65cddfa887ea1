use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, select};
use sepal_core::{HostTensor, Ragged, Span, Want};
use sepal_route::{Hop, Pass, ServerId};
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use super::finite::all_finite;
use super::prefix_cache::{record_prefix, with_prefix, without_prefix};
use super::strategy::{ForwardPass, Leg, Strategy, work};
use crate::command::{MicroBatchGrads, WantedGrads};
use crate::connection::{BackwardOutput, ExpectedGrads, ForwardRequest};
use crate::error::{CallError, GRADIENTS, HIDDEN_STATES, PROMPTS, RemoteError, TOKENS};
use crate::retry::{Doubt, RetryBudget};
use crate::servers::Servers;
use crate::step::Step;
use crate::verify::{BackwardAnswer, ForwardAnswer};

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

    /// Returns the batch of a leg's input.
    fn batch(&self, input: &HostTensor) -> WireBatch {
        let (prefix_len, rows, hidden) = (self.prefix_len, self.rows.clone(), input.clone());
        WireBatch { prefix_len, prefix_cached: false, rows, hidden }
    }
}

impl Strategy for Star<'_> {
    type Trace = StarTrace;
    type Error = RemoteError;

    async fn forward(&self, pass: ForwardPass<'_>, route: Vec<Hop>) -> Result<(HostTensor, StarTrace), RemoteError> {
        let mut trace = StarTrace::new(pass.batch);
        let mut budget = RetryBudget::new(Pass::Forward);
        let output = self.advance_finite(&mut trace, pass, self.servers.span, route, &mut budget).await?;
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
        let mut budget = RetryBudget::new(Pass::Backward);
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
            match self.leg_backward(step, trace, &mut star_leg, grad, leg_want).await {
                Ok(leg_grads) if !all_finite(leg_grads.input.as_ref(), &leg_grads.tunables) => {
                    // Its input was finite, so this server produced them.
                    self.servers.handle_non_finite(hop, leg_grads.not_finite, GRADIENTS, &mut budget)?;
                    self.repeat_leg(step, trace, &star_leg, &budget).await?;
                }
                Ok(leg_grads) => {
                    budget.reset();
                    let is_passed = |doubt: &Doubt| hop.span.start() <= doubt.hop.span.start();
                    self.servers.settle(&mut budget, Some(hop.server), is_passed);
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
                    self.repeat_leg(step, trace, &star_leg, &budget).await?;
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
        self.advance_finite(&mut trace, pass, span, Vec::new(), &mut RetryBudget::new(Pass::Forward)).await?;
        Ok(trace)
    }

    /// Runs a leg forward again, with tapes, on servers that the backward pass does not avoid. Adds the new legs to the trace.
    async fn repeat_leg(
        &self,
        step: &Step,
        trace: &mut StarTrace,
        star_leg: &StarLeg,
        budget: &RetryBudget,
    ) -> Result<(), RemoteError> {
        let (batch, want) = (&trace.batch(&star_leg.input), star_leg.want);
        let pass = ForwardPass { step, batch, want, keep_tape: true };
        let mut budget = budget.for_forward();
        self.advance_finite(trace, pass, star_leg.leg.hop.span, Vec::new(), &mut budget).await.map(drop)
    }

    /// Moves a batch through `span`. Hops with non-finite outputs are repeated on other servers.
    async fn advance_finite(
        &self,
        trace: &mut StarTrace,
        pass: ForwardPass<'_>,
        span: Span,
        route: Vec<Hop>,
        budget: &mut RetryBudget,
    ) -> Result<HostTensor, RemoteError> {
        let mut output = self.advance(trace, pass, span, route, budget).await?;
        while !output.is_finite() {
            let StarLeg { leg, input, .. } = self.cut_non_finite(trace, &output)?;
            self.servers.handle_non_finite(leg.hop, leg.non_finite, HIDDEN_STATES, budget)?;
            let batch = trace.batch(&input);
            let remaining = Span::new(leg.hop.span.start(), span.end()).map_err(RemoteError::local)?;
            let pass = ForwardPass { batch: &batch, ..pass };
            output = self.advance(trace, pass, remaining, Vec::new(), budget).await?;
        }
        self.servers.settle(budget, None, |_| true);
        Ok(output)
    }

    /// Moves a batch through `span` and adds the legs to the trace. If a server fails, the batch continues on others from
    /// the block that it has reached.
    async fn advance(
        &self,
        trace: &mut StarTrace,
        pass: ForwardPass<'_>,
        span: Span,
        route: Vec<Hop>,
        budget: &mut RetryBudget,
    ) -> Result<HostTensor, RemoteError> {
        let mut batch = pass.batch.clone();
        let mut start = span.start();
        let mut route = VecDeque::from(route);
        loop {
            let remaining = Span::new(start, span.end()).map_err(RemoteError::local)?;
            let next = route.pop_front().filter(|hop| self.servers.router().is_available(hop.server));
            let Some(hop) = next else {
                route = self.servers.wait_for_route(remaining, batch.positions(), budget).await?.into();
                continue;
            };
            let is_last = hop.span.end() == span.end();
            let want = if is_last { pass.want } else { Want::All };
            let can_hedge = budget.excluded().is_empty();
            match self.hedged_hop(hop, ForwardPass { batch: &batch, want, ..pass }, can_hedge).await {
                Ok((output, leg)) => {
                    budget.reset();
                    let is_passed = |doubt: &Doubt| doubt.is_refusal() && doubt.hop.span.end() <= hop.span.end();
                    self.servers.settle(budget, Some(hop.server), is_passed);
                    let input = std::mem::replace(&mut batch.hidden, output);
                    trace.legs.push(StarLeg { leg, input, want });
                    start = hop.span.end();
                    if is_last {
                        return Ok(batch.hidden);
                    }
                }
                Err(error) => {
                    self.servers.handle_failure(hop, error, budget).await?;
                    route.clear();
                }
            }
        }
    }

    /// Runs one hop. With hedging, a straggler's batch is also sent to a replica, and the first answer is used.
    async fn hedged_hop(
        &self,
        hop: Hop,
        pass: ForwardPass<'_>,
        can_hedge: bool,
    ) -> Result<(HostTensor, Leg), CallError> {
        let peer = self.servers.peer(hop.server);
        let _permit = peer.call_permit().await;
        let first = self.hop(hop, pass);
        let delay = if can_hedge { self.hedge_delay(hop, pass.batch) } else { None };
        let Some(delay) = delay else { return first.await };
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
        let request =
            ForwardRequest { batch: sent, span: hop.span, want, keep_tape, relay: &sepal_wire::Relay::default() };
        let call = peer.forward(&session, request);
        let mut output = self.servers.timed_call(hop.server, work(Pass::Forward, hop, sent), call).await?;
        let mut leg = Leg::new(hop, &mut output, peer.generation());
        let received = output.hidden.ok_or(CallError::Missing("an output"))?;
        let mut hidden = received.clone();
        if shortened.is_some() {
            let complete = with_prefix(step, hop.span, hidden, want);
            hidden = complete.ok_or(CallError::Missing("an output that fits the prefix"))?;
        } else if !keep_tape && batch.prefix_len > 0 {
            record_prefix(step, hop.span, batch, &hidden, want);
            peer.note_cached_prefix(hop.span, step, generation);
        }
        let (hidden_states, received, receipt) = (&hidden, &received, output.receipt);
        let answer =
            ForwardAnswer { hop, step, batch, sent, want, hidden: hidden_states, received, keep_tape, receipt };
        leg.check = self.servers.check_forward(answer);
        Ok((hidden, leg))
    }

    async fn leg_backward(
        &self,
        step: &Step,
        trace: &StarTrace,
        star_leg: &mut StarLeg,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<Grads, CallError> {
        let hop = star_leg.leg.hop;
        let peer = self.servers.peer(hop.server);
        let _permit = peer.call_permit().await;
        let batch = trace.batch(&star_leg.input);
        let expected = ExpectedGrads::new(step, hop.span, &batch, self.servers.shared.expected.hidden, want)?;
        let BackwardOutput { grads, receipt } = if let Some(tape) = &star_leg.leg.tape {
            let no_relay = sepal_wire::Relay::default();
            let call = peer.backward_tape(tape, Some(grad_output), want, &expected, &no_relay);
            self.servers.timed_call(hop.server, work(Pass::Backward, hop, &batch), call).await?
        } else {
            let session = peer.tuned_session(hop.span, step, &batch).await?;
            let call = peer.backward_stateless(&session, &batch, star_leg.want, grad_output, want, &expected);
            self.servers.timed_call(hop.server, work(Pass::Stateless, hop, &batch), call).await?
        };
        let (batch, output) = (&batch, star_leg.want);
        let answer = BackwardAnswer { hop, step, batch, output, grad_output, want, grads: &grads, receipt };
        self.servers.check_backward(answer, star_leg.leg.check.take());
        Ok(grads)
    }

    /// Removes the legs from the first with a non-finite output on, and returns that one.
    fn cut_non_finite(&self, trace: &mut StarTrace, output: &HostTensor) -> Result<StarLeg, RemoteError> {
        if let Some(first) = trace.legs.first().filter(|leg| !leg.input.is_finite()) {
            // Rows that divide a block of q8 numbers cannot be looked at apart.
            let prompts = first.input.rows(0..trace.prefix_len);
            let what = match self.servers.options().first_block {
                0 if trace.prefix_len > 0 && prompts.is_none_or(|prompts| !prompts.is_finite()) => PROMPTS,
                0 => TOKENS,
                // The caller's own blocks return hidden states, which are not parameters.
                _ => HIDDEN_STATES,
            };
            return Err(RemoteError::NonFiniteInput { what, dtype: self.servers.options().dtype() });
        }
        let inputs = trace.legs.iter().skip(1).map(|leg| &leg.input);
        let first = inputs.chain([output]).position(|output| !output.is_finite());
        let cut = first.and_then(|first| trace.legs.drain(first..).next());
        cut.ok_or_else(|| RemoteError::local("a forward pass without a hop"))
    }
}
