//! A member of a swarm.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{Connection, QuicTransportConfig, RecvStream, SendStream, VarInt, presets};
use iroh::{EndpointAddr, EndpointId, NetReportConfig, RelayMode, RelayUrl};
use iroh_gossip::api::{Event, GossipReceiver, GossipSender};
use iroh_gossip::net::{GOSSIP_ALPN, Gossip};
use sepal_swarm::{Connect, Connecting, Dial, Endpoint, Sightings, Stream, Streams};
use tokio::sync::{mpsc, watch};

use super::announcement::{Announcement, Saying};
use super::identity::Identity;
use super::ticket::{PROOF_BYTES, SwarmSecret, Ticket};
use crate::Discovery;
use crate::members::{Member, Members};
use crate::notice::Notice;

/// What Sepal's protocol is called among those that an endpoint speaks.
const ALPN: &[u8] = b"sepal/3";
/// What a peer's name begins with, among addresses.
const SCHEME: &str = "p2p:";
/// How often a server says that it is there, and how long that holds.
const EVERY: Duration = Duration::from_secs(5);
const TTL: Duration = Duration::from_secs(16);
/// How long a client may take to show that it is a member.
const PROOF_WITHIN: Duration = Duration::from_secs(5);
/// Members that a ticket names.
const IN_TICKET: usize = 4;
/// Bytes under way to one peer: what a link of 1 Gbit/s and 100 ms holds.
const WINDOW: u32 = 16 << 20;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Why a connection was refused.
const NO_MEMBER: u32 = 1;

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
    streams: Arc<Mutex<mpsc::UnboundedReceiver<Stream>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    endpoint: iroh::Endpoint,
    secret: SwarmSecret,
    /// Addresses of peers.
    book: MemoryLookup,
    sender: GossipSender,
    members: Mutex<Members>,
    /// Members to ask when no neighbour is left.
    bootstrap: Mutex<BTreeSet<EndpointId>>,
    /// The last number of each speaker.
    numbers: Mutex<HashMap<EndpointId, u64>>,
    own: Mutex<Own>,
    neighbours: watch::Sender<usize>,
    runtime: tokio::runtime::Handle,
}

type Describe = Arc<dyn Fn() -> Option<Notice> + Send + Sync>;

/// What this machine says of itself.
#[derive(Default)]
struct Own {
    describe: Option<Describe>,
    last_number: u64,
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
        let (streams, incoming) = mpsc::unbounded_channel();
        let shared = runtime.block_on(join(options, streams, runtime.handle().clone()))?;
        Ok(Self { shared, streams: Arc::new(Mutex::new(incoming)), runtime: Some(runtime) })
    }

    /// Its name, as others call it.
    pub fn name(&self) -> String {
        name(self.shared.endpoint.id())
    }

    /// What others need to join: the swarm's secret, this member's addresses, and those of some others.
    pub fn ticket(&self) -> Ticket {
        let known = lock(&self.shared.bootstrap).clone();
        let others = known.into_iter().filter_map(|id| self.shared.book.get_endpoint_info(id));
        let members = [self.shared.addr()].into_iter().chain(others.map(|info| info.to_endpoint_addr()));
        Ticket { secret: self.shared.secret, members: members.take(IN_TICKET).collect() }
    }

    /// Takes in where members of another swarm are, without joining it.
    pub fn learn_addresses(&self, ticket: &Ticket) {
        ticket.members.iter().for_each(|addr| self.shared.book.add_endpoint_info(addr.clone()));
    }

    /// Waits until a neighbour in the swarm is found; says whether one was.
    pub fn wait_for_neighbour(&self, patience: Duration) -> bool {
        let mut neighbours = self.shared.neighbours.subscribe();
        let found = async { neighbours.wait_for(|&n| n > 0).await.is_ok() };
        self.shared.runtime.block_on(async { tokio::time::timeout(patience, found).await.unwrap_or(false) })
    }

    /// Tells the swarm of a server here, from now on and as it changes, until `describe` gives nothing.
    pub fn announce(&self, describe: impl Fn() -> Option<Notice> + Send + Sync + 'static) {
        lock(&self.shared.own).describe = Some(Arc::new(describe));
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn(async move { shared.say_here().await });
    }

    /// Connections from members. One server takes them at a time; the next one goes on where it stopped.
    pub fn connections(&self) -> Streams {
        let (sender, streams) = Streams::new();
        // Not the node: it must not be dropped by a task of its own.
        let incoming = Arc::clone(&self.streams);
        self.shared.runtime.spawn(async move {
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    stream = std::future::poll_fn(|cx| lock(&incoming).poll_recv(cx)) => match stream {
                        // If the server has just stopped, the client sees its connection close.
                        Some(stream) => drop(sender.send(stream)),
                        None => return,
                    },
                }
            }
        });
        streams
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
        self.shared.runtime.block_on(self.shared.say(Saying::Gone));
    }
}

