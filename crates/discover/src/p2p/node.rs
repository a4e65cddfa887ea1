use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{QuicTransportConfig, VarInt, presets};
use iroh::{EndpointId, NetReportConfig, RelayMode, RelayUrl};
use sepal_core::in_one_line;
use sepal_swarm::{Dial, Endpoint, KeyError, SecurityError, Sightings, Streams};
use tokio::sync::{Semaphore, watch};

use super::announcement::{Message, Sequence};
use super::epochs::{Epoch, Epochs, GRACE, alpns, follow_ticket};
use super::gossip::{handle_events, run_loop};
use super::identity::Identity;
use super::state::{ALPN, LocalServer, NodeState, OLD_ALPN, parse_peer_name, peer, peer_name};
use super::stream::StreamFlusher;
use super::ticket::{SwarmSecret, Ticket};
use crate::discovery::{Discovery, Member};
use crate::lock::lock;
use crate::record::ServerRecord;

const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TICKET_MEMBERS: usize = 4;
/// Flow-control window of one peer: the bandwidth-delay product of 160 Mbit/s and 100 ms. The QUIC engine closes a connection
/// with 2048 unread packets (quinn issue 2809) of at least 1200 bytes, which forbids a larger window.
const WINDOW_BYTES: u32 = 2 << 20;
/// Timeout of a silent connection, and interval of pings.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const MAX_GOSSIP_STREAMS: u32 = 32;
/// Maximum connections without a proof of membership.
const MAX_UNPROVEN: usize = 256;
/// Time to send the withdrawal of an announcement, since a dropped node closes its connections at once.
const WITHDRAW_DELAY: Duration = Duration::from_millis(200);
const NO_MEMBER: u32 = 1;
const NO_SERVER: u32 = 2;

/// Options of a node.
#[derive(Debug)]
pub struct NodeOptions {
    /// Identity of the machine.
    pub identity: Identity,
    /// Ticket of the swarm to join. Without one, the node founds its own swarm, which is the same each time.
    pub ticket: Option<Ticket>,
    /// UDP address to bind; any port on all interfaces if none.
    pub bind: Option<SocketAddr>,
    /// Servers of the `iroh-relay` protocol that connect peers behind routers. The node uses no others.
    pub relays: Vec<String>,
}

/// Error of starting a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Failure to start a thread.
    #[error("start the node's threads")]
    Threads(#[source] io::Error),
    /// Address that cannot be bound.
    #[error("listen for peers: {0}")]
    Bind(String),
    /// Identity that makes no secret of a swarm.
    #[error("found a swarm")]
    Key(#[from] KeyError),
    /// Invalid address of a relay.
    #[error("`{0}` is not the address of a relay; write https://HOST")]
    Relay(String),
    /// Failure of the gossip protocol.
    #[error("join the swarm: {0}")]
    Gossip(String),
}

/// Member of a swarm that receives announcements and connects to servers. Dropping it leaves the swarm. Its methods block and
/// must not be called from asynchronous code.
pub struct Node {
    state: Arc<NodeState>,
    /// Locked as long as the node exists.
    _identity: Identity,
    runtime: Option<tokio::runtime::Runtime>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.state.endpoint.id())
    }
}

