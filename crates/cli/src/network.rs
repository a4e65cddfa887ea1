//! Networks in which a server is found: an address, the local network, or a peer-to-peer swarm.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sepal_core::Span;
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket, is_in_use};
use sepal_discover::{Discovery, ServerRecord, wait_until_settled};
use sepal_server::{BlockServer, DeviceStacks, ModelIdentity, ServerOptions, ServerStats};
use sepal_swarm::{Addr, Dial, Endpoint, IdentityKey, Rights, Secret, ServerSecurity};

use crate::args::ServeArgs;
use crate::output::Failure;

/// Timeout for the first neighbour in a joined swarm.
const NEIGHBOUR: Duration = Duration::from_secs(10);

pub(crate) enum Network {
    /// Clients know the address.
    Addr(Addr, Option<Secured>),
    /// The address is announced on the local network.
    Lan(Addr, Arc<Lan>, Option<Secured>),
    /// The server is found by its name in a swarm.
    P2p(Arc<Node>),
}

/// Secret of a server, from a file.
pub(crate) struct Secured {
    path: PathBuf,
    is_new: bool,
    security: Arc<ServerSecurity>,
}

impl Secured {
    /// Opens the secret that the arguments ask for, or that an address needs which other machines can reach.
    fn open(args: &ServeArgs, addr: &Addr, key: &IdentityKey) -> Result<Option<Self>, Failure> {
        let path = match &args.secret_file {
            Some(path) => path.clone(),
            None if addr.is_local() => return Ok(None),
            None if args.insecure => {
                tracing::warn!("everyone who reaches {addr} can use this server and read the traffic (--insecure)");
                return Ok(None);
            }
            None => default_state(args, "secret")?,
        };
        let (_, is_new) = Secret::read_or_create(&path)?;
        let security = Arc::new(ServerSecurity::from_file(&path, key)?);
        Ok(Some(Self { path, is_new, security }))
    }
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
    /// Opens the network of a server, which the key identifies.
    pub(crate) fn open(args: &ServeArgs, key: &IdentityKey) -> Result<Self, Failure> {
        if args.p2p || args.join.is_some() {
            return Ok(Network::P2p(Arc::new(join(args)?)));
        }
        let any_address = || if args.lan { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let addr = args.listen.clone().map_or_else(|| any_address().parse(), Ok)?;
        if !args.lan {
            let secured = Secured::open(args, &addr, key)?;
            return Ok(Network::Addr(addr, secured));
        }
        if matches!(addr, Addr::Unix(_)) {
            return Err("announce a Unix socket on the local network: --lan needs --listen IP:PORT".into());
        }
        let secured = Secured::open(args, &addr, key)?;
        // Other servers are listed, and not connected to.
        let lan = Lan::start(args.interface.as_deref(), None)?;
        wait_until_settled(&lan);
        Ok(Network::Lan(addr, Arc::new(lan), secured))
    }

    pub(crate) fn discovery(&self) -> Option<Arc<dyn Discovery>> {
        match self {
            Network::Addr(..) => None,
            Network::Lan(_, lan, _) => Some(Arc::clone(lan) as Arc<dyn Discovery>),
            Network::P2p(node) => Some(Arc::clone(node) as Arc<dyn Discovery>),
        }
    }

    /// Line about the server's secret and its use by clients, if there is one.
    pub(crate) fn secret_notice(&self) -> Option<String> {
        let (Network::Addr(_, Some(secured)) | Network::Lan(_, _, Some(secured))) = self else { return None };
        let (path, made) = (secured.path.display(), if secured.is_new { "new secret" } else { "secret" });
        let notice = format!("{made} in {path}: clients need a copy of it, or of one derived by `sepal swarm grant`");
        Some(format!("{notice} (`swarm.with.secret_file`)"))
    }

    pub(crate) fn ticket(&self) -> Option<Ticket> {
        if let Network::P2p(node) = self { Some(node.ticket()) } else { None }
    }

    /// Follows the file of the swarm's ticket: the one that was given, or the one that the founder writes.
    pub(crate) fn follow_ticket(&self, args: &ServeArgs) {
        let Network::P2p(node) = self else { return };
        let file = match &args.join {
            Some(ticket) => Ticket::file(ticket),
            None => args.ticket_file.as_deref(),
        };
        if let Some(file) = file {
            node.follow_ticket(file);
        }
    }

    /// Starts a server. The next server takes the same port.
    pub(crate) fn start(
        &mut self,
        stacks: DeviceStacks,
        identity: ModelIdentity,
        options: ServerOptions,
    ) -> Result<BlockServer, Failure> {
        // Without a secret, results go to announced servers only.
        let announced = match self {
            Network::Lan(addr, lan, None) if !addr.is_local() => Some(Arc::clone(lan) as Arc<dyn Dial>),
            _ => None,
        };
        match self {
            Network::Addr(addr, secured) | Network::Lan(addr, _, secured) => {
                let security = secured.as_ref().map(|secured| Arc::clone(&secured.security));
                let options = ServerOptions { security, dial: announced, ..options };
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
            Network::Addr(..) => {}
            Network::Lan(addr, lan, _) => {
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
    let identity = Identity::open(&args.identity.clone().map_or_else(|| default_state(args, "identity"), Ok)?);
    let identity = identity.map_err(|error| match is_in_use(&error) {
        true => format!("{error} (--identity FILE)").into(),
        false => Failure::from(error),
    })?;
    let joins = args.join.is_some();
    let ticket = match &args.join {
        Some(ticket) => Some(Ticket::read(ticket)?),
        None => own_ticket(args, &identity)?,
    };
    if ticket.as_ref().is_some_and(|ticket| ticket.rights() != Rights::Server) {
        return Err(
            "serve in the swarm: the ticket is that of clients; a server needs the ticket of the servers".into()
        );
    }
    let node = Node::start(NodeOptions { identity, ticket, bind, relays: args.relays.clone() })?;
    if joins {
        if !node.wait_for_neighbour(NEIGHBOUR) {
            tracing::warn!("no member of the swarm has answered yet; the server starts and keeps trying");
        }
        wait_until_settled(&node);
    }
    Ok(node)
}

/// Returns the ticket that an earlier start of the founder has written, which may be of a later epoch. A damaged one is not
/// replaced: the swarm would return to its first epoch, and accept clients that were revoked.
fn own_ticket(args: &ServeArgs, identity: &Identity) -> Result<Option<Ticket>, Failure> {
    let has_content = |path: &&PathBuf| std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
    let Some(path) = args.ticket_file.as_ref().filter(has_content) else { return Ok(None) };
    let ticket = Ticket::read_file(path).map_err(|error| {
        format!(
            "continue with the ticket in {}: {error}; move the file away to begin in the first epoch",
            path.display()
        )
    })?;
    Ok(ticket.is_founded_by(identity).then_some(ticket))
}

/// Writes the ticket of a server that has started, unless its file holds one of a later epoch: a revocation meanwhile.
pub(crate) fn write_ticket(ticket: &Ticket, path: &Path) -> Result<(), Failure> {
    // Reading a pipe or a terminal in its place would wait.
    if path.is_file() && Ticket::read_file(path).is_ok_and(|found| found.replaces(ticket)) {
        return Ok(());
    }
    Ok(ticket.write(path).map_err(|error| format!("write the ticket into {}: {error}", path.display()))?)
}

/// Returns the file of this name beside the identity, or `$XDG_STATE_HOME/sepal/NAME`.
fn default_state(args: &ServeArgs, name: &str) -> Result<PathBuf, Failure> {
    if let Some(identity) = &args.identity {
        return Ok(identity.parent().unwrap_or(Path::new("")).join(name));
    }
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let missing = || format!("find a folder for the server's {name}: set HOME, or give --identity FILE");
    let state = state.or_else(home).ok_or_else(missing)?;
    Ok(state.join("sepal").join(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    /// Opens the security of a server with these arguments and an identity in `folder`.
    fn secured(folder: &Path, more: &[&str]) -> Option<Secured> {
        let identity = folder.join("identity");
        let identity = identity.to_str().expect("a path");
        let args = Args::try_parse_from([&["sepal", "serve", "model", "--identity", identity], more].concat());
        let Command::Serve(args) = args.expect("arguments").command else { panic!("another command") };
        let addr = args.listen.clone().expect("an address");
        Secured::open(&args, &addr, &IdentityKey::generate().expect("a key")).expect("a security")
    }

    #[test]
    fn damaged_ticket_of_the_founder_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ticket");
        let name = path.to_str().expect("a path");
        let open = || {
            let args = Args::try_parse_from(["sepal", "serve", "model", "--p2p", "--ticket-file", name]);
            let Command::Serve(args) = args.expect("arguments").command else { panic!("another command") };
            own_ticket(&args, &Identity::ephemeral())
        };
        assert!(open().expect("no file").is_none());
        std::fs::write(&path, "").expect("written");
        assert!(open().expect("an empty file").is_none());
        std::fs::write(&path, "sepal1damaged").expect("written");
        let error = open().expect_err("refused").to_string();
        assert!(error.contains("move the file away"), "{error}");
    }

    #[test]
    fn ticket_of_a_later_epoch_is_not_overwritten_by_a_server_that_starts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ticket");
        let bind = "127.0.0.1:0".parse().ok();
        let options = NodeOptions { identity: Identity::ephemeral(), ticket: None, bind, relays: Vec::new() };
        let ticket = Node::start(options).expect("a node").ticket();
        let epoch = || Ticket::read_file(&path).expect("a ticket").epoch();
        write_ticket(&ticket, &path).expect("written");
        assert_eq!(epoch(), 0);
        let next = ticket.next_epoch().expect("a servers' ticket");
        next.write(&path).expect("written");
        write_ticket(&ticket, &path).expect("left as it is");
        assert_eq!(epoch(), 1);
    }

    #[test]
    fn server_that_other_machines_reach_has_a_secret_by_default() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |more: &[&str]| secured(folder.path(), more);
        for local in ["127.0.0.1:0", "[::1]:0", "localhost:4000", "unix:socket"] {
            assert!(open(&["--listen", local]).is_none(), "{local}");
        }
        assert!(open(&["--listen", "0.0.0.0:4000", "--insecure"]).is_none());
        assert!(!folder.path().join("secret").exists());
        for (addr, is_new) in [("0.0.0.0:4000", true), ("10.0.0.5:4000", false), ("[::]:4000", false)] {
            let secured = open(&["--listen", addr]).expect("a secret");
            assert_eq!((secured.path, secured.is_new), (folder.path().join("secret"), is_new), "{addr}");
        }
        let mode = std::fs::metadata(folder.path().join("secret")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = folder.path().join("other");
        let secured = open(&["--listen", "127.0.0.1:0", "--secret-file", other.to_str().expect("a path")]);
        assert!(
            secured.is_some_and(|secured| secured.is_new && secured.path == other),
            "also on loopback if it is asked for"
        );
    }
}
