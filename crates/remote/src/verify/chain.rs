//! Repetition of a call on other servers or on the blocks of this process.

use std::rc::Rc;
use std::sync::Arc;

use sepal_core::{HostTensor, HostTunable, Span, Want};
use sepal_route::{Hop, Pass, ServerId, Work};
use sepal_swarm::{Receipt, Sha256, Statement, Witness, backward_call, forward_call};
use sepal_wire::Relay;
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use super::compare::Output;
use crate::connection::{BackwardOutput, ExpectedGrads, ForwardRequest, Peer, Tape, TunedSession};
use crate::error::CallError;
use crate::servers::Servers;
use crate::step::Step;

/// Call that can be made again.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) step: Arc<Step>,
    pub(super) span: Span,
    /// Batch with its prefix.
    pub(super) batch: WireBatch,
    pub(super) want: Want,
    /// Gradient of the output and wanted gradients, of a call that is made forward and backward.
    pub(super) backward: Option<(HostTensor, GradWant)>,
}

/// Servers that make a call again, each a part of it.
#[derive(Clone)]
pub(super) struct Chain {
    links: Vec<Link>,
}

#[derive(Clone)]
struct Link {
    span: Span,
    peer: Rc<Peer>,
    /// `None` for the blocks of this process.
    server: Option<ServerId>,
}

/// Results of a chain.
pub(super) struct Repetition {
    pub(super) forward: Repeated,
    /// `None` for a call that is made forward only.
    pub(super) backward: Option<Repeated>,
}

/// Result of a chain in one direction.
pub(super) struct Repeated {
    pub(super) output: Output,
    /// Answers of the servers that make up the result.
    pub(super) witnesses: Vec<Witness>,
}

/// Link whose forward call has been made.
struct PassedLink<'a> {
    link: &'a Link,
    /// Input of the link.
    batch: WireBatch,
    hidden: HostTensor,
    /// `None` if the backward pass does not reach the link.
    tape: Option<Tape>,
    witness: Witness,
}

impl Repetition {
    fn is_finite(&self) -> bool {
        self.forward.output.is_finite() && self.backward.as_ref().is_none_or(|backward| backward.output.is_finite())
    }

    /// Result of the direction in which the call was made last.
    pub(super) fn last(self) -> Repeated {
        self.backward.unwrap_or(self.forward)
    }
}

impl Chain {
    /// Blocks of this process, if it has any for checks.
    fn own(servers: &Servers, span: Span) -> Option<Self> {
        let peer = servers.verifier.own_peer(servers)?;
        Some(Self { links: vec![Link { span, peer, server: None }] })
    }

    /// Fastest available servers for `span` without those of `excluded`.
    fn others(servers: &Servers, span: Span, positions: usize, excluded: &[ServerId]) -> Option<Self> {
        let plan = servers.router().plan_avoiding(span, &[positions], excluded).ok()?;
        Some(Self::through(servers, &plan.routes.concat()))
    }

    /// One of the available servers that hold all of `span`, at random, without those of `excluded`.
    fn any_other(servers: &Servers, span: Span, excluded: &[ServerId]) -> Option<Self> {
        let replicas: Vec<ServerId> = {
            let router = servers.router();
            let is_replica = |&server: &ServerId| router.is_available(server) && router.span(server).covers(span);
            router.holders(span, excluded).into_iter().filter(is_replica).collect()
        };
        let last = replicas.len().checked_sub(1)?;
        let server = replicas[rand::random_range(0..=last)];
        Some(Self::through(servers, &[Hop { server, span }]))
    }