impl Dial for Node {
    fn find(&self, name: &str) -> Option<Endpoint> {
        let id = name.strip_prefix(SCHEME)?.parse().ok()?;
        Some(peer(&self.shared, id))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let endpoint = self.shared.endpoint.clone();
        // On a thread of its own: whoever drops a node may be within another runtime.
        let closing = std::thread::spawn(move || {
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), endpoint.close()).await.ok() });
            runtime.shutdown_background();
        });
        if closing.join().is_err() {
            tracing::error!("a node was not closed");
        }
    }
}

async fn join(
    options: NodeOptions,
    streams: mpsc::UnboundedSender<Stream>,
    runtime: tokio::runtime::Handle,
) -> Result<Arc<Shared>, NodeError> {
    let NodeOptions { identity, ticket, bind, relays } = options;
    let secret = ticket.as_ref().map_or_else(|| SwarmSecret::of_founder(&identity.key), |ticket| ticket.secret);
    let book = MemoryLookup::new();
    let endpoint = bind_endpoint(&identity, bind, &relays, book.clone()).await?;
    let others = ticket.into_iter().flat_map(|ticket| ticket.members).filter(|addr| addr.id != endpoint.id());
    let bootstrap: BTreeSet<EndpointId> = others
        .map(|addr| {
            book.add_endpoint_info(addr.clone());
            addr.id
        })
        .collect();
    let gossip = Gossip::builder().spawn(endpoint.clone());
    let topic = gossip.subscribe(secret.topic(), bootstrap.iter().copied().collect()).await;
    let (sender, receiver) = topic.map_err(|error| NodeError::Gossip(error.to_string()))?.split();
    let shared = Arc::new(Shared {
        endpoint,
        secret,
        book,
        sender,
        members: Mutex::default(),
        bootstrap: Mutex::new(bootstrap),
        numbers: Mutex::default(),
        own: Mutex::default(),
        neighbours: watch::Sender::new(0),
        runtime,
    });
    tokio::spawn(accept(Arc::clone(&shared), gossip, streams));
    tokio::spawn(listen(Arc::clone(&shared), receiver));
    tokio::spawn(tick(Arc::clone(&shared)));
    Ok(shared)
}

async fn bind_endpoint(
    identity: &Identity,
    bind: Option<SocketAddr>,
    relays: &[String],
    book: MemoryLookup,
) -> Result<iroh::Endpoint, NodeError> {
    let urls = relays.iter().map(|url| url.parse::<RelayUrl>().map_err(|_| NodeError::Relay(url.clone())));
    let urls: Vec<RelayUrl> = urls.collect::<Result<_, _>>()?;
    let idle = IDLE.try_into().map_err(|_| NodeError::Bind("a timeout out of range".into()))?;
    let transport = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .send_window(WINDOW.into())
        .keep_alive_interval(KEEP_ALIVE)
        .max_idle_timeout(Some(idle))
        .build();
    let mut builder = iroh::Endpoint::builder(presets::Minimal)
        .secret_key(identity.key.clone())
        .alpns(vec![ALPN.to_vec(), GOSSIP_ALPN.to_vec()])
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
async fn accept(shared: Arc<Shared>, gossip: Gossip, streams: mpsc::UnboundedSender<Stream>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let (shared, gossip, streams) = (Arc::clone(&shared), gossip.clone(), streams.clone());
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            if connection.alpn() == GOSSIP_ALPN {
                if let Err(error) = gossip.handle_connection(connection).await {
                    tracing::debug!(%error, "a neighbour's connection ended");
                }
                return;
            }
            match tokio::time::timeout(PROOF_WITHIN, shared.admit(&connection)).await {
                // A node that no server listens on keeps no connections.
                Ok(Some((send, recv))) => drop(streams.send(stream(connection, send, recv))),
                _ => connection.close(VarInt::from_u32(NO_MEMBER), b"not a member of this swarm"),
            }
        });
    }
}

