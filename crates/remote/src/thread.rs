//! The thread that speaks with the servers; the RPC library's clients never leave it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::future::{join_all, try_join_all};
use sepal_core::{HostTensor, Span};
use sepal_route::Hop;
use sepal_swarm::{Endpoint, RemoteOptions, Sightings, Traffic};
use sepal_wire::ServerInfo;
use sepal_wire::codec::WireBatch;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use crate::chain::{Chain, ChainGrads, ClientWant};
use crate::error::{CallError, RemoteError};
use crate::peer::Peer;
use crate::sequential::{ModelExpectation, remote_span};
use crate::servers::{Servers, SharedRouter, SharedServers};
use crate::step::Step;

/// A forward whose chains are kept for backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CallId(u64);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RemoteError>>;

/// What the thread is asked to do.
pub(crate) enum Command {
    Forward {
        step: Arc<Step>,
        /// Each micro-batch with the route that was planned for it.
        batches: Vec<(WireBatch, Vec<Hop>)>,
        keep: bool,
        reply: Reply<(CallId, Vec<HostTensor>)>,
    },
    Backward {
        call: CallId,
        grads: Vec<HostTensor>,
        want: ClientWant,
        reply: Reply<Vec<ChainGrads>>,
    },
    Forget {
        call: CallId,
    },
    Stop,
}

/// Whom to meet, and how to speak with them.
pub(crate) struct Setup {
    pub(crate) source: Source,
    pub(crate) expected: ModelExpectation,
    pub(crate) options: RemoteOptions,
    pub(crate) traffic: Traffic,
    pub(crate) router: SharedRouter,
    /// Micro-batches that servers handed on to each other.
    pub(crate) relays: Arc<AtomicU64>,
}

/// Where servers are known from.
pub(crate) enum Source {
    /// These, and no others.
    Fixed(Vec<Endpoint>),
    /// Those that are found, as they come and go.
    Found(Sightings),
}

/// Runs until it is told to stop.
pub(crate) fn run(
    runtime: &tokio::runtime::Runtime,
    setup: Setup,
    mut commands: mpsc::UnboundedReceiver<Command>,
    ready: Reply<Vec<ServerInfo>>,
) {
    let whole = match remote_span(&setup.options, &setup.expected) {
        Ok(whole) => whole,
        Err(error) => {
            // The caller waits for nothing else.
            let _ = ready.send(Err(error));
            return;
        }
    };
    LocalSet::new().block_on(runtime, async {
        let peer = setup.meeting();
        let met = match setup.source {
            Source::Fixed(endpoints) => {
                let met = meet(endpoints, &peer, whole, Servers::new(setup.router, setup.options, setup.relays)).await;
                // Nothing more is found, ever.
                met.map(|servers| (servers, mpsc::unbounded_channel().1))
            }
            Source::Found(sightings) => {
                find(sightings, &peer, whole, Servers::new(setup.router, setup.options, setup.relays)).await
            }
        };
        let (servers, mut sightings) = match met {
            Ok(met) => met,
            Err(error) => {
                // The caller may have given up already.
                let _ = ready.send(Err(error));
                return;
            }
        };
        if ready.send(Ok(servers.infos())).is_err() {
            return;
        }
        let known = Rc::clone(&servers);
        let thread = Rc::new(Thread { servers, whole, kept: RefCell::default(), next: Cell::new(0) });
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => drop(tasks.spawn_local(Rc::clone(&thread).obey(command))),
                },
                Some(sighting) = sightings.recv() => known.sighted(sighting, &peer),
                Some(_) = tasks.join_next() => {}
            }
        }
    });
}

impl Setup {
    /// What makes a peer of an endpoint.
    fn meeting(&self) -> impl Fn(Endpoint) -> Peer + use<> {
        let (traffic, expected, options) = (self.traffic.clone(), self.expected.clone(), self.options.clone());
        move |endpoint| Peer::new(endpoint, traffic.clone(), expected.clone(), &options)
    }
}

struct Thread {
    servers: SharedServers,
    whole: Span,
    kept: RefCell<HashMap<CallId, Vec<Chain>>>,
    next: Cell<u64>,
}

