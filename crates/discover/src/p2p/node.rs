//! A member of a swarm.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{Connection, QuicTransportConfig, RecvStream, SendStream, VarInt, presets};
use iroh::{EndpointAddr, EndpointId, NetReportConfig, RelayMode, RelayUrl};
use iroh_gossip::api::GossipSender;
use iroh_gossip::net::Gossip;
use sepal_swarm::{Connect, Connecting, Dial, Endpoint, Sightings, Stream, Streams};
use tokio::sync::{Semaphore, mpsc, watch};

use super::announcement::Saying;
use super::identity::Identity;
use super::link::Ends;
use super::talk::{Own, listen, tick};
use super::ticket::{PROOF_BYTES, SwarmSecret, Ticket};
use crate::members::{Member, Members};
use crate::notice::Notice;
use crate::{Discovery, lock};

/// What Sepal's protocol is called among those that an endpoint speaks.
const ALPN: &[u8] = b"sepal/4";
/// What a peer's name begins with, among addresses.
const SCHEME: &str = "p2p:";
/// How long a client may take to show that it is a member.
const PROOF_WITHIN: Duration = Duration::from_secs(5);
/// Members that a ticket names.
const IN_TICKET: usize = 4;
/// Bytes that may be sent to one peer and not yet be read there: what a link of 160 Mbit/s and 100 ms holds. Not more, because
/// the engine ends a connection that holds 2048 unread packets (quinn issue 2809), and a packet may have as little as 1200 bytes.
const WINDOW: u32 = 2 << 20;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Streams that a neighbour may have open.
const GOSSIP_STREAMS: u32 = 32;
/// Connections at a time that have yet to show that they are of members.
const STRANGERS: usize = 256;
/// What a goodbye takes to get out, since a node that is dropped closes its connections at once.
const GOODBYE: Duration = Duration::from_millis(200);
/// Why a connection was refused.
const NO_MEMBER: u32 = 1;
const NO_SERVER: u32 = 2;

/// How a machine joins a swarm.
#[derive(Debug)]
pub struct NodeOptions {
    /// Who it is.
    pub identity: Identity,
    /// The swarm to join; without one it begins a swarm of its own, which is the same each time.
    pub ticket: Option<Ticket>,
    /// The UDP port to use; any on all interfaces if not set.
    pub bind: Option<SocketAddr>,
    /// Servers of the `iroh-relay` protocol that help peers behind routers to reach each other. None are used but these.
    pub relays: Vec<String>,
}

/// A node that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// No thread.
    #[error("start the node's threads")]
    Threads(#[source] io::Error),
    /// The port is taken, say.
    #[error("listen for peers: {0}")]
    Bind(String),
    /// A relay's address is none.
    #[error("`{0}` is not the address of a relay; write https://HOST")]
    Relay(String),
    /// Gossip did not start.
    #[error("join the swarm: {0}")]
    Gossip(String),
}

/// A member of a swarm: it hears who is there, and connects to servers. Dropping it leaves. Its methods wait for each
/// other and for the network: they are not for asynchronous code.
pub struct Node {
    shared: Arc<Shared>,
    /// Locked as long as it is in use.
    _identity: Identity,
    runtime: Option<tokio::runtime::Runtime>,
}

pub(super) struct Shared {
    pub(super) endpoint: iroh::Endpoint,
    pub(super) ends: Ends,
    /// Where connections to the server here go, if there is one.
    server: Mutex<Option<mpsc::UnboundedSender<Stream>>>,
    pub(super) secret: SwarmSecret,
    /// Addresses of peers.
    pub(super) book: MemoryLookup,
    pub(super) sender: GossipSender,
    pub(super) members: Mutex<Members>,
    /// Members to ask when no neighbour is left: those of the ticket, and when others were last heard of.
    pub(super) bootstrap: Mutex<HashMap<EndpointId, Option<Instant>>>,
    /// The last number of each speaker, and when it came.
    pub(super) numbers: Mutex<HashMap<EndpointId, (u64, Instant)>>,
    pub(super) own: Mutex<Own>,
    pub(super) neighbours: watch::Sender<usize>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.shared.endpoint.id())
    }
}