/// Both directions of a stream, with the connection that they need.
fn stream(connection: Connection, send: SendStream, recv: RecvStream) -> Stream {
    Stream::new(Held { inner: recv, _connection: connection }, send)
}

/// Keeps its connection open.
struct Held {
    inner: RecvStream,
    _connection: Connection,
}

impl tokio::io::AsyncRead for Held {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut self.inner), cx, buf)
    }
}

/// Hears what is said.
async fn listen(shared: Arc<Shared>, mut receiver: GossipReceiver) {
    while let Some(event) = receiver.next().await {
        match event {
            Ok(Event::NeighborUp(id)) => {
                shared.neighbours.send_modify(|n| *n += 1);
                lock(&shared.bootstrap).insert(id);
                // Whoever has just come knows nobody, and we may be the one who has.
                shared.say(Saying::Hello).await;
                shared.say_here().await;
            }
            Ok(Event::NeighborDown(_)) => shared.neighbours.send_modify(|n| *n = n.saturating_sub(1)),
            Ok(Event::Received(message)) => shared.hear(&message.content).await,
            Ok(Event::Lagged) => tracing::warn!("some announcements of the swarm were missed"),
            Err(error) => {
                tracing::warn!(%error, "the swarm's announcements are heard no longer");
                return;
            }
        }
    }
}

/// Says at intervals that this server is there, forgets those that do not, and looks for neighbours if there are none.
async fn tick(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(EVERY).await;
        shared.say_here().await;
        lock(&shared.members).expire(Instant::now());
        if *shared.neighbours.borrow() == 0 {
            let peers: Vec<EndpointId> = lock(&shared.bootstrap).iter().copied().collect();
            if !peers.is_empty()
                && let Err(error) = shared.sender.join_peers(peers).await
            {
                tracing::debug!(%error, "no neighbour");
            }
        }
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
        Ok(stream(connection, send, recv))
    }

    /// Where this machine is. An endpoint that is bound to one address is there and nowhere else.
    fn addr(&self) -> EndpointAddr {
        let bound = self.endpoint.bound_sockets().into_iter().filter(|addr| !addr.ip().is_unspecified());
        bound.fold(self.endpoint.addr(), EndpointAddr::with_ip_addr)
    }

    async fn say_here(&self) {
        let describe = lock(&self.own).describe.clone();
        let Some(notice) = describe.and_then(|describe| describe()) else { return };
        let addrs = self.addr().addrs.into_iter().collect();
        self.say(Saying::Here { notice, addrs, ttl_ms: TTL.as_millis() as u64 }).await;
    }

    async fn say(&self, saying: Saying) {
        let announcement = {
            let mut own = lock(&self.own);
            let announcement = Announcement::new(saying, own.last_number);
            own.last_number = announcement.number;
            announcement
        };
        let message = match announcement.sign(self.endpoint.secret_key(), self.secret.topic()) {
            Ok(message) => message,
            Err(error) => return tracing::error!(%error, "an announcement cannot be written"),
        };
        if let Err(error) = self.sender.broadcast(message).await {
            tracing::debug!(%error, "an announcement was not sent");
        }
    }

    async fn hear(self: &Arc<Self>, message: &[u8]) {
        let Some((speaker, announcement)) = Announcement::verify(message, self.secret.topic()) else {
            return tracing::debug!("an announcement that nobody has signed");
        };
        let Announcement { number, saying } = announcement;
        {
            // What was said before is not believed again.
            let mut numbers = lock(&self.numbers);
            let last = numbers.entry(speaker).or_default();
            if number <= *last {
                return;
            }
            *last = number;
        }
        match saying {
            Saying::Here { notice, addrs, ttl_ms } => {
                self.book.set_endpoint_info(EndpointAddr::from_parts(speaker, addrs));
                lock(&self.bootstrap).insert(speaker);
                let ttl = Duration::from_millis(ttl_ms);
                lock(&self.members).heard(peer(self, speaker), notice, ttl, Instant::now());
            }
            Saying::Gone => lock(&self.members).left(&name(speaker)),
            Saying::Hello => self.say_here().await,
        }
    }
}

fn name(id: EndpointId) -> String {
    format!("{SCHEME}{id}")
}

fn peer(shared: &Arc<Shared>, id: EndpointId) -> Endpoint {
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
            let opened = shared.runtime.clone().spawn(async move { shared.open(id).await });
            opened.await.map_err(|_| left())?
        })
    }
}

/// A panic elsewhere leaves these usable: every change to them is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
