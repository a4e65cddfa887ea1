//! Repetition of a call on other servers or on the blocks of this process.

use std::rc::Rc;
use std::sync::Arc;

use sepal_core::{HostTensor, HostTunable, Span, Want};
use sepal_route::{Hop, Pass, ServerId, Work};
use sepal_swarm::{Receipt, Sha256, Statement, Witness, backward_call, forward_call};
use sepal_wire::Relay;
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use super::compare::Output;
use crate::connection::{BackwardOutput, ExpectedGrads, ForwardRequest, Peer, TunedSession};
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
    /// Gradient of the output and wanted gradients, of a backward call.
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

/// Result of a chain.
pub(super) struct Repetition {
    pub(super) output: Output,
    /// Answers of the servers that make up the result.
    pub(super) witnesses: Vec<Witness>,
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
                Ok(repetition) if repetition.output.is_finite() => return Some((chain, repetition)),
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

    /// Makes a call again.
    pub(super) async fn repeat(&self, servers: &Rc<Servers>, call: &Call) -> Result<Repetition, CallError> {
        match &call.backward {
            None => {
                let (mut outputs, witnesses) = self.forward(servers, call, &self.links).await?;
                let output = Output::Hidden(outputs.pop().ok_or(CallError::Missing("an output"))?);
                Ok(Repetition { output, witnesses })
            }
            Some((grad_output, want)) => self.backward(servers, call, grad_output, *want).await,
        }
    }

    /// Runs `links` forward and returns the output of each.
    async fn forward(
        &self,
        servers: &Rc<Servers>,
        call: &Call,
        links: &[Link],
    ) -> Result<(Vec<HostTensor>, Vec<Witness>), CallError> {
        let (mut outputs, mut witnesses) = (Vec::new(), Vec::new());
        let mut batch = call.batch.clone();
        for link in links {
            let want = call.want_of(link.span);
            let session = link.session(servers, Pass::Forward, call, &batch).await?;
            let request =
                ForwardRequest { batch: &batch, span: link.span, want, keep_tape: false, relay: &Relay::default() };
            let made = link.peer.forward(&session, request);
            let answer = link.timed(servers, Pass::Forward, &batch, made).await?;
            let hidden = answer.hidden.ok_or(CallError::Missing("an output"))?;
            let part = Part { step: &call.step, span: link.span, batch: &batch, want };
            witnesses.push(part.forward_witness(servers, &link.peer, &hidden, answer.receipt));
            outputs.push(hidden.clone());
            batch.hidden = hidden;
        }
        Ok((outputs, witnesses))
    }

    /// Runs the chain forward to its last part, and then backward without tapes.
    async fn backward(
        &self,
        servers: &Rc<Servers>,
        call: &Call,
        grad_output: &HostTensor,
        want: GradWant,
    ) -> Result<Repetition, CallError> {
        let before_last = self.links.len().saturating_sub(1);
        let (outputs, _) = self.forward(servers, call, &self.links[..before_last]).await?;
        let inputs: Vec<HostTensor> = [call.batch.hidden.clone()].into_iter().chain(outputs).collect();
        let (mut grads, mut witnesses) = (Vec::new(), Vec::new());
        let mut grad = Some(grad_output.clone());
        // Servers whose blocks no wanted gradient needs make no backward call.
        let end = call.step.backward_end(want.input, servers.options().first_block);
        for (i, (link, hidden)) in self.links.iter().zip(inputs).enumerate().rev() {
            if link.span.end() <= end {
                break;
            }
            let batch = WireBatch { hidden, ..call.batch.clone() };
            let is_first = i == 0 || link.span.start() <= end;
            let link_want = GradWant { input: if is_first { want.input } else { InputGrad::All }, ..want };
            let grad_output = grad.take().ok_or(CallError::Missing("the requested gradient of the input"))?;
            let output_want = call.want_of(link.span);
            let session = link.session(servers, Pass::Stateless, call, &batch).await?;
            let hidden = servers.shared.expected.hidden;
            let expected = ExpectedGrads::new(&call.step, link.span, &batch, hidden, link_want)?;
            let made = link.peer.backward_stateless(&session, &batch, output_want, &grad_output, link_want, &expected);
            let BackwardOutput { grads: answer, receipt } = link.timed(servers, Pass::Stateless, &batch, made).await?;
            let part = Part { step: &call.step, span: link.span, batch: &batch, want: output_want };
            witnesses.push(part.backward_witness(servers, &link.peer, (&grad_output, link_want), &answer, receipt));
            grad.clone_from(&answer.input);
            grads.push(answer);
        }
        grads.reverse();
        witnesses.reverse();
        let tunables = join(grads.into_iter().flat_map(|part: Grads| part.tunables))?;
        let output = Output::Grads(Grads { input: grad, tunables, not_finite: None });
        Ok(Repetition { output, witnesses })
    }
}

impl Call {
    /// Output of a part of the call.
    fn want_of(&self, part: Span) -> Want {
        if part.end() == self.span.end() { self.want } else { Want::All }
    }
}

impl Link {
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