    /// Makes a call again on the blocks of this process, or else on servers without those of `excluded`; on others if they
    /// fail. In this share of the cases the server is chosen at random, in the others it is the fastest: otherwise a fast
    /// server would make all checks of its accomplice.
    pub(super) async fn repeat_elsewhere(
        servers: &Rc<Servers>,
        call: &Call,
        excluded: &[ServerId],
        random_share: f64,
    ) -> Option<(Self, Repetition)> {
        let (span, positions) = (call.span, call.batch.positions());
        let mut excluded = excluded.to_vec();
        let mut next = Self::own(servers, span);
        loop {
            let random =
                || rand::random_bool(random_share).then(|| Self::any_other(servers, span, &excluded)).flatten();
            // One server, if one has all blocks: a wrong part of a chain makes all of it wrong.
            let planned = || {
                let planned = Self::others(servers, span, positions, &excluded)?;
                let whole = (planned.links.len() > 1).then(|| Self::any_other(servers, span, &excluded)).flatten();
                Some(whole.unwrap_or(planned))
            };
            let chain = next.or_else(random).or_else(planned)?;
            match chain.repeat(servers, call).await {
                Ok(repetition) if repetition.is_finite() => return Some((chain, repetition)),
                Ok(_) => tracing::debug!(%span, servers = ?chain.servers(), "a check is not finite"),
                Err(error) => tracing::debug!(%span, servers = ?chain.servers(), %error, "a call could not be checked"),
            }
            excluded.extend(chain.servers());
            next = None;
        }
    }

    /// For each hop of a route, other servers than that of the hop and those of `excluded`: all of them in one chain.
    pub(super) fn beside(servers: &Servers, route: &[Hop], positions: usize, excluded: &[ServerId]) -> Option<Self> {
        let part = |hop: &Hop| Self::others(servers, hop.span, positions, &[excluded, &[hop.server]].concat());
        let parts = route.iter().map(part).collect::<Option<Vec<Self>>>()?;
        Some(Self { links: parts.into_iter().flat_map(|part| part.links).collect() })
    }

    /// Servers of a route.
    pub(super) fn through(servers: &Servers, route: &[Hop]) -> Self {
        let link = |hop: &Hop| Link { span: hop.span, peer: servers.peer(hop.server), server: Some(hop.server) };
        Self { links: route.iter().map(link).collect() }
    }

    /// True for the blocks of this process.
    pub(super) fn is_own(&self) -> bool {
        self.links.iter().all(|link| link.server.is_none())
    }

    /// Hops of the chain on servers.
    pub(super) fn route(&self) -> Vec<Hop> {
        let hop = |link: &Link| Some(Hop { server: link.server?, span: link.span });
        self.links.iter().filter_map(hop).collect()
    }

    /// Servers of the chain, each once.
    pub(super) fn servers(&self) -> Vec<ServerId> {
        let mut servers: Vec<ServerId> = self.links.iter().filter_map(|link| link.server).collect();
        servers.sort_unstable();
        servers.dedup();
        servers
    }

    /// Makes a call again: forward and, for a call that has a backward pass, backward on the tapes of the forward pass.
    pub(super) async fn repeat(&self, servers: &Rc<Servers>, call: &Call) -> Result<Repetition, CallError> {
        let first_block = servers.options().first_block;
        // Servers whose blocks no wanted gradient needs make no backward call.
        let end = call.backward.as_ref().map(|(_, want)| call.step.backward_end(want.input, first_block));
        let mut passed: Vec<PassedLink<'_>> = Vec::new();
        for link in &self.links {
            let previous = passed.last().map_or(&call.batch.hidden, |passed| &passed.hidden);
            let batch = WireBatch { hidden: previous.clone(), ..call.batch.clone() };
            let keep_tape = end.is_some_and(|end| link.span.end() > end);
            passed.push(link.forward(servers, call, batch, keep_tape).await?);
        }
        let hidden = passed.last().ok_or(CallError::Missing("an output"))?.hidden.clone();
        let witnesses = passed.iter().map(|passed| passed.witness.clone()).collect();
        let forward = Repeated { output: Output::Hidden(hidden), witnesses };
        let backward = match (&call.backward, end) {
            (Some((grad_output, want)), Some(end)) => {
                Some(Self::backward(servers, call, passed, (grad_output, *want), end).await?)
            }
            _ => None,
        };
        Ok(Repetition { forward, backward })
    }

