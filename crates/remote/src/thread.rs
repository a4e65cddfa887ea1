//! The RPC thread. Clients of the RPC library are not `Send` and never leave it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use futures::future::try_join_all;
use sepal_core::{HostTensor, Want};
use sepal_route::Hop;
use sepal_wire::ServerInfo;
use sepal_wire::codec::WireBatch;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use crate::command::{CallId, Command, MicroBatchGrads, Reply, WantedGrads};
use crate::error::RemoteError;
use crate::execute::{self, Trace};
use crate::servers::{Servers, Source};
use crate::shared::SharedState;
use crate::step::Step;

/// Runs commands until [`Command::Stop`].
pub(crate) fn run(
    runtime: &tokio::runtime::Runtime,
    source: Source,
    shared: SharedState,
    mut commands: mpsc::UnboundedReceiver<Command>,
    ready: Reply<Vec<ServerInfo>>,
) {
    LocalSet::new().block_on(runtime, async {
        let (servers, mut sightings) = match Servers::start(source, shared).await {
            Ok(started) => started,
            Err(error) => {
                // The caller may be gone already.
                let _ = ready.send(Err(error));
                return;
            }
        };
        if ready.send(Ok(servers.infos())).is_err() {
            return;
        }
        let worker = Rc::new(Worker { servers: Rc::clone(&servers), traces: RefCell::default(), next: Cell::new(0) });
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => drop(tasks.spawn_local(Rc::clone(&worker).handle(command))),
                },
                Some(sighting) = sightings.recv() => servers.handle_sighting(sighting),
                Some(_) = tasks.join_next() => {}
            }
        }
    });
}

struct Worker {
    servers: Rc<Servers>,
    traces: RefCell<HashMap<CallId, Vec<Trace>>>,
    next: Cell<u64>,
}

impl Worker {
    /// Handles one command. The caller that waits for the reply may be gone.
    async fn handle(self: Rc<Self>, command: Command) {
        match command {
            Command::Forward { step, batches, want, keep_tape, reply } => {
                let _ = reply.send(self.forward(step, batches, want, keep_tape).await);
            }
            Command::Backward { call, grads, want, reply } => {
                let _ = reply.send(self.backward(call, grads, want).await);
            }
            Command::Forget { call } => {
                let traces = self.traces.borrow_mut().remove(&call);
                drop(traces);
            }
            // Handled by the loop.
            Command::Stop => {}
        }
    }

    async fn forward(
        &self,
        step: Arc<Step>,
        batches: Vec<(WireBatch, Vec<Hop>)>,
        want: Want,
        keep_tape: bool,
    ) -> Result<(CallId, Vec<HostTensor>), RemoteError> {
        let passes = batches
            .into_iter()
            .map(|(batch, route)| execute::forward(&self.servers, Arc::clone(&step), batch, want, keep_tape, route));
        let outcome = try_join_all(passes).await;
        // Wrong results may be the cause of an error. The results of a step are checked until its backward pass ends.
        if outcome.is_err() || !keep_tape {
            self.servers.finish_checks().await?;
        }
        let (outputs, traces): (Vec<_>, Vec<_>) = outcome?.into_iter().unzip();
        let call = CallId(self.next.get());
        self.next.set(call.0 + 1);
        if keep_tape {
            self.traces.borrow_mut().insert(call, traces);
        }
        Ok((call, outputs))
    }

    async fn backward(
        &self,
        call: CallId,
        grads: Vec<HostTensor>,
        want: WantedGrads,
    ) -> Result<Vec<MicroBatchGrads>, RemoteError> {
        let traces = self.traces.borrow_mut().remove(&call);
        let traces = traces.ok_or_else(|| RemoteError::local("the graph was run backward twice"))?;
        let passes =
            traces.into_iter().zip(grads).map(|(trace, grad)| execute::backward(&self.servers, trace, grad, want));
        let outcome = try_join_all(passes).await;
        self.servers.finish_checks().await?;
        outcome
    }
}
