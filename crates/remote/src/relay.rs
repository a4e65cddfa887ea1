//! Micro-batches that servers hand on to each other, so that the client sends and receives one hop's worth.
//!
//! The client calls every server of a route at once and tells each what it will get from the one before (under a key that
//! only they know) and where its result goes. Each answers for itself: with its tape or its gradients, or with what went
//! wrong. So failures are as typed, and speeds as measured, as on the way through the client; but what was under way is
//! lost with any of them, and the micro-batch is done again through the client.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use sepal_core::{HostTensor, Span, Want};
use sepal_route::{Hop, Pass, ServerId, Work};
use sepal_swarm::SwarmPath;
use sepal_wire::codec::{GradWant, InputGrad, WireBatch};
use sepal_wire::{FailureCode, MailboxKey, Relay, RelayTarget, ServerInfo, Timing};
use tokio::time::Instant;

use crate::chain::{ChainGrads, ClientWant};
use crate::error::{CallError, RemoteError};
use crate::held::Tape;
use crate::kept;
use crate::patience::{Pulse, give_up};
use crate::peer::Peer;
use crate::servers::{Servers, Trouble, UnderWay};
use crate::step::Step;

/// How long servers that could not hand on to each other are not asked to; it doubles each time.
const FIRST_REST: Duration = Duration::from_secs(1);
/// At the most.
const LONGEST_REST: Duration = Duration::from_mins(1);

/// A way that servers went without the client in between, kept for backward.
pub(crate) struct Relayed {
    /// What went into the first hop: enough to do all of it again.
    pub(crate) batch: WireBatch,
    legs: Vec<Leg>,
}

struct Leg {
    hop: Hop,
    tape: Option<Tape>,
    /// The connection that the tape belongs to.
    generation: u64,
}

impl Relayed {
    /// Its hops, last first.
    pub(crate) fn way_back(&self) -> Vec<Hop> {
        self.legs.iter().rev().map(|leg| leg.hop).collect()
    }

    /// The blocks that it went through.
    pub(crate) fn span(&self) -> Result<Span, RemoteError> {
        let start = self.legs.first().map_or(0, |leg| leg.hop.span.start());
        let end = self.legs.last().map_or(0, |leg| leg.hop.span.end());
        Span::new(start, end).map_err(RemoteError::local)
    }
}

/// Why a relay came to nothing.
#[derive(Debug)]
pub(crate) struct Broken {
    /// Who is to blame, if that is known.
    hop: Option<Hop>,
    error: CallError,
}

/// Which servers could not hand on to each other lately, in this direction.
#[derive(Debug, Default)]
pub(crate) struct Rests(RefCell<HashMap<(ServerId, ServerId), Rest>>);

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    next: Duration,
}

impl Rests {
    fn is_resting(&self, route: &[Hop]) -> bool {
        let now = Instant::now();
        pairs(route).any(|pair| self.0.borrow().get(&pair).is_some_and(|rest| now < rest.until))
    }

    fn failed(&self, route: &[Hop]) {
        let now = Instant::now();
        for pair in pairs(route) {
            let mut rests = self.0.borrow_mut();
            let rest = rests.entry(pair).or_insert(Rest { until: now, next: FIRST_REST });
            // Micro-batches that fail together count once.
            if rest.until <= now {
                *rest = Rest { until: now + rest.next, next: (2 * rest.next).min(LONGEST_REST) };
            }
        }
    }

    fn went_well(&self, route: &[Hop]) {
        pairs(route).for_each(|pair| {
            self.0.borrow_mut().remove(&pair);
        });
    }
}

fn pairs(route: &[Hop]) -> impl Iterator<Item = (ServerId, ServerId)> {
    route.windows(2).map(|pair| (pair[0].server, pair[1].server))
}

impl Servers {
    /// Whether the servers of a route may hand on to each other.
    pub(crate) fn may_relay(&self, route: &[Hop]) -> bool {
        let back: Vec<Hop> = route.iter().rev().copied().collect();
        self.options().path == SwarmPath::Relay
            && route.len() > 1
            && !self.rests().is_resting(route)
            && !self.rests().is_resting(&back)
            && route
                .iter()
                .all(|hop| self.peer(hop.server).endpoint.is_reachable() && self.router().is_available(hop.server))
    }