    /// Runs the links backward to the block `end`.
    async fn backward(
        servers: &Rc<Servers>,
        call: &Call,
        mut passed: Vec<PassedLink<'_>>,
        (grad_output, want): (&HostTensor, GradWant),
        end: usize,
    ) -> Result<Repeated, CallError> {
        let (mut grads, mut witnesses) = (Vec::new(), Vec::new());
        let mut grad = Some(grad_output.clone());
        while let Some(last) = passed.pop() {
            let span = last.link.span;
            if span.end() <= end {
                break;
            }
            let is_first = passed.is_empty() || span.start() <= end;
            let link_want = GradWant { input: if is_first { want.input } else { InputGrad::All }, ..want };
            let grad_output = grad.take().ok_or(CallError::Missing("the requested gradient of the input"))?;
            let (answer, witness) = last.backward(servers, call, &grad_output, link_want).await?;
            witnesses.push(witness);
            grad.clone_from(&answer.input);
            grads.push(answer);
        }
        grads.reverse();
        witnesses.reverse();
        let tunables = join(grads.into_iter().flat_map(|part: Grads| part.tunables))?;
        let output = Output::Grads(Grads { input: grad, tunables, not_finite: None });
        Ok(Repeated { output, witnesses })
    }
}

impl PassedLink<'_> {
    /// Makes the backward call, on the tape while the server has it.
    async fn backward(
        &self,
        servers: &Rc<Servers>,
        call: &Call,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<(Grads, Witness), CallError> {
        let (link, batch) = (self.link, &self.batch);
        let output_want = call.want_of(link.span);
        let expected = ExpectedGrads::new(&call.step, link.span, batch, servers.shared.expected.hidden, want)?;
        let tape = self.tape.as_ref().ok_or(CallError::Missing("the tape"))?;
        let no_relay = Relay::default();
        let made = link.peer.backward_tape(tape, Some(grad_output), want, &expected, &no_relay);
        let answer = match link.timed(servers, Pass::Backward, batch, made).await {
            Err(error) if error.is_tape_expired() => {
                let session = link.session(servers, Pass::Stateless, call, batch).await?;
                let made = link.peer.backward_stateless(&session, batch, output_want, grad_output, want, &expected);
                link.timed(servers, Pass::Stateless, batch, made).await?
            }
            answer => answer?,
        };
        let BackwardOutput { grads, receipt } = answer;
        let part = Part { step: &call.step, span: link.span, batch, want: output_want };
        let witness = part.backward_witness(servers, &link.peer, (grad_output, want), &grads, receipt);
        Ok((grads, witness))
    }
}

impl Call {
    /// Output of a part of the call.
    fn want_of(&self, part: Span) -> Want {
        if part.end() == self.span.end() { self.want } else { Want::All }
    }
}

