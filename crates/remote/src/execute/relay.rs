//! Relay path: servers hand micro-batches to each other, and the client sends and receives one hop's data.
//!
//! The client calls every server of a route at once. Each call names a mailbox key for the input from the server before,
//! known to these two alone, and the address and key of the server after. Every server answers its own call, with a tape
//! or gradients, or with its failure. Failures are therefore as typed, and speeds as measured, as on the star path. If one
//! of the calls fails, all work in flight is lost and the micro-batch is repeated on the star path.

use std::cell::Cell;
use std::rc::Rc;

use futures::future::{join_all, try_join_all};
use sepal_core::{HostTensor, Span, Want};
use sepal_route::{Hop, Pass, Work};
use sepal_swarm::SwarmPath;
use sepal_wire::codec::{GradWant, InputGrad, WireBatch};
use sepal_wire::{FailureCode, MailboxKey, RelayTarget, ServerInfo, Timing};
use tokio::time::Instant;

use super::prefix_cache::without_prefix;
use super::strategy::{ForwardPass, Leg, Strategy, work};
use crate::command::{MicroBatchGrads, WantedGrads};
use crate::connection::{ExpectedGrads, ForwardRequest, Liveness, Peer, until_overdue};
use crate::error::{CallError, RemoteError};
use crate::retry::RetryBudget;
use crate::servers::Servers;
use crate::shared::InFlightCall;
use crate::step::Step;
use crate::verify::PendingCheck;

pub(super) struct Relay<'a> {
    servers: &'a Rc<Servers>,
}

/// Legs of a relayed micro-batch.
pub(super) struct RelayTrace {
    /// Input of the first hop, from which all of them can be repeated.
    pub(super) batch: WireBatch,
    legs: Vec<Leg>,
    /// Check of the forward pass that waits for the backward pass.
    pub(super) check: Option<PendingCheck>,
}

impl RelayTrace {
    /// Hops of the backward pass, which ends in `first_block` or at the first tunable.
    pub(super) fn backward_route(&self, step: &Step, want: WantedGrads, first_block: usize) -> Vec<Hop> {
        let end = step.backward_end(want.input_of(self.batch.prefix_len), first_block);
        self.legs.iter().rev().map(|leg| leg.hop).filter(|hop| hop.span.end() > end).collect()
    }

    /// Hops in the order of the blocks.
    pub(super) fn route(&self) -> Vec<Hop> {
        self.legs.iter().map(|leg| leg.hop).collect()
    }

    pub(super) fn span(&self) -> Result<Span, RemoteError> {
        let start = self.legs.first().map_or(0, |leg| leg.hop.span.start());
        let end = self.legs.last().map_or(0, |leg| leg.hop.span.end());
        Span::new(start, end).map_err(RemoteError::local)
    }
}

/// Error of a relay.
#[derive(Debug)]
pub(super) struct RelayFailure {
    /// Hop that caused it, if known.
    hop: Option<Hop>,
    error: CallError,
}

impl RelayFailure {
    fn at_hop(hop: Hop) -> impl Fn(CallError) -> Self {
        move |error| Self { hop: Some(hop), error }
    }
}

