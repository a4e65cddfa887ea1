//! Where a server is found, and whom it finds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sepal_blocks::BlockStack;
use sepal_core::Span;
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_discover::{Discovery, Notice, settle};
use sepal_server::{BlockServer, Board, ModelIdentity, ServerOptions};
use sepal_swarm::{Addr, Dial, Endpoint};

use crate::Failure;
use crate::args::ServeArgs;

/// How long a newcomer waits for a neighbour in its swarm.
const NEIGHBOUR: Duration = Duration::from_secs(10);

/// Where a server is found.
pub(crate) enum Place {
    /// At its address.
    Addr(Addr),
    /// At its address, which the local network is told.
    Lan(Addr, Arc<Lan>),
    /// In a swarm, by its name.
    P2p(Arc<Node>),
}

/// What the server says of itself to others; it may change while it is announced.
#[derive(Clone, Default)]
pub(crate) struct Own(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    board: Option<Arc<Board>>,
    moving_to: Option<Span>,
}

impl Own {
    /// This server is there.
    pub(crate) fn is(&self, board: &Arc<Board>) {
        self.set(Said { board: Some(Arc::clone(board)), moving_to: None });
    }

    /// It is on its way to other blocks, so that nobody else goes there for the same reason.
    pub(crate) fn moves_to(&self, span: Span) {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner).board.clone();
        self.set(Said { board, moving_to: Some(span) });
    }

    fn set(&self, said: Said) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }

    fn notice(&self) -> Option<Notice> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let notice = sepal_status::notice_of(&said.board.as_ref()?.info());
        Some(match said.moving_to {
            Some(span) => Notice { span, draining: true, ..notice },
            None => notice,
        })
    }
}

impl Place {
    /// Joins what is to be joined.
    pub(crate) fn open(args: &ServeArgs) -> Result<Self, Failure> {
        if args.p2p || args.join.is_some() {
            return Ok(Place::P2p(Arc::new(join(args)?)));
        }
        let everywhere = || if args.lan { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let addr = args.listen.clone().map_or_else(|| everywhere().parse(), Ok)?;
        if !args.lan {
            return Ok(Place::Addr(addr));
        }
        if matches!(addr, Addr::Unix(_)) {
            return Err("tell the local network of a Unix socket: --lan needs --listen IP:PORT".into());
        }
        let lan = Lan::start(args.interface.as_deref())?;
        settle(&lan);
        Ok(Place::Lan(addr, Arc::new(lan)))
    }

    /// What others are found with.
    pub(crate) fn discovery(&self) -> Option<Arc<dyn Discovery>> {
        match self {
            Place::Addr(_) => None,
            Place::Lan(_, lan) => Some(Arc::clone(lan) as Arc<dyn Discovery>),
            Place::P2p(node) => Some(Arc::clone(node) as Arc<dyn Discovery>),
        }
    }

    /// What admits others, in a swarm.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        if let Place::P2p(node) = self { Some(node.ticket()) } else { None }
    }

    /// Starts a server here; the next one takes the same port.
    pub(crate) fn start(
        &mut self,
        stack: BlockStack,
        identity: ModelIdentity,
        options: ServerOptions,
    ) -> Result<BlockServer, Failure> {
        match self {
            Place::Addr(addr) | Place::Lan(addr, _) => {
                let server = BlockServer::listen(stack, identity, options, addr.clone())?;
                if let Endpoint::Addr(bound) = server.endpoint() {
                    *addr = bound.clone();
                }
                Ok(server)
            }
            Place::P2p(node) => {
                let endpoint = node.peer(&node.name()).ok_or("find this server by its own name")?;
                let dial: Arc<dyn Dial> = Arc::clone(node) as Arc<dyn Dial>;
                let options = ServerOptions { dial: Some(dial), ..options };
                Ok(BlockServer::accept(stack, identity, options, node.connections(), endpoint)?)
            }
        }
    }

    /// Tells others of the server, from now on.
    pub(crate) fn announce(&self, own: &Own) -> Result<(), Failure> {
        let own = own.clone();
        match self {
            Place::Addr(_) => {}
            Place::Lan(addr, lan) => lan.announce(addr.to_string().parse::<SocketAddr>()?, move || own.notice())?,
            Place::P2p(node) => node.announce(move || own.notice()),
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
    let identity = Identity::open(&args.identity.clone().map_or_else(default_identity, Ok)?)?;
    let ticket = args.join.as_deref().map(Ticket::read).transpose()?;
    let joins = ticket.is_some();
    let node = Node::start(NodeOptions { identity, ticket, bind, relays: args.relays.clone() })?;
    if joins {
        if !node.wait_for_neighbour(NEIGHBOUR) {
            eprintln!("no member of the swarm has answered yet; going on, and trying further");
        }
        settle(&node);
    }
    Ok(node)
}

/// `$XDG_STATE_HOME/sepal/identity`.
fn default_identity() -> Result<PathBuf, Failure> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or("find a folder for the server's identity: set HOME, or give --identity")?;
    Ok(state.join("sepal").join("identity"))
}