impl Thread {
    /// Replies are sent to callers that may be gone; that is no concern here.
    async fn obey(self: Rc<Self>, command: Command) {
        match command {
            Command::Forward { step, batches, keep, reply } => {
                let _ = reply.send(self.forward(step, batches, keep).await);
            }
            Command::Backward { call, grads, want, reply } => {
                let _ = reply.send(self.backward(call, grads, want).await);
            }
            Command::Forget { call } => {
                let chains = self.kept.borrow_mut().remove(&call);
                drop(chains);
            }
            // The loop ends before this is spawned.
            Command::Stop => {}
        }
    }

    async fn forward(
        &self,
        step: Arc<Step>,
        batches: Vec<(WireBatch, Vec<Hop>)>,
        keep: bool,
    ) -> Result<(CallId, Vec<HostTensor>), RemoteError> {
        let whole = self.whole;
        let runs = batches
            .into_iter()
            .map(|(batch, route)| self.servers.forward(Arc::clone(&step), batch, whole, keep, route));
        let (outputs, chains): (Vec<_>, Vec<_>) = try_join_all(runs).await?.into_iter().unzip();
        let call = CallId(self.next.get());
        self.next.set(call.0 + 1);
        if keep {
            self.kept.borrow_mut().insert(call, chains);
        }
        Ok((call, outputs))
    }

    async fn backward(
        &self,
        call: CallId,
        grads: Vec<HostTensor>,
        want: ClientWant,
    ) -> Result<Vec<ChainGrads>, RemoteError> {
        let chains = self.kept.borrow_mut().remove(&call);
        let chains = chains.ok_or_else(|| RemoteError::local("the graph was run backward twice"))?;
        let runs = chains.into_iter().zip(grads).map(|(chain, grad)| self.servers.backward(chain, grad, want));
        try_join_all(runs).await
    }
}

/// Connects to all servers at once. Those that cannot be reached are waited for in the background if the others do.
async fn meet(
    endpoints: Vec<Endpoint>,
    peer: &impl Fn(Endpoint) -> Peer,
    whole: Span,
    servers: SharedServers,
) -> Result<SharedServers, RemoteError> {
    let peers: Vec<Rc<Peer>> = endpoints.into_iter().map(|endpoint| Rc::new(peer(endpoint))).collect();
    let met = join_all(peers.iter().map(|peer| peer.meet())).await;
    let (mut missing, mut unreachable) = (Vec::new(), Vec::new());
    for (peer, info) in peers.into_iter().zip(met) {
        match info {
            Ok(info) => servers.add(peer, &info),
            Err(CallError::Unusable(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(server = %peer.endpoint, %error, "a server could not be reached");
                unreachable.push(format!("server {} could not be reached ({error})", peer.endpoint));
                missing.push(peer);
            }
        }
    }
    if let Some(missing) = servers.hole(whole)? {
        return Err(RemoteError::Uncovered { missing, unreachable });
    }
    for peer in missing {
        tokio::task::spawn_local(Rc::clone(&servers).expect(peer, sepal_route::FIRST_BAN));
    }
    Ok(servers)
}

/// Meets the servers that are found, until they have all blocks.
async fn find(
    mut sightings: Sightings,
    peer: &impl Fn(Endpoint) -> Peer,
    whole: Span,
    servers: SharedServers,
) -> Result<(SharedServers, Sightings), RemoteError> {
    let until = Instant::now() + servers.options().wait();
    loop {
        let mut came = std::pin::pin!(servers.came().notified());
        came.as_mut().enable();
        let Some(missing) = servers.hole(whole)? else { return Ok((Rc::clone(&servers), sightings)) };
        tokio::select! {
            () = came => {}
            Some(sighting) = sightings.recv() => servers.sighted(sighting, peer),
            () = tokio::time::sleep_until(until) => {
                let met = servers.infos().len();
                let were = if met == 1 { "server of this model was" } else { "servers of this model were" };
                let unreachable = vec![format!("{met} {were} found and could be reached")];
                return Err(RemoteError::Uncovered { missing, unreachable });
            }
        }
    }
}