impl Node {
    /// Begins or joins a swarm. It is there at once; who else is there becomes known in the background.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn start(options: NodeOptions) -> Result<Self, NodeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("sepal-p2p")
            .enable_all()
            .build()
            .map_err(NodeError::Threads)?;
        let shared = runtime.block_on(join(&options, Ends::new(runtime.handle().clone())))?;
        Ok(Self { shared, _identity: options.identity, runtime: Some(runtime) })
    }

    /// Its name, as others call it.
    pub fn name(&self) -> String {
        name(self.shared.endpoint.id())
    }

    /// What others need to join: the swarm's secret, this member's addresses, and those of some others.
    pub fn ticket(&self) -> Ticket {
        let known = lock(&self.shared.bootstrap).clone();
        let others = known.into_keys().filter_map(|id| self.shared.book.get_endpoint_info(id));
        let members = [self.shared.addr()].into_iter().chain(others.map(|info| info.to_endpoint_addr()));
        Ticket { secret: self.shared.secret, members: members.take(IN_TICKET).collect() }
    }

    /// Waits until a neighbour in the swarm is found; says whether one was.
    pub fn wait_for_neighbour(&self, patience: Duration) -> bool {
        let mut neighbours = self.shared.neighbours.subscribe();
        let found = async { neighbours.wait_for(|&n| n > 0).await.is_ok() };
        self.shared.ends.runtime.block_on(async { tokio::time::timeout(patience, found).await.unwrap_or(false) })
    }

    /// Tells the swarm of a server here, from now on and as it changes, until `describe` gives nothing.
    pub fn announce(&self, describe: impl Fn() -> Option<Notice> + Send + Sync + 'static) {
        lock(&self.shared.own).describe = Some(Arc::new(describe));
        let shared = Arc::clone(&self.shared);
        self.shared.ends.runtime.spawn(async move { shared.say_here().await });
    }

    /// Connections from members, from now on; there is one server at a time.
    pub fn connections(&self) -> Streams {
        let (sender, streams) = Streams::new();
        *lock(&self.shared.server) = Some(sender);
        streams
    }

    /// The peer of that name, whether it was heard of or not.
    pub fn peer(&self, name: &str) -> Option<Endpoint> {
        Some(peer(&self.shared, name.strip_prefix(SCHEME)?.parse().ok()?))
    }
}

impl Discovery for Node {
    fn members(&self) -> Vec<Member> {
        lock(&self.shared.members).all()
    }

    fn sightings(&self, digest: &str) -> Sightings {
        lock(&self.shared.members).listen(digest)
    }

    fn withdraw(&self) {
        lock(&self.shared.own).describe = None;
        let said = async {
            self.shared.say(Saying::Gone).await;
            tokio::time::sleep(GOODBYE).await;
        };
        self.shared.ends.runtime.block_on(said);
    }
}

impl Dial for Node {
    fn find(&self, name: &str) -> Option<Endpoint> {
        // Only who has shown, by its signature for this swarm, that it is a member.
        lock(&self.shared.members).knows(name).then(|| self.peer(name)).flatten()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let (endpoint, ends) = (self.shared.endpoint.clone(), self.shared.ends.clone());
        // On a thread of its own: whoever drops a node may be within another runtime.
        let closing = std::thread::spawn(move || {
            runtime.block_on(async {
                ends.all().await;
                tokio::time::timeout(Duration::from_secs(1), endpoint.close()).await.ok()
            });
            runtime.shutdown_background();
        });
        if closing.join().is_err() {
            tracing::error!("a node was not closed");
        }
    }
}

async fn join(options: &NodeOptions, ends: Ends) -> Result<Arc<Shared>, NodeError> {
    let NodeOptions { identity, ticket, bind, relays } = options;
    let secret = ticket.as_ref().map_or_else(|| SwarmSecret::of_founder(&identity.key), |ticket| ticket.secret);
    let book = MemoryLookup::new();
    let gossip_alpn = secret.gossip_alpn();
    let endpoint = bind_endpoint(identity, *bind, relays, book.clone(), &gossip_alpn).await?;
    let others = ticket.iter().flat_map(|ticket| &ticket.members).filter(|addr| addr.id != endpoint.id());
    let bootstrap: HashMap<EndpointId, Option<Instant>> = others
        .map(|addr| {
            book.add_endpoint_info(addr.clone());
            (addr.id, None)
        })
        .collect();
    let gossip = Gossip::builder().alpn(&gossip_alpn).spawn(endpoint.clone());
    let topic = gossip.subscribe(secret.topic(), bootstrap.keys().copied().collect()).await;
    let (sender, receiver) = topic.map_err(|error| NodeError::Gossip(error.to_string()))?.split();
    let shared = Arc::new(Shared {
        endpoint,
        ends,
        server: Mutex::default(),
        secret,
        book,
        sender,
        members: Mutex::default(),
        bootstrap: Mutex::new(bootstrap),
        numbers: Mutex::default(),
        own: Mutex::default(),
        neighbours: watch::Sender::new(0),
    });
    tokio::spawn(accept(Arc::clone(&shared), gossip));
    tokio::spawn(listen(Arc::clone(&shared), receiver));
    tokio::spawn(tick(Arc::clone(&shared)));
    Ok(shared)
}

