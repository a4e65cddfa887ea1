//! Networks in which a server is found: an address, the local network, or a peer-to-peer swarm.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sepal_core::Span;
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket, is_in_use};
use sepal_discover::{Discovery, ServerRecord, wait_until_settled};
use sepal_server::{BlockServer, DeviceStacks, ModelIdentity, ServerOptions, ServerStats};
use sepal_swarm::{Addr, Dial, Endpoint};

use crate::args::ServeArgs;
use crate::output::Failure;

/// Timeout for the first neighbour in a joined swarm.
const NEIGHBOUR: Duration = Duration::from_secs(10);

pub(crate) enum Network {
    /// Clients know the address.
    Addr(Addr),
    /// The address is announced on the local network.
    Lan(Addr, Arc<Lan>),
    /// The server is found by its name in a swarm.
    P2p(Arc<Node>),
}

/// Announcement of the server, which may change while it is published.
#[derive(Clone, Default)]
pub(crate) struct Announcement(Arc<Mutex<AnnouncementState>>);

#[derive(Default)]
struct AnnouncementState {
    stats: Option<Arc<ServerStats>>,
    moving_to: Option<Span>,
}

impl Announcement {
    pub(crate) fn set_serving(&self, stats: &Arc<ServerStats>) {
        *self.lock() = AnnouncementState { stats: Some(Arc::clone(stats)), moving_to: None };
    }

    /// Announces the blocks that the server moves to, so that no other server moves to them as well.
    pub(crate) fn set_moving_to(&self, span: Span) {
        self.lock().moving_to = Some(span);
    }

    fn lock(&self) -> MutexGuard<'_, AnnouncementState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> Option<ServerRecord> {
        let state = self.lock();
        let record = sepal_status::server_record(&state.stats.as_ref()?.info());
        Some(match state.moving_to {
            Some(span) => ServerRecord { span, draining: true, ..record },
            None => record,
        })
    }
}

impl Network {
    pub(crate) fn open(args: &ServeArgs) -> Result<Self, Failure> {
        if args.p2p || args.join.is_some() {
            return Ok(Network::P2p(Arc::new(join(args)?)));
        }
        let any_address = || if args.lan { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let addr = args.listen.clone().map_or_else(|| any_address().parse(), Ok)?;
        if !args.lan {
            return Ok(Network::Addr(addr));
        }
        if matches!(addr, Addr::Unix(_)) {
            return Err("announce a Unix socket on the local network: --lan needs --listen IP:PORT".into());
        }
        let lan = Lan::start(args.interface.as_deref())?;
        wait_until_settled(&lan);
        Ok(Network::Lan(addr, Arc::new(lan)))
    }

    pub(crate) fn discovery(&self) -> Option<Arc<dyn Discovery>> {
        match self {
            Network::Addr(_) => None,
            Network::Lan(_, lan) => Some(Arc::clone(lan) as Arc<dyn Discovery>),
            Network::P2p(node) => Some(Arc::clone(node) as Arc<dyn Discovery>),
        }
    }

    pub(crate) fn ticket(&self) -> Option<Ticket> {
        if let Network::P2p(node) = self { Some(node.ticket()) } else { None }
    }

    /// Starts a server. The next server takes the same port.
    pub(crate) fn start(
        &mut self,
        stacks: DeviceStacks,
        identity: ModelIdentity,
        options: ServerOptions,
    ) -> Result<BlockServer, Failure> {
        match self {
            Network::Addr(addr) | Network::Lan(addr, _) => {
                let server = BlockServer::listen(stacks, identity, options, addr.clone())?;
                if let Endpoint::Addr(bound) = server.endpoint() {
                    *addr = bound.clone();
                }
                Ok(server)
            }
            Network::P2p(node) => {
                let endpoint = node.peer(&node.name()).ok_or("find this server by its own name")?;
                let dial: Arc<dyn Dial> = Arc::clone(node) as Arc<dyn Dial>;
                let options = ServerOptions { dial: Some(dial), ..options };
                Ok(BlockServer::accept(stacks, identity, options, node.connections(), endpoint)?)
            }
        }
    }

    pub(crate) fn announce(&self, announcement: &Announcement) -> Result<(), Failure> {
        let announcement = announcement.clone();
        match self {
            Network::Addr(_) => {}
            Network::Lan(addr, lan) => {
                lan.announce(addr.to_string().parse::<SocketAddr>()?, move || announcement.record())?
            }
            Network::P2p(node) => node.announce(move || announcement.record()),
        }
        Ok(())
    }
}

fn join(args: &ServeArgs) -> Result<Node, Failure> {
    let bind = match &args.listen {
        None => None,
        Some(Addr::Tcp(host_port)) => Some(
            host_port.parse().map_err(|_| format!("use {host_port} for peers: --listen needs IP:PORT with --p2p"))?,
        ),
        Some(Addr::Unix(_)) => return Err("use a Unix socket for peers: --listen needs IP:PORT with --p2p".into()),
    };
    let identity = Identity::open(&args.identity.clone().map_or_else(default_identity, Ok)?);
    let identity = identity.map_err(|error| match is_in_use(&error) {
        true => format!("{error} (--identity FILE)").into(),
        false => Failure::from(error),
    })?;
    let ticket = args.join.as_deref().map(Ticket::read).transpose()?;
    let joins = ticket.is_some();
    let node = Node::start(NodeOptions { identity, ticket, bind, relays: args.relays.clone() })?;
    if joins {
        if !node.wait_for_neighbour(NEIGHBOUR) {
            tracing::warn!("no member of the swarm has answered yet; the server starts and keeps trying");
        }
        wait_until_settled(&node);
    }
    Ok(node)
}

/// Returns `$XDG_STATE_HOME/sepal/identity`.
fn default_identity() -> Result<PathBuf, Failure> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or("find a folder for the server's identity: set HOME, or give --identity")?;
    Ok(state.join("sepal").join("identity"))
}
