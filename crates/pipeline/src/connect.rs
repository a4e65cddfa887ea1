//! The servers of a run: started here, listed, or found.

use std::sync::Arc;

use sepal_blocks::{BlockStack, Placement};
use sepal_checkpoint::Checkpoint;
use sepal_core::Span;
use sepal_discover::Discovery;
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use sepal_swarm::{Addr, Endpoint};

use crate::blocks::{Blocks, Place};
use crate::error::RunError;
use crate::progress::{Event, Observer};
use crate::spec::{EmbeddedSpec, P2pSpec, Spec, SwarmSpec};

/// What must be kept as long as remote blocks are used.
#[derive(Debug)]
pub(crate) enum Kept {
    Nothing,
    /// The server of this process.
    Server(BlockServer),
    /// What finds servers.
    Discovery(Arc<dyn Discovery>),
}

impl Kept {
    /// The servers that `spec` names or that were found, whatever they serve.
    pub(crate) fn endpoints(&self, spec: &Spec) -> Result<Vec<Endpoint>, RunError> {
        Ok(match (self, &spec.swarm) {
            (Kept::Server(server), _) => vec![server.endpoint().clone()],
            (Kept::Discovery(found), _) => found.members().into_iter().map(|member| member.endpoint).collect(),
            (Kept::Nothing, SwarmSpec::Static(servers)) => addresses(&servers.servers)?,
            (Kept::Nothing, _) => Vec::new(),
        })
    }
}

/// The blocks of the run: those that run here are loaded, and servers are found, or started if they are to run in this
/// process.
pub(crate) fn connect(
    spec: &Spec,
    checkpoint: &Checkpoint,
    observer: &mut dyn Observer,
) -> Result<(Kept, Blocks), RunError> {
    let (local_blocks, n_blocks) = (spec.model.local_blocks, checkpoint.config().n_blocks);
    if local_blocks > n_blocks {
        return Err(RunError::LocalBlocks { local_blocks, n_blocks });
    }
    let (kept, place) = match remote(spec, checkpoint, observer)? {
        None => (Kept::Nothing, Place::Here(load(spec, checkpoint, 0, n_blocks)?.into())),
        Some((kept, remote)) if local_blocks == 0 => (kept, Place::There(remote)),
        Some((kept, remote)) => (kept, Place::Both(load(spec, checkpoint, 0, local_blocks)?.into(), remote)),
    };
    let blocks = Blocks::new(place);
    let servers = match blocks.n_servers() {
        0 => String::new(),
        1 => " on 1 server".to_owned(),
        servers => format!(" on {servers} servers"),
    };
    observer.event(Event::Notice(&format!("{}{servers}", blocks.places())));
    Ok((kept, blocks))
}

/// The blocks that do not run in this process, on servers; nothing if all do.
fn remote(
    spec: &Spec,
    checkpoint: &Checkpoint,
    observer: &mut dyn Observer,
) -> Result<Option<(Kept, RemoteSequential)>, RunError> {
    let first_block = spec.model.local_blocks;
    if first_block == checkpoint.config().n_blocks {
        return Ok(None);
    }
    let config = checkpoint.config();
    let digest = spec.model.weights.digest(checkpoint.digest());
    let expected = ModelExpectation { digest, n_blocks: config.n_blocks, hidden: config.hidden };
    let options = RemoteOptions { first_block, ..options(spec) };
    let (kept, remote) = match &spec.swarm {
        SwarmSpec::None(_) => return Ok(None),
        SwarmSpec::Embedded(embedded) => {
            let server = embed(spec, embedded, checkpoint, first_block)?;
            let endpoints = vec![server.endpoint().clone()];
            (Kept::Server(server), RemoteSequential::connect(endpoints, expected, options))
        }
        SwarmSpec::Static(servers) => {
            (Kept::Nothing, RemoteSequential::connect(addresses(&servers.servers)?, expected, options))
        }
        SwarmSpec::Lan(lan) => {
            let found: Arc<dyn Discovery> =
                Arc::new(Lan::start(lan.interface.as_deref()).map_err(|source| RunError::Discovery(source.into()))?);
            look(found, expected, options, observer)
        }
        SwarmSpec::P2p(p2p) => look(join(p2p)?, expected, options, observer),
    };
    Ok(Some((kept, remote.map_err(RunError::Remote)?)))
}

fn options(spec: &Spec) -> RemoteOptions {
    RemoteOptions {
        wire_dtype: Some(spec.wire_dtype()),
        deterministic: spec.train.deterministic,
        expects_overflow: spec.scaler().is_some(),
        ..spec.swarm.remote()
    }
}

/// The blocks `start..end`, in the format of the run.
fn load(spec: &Spec, checkpoint: &Checkpoint, start: usize, end: usize) -> Result<BlockStack, RunError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RunError::Load { what: "blocks", source };
    let span = Span::new(start, end).map_err(|source| failed(source.into()))?;
    let placement = Placement::on(spec.model.device, spec.model.weights).map_err(|source| failed(source.into()))?;
    BlockStack::load_as(checkpoint, span, placement).map_err(|source| failed(source.into()))
}

fn embed(
    spec: &Spec,
    embedded: &EmbeddedSpec,
    checkpoint: &Checkpoint,
    first_block: usize,
) -> Result<BlockServer, RunError> {
    let stack = load(spec, checkpoint, first_block, checkpoint.config().n_blocks)?;
    let limits = Limits { tape_budget_bytes: embedded.tape_budget_mb << 20, ..Limits::default() };
    let threads = spec.train.threads.and_then(|threads| u32::try_from(threads).ok());
    let options = ServerOptions { limits, threads, ..ServerOptions::default() };
    BlockServer::embedded(
        stack,
        ModelIdentity::from_checkpoint(checkpoint).with_weight_format(spec.model.weights),
        options,
    )
    .map_err(RunError::Server)
}

fn addresses(servers: &[String]) -> Result<Vec<Endpoint>, RunError> {
    let parse = |text: &String| -> Result<Endpoint, RunError> {
        let addr: Addr = text.parse().map_err(|error| RunError::Address { source: error })?;
        Ok(Endpoint::Addr(addr))
    };
    servers.iter().map(parse).collect()
}

fn look(
    found: Arc<dyn Discovery>,
    expected: ModelExpectation,
    options: RemoteOptions,
    observer: &mut dyn Observer,
) -> (Kept, Result<RemoteSequential, sepal_remote::RemoteError>) {
    observer.event(Event::Notice("blocks: looking for servers of the model"));
    let sightings = found.sightings(&expected.digest);
    let remote = RemoteSequential::discover(sightings, expected, options);
    (Kept::Discovery(found), remote)
}

fn join(p2p: &P2pSpec) -> Result<Arc<dyn Discovery>, RunError> {
    let ticket = Ticket::read(&p2p.ticket).map_err(|source| RunError::Ticket { source })?;
    let (bind, relays) = (p2p.bind, p2p.relays.clone());
    let options = NodeOptions { identity: Identity::ephemeral(), ticket: Some(ticket), bind, relays };
    let node = Node::start(options).map_err(|source| RunError::Discovery(source.into()))?;
    Ok(Arc::new(node))
}
