//! Forwarding of tensors to other servers, without the client in between.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sepal_core::HostTensor;
use sepal_swarm::{Addr, Dial, Endpoint, Progress, Stream, Traffic};
use sepal_wire::{Failure, FailureCode, Parts, RelayTarget, codec, rpc, sepal_capnp as wire};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::mailbox::shutting_down;
use crate::stats::ServerStats;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without progress after which a connection to the next server counts as lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_CONNECTIONS: usize = 64;
/// Maximum bytes of another server's answer, which contains at most a failure.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

pub(crate) struct Forwarder {
    /// By address.
    connections: RefCell<HashMap<String, Rc<ServerConnection>>>,
    stats: Arc<ServerStats>,
    dial: Option<Arc<dyn Dial>>,
    closed: CancellationToken,
}

struct ServerConnection {
    root: wire::block_server::Client,
    parts: Parts,
    traffic: Traffic,
    progress: Progress,
    driver: JoinHandle<()>,
}

impl ServerConnection {
    /// Counter that grows with any traffic.
    fn activity(&self) -> u64 {
        self.traffic.up() + self.traffic.down() + self.progress.now()
    }
}

impl Drop for ServerConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Forwarder {
    pub(crate) fn new(stats: Arc<ServerStats>, dial: Option<Arc<dyn Dial>>) -> Self {
        Self { connections: RefCell::default(), stats, dial, closed: CancellationToken::new() }
    }

    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Sends a tensor to the next server and waits until that server has it.
    pub(crate) async fn forward_to(&self, target: &RelayTarget, tensor: &HostTensor) -> Result<(), Failure> {
        tokio::select! {
            biased;
            result = self.send(target, tensor) => result,
            () = self.closed.cancelled() => Err(shutting_down()),
        }
    }

    async fn send(&self, target: &RelayTarget, tensor: &HostTensor) -> Result<(), Failure> {
        let mut transfer = TransferGuard::new(self, &target.address);
        let broken = |error: &dyn std::fmt::Display| {
            Failure::new(FailureCode::NotRelayed, format!("could not forward to {}: {error}", target.address))
        };
        let connection = self.connection(&target.address).await.map_err(|error| broken(&error))?;
        let mut request = connection.root.deliver_request();
        request.get().set_key(&target.key.0);
        codec::write_tensor(request.get().init_tensor(), tensor, &connection.parts);
        let mut answer = std::pin::pin!(request.send().promise);
        let answer = loop {
            let activity = connection.activity();
            match tokio::time::timeout(STALL_TIMEOUT, answer.as_mut()).await {
                Ok(answer) => break answer.map_err(|error| broken(&error))?,
                Err(_) if connection.activity() == activity => {
                    return Err(broken(&format_args!("no progress for {} s", STALL_TIMEOUT.as_secs())));
                }
                Err(_) => {}
            }
        };
        let results = answer.get().map_err(|error| broken(&error))?;
        if results.has_failure() {
            let failure = results.get_failure().map_err(|error| broken(&error))?;
            return Err(broken(&Failure::read(failure).map_err(|error| broken(&error))?));
        }
        transfer.is_complete = true;
        Ok(())
    }

    /// Returns the endpoint of the next server. The address comes from the client, so a member of a swarm connects to other
    /// members only, and no server connects to files of its machine.
    fn endpoint(&self, address: &str) -> Result<Endpoint, Box<dyn std::error::Error>> {
        if let Some(dial) = &self.dial {
            return Ok(dial.find(address).ok_or("no server of the swarm has this name")?);
        }
        match address.parse::<Addr>()? {
            addr @ Addr::Tcp(_) => Ok(Endpoint::Addr(addr)),
            Addr::Unix(_) => Err("other machines cannot connect to a Unix socket".into()),
        }
    }

    async fn connection(&self, address: &str) -> Result<Rc<ServerConnection>, Box<dyn std::error::Error>> {
        let open = self.connections.borrow().get(address).filter(|open| !open.driver.is_finished()).cloned();
        if let Some(connection) = open {
            return Ok(connection);
        }
        let endpoint = self.endpoint(address)?;
        let traffic = Traffic::default();
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await??.counted(&traffic);
        let Stream { reader, writer, progress } = stream;
        let parts = Parts::default();
        let (root, system) = rpc::client(reader, writer, MAX_ANSWER_BYTES, &parts);
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = system.await {
                tracing::debug!(%error, "a connection to another server ended");
            }
        });
        let connection = Rc::new(ServerConnection { root, parts, traffic, progress, driver });
        let mut connections = self.connections.borrow_mut();
        connections.retain(|_, connection| !connection.driver.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            // Transfers in flight keep their connections alive.
            connections.clear();
        }
        connections.insert(address.to_owned(), Rc::clone(&connection));
        Ok(connection)
    }
}

/// Counts a transfer in flight. Drops the connection of a transfer that fails, because the connection may be the cause.
struct TransferGuard<'a> {
    forwarder: &'a Forwarder,
    address: &'a str,
    is_complete: bool,
}

impl<'a> TransferGuard<'a> {
    fn new(forwarder: &'a Forwarder, address: &'a str) -> Self {
        forwarder.stats.transfers.fetch_add(1, Ordering::Relaxed);
        Self { forwarder, address, is_complete: false }
    }
}

impl Drop for TransferGuard<'_> {
    fn drop(&mut self) {
        self.forwarder.stats.transfers.fetch_sub(1, Ordering::Relaxed);
        if !self.is_complete {
            self.forwarder.connections.borrow_mut().remove(self.address);
        }
    }
}
