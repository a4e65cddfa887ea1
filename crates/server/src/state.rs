//! State that all connections of a server share.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sepal_core::{HostTensor, HostTunable, ModelConfig, Span};
use sepal_swarm::{Receipt, Rights, ServerSecurity};
use sepal_wire::codec::{GradWant, Grads, WireBatch};
use sepal_wire::{Failure, FailureCode, Parts, Quota, Relay, ServerInfo, Timing};

use crate::admission::{Admission, Admitted};
use crate::client::ClientId;
use crate::compute::{Job, JobOutput, Tunables, invalid};
use crate::engine::Engine;
use crate::forwarder::{DialAllowance, Forwarder};
use crate::ledger::{ClientQuota, Kind, Ledger};
use crate::lock::lock;
use crate::mailbox::{Mailbox, shutting_down};
use crate::receipts::{SignedCall, Signer};
use crate::refusals::Reason;
use crate::stats::{Method, ServerStats};
use crate::tapes::TapeStore;

pub(crate) struct ServerState {
    pub(crate) engine: Engine,
    pub(crate) tapes: Arc<Mutex<TapeStore>>,
    pub(crate) ledger: Ledger,
    pub(crate) admission: Admission,
    pub(crate) stats: Arc<ServerStats>,
    /// Signs receipts, if the server has a key.
    pub(crate) signer: Option<Signer>,
    pub(crate) mailbox: Rc<Mailbox>,
    pub(crate) forwarder: Forwarder,
    pub(crate) security: Option<Arc<ServerSecurity>>,
    /// Description with the load at the start.
    pub(crate) info: ServerInfo,
    pub(crate) config: ModelConfig,
    /// Number of calls whose answer is not written yet.
    pub(crate) calls: Cell<usize>,
    pub(crate) clients: Cell<u64>,
}

#[derive(Clone)]
pub(crate) struct ClientConnection {
    pub(crate) state: Rc<ServerState>,
    pub(crate) quota: ClientQuota,
    /// Number of open calls of the connection.
    pub(crate) calls: Rc<Cell<u32>>,
    pub(crate) parts: Parts,
    pub(crate) rights: Rights,
    dials: Rc<DialAllowance>,
}

impl ClientConnection {
    /// Returns the state of a connection from `network`, whose connections share limits.
    pub(crate) fn new(state: Rc<ServerState>, parts: Parts, rights: Rights, network: Option<IpAddr>) -> Self {
        state.clients.set(state.clients.get() + 1);
        let quota = state.ledger.client(ClientId::new(state.clients.get(), network));
        Self { state, quota, calls: Rc::default(), parts, rights, dials: Rc::default() }
    }

    /// Quota of the connection, for its messages.
    pub(crate) fn quota(&self) -> Rc<dyn Quota> {
        Rc::new(self.quota.clone())
    }

    /// Refuses a call that needs other rights.
    pub(crate) fn check_rights(&self, needed: Rights) -> Result<(), Failure> {
        if self.rights >= needed {
            return Ok(());
        }
        let message = format!("this call needs the rights `{needed}`, but the client has `{}`", self.rights);
        Err(self.quota.refuse(Reason::Rights, Failure::new(FailureCode::NotPermitted, message)))
    }

    /// Forwards a result to the next server, or returns it if the caller receives it.
    pub(crate) async fn forward_to(
        &self,
        result: Option<HostTensor>,
        relay: &Relay,
    ) -> Result<Option<HostTensor>, Failure> {
        match (&relay.next, result) {
            (Some(target), Some(result)) => {
                let _reserved = self.quota.reserve(Kind::Answers, result.data().len() as u64)?;
                self.state.forwarder.forward_to(target, &result, &self.dials).await.map(|()| None)
            }
            (Some(_), None) => Err(invalid("no result to forward: the gradient of the input was not requested")),
            (None, result) => Ok(result),
        }
    }

    pub(crate) fn check_tunables(&self, tunables: Vec<HostTunable>, span: Span) -> Result<Tunables, Failure> {
        Tunables::check(tunables, span, &self.state.config, &self.quota)
    }

    pub(crate) async fn run(
        &self,
        job: Job,
        exclusive: bool,
        admitted: Admitted,
    ) -> Result<(JobOutput, Timing), Failure> {
        self.state.engine.run(self.quota.client(), job, exclusive, admitted).await
    }

    /// Returns the input of a call, which is part of the call or arrives from another server.
    pub(crate) async fn input(
        &self,
        inline: Option<HostTensor>,
        relay: &Relay,
        admitted: &mut Admitted,
    ) -> Result<HostTensor, Failure> {
        match (relay.from, inline) {
            (Some(key), _) => {
                let tensor = self.state.mailbox.receive(&self.quota, key).await?;
                admitted.add_input(&tensor)?;
                Ok(tensor)
            }
            (None, Some(tensor)) => Ok(tensor),
            (None, None) => Err(invalid("a call without its input")),
        }
    }

    /// Signs the result of a backward call that began with `signed`: its forward call and the gradient of the output.
    pub(crate) fn backward_receipt(
        &self,
        signed: Option<(SignedCall, HostTensor)>,
        want: GradWant,
        grads: &Grads,
    ) -> Option<Receipt> {
        let (signer, (call, grad_output)) = self.state.signer.as_ref().zip(signed)?;
        Some(signer.backward(&call, &grad_output, want, grads))
    }
}

impl ServerState {
    /// Ends the connections of clients whose secret the file of the server's secret no longer admits.
    pub(crate) fn refresh_secret(&self) {
        if let Some(security) = &self.security {
            security.refresh();
        }
    }

    /// True while a call is in flight or a tape waits for its backward pass.
    pub(crate) fn is_in_use(&self) -> bool {
        self.calls.get() > 0 || self.engine.queue() > 0 || lock(&self.tapes).load().0 > 0
    }

    pub(crate) fn check_open(&self) -> Result<(), Failure> {
        if self.stats.draining.load(Ordering::Relaxed) { Err(shutting_down()) } else { Ok(()) }
    }

    pub(crate) fn check_batch(&self, batch: &WireBatch) -> Result<(), Failure> {
        let (found, hidden) = (batch.hidden.shape()[1], self.info.hidden);
        if found != hidden {
            return Err(invalid(format!("hidden states of size {found}, expected {hidden}")));
        }
        Ok(())
    }
}

/// Counts a call as long as its answer is not written.
pub(crate) struct CallGuard {
    state: Rc<ServerState>,
    method: Method,
    started_at: Instant,
}

impl CallGuard {
    pub(crate) fn new(state: &Rc<ServerState>, method: Method) -> Self {
        state.calls.set(state.calls.get() + 1);
        Self { state: Rc::clone(state), method, started_at: Instant::now() }
    }

    /// Records the result of the call. Calls that the client cancelled are not recorded.
    pub(crate) fn record<T>(&self, result: &Result<T, Failure>) {
        self.state.stats.record_call(self.method, self.started_at.elapsed().as_secs_f64(), result.as_ref().err());
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.state.calls.set(self.state.calls.get() - 1);
    }
}
