//! Forwarding of tensors to other servers, without the client in between.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sepal_core::HostTensor;
use sepal_swarm::{Addr, Dial, Endpoint, Progress, ServerSecurity, Stream, Traffic};
use sepal_wire::{Failure, FailureCode, Parts, RelayTarget, RpcError, codec, rpc, sepal_capnp as wire};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mailbox::shutting_down;
use crate::serve::ServerOptions;
use crate::stats::ServerStats;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of an attempt to reach a server of the secret. Failures of all causes take as long, so that clients do not learn
/// which addresses have servers of other kinds.
const SECURED_DIAL_TIME: Duration = Duration::from_secs(2);
/// Attempts of one connection that are made at once.
const DIALS_AT_ONCE: usize = 4;
/// Failed attempts of one connection in [`FAILURE_WINDOW`] before others are refused.
const MAX_FAILED_DIALS: u32 = 32;
const FAILURE_WINDOW: Duration = Duration::from_mins(1);
/// Time without progress after which a connection to the next server counts as lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Time after which a transfer ends, however it progresses. Calls wait less for their inputs.
const TRANSFER_TIMEOUT: Duration = Duration::from_mins(2);
/// Connections that are kept for later transfers.
const MAX_CONNECTIONS: usize = 64;
/// Connections in all, with those of transfers in flight.
const MAX_OPEN_CONNECTIONS: usize = 128;
/// Maximum bytes of another server's answer, which contains at most a failure.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

pub(crate) struct Forwarder {
    /// By address.
    connections: RefCell<HashMap<String, Rc<ServerConnection>>>,
    /// Each open connection has a clone.
    open: Rc<()>,
    stats: Arc<ServerStats>,
    targets: RelayTargets,
    closed: CancellationToken,
}

/// Servers that receive results. Their addresses come from clients, who must not learn by them what else a server can reach.
pub(crate) enum RelayTargets {
    /// Servers of a lookup: members of a swarm, or announced ones.
    Known(Arc<dyn Dial>),
    /// Servers at any address that prove that they know the secret.
    Secured(Arc<ServerSecurity>),
    /// Servers of this machine, for a server that only this machine reaches.
    Local,
    /// None, for a server that other machines reach without a secret.
    None,
}

impl RelayTargets {
    /// Returns the targets of a server that listens on `addr`, if it has an address.
    pub(crate) fn new(options: &ServerOptions, addr: Option<&Addr>) -> Self {
        match (&options.dial, &options.security) {
            (Some(dial), _) => RelayTargets::Known(Arc::clone(dial)),
            (None, Some(security)) => RelayTargets::Secured(Arc::clone(security)),
            (None, None) if addr.is_none_or(Addr::is_local) => RelayTargets::Local,
            (None, None) => RelayTargets::None,
        }
    }

    /// Connects to the server of this name. No server connects to files of its machine.
    async fn connect(&self, name: &str) -> Result<Stream, Box<dyn std::error::Error>> {
        let endpoint = match self {
            RelayTargets::Known(dial) => dial.find(name).ok_or("no server of the swarm has this name")?,
            RelayTargets::Secured(security) => return connect_secured(security, name).await,
            RelayTargets::Local => match name.parse::<Addr>()? {
                addr @ Addr::Tcp(_) if addr.is_local() => Endpoint::Addr(addr),
                Addr::Tcp(_) => return Err("without a secret, results stay on this machine".into()),
                Addr::Unix(_) => return Err("other machines cannot connect to a Unix socket".into()),
            },
            RelayTargets::None => {
                return Err("a server that other machines reach forwards results only with a secret".into());
            }
        };
        Ok(tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await??)
    }
}

/// Connects to a server of the secret. All failures have the same text and take the same time.
async fn connect_secured(security: &ServerSecurity, name: &str) -> Result<Stream, Box<dyn std::error::Error>> {
    let deadline = Instant::now() + SECURED_DIAL_TIME;
    let connect = async {
        let addr = name.parse::<Addr>().ok().filter(|addr| matches!(addr, Addr::Tcp(_)))?;
        security.dialer().ok()?.endpoint(addr, None).connect().await.ok()
    };
    match tokio::time::timeout_at(deadline, connect).await {
        Ok(Some(stream)) => Ok(stream),
        _ => {
            tokio::time::sleep_until(deadline).await;
            Err("no server with the secret has answered".into())
        }
    }
}

