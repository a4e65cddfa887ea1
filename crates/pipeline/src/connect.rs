//! Blocks of a run: loaded in this process, on an embedded server, or on servers that are listed or found.

use std::ops::Range;
use std::sync::Arc;

use sepal_blocks::{BlockStack, Placement};
use sepal_checkpoint::Checkpoint;
use sepal_config::spec::{EmbeddedSpec, P2pSpec, Spec, SwarmSpec};
use sepal_core::Span;
use sepal_discover::Discovery;
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_model::{Blocks, LocalBlocks, SplitBlocks};
use sepal_remote::{ModelExpectation, RemoteError, RemoteOptions, RemoteSequential};
use sepal_server::memory::{self, BlockSizes, FreeMemory, MemoryRequest};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use sepal_swarm::{Addr, Endpoint};

use crate::error::{AssembleError, BoxError};
use crate::formats::other_formats;
use crate::progress::{Event, Observer};

/// Budget of memory for the only client of a server, or of blocks in this process. Sums of two do not overflow.
const UNLIMITED: u64 = u64::MAX / 2;

/// Resources that remote blocks need as long as they are used.
#[derive(Debug)]
pub(crate) enum SwarmHandle {
    None,
    Server(BlockServer),
    Discovery(Arc<dyn Discovery>),
}

impl SwarmHandle {
    /// Endpoints that `spec` lists or that were found, of any model.
    pub(crate) fn endpoints(&self, spec: &Spec) -> Result<Vec<Endpoint>, AssembleError> {
        Ok(match (self, &spec.swarm) {
            (SwarmHandle::Server(server), _) => vec![server.endpoint().clone()],
            (SwarmHandle::Discovery(found), _) => found.members().into_iter().map(|member| member.endpoint).collect(),
            (SwarmHandle::None, SwarmSpec::Static(servers)) => parse_addresses(&servers.servers)?,
            (SwarmHandle::None, _) => Vec::new(),
        })
    }
}

/// Loads the local blocks of the run and connects to the others, to servers whose blocks take `tunables`.
pub(crate) fn connect(
    spec: &Spec,
    checkpoint: &Checkpoint,
    tunables: Vec<String>,
    observer: &mut dyn Observer,
) -> Result<(SwarmHandle, Box<dyn Blocks>), AssembleError> {
    let (local_blocks, n_blocks) = (spec.model.local_blocks, checkpoint.config().n_blocks);
    if local_blocks > n_blocks {
        return Err(AssembleError::LocalBlocks { local_blocks, n_blocks });
    }
    let (handle, blocks): (SwarmHandle, Box<dyn Blocks>) = match connect_remote(spec, checkpoint, tunables, observer)? {
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
            let server = start_server(spec, embedded, checkpoint, observer)?;
            let endpoints = vec![server.endpoint().clone()];
            (SwarmHandle::Server(server), RemoteSequential::connect(endpoints, expected, options))
        }
        SwarmSpec::Static(servers) => {
            (SwarmHandle::None, RemoteSequential::connect(parse_addresses(&servers.servers)?, expected, options))
        }
        SwarmSpec::Lan(lan) => {
            let lan = Lan::start(lan.interface.as_deref()).map_err(|error| AssembleError::Discovery(error.into()))?;
            discover(Arc::new(lan), expected, options, observer)
        }
        SwarmSpec::P2p(p2p) => discover(Arc::new(join(p2p)?), expected, options, observer),
    };
    let (weights, compute) = (spec.model.weights, spec.model.compute_format());
    Ok(Some((handle, remote.map_err(|source| AssembleError::Connect { source, weights, compute })?)))
}

/// Loads blocks whose tapes take at most `tape_bytes`, if all of it fits into memory.
fn load_blocks(
    spec: &Spec,
    checkpoint: &Checkpoint,
    blocks: Range<usize>,
    tape_bytes: u64,
    observer: &mut dyn Observer,
) -> Result<BlockStack, AssembleError> {
    let error = |source: BoxError| AssembleError::Load { part: "blocks", source };
    let span = Span::new(blocks.start, blocks.end).map_err(|source| error(source.into()))?;
    check_memory(spec, checkpoint, span, tape_bytes, observer)?;
    let load = || -> Result<BlockStack, BoxError> {
        let placement = Placement::on(spec.model.device, spec.model.weights, spec.model.compute_format())?;
        Ok(BlockStack::load_with(checkpoint, span, placement)?)
    };
    load().map_err(error)
}

/// Checks that blocks of this process fit into memory, and says so if the free memory is unknown.
fn check_memory(
    spec: &Spec,
    checkpoint: &Checkpoint,
    span: Span,
    tape_bytes: u64,
    observer: &mut dyn Observer,
) -> Result<(), AssembleError> {
    let (device, format, compute) = (spec.model.device, spec.model.weights, spec.model.compute_format());
    let free = FreeMemory::from_env(device).map_err(AssembleError::StatedMemory)?;
    let request = MemoryRequest { device, format, compute, tape_bytes, adapter_bytes: UNLIMITED };
    memory::check(&BlockSizes::from_checkpoint(checkpoint), span, request, free).map_err(AssembleError::Memory)?;
    if free.device.is_none() {
        let variable = memory::FREE_MB;
        let notice =
            format!("blocks: the free memory of {device} is unknown, so it was not checked ({variable} states it)");
        observer.event(Event::Notice(&notice));
    }
    Ok(())
}

fn start_server(
    spec: &Spec,
    embedded: &EmbeddedSpec,
    checkpoint: &Checkpoint,
    observer: &mut dyn Observer,
) -> Result<BlockServer, AssembleError> {
    let tape_budget_bytes = embedded.tape_budget_mb << 20;
    let blocks = spec.model.local_blocks..checkpoint.config().n_blocks;
    let stack = load_blocks(spec, checkpoint, blocks, tape_budget_bytes, observer)?;
    // The only client is this process.
    let (client_bytes, shared_bytes) = (UNLIMITED, UNLIMITED);
    let limits = Limits { tape_budget_bytes, client_bytes, shared_bytes, ..Limits::default() };
    let threads = spec.train.threads.and_then(|threads| u32::try_from(threads).ok());
    let options = ServerOptions { limits, threads, ..ServerOptions::default() };
    let identity = ModelIdentity::from_checkpoint(checkpoint);
    let identity = identity.with_formats(spec.model.weights, spec.model.compute_format());
    BlockServer::embedded(stack, identity, options).map_err(AssembleError::Server)
}

fn parse_addresses(servers: &[String]) -> Result<Vec<Endpoint>, AssembleError> {
    let parse = |text: &String| Ok(Endpoint::Addr(text.parse::<Addr>().map_err(AssembleError::Address)?));
    servers.iter().map(parse).collect()
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
    let ticket = Ticket::read(&p2p.ticket).map_err(AssembleError::Ticket)?;
    let (bind, relays) = (p2p.bind, p2p.relays.clone());
    let options = NodeOptions { identity: Identity::ephemeral(), ticket: Some(ticket), bind, relays };
    Node::start(options).map_err(|error| AssembleError::Discovery(error.into()))
}
