//! Blocks of a run: loaded in this process, on an embedded server, or on servers that are listed or found.

use std::path::Path;
use std::sync::Arc;

use sepal_checkpoint::Checkpoint;
use sepal_config::spec::{EmbeddedSpec, P2pSpec, Spec, StaticSpec, SwarmSpec};
use sepal_discover::Discovery;
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_model::{Blocks, LocalBlocks, SplitBlocks};
use sepal_remote::{ModelExpectation, RemoteError, RemoteOptions, RemoteSequential};
use sepal_server::BlockServer;
use sepal_swarm::{ClientSecurity, Endpoint, ListedServer};

use crate::embedded::{EmbeddedServers, UNLIMITED, load_blocks};
use crate::error::AssembleError;
use crate::formats::other_formats;
use crate::progress::{Event, Observer};

/// Memory for tapes of the blocks that check others, in MiB. A check has one tape at a time, from its forward call to its
/// backward call; one that does not fit is computed again.
const CHECK_TAPES_MB: u64 = 1024;

/// Resources that remote blocks need as long as they are used.
#[derive(Debug)]
pub(crate) enum SwarmHandle {
    None,
    Server(Arc<BlockServer>),
    Discovery(Arc<dyn Discovery>),
    /// Servers whose calls are checked with blocks of this process.
    Checked {
        servers: Box<SwarmHandle>,
        _own_blocks: Arc<BlockServer>,
    },
}

impl SwarmHandle {
    /// Endpoints that `spec` lists or that were found, of any model.
    pub(crate) fn endpoints(&self, spec: &Spec) -> Result<Vec<Endpoint>, AssembleError> {
        Ok(match (self, &spec.swarm) {
            (SwarmHandle::Server(server), _) => vec![server.endpoint().clone()],
            (SwarmHandle::Discovery(found), _) => found.members().into_iter().map(|member| member.endpoint).collect(),
            (SwarmHandle::None, SwarmSpec::Static(listed)) => parse_addresses(listed)?,
            (SwarmHandle::None, _) => Vec::new(),
            (SwarmHandle::Checked { servers, .. }, _) => servers.endpoints(spec)?,
        })
    }
}

/// Error if this build leaves out the kind of the swarm.
pub(crate) fn check_built(spec: &Spec) -> Result<(), AssembleError> {
    let missing = match &spec.swarm {
        SwarmSpec::Lan(_) => sepal_discover::lan::NOT_BUILT,
        SwarmSpec::P2p(_) => sepal_discover::p2p::NOT_BUILT,
        SwarmSpec::None(_) | SwarmSpec::Embedded(_) | SwarmSpec::Static(_) => None,
    };
    missing.map_or(Ok(()), |error| Err(AssembleError::SwarmNotBuilt(error)))
}

/// Loads the local blocks of the run and connects to the others, to servers whose blocks take `tunables`. An embedded server
/// is the `shared` one, if there is one.
pub(crate) fn connect(
    spec: &Spec,
    checkpoint: &Checkpoint,
    tunables: Vec<String>,
    servers: &EmbeddedServers,
    observer: &mut dyn Observer,
) -> Result<(SwarmHandle, Box<dyn Blocks>), AssembleError> {
    let (local_blocks, n_blocks) = (spec.model.local_blocks, checkpoint.config().n_blocks);
    if local_blocks > n_blocks {
        return Err(AssembleError::LocalBlocks { local_blocks, n_blocks });
    }
    let remote = connect_remote(spec, checkpoint, tunables, servers, observer)?;
    let (handle, blocks): (SwarmHandle, Box<dyn Blocks>) = match remote {
        None => {
            let blocks = load_blocks(spec, checkpoint, 0..n_blocks, UNLIMITED, observer)?;
            (SwarmHandle::None, Box::new(LocalBlocks::new(blocks)))
        }
        Some((handle, remote)) if local_blocks == 0 => (handle, Box::new(remote)),
        Some((handle, remote)) => {
            let blocks = load_blocks(spec, checkpoint, 0..local_blocks, UNLIMITED, observer)?;
            (handle, Box::new(SplitBlocks::new(blocks, remote)))
        }
    };
    let servers = match blocks.n_servers() {
        0 => String::new(),
        1 => " on 1 server".to_owned(),
        servers => format!(" on {servers} servers"),
    };
    observer.event(Event::Notice(&format!("{}{servers}", blocks.description())));
    Ok((handle, blocks))
}