impl Strategy for Relay<'_> {
    type Trace = RelayTrace;
    type Error = RelayFailure;

    async fn forward(&self, pass: ForwardPass<'_>, route: Vec<Hop>) -> Result<(HostTensor, RelayTrace), RelayFailure> {
        let ForwardPass { step, batch, want: output, keep_tape } = pass;
        let links = self.links(&route);
        let sessions = try_join_all(route.iter().map(async |&hop| {
            let peer = self.servers.peer(hop.server);
            peer.tuned_session(hop.span, step, batch).await.map_err(RelayFailure::at_hop(hop))
        }));
        let sessions = sessions.await?;
        let shortened = without_prefix(self.servers, pass, &route);
        let sent = shortened.as_ref().unwrap_or(batch);
        let calls = route.iter().zip(&links).zip(&sessions).map(async |((&hop, relay), session)| {
            let peer = self.servers.peer(hop.server);
            let want = if relay.next.is_some() { Want::All } else { output };
            let call = peer.forward(session, ForwardRequest { batch: sent, span: hop.span, want, keep_tape, relay });
            let answer = self.call(hop, work(Pass::Forward, hop, sent), call).await?;
            answer.try_map(|mut output| {
                let leg = Leg::new(hop, &mut output, peer.generation());
                Ok((output.hidden, leg))
            })
        });
        let answers = self.call_all(&route, Pass::Forward, sent, calls).await?;
        let (mut outputs, legs): (Vec<_>, Vec<Leg>) = answers.into_iter().unzip();
        let missing = || RelayFailure { hop: route.last().copied(), error: CallError::Missing("its output") };
        let output = outputs.pop().flatten().ok_or_else(missing)?;
        if !keep_tape && shortened.is_none() && batch.prefix_len > 0 {
            for Leg { hop, generation, .. } in &legs {
                self.servers.peer(hop.server).note_cached_prefix(hop.span, step, *generation);
            }
        }
        Ok((output, RelayTrace { batch: batch.clone(), legs, check: None }))
    }

    /// Runs a relayed micro-batch backward: each server hands the gradient to the one before it.
    async fn backward(
        &self,
        step: &Step,
        trace: &mut RelayTrace,
        grad_output: HostTensor,
        want: WantedGrads,
    ) -> Result<MicroBatchGrads, RelayFailure> {
        let batch = &trace.batch;
        let route = trace.backward_route(step, want, self.servers.options().first_block);
        let links = self.links(&route);
        let calls = trace.legs.iter().rev().zip(&links).map(async |(leg, relay)| {
            let (hop, peer) = (leg.hop, self.servers.peer(leg.hop.server));
            let tape = leg.live_tape(&peer).ok_or(RelayFailure { hop: None, error: CallError::Disconnected })?;
            let grad_output = relay.from.is_none().then_some(&grad_output);
            let input = match relay.next {
                Some(_) => InputGrad::All,
                None => want.input_of(batch.prefix_len),
            };
            let want = GradWant { input, tunables: want.tunables, dtype: self.servers.options().dtype() };
            // An answer lacks the gradient that was handed to the next server.
            let answered = if relay.next.is_some() { GradWant { input: InputGrad::None, ..want } } else { want };
            let hidden = self.servers.shared.expected.hidden;
            let expected = ExpectedGrads::new(step, hop.span, batch, hidden, answered);
            let expected = expected.map_err(RelayFailure::at_hop(hop))?;
            let call = peer.backward_tape(tape, grad_output, want, &expected, relay);
            let answer = self.call(hop, work(Pass::Backward, hop, batch), call).await?;
            answer.try_map(|output| Ok(output.grads))
        });
        let answers = self.call_all(&route, Pass::Backward, batch, calls).await?;
        let mut grads = MicroBatchGrads::default();
        for answer in answers {
            grads.input = answer.input;
            grads.tunables.extend(answer.tunables);
        }
        Ok(grads)
    }
}

impl<'a> Relay<'a> {
    pub(super) fn new(servers: &'a Rc<Servers>) -> Self {
        Self { servers }
    }

    /// True if the servers of a route can hand data to each other.
    pub(super) fn is_possible(&self, route: &[Hop]) -> bool {
        let backward_route: Vec<Hop> = route.iter().rev().copied().collect();
        let (servers, backoff) = (self.servers, &self.servers.relay_backoff);
        servers.options().path == SwarmPath::Relay
            && route.len() > 1
            && servers.verifier.trusts_relays()
            && !backoff.is_active(route)
            && !backoff.is_active(&backward_route)
            && route.iter().all(|hop| {
                servers.peer(hop.server).endpoint.is_reachable() && servers.router().is_available(hop.server)
            })
    }

    /// Handles the failure of a relay, after which the micro-batch takes the star path.
    pub(super) async fn handle_failure(
        &self,
        route: &[Hop],
        failure: RelayFailure,
        pass: Pass,
    ) -> Result<(), RemoteError> {
        let RelayFailure { hop, error } = failure;
        let server = hop.map_or_else(|| "a server".to_owned(), |hop| self.servers.label(hop.server));
        tracing::debug!(%server, %error, "a relay failed; using the star path");
        let code = if let CallError::Failure(failure) = &error { Some(failure.code) } else { None };
        self.servers.relay_backoff.record_failure(route);
        match (hop, code) {
            (Some(hop), None) => self.servers.handle_failure(hop, error, &mut RetryBudget::new(pass)).await,
            // Data was lost between servers. The cause may have cut them off from the client as well.
            (None, None) | (_, Some(FailureCode::NotRelayed)) => self.check_connections(route, pass).await,
            // The server reported the failure and still works; the star path deals with it.
            (_, Some(_)) => Ok(()),
        }
    }

    /// Disconnects the servers of a route whose connections no longer work.
    async fn check_connections(&self, route: &[Hop], pass: Pass) -> Result<(), RemoteError> {
        let checks = route.iter().map(async |hop| self.servers.peer(hop.server).check_connection().await);
        for (hop, outcome) in route.iter().zip(join_all(checks).await) {
            if let Err(error) = outcome {
                self.servers.handle_failure(*hop, error, &mut RetryBudget::new(pass)).await?;
            }
        }
        Ok(())
    }

