//! The thread that speaks with the servers; the RPC library's clients never leave it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use sepal_core::{HostTensor, Span};
use sepal_route::Router;
use sepal_swarm::{Endpoint, Traffic};
use sepal_wire::ServerInfo;
use sepal_wire::codec::WireBatch;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};

use crate::chain::{Chain, ChainGrads, ClientWant, Servers, SharedServers};
use crate::error::{CallError, RemoteError};
use crate::peer::{Peer, Step};
use crate::sequential::{ModelExpectation, RemoteOptions};

/// A forward whose chains are kept for backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CallId(u64);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RemoteError>>;

/// What the thread is asked to do.
pub(crate) enum Command {
    Forward { step: Arc<Step>, batches: Vec<WireBatch>, keep: bool, reply: Reply<(CallId, Vec<HostTensor>)> },
    Backward { call: CallId, grads: Vec<HostTensor>, want: ClientWant, reply: Reply<Vec<ChainGrads>> },
    Forget { call: CallId },
    Stop,
}

/// Runs until it is told to stop.
pub(crate) fn run(
    runtime: &tokio::runtime::Runtime,
    endpoints: Vec<Endpoint>,
    expected: &ModelExpectation,
    options: &RemoteOptions,
    traffic: &Traffic,
    mut commands: mpsc::UnboundedReceiver<Command>,
    ready: Reply<Vec<ServerInfo>>,
) {
    LocalSet::new().block_on(runtime, async {
        let (servers, infos) = match meet(endpoints, expected, options, traffic).await {
            Ok(met) => met,
            Err(error) => {
                // The caller may have given up already.
                let _ = ready.send(Err(error));
                return;
            }
        };
        if ready.send(Ok(infos)).is_err() {
            return;
        }
        let thread = Rc::new(Thread {
            servers: Rc::new(servers),
            whole: expected.n_blocks,
            kept: RefCell::default(),
            next: Cell::new(0),
        });
        let mut tasks = JoinSet::new();
        while let Some(command) = commands.recv().await.filter(|command| !matches!(command, Command::Stop)) {
            tasks.spawn_local(Rc::clone(&thread).obey(command));
            while tasks.try_join_next().is_some() {}
        }
    });
}

struct Thread {
    servers: SharedServers,
    whole: usize,
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
        batches: Vec<WireBatch>,
        keep: bool,
    ) -> Result<(CallId, Vec<HostTensor>), RemoteError> {
        let whole = Span::new(0, self.whole).map_err(RemoteError::local)?;
        let runs = batches
            .into_iter()
            .enumerate()
            .map(|(turn, batch)| self.servers.forward(Arc::clone(&step), batch, whole, keep, turn));
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
        let runs = chains
            .into_iter()
            .zip(grads)
            .enumerate()
            .map(|(turn, (chain, grad))| self.servers.backward(chain, grad, want, turn));
        try_join_all(runs).await
    }
}

/// Connects to all servers at once. Those that cannot be reached are left out if the others do.
async fn meet(
    endpoints: Vec<Endpoint>,
    expected: &ModelExpectation,
    options: &RemoteOptions,
    traffic: &Traffic,
) -> Result<(Servers, Vec<ServerInfo>), RemoteError> {
    let peers: Vec<Peer> =
        endpoints.into_iter().map(|e| Peer::new(e, traffic.clone(), expected.clone(), options)).collect();
    let met = join_all(peers.iter().map(Peer::describe)).await;
    let mut servers = Servers {
        peers: Vec::new(),
        router: RefCell::new(Router::new()),
        started: tokio::time::Instant::now(),
        wait: options.wait,
        wire_dtype: options.wire_dtype,
    };
    let (mut infos, mut unreachable) = (Vec::new(), Vec::new());
    for (peer, info) in peers.into_iter().zip(met) {
        match info {
            Ok(info) => {
                servers.router.borrow_mut().add(info.span);
                servers.peers.push(peer);
                infos.push(info);
            }
            Err(CallError::WrongModel(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(server = %peer.endpoint, %error, "a server could not be reached");
                unreachable.push(format!("server {} could not be reached ({error})", peer.endpoint));
            }
        }
    }
    let whole = Span::new(0, expected.n_blocks).map_err(RemoteError::local)?;
    match servers.router.borrow().plan(whole, 0, 0) {
        Ok(_) => {}
        Err(sepal_route::RouteError::Uncovered { missing }) => {
            return Err(RemoteError::Uncovered { missing, unreachable });
        }
        Err(error) => return Err(RemoteError::local(error)),
    }
    Ok((servers, infos))
}