impl Node {
    /// Founds or joins a swarm and returns at once. Other members become known in the background.
    ///
    /// # Errors
    /// [`NodeError`] if the node cannot start.
    pub fn start(options: NodeOptions) -> Result<Self, NodeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("sepal-p2p")
            .enable_all()
            .build()
            .map_err(NodeError::Threads)?;
        let state = runtime.block_on(join(&options, StreamFlusher::new(runtime.handle().clone())))?;
        Ok(Self { state, _identity: options.identity, runtime: Some(runtime) })
    }

    /// Name of this node in the swarm.
    pub fn name(&self) -> String {
        peer_name(self.state.endpoint.id())
    }

    /// Returns a ticket of the swarm with the addresses of this and some other members.
    pub fn ticket(&self) -> Ticket {
        let known = lock(&self.state.bootstrap).clone();
        let others = known.into_keys().filter_map(|id| self.state.addresses.get_endpoint_info(id));
        let members = [self.state.addr()].into_iter().chain(others.map(|info| info.to_endpoint_addr()));
        let secret = self.state.epochs().current.secret.clone();
        Ticket { secret, members: members.take(MAX_TICKET_MEMBERS).collect() }
    }

    /// Waits for a neighbour in the swarm; false after the timeout.
    pub fn wait_for_neighbour(&self, timeout: Duration) -> bool {
        let mut neighbours = self.state.epochs().current.neighbours.subscribe();
        let found = async { neighbours.wait_for(|&n| n > 0).await.is_ok() };
        self.state.flusher.runtime.block_on(async { tokio::time::timeout(timeout, found).await.unwrap_or(false) })
    }

    /// Looks twice in a second at the file that holds the node's ticket, and moves to a later epoch of it while it runs. For ten
    /// minutes, the node also belongs to the epoch before: as a server, it accepts clients of both, and as a client, it tries
    /// both. A server whose ticket is more than one epoch later accepts the new epoch alone at once. Other changes of the file are
    /// warnings.
    pub fn follow_ticket(&self, file: &Path) {
        self.follow_ticket_with(file, GRACE);
    }

    /// Follows the file of a ticket, with another time for which the epoch before is accepted.
    pub(super) fn follow_ticket_with(&self, file: &Path, grace: Duration) {
        let (state, path) = (Arc::clone(&self.state), file.to_owned());
        self.state.flusher.runtime.spawn(follow_ticket(state, path, grace));
    }

    /// Announces the local server at intervals, as long as `describe` returns a record.
    pub fn announce(&self, describe: impl Fn() -> Option<ServerRecord> + Send + Sync + 'static) {
        lock(&self.state.local_server).describe = Some(Arc::new(describe));
        let state = Arc::clone(&self.state);
        self.state.flusher.runtime.spawn(async move { state.announce().await });
    }

    /// Returns the future connections of members to the local server. Each call replaces the previous server.
    pub fn connections(&self) -> Streams {
        let (sender, streams) = Streams::new();
        *lock(&self.state.server) = Some(sender);
        streams
    }

    /// Returns the peer of this name, even if it is not known yet.
    pub fn peer(&self, name: &str) -> Option<Endpoint> {
        Some(peer(&self.state, parse_peer_name(name)?))
    }
}

impl Discovery for Node {
    fn members(&self) -> Vec<Member> {
        lock(&self.state.members).to_vec()
    }

    fn sightings(&self, digest: &str) -> Sightings {
        lock(&self.state.members).subscribe(digest)
    }

    fn withdraw(&self) {
        lock(&self.state.local_server).describe = None;
        let withdrawn = async {
            self.state.broadcast(Message::Gone).await;
            tokio::time::sleep(WITHDRAW_DELAY).await;
        };
        self.state.flusher.runtime.block_on(withdrawn);
    }
}

impl Dial for Node {
    fn find(&self, name: &str) -> Option<Endpoint> {
        // Known servers have signed an announcement for this swarm, so they are members.
        lock(&self.state.members).contains(name).then(|| self.peer(name)).flatten()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let (endpoint, flusher) = (self.state.endpoint.clone(), self.state.flusher.clone());
        // A separate thread, because the drop may happen inside another runtime.
        let closing = std::thread::spawn(move || {
            runtime.block_on(async {
                flusher.wait().await;
                tokio::time::timeout(Duration::from_secs(1), endpoint.close()).await.ok()
            });
            runtime.shutdown_background();
        });
        if closing.join().is_err() {
            tracing::error!("a node was not closed");
        }
    }
}