/// Connects to the servers of the blocks after the local ones; `None` if all blocks are local.
fn connect_remote(
    spec: &Spec,
    checkpoint: &Checkpoint,
    tunables: Vec<String>,
    servers: &EmbeddedServers,
    observer: &mut dyn Observer,
) -> Result<Option<(SwarmHandle, RemoteSequential)>, AssembleError> {
    let first_block = spec.model.local_blocks;
    let config = checkpoint.config();
    if first_block == config.n_blocks {
        return Ok(None);
    }
    let digest = spec.model.digest(checkpoint.digest());
    let expected = ModelExpectation { digest, n_blocks: config.n_blocks, hidden: config.hidden, tunables };
    let options = RemoteOptions {
        wire_dtype: Some(spec.wire_dtype()),
        deterministic: spec.train.deterministic,
        expects_overflow: spec.scaler().is_some(),
        first_block,
        ..spec.swarm.remote()
    };
    let (handle, remote) = match &spec.swarm {
        SwarmSpec::None(_) => return Ok(None),
        SwarmSpec::Embedded(embedded) => {
            let server = servers.server(spec, embedded, checkpoint, observer)?;
            let endpoints = vec![server.endpoint().clone()];
            (SwarmHandle::Server(server), RemoteSequential::connect(endpoints, expected, options))
        }
        SwarmSpec::Static(listed) => {
            (SwarmHandle::None, RemoteSequential::connect(parse_addresses(listed)?, expected, options))
        }
        SwarmSpec::Lan(lan) => {
            let security = security(lan.secret_file.as_deref())?;
            let lan = Lan::start(lan.interface.as_deref(), security);
            let lan = lan.map_err(|error| AssembleError::Discovery(error.into()))?;
            discover(Arc::new(lan), expected, options, observer)
        }
        SwarmSpec::P2p(p2p) => discover(Arc::new(join(p2p)?), expected, options, observer),
    };
    let (weights, compute) = (spec.model.weights, spec.model.compute_format());
    let remote = remote.map_err(|source| AssembleError::Connect { source, weights, compute })?;
    if !spec.swarm.remote().checks_locally() {
        return Ok(Some((handle, remote)));
    }
    let embedded = EmbeddedSpec { tape_budget_mb: CHECK_TAPES_MB, ..EmbeddedSpec::default() };
    let own_blocks = servers.server(spec, &embedded, checkpoint, observer)?;
    remote.check_with(own_blocks.endpoint().clone());
    Ok(Some((SwarmHandle::Checked { servers: Box::new(handle), _own_blocks: own_blocks }, remote)))
}

fn parse_addresses(listed: &StaticSpec) -> Result<Vec<Endpoint>, AssembleError> {
    let security = security(listed.secret_file.as_deref())?;
    let parse = |text: &String| {
        let ListedServer { addr, key } = text.parse::<ListedServer>().map_err(AssembleError::Address)?;
        match (&security, key) {
            (Some(security), key) => Ok(security.endpoint(addr, key)),
            (None, None) => Ok(Endpoint::Addr(addr)),
            (None, Some(_)) => Err(AssembleError::KeyWithoutSecret { server: text.clone() }),
        }
    };
    listed.servers.iter().map(parse).collect()
}

/// Returns the security of connections to the servers whose secret, or one derived from it, a file holds.
fn security(secret_file: Option<&Path>) -> Result<Option<ClientSecurity>, AssembleError> {
    let Some(path) = secret_file else { return Ok(None) };
    ClientSecurity::from_file(path).map(Some).map_err(AssembleError::Secret)
}

fn discover(
    discovery: Arc<dyn Discovery>,
    expected: ModelExpectation,
    options: RemoteOptions,
    observer: &mut dyn Observer,
) -> (SwarmHandle, Result<RemoteSequential, RemoteError>) {
    observer.event(Event::Notice("blocks: looking for servers of the model"));
    let (sightings, digest) = (discovery.sightings(&expected.digest), expected.digest.clone());
    let remote = RemoteSequential::discover(sightings, expected, options);
    if let Err(RemoteError::Uncovered { .. }) = &remote {
        // Servers with other digests are not sighted.
        let members = discovery.members();
        let servers = members.iter().map(|member| (member.endpoint.to_string(), member.record.digest.as_str()));
        for notice in other_formats(&digest, servers) {
            observer.event(Event::Notice(&notice));
        }
    }
    (SwarmHandle::Discovery(discovery), remote)
}

fn join(p2p: &P2pSpec) -> Result<Node, AssembleError> {
    if p2p.ticket.is_withheld() {
        return Err(AssembleError::TicketWithheld);
    }
    let ticket = Ticket::read(p2p.ticket.as_str()).map_err(AssembleError::Ticket)?;
    let (bind, relays) = (p2p.bind, p2p.relays.clone());
    let options = NodeOptions { identity: Identity::ephemeral(), ticket: Some(ticket), bind, relays };
    let node = Node::start(options).map_err(|error| AssembleError::Discovery(error.into()))?;
    if let Some(file) = Ticket::file(p2p.ticket.as_str()) {
        node.follow_ticket(file);
    }
    Ok(node)
}