/// Limit on the attempts of a client's connection to have this server connect to others.
#[derive(Debug)]
pub(crate) struct DialAllowance {
    at_once: Semaphore,
    failed: Cell<u32>,
    window_start: Cell<Instant>,
}

impl Default for DialAllowance {
    fn default() -> Self {
        let (failed, window_start) = (Cell::new(0), Cell::new(Instant::now()));
        Self { at_once: Semaphore::new(DIALS_AT_ONCE), failed, window_start }
    }
}

impl DialAllowance {
    fn is_used_up(&self) -> bool {
        if self.window_start.get().elapsed() >= FAILURE_WINDOW {
            self.window_start.set(Instant::now());
            self.failed.set(0);
        }
        self.failed.get() >= MAX_FAILED_DIALS
    }

    fn record_failure(&self) {
        self.failed.set(self.failed.get() + 1);
    }
}

struct ServerConnection {
    root: wire::block_server::Client,
    parts: Parts,
    traffic: Traffic,
    progress: Progress,
    driver: JoinHandle<()>,
    _open: Rc<()>,
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
    pub(crate) fn new(stats: Arc<ServerStats>, targets: RelayTargets) -> Self {
        let (connections, open) = (RefCell::default(), Rc::new(()));
        Self { connections, open, stats, targets, closed: CancellationToken::new() }
    }

    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Sends a tensor to the next server and waits until that server has it.
    pub(crate) async fn forward_to(
        &self,
        target: &RelayTarget,
        tensor: &HostTensor,
        dials: &DialAllowance,
    ) -> Result<(), Failure> {
        tokio::select! {
            biased;
            result = self.send(target, tensor, dials) => result,
            () = self.closed.cancelled() => Err(shutting_down()),
            () = tokio::time::sleep(TRANSFER_TIMEOUT) => {
                let (address, seconds) = (&target.address, TRANSFER_TIMEOUT.as_secs());
                let message = format!("could not forward to {address}: it took more than {seconds} s");
                Err(Failure::new(FailureCode::NotRelayed, message))
            }
        }
    }

    async fn send(&self, target: &RelayTarget, tensor: &HostTensor, dials: &DialAllowance) -> Result<(), Failure> {
        let mut transfer = TransferGuard::new(self, &target.address);
        let broken = |error: &dyn std::fmt::Display| {
            Failure::new(FailureCode::NotRelayed, format!("could not forward to {}: {error}", target.address))
        };
        let connection = self.connection(&target.address, dials).await.map_err(|error| broken(&error))?;
        let mut request = connection.root.deliver_request();
        request.get().set_key(&target.key.0);
        codec::write_tensor(request.get().init_tensor(), tensor, &connection.parts);
        let mut answer = std::pin::pin!(request.send().promise);
        let answer = loop {
            let activity = connection.activity();
            match tokio::time::timeout(STALL_TIMEOUT, answer.as_mut()).await {
                Ok(answer) => break answer.map_err(|error| broken(&RpcError::from(error)))?,
                Err(_) if connection.activity() == activity => {
                    return Err(broken(&format_args!("no progress for {} s", STALL_TIMEOUT.as_secs())));
                }
                Err(_) => {}
            }
        };
        let results = answer.get().map_err(|error| broken(&RpcError::from(error)))?;
        if results.has_failure() {
            let failure = results.get_failure().map_err(|error| broken(&RpcError::from(error)))?;
            return Err(broken(&Failure::read(failure).map_err(|error| broken(&error))?));
        }
        transfer.is_complete = true;
        Ok(())
    }

    fn open_connection(&self, address: &str) -> Option<Rc<ServerConnection>> {
        self.connections.borrow().get(address).filter(|open| !open.driver.is_finished()).cloned()
    }