    /// Returns the error for non-finite values of any of the servers.
    pub(super) fn non_finite(&self, trace: &RelayTrace, what: &'static str) -> Result<RemoteError, RemoteError> {
        let servers: Vec<String> = trace.legs.iter().map(|leg| self.servers.label(leg.hop.server)).collect();
        Ok(RemoteError::NonFinite { server: servers.join(" or "), span: trace.span()?, what })
    }

    /// Returns each server's sender and receiver.
    fn links(&self, route: &[Hop]) -> Vec<sepal_wire::Relay> {
        let keys: Vec<MailboxKey> = route.iter().skip(1).map(|_| MailboxKey(rand::random())).collect();
        let link = |i: usize| sepal_wire::Relay {
            from: i.checked_sub(1).map(|previous| keys[previous]),
            next: keys.get(i).map(|&key| RelayTarget { address: self.servers.label(route[i + 1].server), key }),
        };
        (0..route.len()).map(link).collect()
    }

    /// Calls one server.
    async fn call<T>(
        &self,
        hop: Hop,
        work: Work,
        call: impl Future<Output = Result<(T, Timing), CallError>>,
    ) -> Result<Answer<'_, T>, RelayFailure> {
        let in_flight = InFlightCall::new(&self.servers.shared.router, hop.server, work);
        let peer = self.servers.peer(hop.server);
        let (value, timing) = peer.unless_disconnected(call).await.map_err(RelayFailure::at_hop(hop))?;
        Ok(Answer { value, timing, in_flight })
    }

    /// Completes the calls to all servers of a route under one deadline, and records their timings.
    async fn call_all<'b, T>(
        &self,
        route: &[Hop],
        pass: Pass,
        batch: &WireBatch,
        calls: impl Iterator<Item = impl Future<Output = Result<Answer<'b, T>, RelayFailure>>>,
    ) -> Result<Vec<T>, RelayFailure> {
        let late_after = |&hop: &Hop| self.servers.router().late_after_now(hop.server, work(pass, hop, batch));
        let late_after = route.iter().map(late_after).sum();
        let peers = route.iter().map(|&hop| (hop, self.servers.peer(hop.server))).collect();
        let relay_call = RelayCall { peers, unresponsive: Cell::new(None) };
        let started = Instant::now();
        let answers = tokio::select! {
            biased;
            outcome = try_join_all(calls) => outcome?,
            error = until_overdue(&relay_call, late_after, self.servers.options().call_timeout()) => {
                return Err(RelayFailure { hop: relay_call.unresponsive.get(), error });
            }
        };
        self.servers.relay_backoff.record_success(route);
        self.servers.shared.count_relay();
        // The time that was not spent on servers is attributed to the transfers between them in equal parts.
        let on_servers = answers.iter().map(|answer| answer.timing.queued + answer.timing.computed).sum();
        let transfer = started.elapsed().saturating_sub(on_servers) / u32::try_from(route.len()).unwrap_or(u32::MAX);
        let finish = |Answer { value, timing, in_flight }: Answer<'_, T>| {
            in_flight.finish(timing, Some(transfer));
            value
        };
        Ok(answers.into_iter().map(finish).collect())
    }
}

/// Answer of one server of a relay.
struct Answer<'a, T> {
    value: T,
    timing: Timing,
    in_flight: InFlightCall<'a>,
}

impl<'a, T> Answer<'a, T> {
    fn try_map<U>(self, f: impl FnOnce(T) -> Result<U, RelayFailure>) -> Result<Answer<'a, U>, RelayFailure> {
        let Self { value, timing, in_flight } = self;
        Ok(Answer { value: f(value)?, timing, in_flight })
    }
}

/// Calls to all servers of a route. They are unresponsive if one server is, and idle if all are.
struct RelayCall {
    peers: Vec<(Hop, Rc<Peer>)>,
    /// First server that did not answer the last probe.
    unresponsive: Cell<Option<Hop>>,
}

impl Liveness for RelayCall {
    async fn probe(&self) -> Result<ServerInfo, CallError> {
        self.unresponsive.set(None);
        let probes = self.peers.iter().map(async |(hop, peer)| peer.probe().await.map_err(|error| (*hop, error)));
        let mut combined: Option<ServerInfo> = None;
        for answer in join_all(probes).await {
            let info = answer.map_err(|(hop, error)| {
                self.unresponsive.set(Some(hop));
                error
            })?;
            match &mut combined {
                Some(ServerInfo { load, .. }) => {
                    load.queue = load.queue.saturating_add(info.load.queue);
                    load.completed = load.completed.wrapping_add(info.load.completed);
                }
                None => combined = Some(info),
            }
        }
        combined.ok_or(CallError::Missing("any server"))
    }

    fn bytes_moved(&self) -> u64 {
        self.peers.iter().map(|(_, peer)| peer.bytes_moved()).sum()
    }
}