impl Link {
    /// Makes the forward call of a part of `call`.
    async fn forward(
        &self,
        servers: &Rc<Servers>,
        call: &Call,
        batch: WireBatch,
        keep_tape: bool,
    ) -> Result<PassedLink<'_>, CallError> {
        let want = call.want_of(self.span);
        let session = self.session(servers, Pass::Forward, call, &batch).await?;
        let request = ForwardRequest { batch: &batch, span: self.span, want, keep_tape, relay: &Relay::default() };
        let made = self.peer.forward(&session, request);
        let answer = self.timed(servers, Pass::Forward, &batch, made).await?;
        let hidden = answer.hidden.ok_or(CallError::Missing("an output"))?;
        let part = Part { step: &call.step, span: self.span, batch: &batch, want };
        let witness = part.forward_witness(servers, &self.peer, &hidden, answer.receipt);
        Ok(PassedLink { link: self, batch, hidden, tape: answer.tape, witness })
    }

    /// Starts the session of a call.
    async fn session(
        &self,
        servers: &Rc<Servers>,
        pass: Pass,
        call: &Call,
        batch: &WireBatch,
    ) -> Result<TunedSession, CallError> {
        let session = self.peer.tuned_session(self.span, &call.step, batch).await;
        session.inspect_err(|error| self.note_failure(servers, pass, error))
    }

    /// Makes a call under its deadline.
    async fn timed<T>(
        &self,
        servers: &Rc<Servers>,
        pass: Pass,
        batch: &WireBatch,
        call: impl Future<Output = Result<(T, sepal_wire::Timing), CallError>>,
    ) -> Result<T, CallError> {
        let Some(server) = self.server else {
            return self.peer.with_deadline(None, call).await.map(|(value, _)| value);
        };
        let work = Work { pass, blocks: self.span.len(), tokens: batch.positions() };
        let answer = servers.timed_call(server, work, call).await;
        answer.inspect_err(|error| self.note_failure(servers, pass, error))
    }

    /// Takes a server that does not answer out of the routes: calls of the step would wait for it as well.
    fn note_failure(&self, servers: &Rc<Servers>, pass: Pass, error: &CallError) {
        let Some(server) = self.server else { return };
        if !matches!(error, CallError::Failure(_) | CallError::Disconnected) {
            servers.fail(Hop { server, span: self.span }, error, pass);
        }
    }
}

/// Joins the gradients of the parts of tunables, in the order of the blocks.
pub(super) fn join(parts: impl Iterator<Item = HostTunable>) -> Result<Vec<HostTunable>, CallError> {
    let mut joined: Vec<HostTunable> = Vec::new();
    for part in parts {
        match joined.iter_mut().find(|known| known.name == part.name) {
            None => joined.push(part),
            Some(known) => {
                let tensor = known.tensor.followed_by(&part.tensor);
                known.tensor = tensor.ok_or(CallError::Missing("the requested gradients of the tunables"))?;
            }
        }
    }
    Ok(joined)
}

/// Call to one server, as its statement names it.
pub(super) struct Part<'a> {
    pub(super) step: &'a Step,
    pub(super) span: Span,
    /// Batch as it was sent.
    pub(super) batch: &'a WireBatch,
    pub(super) want: Want,
}

impl Part<'_> {
    pub(super) fn forward_witness(
        &self,
        servers: &Servers,
        peer: &Peer,
        hidden: &HostTensor,
        receipt: Option<Receipt>,
    ) -> Witness {
        let call = forward_call(self.want, servers.options().dtype());
        self.witness(servers, peer, call, (self.batch_hash(), Sha256::of_tensor(hidden)), receipt)
    }

    pub(super) fn backward_witness(
        &self,
        servers: &Servers,
        peer: &Peer,
        (grad_output, want): (&HostTensor, GradWant),
        grads: &Grads,
        receipt: Option<Receipt>,
    ) -> Witness {
        let call = backward_call(self.want, want.dtype, want.input.name(), want.tunables);
        let input = Sha256::of_backward_input(self.batch_hash(), grad_output);
        let output = Sha256::of_grads(grads.input.as_ref(), &grads.tunables);
        self.witness(servers, peer, call, (input, output), receipt)
    }

    fn batch_hash(&self) -> Sha256 {
        let WireBatch { prefix_len, prefix_cached, rows, hidden } = self.batch;
        Sha256::of_batch(*prefix_len, *prefix_cached, rows, hidden)
    }

    fn witness(
        &self,
        servers: &Servers,
        peer: &Peer,
        call: String,
        (input, output): (Sha256, Sha256),
        receipt: Option<Receipt>,
    ) -> Witness {
        let tunables = self.step.slice_tunables(self.span).unwrap_or_default();
        let (model, span) = (servers.shared.expected.digest.clone(), self.span);
        let statement = Statement { model, span, call, tunables: Sha256::of_tunables(&tunables) };
        Witness { server: peer.endpoint.to_string(), key: peer.key(), statement, input, output, receipt }
    }
}
