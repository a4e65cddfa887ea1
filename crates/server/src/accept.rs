//! Main loop of a server: its connections, their limits and their end.

mod connection;
mod watchdog;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sepal_connections::{ConnectionLimits, ConnectionMetrics, End, Register, limited_network, open_file_limit};
use sepal_swarm::{Accepted, Listener, Rights, Stream};
use sepal_wire::{Parts, RpcError, rpc};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::service::BlockServerImpl;
use crate::state::{ClientConnection, ServerState};
use connection::Connection;

/// Time without traffic after which a stopping server assumes that its last answers are sent.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Time after which a stopping server sends no more answers, however slowly they are read.
const MAX_FLUSH: Duration = Duration::from_mins(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time to tell a peer why its connection ends.
const FAREWELL: Duration = Duration::from_millis(500);
/// Maximum connections that are being closed when another is accepted.
const MAX_CLOSING: usize = 64;
/// Interval of the looks at the file of the secret.
const SECRET_INTERVAL: Duration = Duration::from_millis(500);
/// Open files that are left for the model, the status page and connections to other servers.
const RESERVED_FILES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Accepts no new work, until all tapes are freed or the deadline has passed.
    Draining(Instant),
    Stopping,
}

/// Accepts connections until the server stops or is drained, then waits for the calls in flight.
pub(crate) async fn run_loop(
    mut listener: Listener,
    max_connections: usize,
    state: Rc<ServerState>,
    mut phase: watch::Receiver<Phase>,
) {
    let limits = connection_limits(max_connections, open_file_limit());
    let mut connections = Connections::new(limits, Rc::clone(&state));
    let mut secret_checks = tokio::time::interval(SECRET_INTERVAL);
    // After a pause of this process, one check is enough.
    secret_checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.has_room() => match accepted {
                Some(Ok(accepted)) => connections.admit(accepted),
                // The peer has left already.
                Some(Err(error)) if is_of_connection(&error) => tracing::debug!(%error, "a connection ended"),
                Some(Err(error)) => {
                    // Out of file descriptors, for example: open connections are still served.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => break,
            },
            Some(_) = connections.tasks.join_next() => {}
            _ = secret_checks.tick(), if state.security.is_some() => state.refresh_secret(),
            () = wait_for_end(&state, &mut phase) => break,
        }
    }
    drop(listener);
    state.stats.draining.store(true, Ordering::Relaxed);
    // Calls that wait for other servers would never end.
    state.mailbox.close();
    state.forwarder.close();
    while state.calls.get() > 0 || state.engine.queue() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    connections.flush().await;
}

/// True for the error of one connection that its peer has left. Others can be accepted at once.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | InvalidInput | NotConnected)
}

/// Returns the limits of a server that may have `max` connections in a process of `max_files` open files. An address may have
/// an eighth of them, and at least 64: many clients may share the address of a router. A quarter is left to other addresses.
fn connection_limits(max: usize, max_files: Option<u64>) -> ConnectionLimits {
    let max_files = max_files.and_then(|max_files| usize::try_from(max_files).ok());
    let possible = max_files.map_or(max, |max_files| max_files.saturating_sub(RESERVED_FILES).max(max_files / 4));
    if possible < max {
        tracing::debug!(
            "at most {possible} connections instead of {max}, as the system permits few open files (ulimit -n)"
        );
    }
    let total = max.min(possible).max(1);
    let per_address = total.div_ceil(8).max(64).min(total * 3 / 4);
    ConnectionLimits { total, per_address: per_address.max(1) }
}

async fn wait_for_end(state: &ServerState, phase: &mut watch::Receiver<Phase>) {
    loop {
        let current = *phase.borrow_and_update();
        match current {
            Phase::Serving => {}
            Phase::Draining(deadline) => {
                state.stats.draining.store(true, Ordering::Relaxed);
                if Instant::now() >= deadline || !state.is_in_use() {
                    return;
                }
            }
            Phase::Stopping => return,
        }
        let changed = phase.changed();
        match current {
            Phase::Draining(_) => {
                // No event signals the end of a tape, so the state is polled.
                let _ = tokio::time::timeout(Duration::from_millis(20), changed).await;
            }
            // An error means that the server's handle was dropped.
            _ if changed.await.is_err() => return,
            _ => {}
        }
    }
}

type SharedRegister = Rc<RefCell<Register<Rc<Connection>>>>;

/// Open connections of a server.
struct Connections {
    limits: ConnectionLimits,
    register: SharedRegister,
    tasks: JoinSet<()>,
    state: Rc<ServerState>,
}

impl Connections {
    fn new(limits: ConnectionLimits, state: Rc<ServerState>) -> Self {
        Self { limits, register: Rc::new(RefCell::new(Register::new(limits))), tasks: JoinSet::new(), state }
    }

    /// False while too many connections are being closed.
    fn has_room(&self) -> bool {
        self.tasks.len() < self.limits.total + MAX_CLOSING
    }