async fn bind_endpoint(
    identity: &Identity,
    bind: Option<SocketAddr>,
    relays: &[String],
    book: MemoryLookup,
    gossip_alpn: &[u8],
) -> Result<iroh::Endpoint, NodeError> {
    let urls = relays.iter().map(|url| url.parse::<RelayUrl>().map_err(|_| NodeError::Relay(url.clone())));
    let urls: Vec<RelayUrl> = urls.collect::<Result<_, _>>()?;
    let idle = IDLE.try_into().map_err(|_| NodeError::Bind("a timeout out of range".into()))?;
    let transport = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(2 * WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(GOSSIP_STREAMS))
        .send_window(WINDOW.into())
        .keep_alive_interval(KEEP_ALIVE)
        .max_idle_timeout(Some(idle))
        .build();
    let mut builder = iroh::Endpoint::builder(presets::Minimal)
        .secret_key(identity.key.clone())
        .alpns(vec![ALPN.to_vec(), gossip_alpn.to_vec()])
        .address_lookup(book)
        .transport_config(transport)
        // No question to anybody but the relays that are configured.
        .net_report_config(NetReportConfig::minimal())
        .relay_mode(if urls.is_empty() { RelayMode::Disabled } else { RelayMode::custom(urls) });
    if let Some(addr) = bind {
        let refused = |error: &dyn fmt::Display| NodeError::Bind(format!("{addr}: {error}"));
        builder = builder.clear_ip_transports().bind_addr(addr).map_err(|error| refused(&error))?;
    }
    builder.bind().await.map_err(|error| NodeError::Bind(in_words(&error)))
}

fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Takes connections of members.
async fn accept(shared: Arc<Shared>, gossip: Gossip) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
            // Whoever is really there at its address tries again; a member is not turned away.
            if incoming.remote_addr_validated() {
                incoming.ignore();
            } else if incoming.retry().is_err() {
                tracing::debug!("a connection could not be put off");
            }
            continue;
        };
        let (shared, gossip) = (Arc::clone(&shared), gossip.clone());
        tokio::spawn(async move {
            let Ok(Ok(connection)) = tokio::time::timeout(PROOF_WITHIN, incoming).await else { return };
            // Its name is no secret to whoever sees a member connect, but its topic is, and what is said is signed.
            if connection.alpn() != ALPN {
                drop(permit);
                if let Err(error) = gossip.handle_connection(connection).await {
                    tracing::debug!(%error, "a neighbour's connection ended");
                }
                return;
            }
            let admitted = tokio::time::timeout(PROOF_WITHIN, shared.admit(&connection)).await;
            drop(permit);
            let Ok(Some((send, recv))) = admitted else {
                return connection.close(VarInt::from_u32(NO_MEMBER), b"not a member of this swarm");
            };
            let server = lock(&shared.server).clone();
            let stream = shared.ends.stream(connection.clone(), send, recv);
            if server.is_none_or(|server| server.send(stream).is_err()) {
                connection.close(VarInt::from_u32(NO_SERVER), b"no server here");
            }
        });
    }
}

impl Shared {
    /// The stream of a client that is a member.
    async fn admit(&self, connection: &Connection) -> Option<(SendStream, RecvStream)> {
        let (send, mut recv) = connection.accept_bi().await.ok()?;
        let mut proof = [0; PROOF_BYTES];
        recv.read_exact(&mut proof).await.ok()?;
        let is_member = self.secret.is_proof(&proof, connection.remote_id(), self.endpoint.id());
        is_member.then_some((send, recv))
    }

    async fn open(&self, id: EndpointId) -> io::Result<Stream> {
        let failed = |error: &dyn std::error::Error| io::Error::other(in_words(error));
        let connection = self.endpoint.connect(id, ALPN).await.map_err(|error| failed(&error))?;
        let (mut send, recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
        let proof = self.secret.proof(self.endpoint.id(), id);
        send.write_all(&proof).await.map_err(|error| failed(&error))?;
        Ok(self.ends.stream(connection, send, recv))
    }

    /// Where this machine is. An endpoint that is bound to one address is there and nowhere else.
    pub(super) fn addr(&self) -> EndpointAddr {
        let bound = self.endpoint.bound_sockets().into_iter().filter(|addr| !addr.ip().is_unspecified());
        bound.fold(self.endpoint.addr(), EndpointAddr::with_ip_addr)
    }
}

pub(super) fn name(id: EndpointId) -> String {
    format!("{SCHEME}{id}")
}

pub(super) fn peer(shared: &Arc<Shared>, id: EndpointId) -> Endpoint {
    Endpoint::Custom(Arc::new(Peer { shared: Arc::downgrade(shared), id }))
}

/// A member, as a client reaches it.
struct Peer {
    /// The node that reaches it; members are known to their node, so that they do not hold it.
    shared: std::sync::Weak<Shared>,
    id: EndpointId,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Connect for Peer {
    fn name(&self) -> String {
        name(self.id)
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let left = || io::Error::new(io::ErrorKind::NotConnected, "this machine has left the swarm");
            let (shared, id) = (self.shared.upgrade().ok_or_else(left)?, self.id);
            // What an endpoint does is done on its own threads.
            let opened = shared.ends.runtime.clone().spawn(async move { shared.open(id).await });
            opened.await.map_err(|_| left())?
        })
    }
}