    /// Runs a micro-batch forward along `route`, and says what came out of its end.
    pub(crate) async fn relay_forward(
        &self,
        step: &Step,
        batch: &WireBatch,
        keep: bool,
        route: &[Hop],
    ) -> Result<(HostTensor, Relayed), Broken> {
        let places = self.places(route);
        let tuned = try_join_all(route.iter().map(async |&hop| {
            let peer = self.peer(hop.server);
            peer.patiently(None, peer.tuned(hop.span, step, batch)).await.map_err(|error| by(hop, error))
        }));
        let tuned = tuned.await?;
        let all_have_kept = || route.iter().all(|hop| self.peer(hop.server).has_kept(hop.span, step));
        let may_go_without = !keep && !self.options().deterministic && all_have_kept();
        let last = route.last().filter(|_| may_go_without);
        let short = last.and_then(|hop| kept::without_prefix(step, hop.span, batch, Want::LastOfRows));
        let sent = short.as_ref().unwrap_or(batch);
        let calls = route.iter().zip(&places).zip(&tuned).map(async |((&hop, relay), tuned)| {
            let peer = self.peer(hop.server);
            let want = if relay.next.is_some() { Want::All } else { Want::LastOfRows };
            let work = work(Pass::Forward, hop, sent);
            let part = self.part(hop, work, peer.forward_relayed(tuned, sent, want, keep, relay)).await?;
            part.map(|part| Ok((part.output, Leg { hop, tape: part.tape, generation: peer.generation() })))
        });
        let answers = self.convoy(route, Pass::Forward, sent, calls).await?;
        let (mut outputs, legs): (Vec<_>, Vec<Leg>) = answers.into_iter().unzip();
        let missing = || Broken { hop: route.last().copied(), error: CallError::Missing("its output") };
        let output = outputs.pop().flatten().ok_or_else(missing)?;
        if !keep && short.is_none() && batch.prefix_len > 0 {
            legs.iter().for_each(|leg| self.peer(leg.hop.server).note_kept(leg.hop.span, step, leg.generation));
        }
        Ok((output, Relayed { batch: batch.clone(), legs }))
    }

    /// Runs a relayed way backward: the last server begins, and each hands the gradient on to the one before it.
    pub(crate) async fn relay_backward(
        &self,
        step: &Step,
        relayed: &Relayed,
        grad_output: &HostTensor,
        want: ClientWant,
    ) -> Result<ChainGrads, Broken> {
        let batch = &relayed.batch;
        let route = relayed.way_back();
        let places = self.places(&route);
        let calls = relayed.legs.iter().rev().zip(&places).map(async |(leg, relay)| {
            let (hop, peer) = (leg.hop, self.peer(leg.hop.server));
            let tape = leg.tape.as_ref().filter(|_| peer.generation() == leg.generation);
            // The server was left since: the tape went with its connection.
            let tape = tape.ok_or(Broken { hop: None, error: CallError::Left })?;
            let given = relay.from.is_none().then_some(grad_output);
            let input = match relay.next {
                Some(_) => InputGrad::All,
                None => want.input_of(batch.prefix_len),
            };
            let asked = GradWant { input, tunables: want.tunables, dtype: self.options().dtype() };
            let call = peer.backward_tape(tape, given, asked, relay);
            let part = self.part(hop, work(Pass::Backward, hop, batch), call).await?;
            // What was handed on is not in the answer.
            let answered = if relay.next.is_some() { GradWant { input: InputGrad::None, ..asked } } else { asked };
            part.map(|grads| self.check_grads(step, hop.span, batch, answered, grads).map_err(|e| by(hop, e)))
        });
        let answers = self.convoy(&route, Pass::Backward, batch, calls).await?;
        let mut grads = ChainGrads { input: None, tunables: Vec::new() };
        for (hop, answer) in route.iter().zip(answers) {
            grads.input = answer.input;
            grads.tunables.push((hop.span, answer.tunables));
        }
        Ok(grads)
    }

    /// What follows from a relay that came to nothing. The micro-batch goes through the client then.
    pub(crate) async fn relay_broke(self: &Rc<Self>, route: &[Hop], broken: Broken) -> Result<(), RemoteError> {
        let Broken { hop, error } = broken;
        let server = hop.map_or_else(|| "a server".to_owned(), |hop| self.label(hop.server));
        tracing::debug!(%server, %error, "a relay broke; going through the client");
        let code = if let CallError::Failure(failure) = &error { Some(failure.code) } else { None };
        self.rests().failed(route);
        match (hop, code) {
            (Some(hop), None) => self.judge(hop, error, &mut Trouble::default()).await,
            // Something was lost between servers, which may have cut them off from the client, too.
            (None, None) | (_, Some(FailureCode::NotRelayed)) => self.check_connections(route).await,
            // It says so itself and goes on: what follows is seen on the way through the client.
            (_, Some(_)) => Ok(()),
        }
    }