    /// Serves a connection, or drops it if there is no room.
    fn admit(&mut self, Accepted { stream, peer }: Accepted) {
        let (connection, metrics) = (Rc::new(Connection::new(Parts::default())), &self.state.stats.connections);
        let mut register = self.register.borrow_mut();
        match register.admit(peer, Rc::clone(&connection)) {
            Ok(id) => {
                metrics.set_open(register.len());
                let registered = Registered { register: Rc::clone(&self.register), id, state: Rc::clone(&self.state) };
                let stream = stream.counted(&self.state.stats.traffic);
                let (state, served) = (Rc::clone(&self.state), Rc::clone(&connection));
                let serving = async move { serve_stream(stream, &state, &served, limited_network(peer)).await };
                self.tasks.spawn_local(async move {
                    finish(serving, &connection, peer, &registered.state.stats.connections).await;
                    drop(registered);
                });
            }
            Err(refusal) => metrics.record_refusal(refusal, peer),
        }
    }

    /// Ends all connections, once the answers of the last calls are sent or there is no more traffic, or after a time.
    async fn flush(mut self) {
        let traffic = self.state.stats.traffic.clone();
        let (mut sent_bytes, deadline) = (None, Instant::now() + MAX_FLUSH);
        let mut has_traffic = || sent_bytes.replace(traffic.up()) != Some(traffic.up());
        while !self.tasks.is_empty() && has_traffic() && Instant::now() < deadline {
            tokio::time::sleep(FLUSH_INTERVAL).await;
            while self.tasks.try_join_next().is_some() {}
        }
        self.tasks.shutdown().await;
    }
}

/// Place of a connection in the register, which is free when this is dropped.
struct Registered {
    register: SharedRegister,
    id: u64,
    state: Rc<ServerState>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut register = self.register.borrow_mut();
        register.remove(self.id);
        self.state.stats.connections.set_open(register.len());
    }
}

/// Secures a stream and serves its calls until it ends, or until the secret of its client is revoked.
async fn serve_stream(
    stream: Stream,
    state: &Rc<ServerState>,
    connection: &Connection,
    network: Option<IpAddr>,
) -> capnp::Result<()> {
    let secured = secured(stream, state).await.inspect_err(|error| {
        // A peer that leaves by itself, as a probe of the port does, was not refused.
        if error.kind() != io::ErrorKind::UnexpectedEof {
            connection.end(End::NotAdmitted);
        }
    });
    let (stream, rights) = secured?;
    let Stream { reader, writer, mut revocation, .. } = stream;
    let parts = connection.parts();
    let client = ClientConnection::new(Rc::clone(state), parts.clone(), rights, network);
    let quota = client.quota();
    let root = capnp_rpc::new_client(BlockServerImpl(client));
    connection.begin_calls();
    let serving = rpc::server(reader, writer, state.info.limits.max_message_bytes, root, parts, Some(quota));
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = revocation.revoked() => connection.end(End::Revoked),
    }
    // Tells the peer why its connection ends.
    serving.await
}

/// Encrypts a connection and checks its client, if the server has a secret. Returns the client's rights. The time for the
/// first message includes this.
async fn secured(stream: Stream, state: &ServerState) -> io::Result<(Stream, Rights)> {
    match &state.security {
        Some(security) => security.accept(stream).await,
        None => {
            let rights = stream.rights;
            Ok((stream, rights))
        }
    }
}

/// Waits until `serving` ends by itself, or ends it if the connection makes no progress or is replaced.
async fn finish(
    serving: impl Future<Output = capnp::Result<()>>,
    connection: &Connection,
    peer: Option<IpAddr>,
    metrics: &ConnectionMetrics,
) {
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = connection.watch() => None,
    };
    let ended = match ended {
        Some(ended) => Some(ended),
        None => tokio::time::timeout(FAREWELL, serving).await.ok(),
    };
    if let Some(end) = connection.ended() {
        metrics.record_end(end, peer);
    }
    if let Some(Err(error)) = ended {
        let error = RpcError::from(error);
        tracing::debug!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_open_files_and_room_for_clients_behind_a_router() {
        let limits = |max, files| {
            let ConnectionLimits { total, per_address } = connection_limits(max, files);
            (total, per_address)
        };
        assert_eq!(limits(1024, None), (1024, 128));
        assert_eq!(limits(1024, Some(65_536)), (1024, 128));
        assert_eq!(limits(1024, Some(1024)), (768, 96));
        assert_eq!(limits(1024, Some(256)), (64, 48));
        assert_eq!(limits(4, Some(1024)), (4, 3));
        assert_eq!(limits(0, None), (1, 1));
    }

    /// Returns the reason and the time, in seconds, of a connection's end. `serving` gets the connection.
    async fn end_of(serving: impl AsyncFnOnce(&Connection) -> capnp::Result<()>) -> (Option<End>, u64) {
        let (connection, started_at) = (Connection::new(Parts::default()), tokio::time::Instant::now());
        finish(serving(&connection), &connection, None, &ConnectionMetrics::default()).await;
        (connection.ended(), started_at.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connection_is_ended_even_if_it_never_reads() {
        assert_eq!(end_of(async |_| std::future::pending().await).await, (Some(End::Silent), 10));
        assert_eq!(end_of(async |_| Ok(())).await, (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn replaced_connection_is_ended_at_once() {
        let ended = end_of(async |connection| {
            connection.end(End::Replaced);
            std::future::pending().await
        });
        assert_eq!(ended.await, (Some(End::Replaced), 0));
    }
}