    /// Number of connections that are open or being opened.
    fn n_open(&self) -> usize {
        // The forwarder has one clone itself.
        Rc::strong_count(&self.open) - 1
    }

    async fn connection(
        &self,
        address: &str,
        dials: &DialAllowance,
    ) -> Result<Rc<ServerConnection>, Box<dyn std::error::Error>> {
        if let Some(connection) = self.open_connection(address) {
            return Ok(connection);
        }
        let _permit = dials.at_once.acquire().await?;
        // Another call of the client may have opened it meanwhile.
        if let Some(connection) = self.open_connection(address) {
            return Ok(connection);
        }
        if dials.is_used_up() {
            return Err("too many attempts of this client have failed; try again in a minute".into());
        }
        if self.n_open() >= MAX_OPEN_CONNECTIONS {
            // Ends those without a transfer.
            self.connections.borrow_mut().clear();
        }
        if self.n_open() >= MAX_OPEN_CONNECTIONS {
            return Err("too many connections to other servers are open".into());
        }
        let open = Rc::clone(&self.open);
        let traffic = Traffic::default();
        let stream = self.targets.connect(address).await.inspect_err(|_| dials.record_failure())?.counted(&traffic);
        let Stream { reader, writer, progress, .. } = stream;
        let parts = Parts::default();
        let (root, system) = rpc::client(reader, writer, MAX_ANSWER_BYTES, &parts);
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = system.await.map_err(RpcError::from) {
                tracing::debug!(%error, "a connection to another server ended");
            }
        });
        let connection = Rc::new(ServerConnection { root, parts, traffic, progress, driver, _open: open });
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

#[cfg(test)]
mod tests {
    use sepal_swarm::{IdentityKey, Listener, Secret};

    use super::*;

    fn security() -> Arc<ServerSecurity> {
        let identity = IdentityKey::generate().expect("a key");
        Arc::new(ServerSecurity::new(Secret::generate().expect("a secret"), &identity).expect("a server"))
    }

    fn targets(security: Option<Arc<ServerSecurity>>, addr: Option<&str>) -> RelayTargets {
        let options = ServerOptions { security, ..ServerOptions::default() };
        let addr = addr.map(|addr| addr.parse::<Addr>().expect("an address"));
        RelayTargets::new(&options, addr.as_ref())
    }

    async fn refusal(targets: &RelayTargets, name: &str) -> String {
        targets.connect(name).await.map(drop).expect_err("refused").to_string()
    }

    #[tokio::test]
    async fn server_without_a_secret_reaches_this_machine_at_most() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("binds");
        let here = listener.addr().expect("an address").to_string();
        for addr in [None, Some("127.0.0.1:4000"), Some("unix:/a")] {
            let local = targets(None, addr);
            assert!(local.connect(&here).await.is_ok());
            assert!(refusal(&local, "10.0.0.5:4000").await.contains("stay on this machine"));
            assert!(refusal(&local, "unix:/a").await.contains("Unix socket"));
        }
        let open = targets(None, Some("0.0.0.0:4000"));
        assert!(refusal(&open, &here).await.contains("only with a secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn secured_failures_are_the_same_in_text_and_time() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("binds");
        let open_port = listener.addr().expect("an address").to_string();
        let secured = targets(Some(security()), Some("0.0.0.0:4000"));
        for name in [open_port.as_str(), "127.0.0.1:1", "unix:/a", "nonsense"] {
            let started_at = Instant::now();
            assert_eq!(refusal(&secured, name).await, "no server with the secret has answered", "{name}");
            // In the runtime's own time, in which timers end at once.
            assert_eq!(started_at.elapsed().as_millis() / 10, SECURED_DIAL_TIME.as_millis() / 10, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_attempts_of_a_client_are_limited() {
        let dials = DialAllowance::default();
        (0..MAX_FAILED_DIALS).for_each(|_| dials.record_failure());
        assert!(dials.is_used_up());
        tokio::time::advance(FAILURE_WINDOW).await;
        assert!(!dials.is_used_up());
    }
}