    /// Leaves the servers of a route whose connections do not work any more.
    async fn check_connections(self: &Rc<Self>, route: &[Hop]) -> Result<(), RemoteError> {
        let checks = route.iter().map(async |hop| self.peer(hop.server).check_connection().await);
        for (hop, outcome) in route.iter().zip(join_all(checks).await) {
            if let Err(error) = outcome {
                self.judge(*hop, error, &mut Trouble::default()).await?;
            }
        }
        Ok(())
    }

    /// Who gets what from whom, along a route.
    fn places(&self, route: &[Hop]) -> Vec<Relay> {
        let keys: Vec<MailboxKey> = route.iter().skip(1).map(|_| MailboxKey(rand::random())).collect();
        let place = |i: usize| Relay {
            from: i.checked_sub(1).map(|before| keys[before]),
            next: keys.get(i).map(|&key| RelayTarget { address: self.label(route[i + 1].server), key }),
        };
        (0..route.len()).map(place).collect()
    }

    /// One server's part.
    async fn part<T>(
        &self,
        hop: Hop,
        work: Work,
        call: impl Future<Output = Result<(T, Timing), CallError>>,
    ) -> Result<Part<'_, T>, Broken> {
        let under_way = UnderWay::new(self.shared_router(), hop.server, work);
        let (value, timing) = self.peer(hop.server).unless_left(call).await.map_err(|error| by(hop, error))?;
        Ok(Part { value, timing, under_way })
    }

    /// All parts to their end, unless one of the servers is to be given up before. The router is told what they took.
    async fn convoy<'a, T>(
        &self,
        route: &[Hop],
        pass: Pass,
        batch: &WireBatch,
        parts: impl Iterator<Item = impl Future<Output = Result<Part<'a, T>, Broken>>>,
    ) -> Result<Vec<T>, Broken> {
        let late = |&hop: &Hop| self.router().late_after_now(hop.server, work(pass, hop, batch));
        let late_after = route.iter().map(late).sum();
        let peers = route.iter().map(|&hop| (hop, self.peer(hop.server))).collect();
        let convoy = Convoy { peers, silent: Cell::new(None) };
        let begun = Instant::now();
        let parts = tokio::select! {
            biased;
            outcome = try_join_all(parts) => outcome?,
            error = give_up(&convoy, late_after, self.options().call_timeout()) => {
                return Err(Broken { hop: convoy.silent.get(), error });
            }
        };
        self.rests().went_well(route);
        self.count_relay();
        // What was not spent on servers was spent between them, on each of the ways alike as far as can be told.
        let on_servers = parts.iter().map(|part| part.timing.queued + part.timing.computed).sum();
        let on_the_way = begun.elapsed().saturating_sub(on_servers) / u32::try_from(route.len()).unwrap_or(u32::MAX);
        let told = parts.into_iter().map(|Part { value, timing, under_way }| {
            under_way.finished(timing, Some(on_the_way));
            value
        });
        Ok(told.collect())
    }
}

/// What one server made of its part.
struct Part<'a, T> {
    value: T,
    timing: Timing,
    under_way: UnderWay<'a>,
}

impl<'a, T> Part<'a, T> {
    fn map<U>(self, f: impl FnOnce(T) -> Result<U, Broken>) -> Result<Part<'a, U>, Broken> {
        let Self { value, timing, under_way } = self;
        Ok(Part { value: f(value)?, timing, under_way })
    }
}

/// The servers of a route, asked together: they are silent if one of them is, and idle if all are.
struct Convoy {
    peers: Vec<(Hop, Rc<Peer>)>,
    /// Who did not answer last.
    silent: Cell<Option<Hop>>,
}

impl Pulse for Convoy {
    async fn ask(&self) -> Result<ServerInfo, CallError> {
        self.silent.set(None);
        let asked = self.peers.iter().map(async |(hop, peer)| peer.ask().await.map_err(|error| (*hop, error)));
        let mut together: Option<ServerInfo> = None;
        for answer in join_all(asked).await {
            let info = answer.map_err(|(hop, error)| {
                self.silent.set(Some(hop));
                error
            })?;
            let load = info.load;
            match &mut together {
                Some(all) => {
                    all.load.queue = all.load.queue.saturating_add(load.queue);
                    all.load.completed = all.load.completed.wrapping_add(load.completed);
                }
                None => together = Some(info),
            }
        }
        together.ok_or(CallError::Missing("any server"))
    }

    fn moved(&self) -> u64 {
        self.peers.iter().map(|(_, peer)| peer.moved()).sum()
    }
}

fn work(pass: Pass, hop: Hop, batch: &WireBatch) -> Work {
    Work { pass, blocks: hop.span.len(), tokens: batch.positions() }
}

fn by(hop: Hop, error: CallError) -> Broken {
    Broken { hop: Some(hop), error }
}