async fn join(options: &NodeOptions, flusher: StreamFlusher) -> Result<Arc<NodeState>, NodeError> {
    let NodeOptions { identity, ticket, bind, relays } = options;
    let secret = match ticket {
        Some(ticket) => ticket.secret.clone(),
        None => SwarmSecret::from_founder(&identity.key)?,
    };
    let sequence = identity.sequence_file().map_or_else(Sequence::default, Sequence::open);
    let addresses = MemoryLookup::new();
    let endpoint = bind_endpoint(identity, *bind, relays, addresses.clone(), alpns([&secret])).await?;
    let others = ticket.iter().flat_map(|ticket| &ticket.members).filter(|addr| addr.id != endpoint.id());
    let bootstrap: HashMap<EndpointId, Option<Instant>> = others
        .map(|addr| {
            addresses.add_endpoint_info(addr.clone());
            (addr.id, None)
        })
        .collect();
    let (epoch, receiver) = Epoch::join(secret, &endpoint, bootstrap.keys().copied().collect()).await?;
    let epoch = Arc::new(epoch);
    let epochs = Epochs::new(Arc::clone(&epoch));
    let state = Arc::new(NodeState {
        endpoint,
        flusher,
        server: Mutex::default(),
        accepted: watch::Sender::new(epochs.accepted()),
        epochs: Mutex::new(epochs),
        addresses,
        members: Mutex::default(),
        bootstrap: Mutex::new(bootstrap),
        sequences: Mutex::default(),
        local_server: Mutex::new(LocalServer { sequence, ..LocalServer::default() }),
    });
    tokio::spawn(accept_connections(Arc::clone(&state)));
    tokio::spawn(handle_events(Arc::clone(&state), epoch, receiver));
    tokio::spawn(run_loop(Arc::clone(&state)));
    Ok(state)
}

async fn bind_endpoint(
    identity: &Identity,
    bind: Option<SocketAddr>,
    relays: &[String],
    addresses: MemoryLookup,
    alpns: Vec<Vec<u8>>,
) -> Result<iroh::Endpoint, NodeError> {
    let urls = relays.iter().map(|url| url.parse::<RelayUrl>().map_err(|_| NodeError::Relay(url.clone())));
    let urls: Vec<RelayUrl> = urls.collect::<Result<_, _>>()?;
    let idle_timeout = IDLE_TIMEOUT.try_into().map_err(|_| NodeError::Bind("a timeout out of range".into()))?;
    let transport = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(2 * WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_GOSSIP_STREAMS))
        .send_window(WINDOW_BYTES.into())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .max_idle_timeout(Some(idle_timeout))
        .build();
    let mut builder = iroh::Endpoint::builder(presets::Minimal)
        .secret_key(identity.key.clone())
        .alpns(alpns)
        .address_lookup(addresses)
        .transport_config(transport)
        // Contacts configured relays only.
        .net_report_config(NetReportConfig::minimal())
        .relay_mode(if urls.is_empty() { RelayMode::Disabled } else { RelayMode::custom(urls) });
    if let Some(addr) = bind {
        let refused = |error: &dyn fmt::Display| NodeError::Bind(format!("{addr}: {error}"));
        builder = builder.clear_ip_transports().bind_addr(addr).map_err(|error| refused(&error))?;
    }
    builder.bind().await.map_err(|error| NodeError::Bind(in_one_line(&error)))
}

async fn accept_connections(state: Arc<NodeState>) {
    let unproven = Arc::new(Semaphore::new(MAX_UNPROVEN));
    while let Some(incoming) = state.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&unproven).try_acquire_owned() else {
            // A peer with a validated address retries by itself; others must validate it first. No member is refused.
            if incoming.remote_addr_validated() {
                incoming.ignore();
            } else if incoming.retry().is_err() {
                tracing::debug!("a connection could not be deferred");
            }
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let Ok(Ok(connection)) = tokio::time::timeout(PROOF_TIMEOUT, incoming).await else { return };
            // Observers can learn the protocol name, so gossip relies on the secret topic and on signatures.
            if ![ALPN, OLD_ALPN].contains(&connection.alpn()) {
                drop(permit);
                return state.accept_neighbour(connection).await;
            }
            let admitted = tokio::time::timeout(PROOF_TIMEOUT, state.admit(&connection)).await;
            drop(permit);
            let stream = match admitted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error @ SecurityError::Epoch { .. })) => {
                    return connection.close(VarInt::from_u32(NO_MEMBER), error.to_string().as_bytes());
                }
                _ => return connection.close(VarInt::from_u32(NO_MEMBER), b"not a member of this swarm"),
            };
            let server = lock(&state.server).clone();
            if server.is_none_or(|server| server.send(stream).is_err()) {
                connection.close(VarInt::from_u32(NO_SERVER), b"no server here");
            }
        });
    }
}
