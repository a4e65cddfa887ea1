//! Embedded servers: one for each model, device and format, for all runs of this process that share them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_blocks::{BlockStack, Placement};
use sepal_checkpoint::Checkpoint;
use sepal_config::spec::{EmbeddedSpec, ModelSpec, Spec};
use sepal_core::Span;
use sepal_server::memory::{self, BlockSizes, Budget, FreeMemory, MemoryRequest};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};

use crate::error::{AssembleError, BoxError};
use crate::progress::{Event, Observer};

/// Budget of memory for the only client of a server, or of blocks in this process. Sums of two do not overflow.
pub(crate) const UNLIMITED: u64 = u64::MAX / 2;

/// Embedded servers that are shared by the runs with a clone of this handle. A server stops when it is released here, or no
/// handle is left, and no run uses it.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddedServers {
    servers: Arc<Mutex<HashMap<ServerKey, SharedServer>>>,
    /// Largest number of runs at the same time, each of which has the budget of tapes of one.
    clients: u64,
    /// True if the threads and the budget of the first run hold for all.
    has_settings_of_first: bool,
}

impl Default for EmbeddedServers {
    fn default() -> Self {
        Self::for_clients(1)
    }
}

/// Options on which a server depends. Runs with equal keys share a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ServerKey {
    /// Digest of the model in the formats of its weights and products.
    digest: String,
    /// Name of the format of the weights in memory. Formats with the same numbers have the same digest.
    weights: &'static str,
    device: String,
    blocks: Range<usize>,
    threads: Option<usize>,
    tape_budget_mb: u64,
}

/// Server with the settings of the runs that have used it.
#[derive(Debug)]
struct SharedServer {
    server: Arc<BlockServer>,
    users: Vec<RunSettings>,
}

/// Settings of a run on which its server depends, known before the model is opened.
#[derive(Debug, PartialEq)]
struct RunSettings {
    model: ModelSpec,
    threads: Option<usize>,
}

impl RunSettings {
    fn new(spec: &Spec) -> Self {
        Self { model: spec.model.clone(), threads: spec.train.threads }
    }

    /// True if runs with these settings have the same server where a source of both is available.
    fn may_share(&self, other: &Self) -> bool {
        let settings = |Self { model, threads }: &Self| {
            (model.weights.name(), model.compute_format(), model.device, model.local_blocks, *threads)
        };
        let has_source = |source| other.model.source.contains(source);
        settings(self) == settings(other) && self.model.source.iter().any(has_source)
    }
}

impl EmbeddedServers {
    /// Servers for at most this number of runs at the same time.
    pub(crate) fn for_clients(clients: usize) -> Self {
        Self { servers: Arc::default(), clients: clients.max(1) as u64, has_settings_of_first: false }
    }

    /// Servers of classifiers, which keep no tapes. Blocks are loaded once, with the threads of the first run.
    pub(crate) fn for_predictions() -> Self {
        Self { has_settings_of_first: true, ..Self::for_clients(1) }
    }

    /// Returns the server of the run's blocks, and starts it if there is none yet.
    pub(crate) fn server(
        &self,
        spec: &Spec,
        embedded: &EmbeddedSpec,
        checkpoint: &Checkpoint,
        observer: &mut dyn Observer,
    ) -> Result<Arc<BlockServer>, AssembleError> {
        let blocks = spec.model.local_blocks..checkpoint.config().n_blocks;
        let key = ServerKey {
            digest: spec.model.digest(checkpoint.digest()),
            weights: spec.model.weights.name(),
            device: spec.model.device.to_string(),
            blocks: blocks.clone(),
            threads: spec.train.threads,
            tape_budget_mb: embedded.tape_budget_mb,
        };
        let key = if self.has_settings_of_first { ServerKey { threads: None, tape_budget_mb: 0, ..key } } else { key };
        // The lock is held while blocks are loaded, so that no two runs load the same ones.
        let mut servers = self.lock();
        let user = RunSettings::new(spec);
        if let Some(shared) = servers.get_mut(&key) {
            if !shared.users.contains(&user) {
                shared.users.push(user);
            }
            return Ok(Arc::clone(&shared.server));
        }
        let tape_budget_bytes = (embedded.tape_budget_mb << 20).saturating_mul(self.clients).min(UNLIMITED);
        let stack = load_blocks(spec, checkpoint, blocks, tape_budget_bytes, observer)?;
        // The only clients are runs of this process.
        let (client_bytes, shared_bytes) = (UNLIMITED, UNLIMITED);
        let limits = Limits { tape_budget_bytes, client_bytes, shared_bytes, ..Limits::default() };
        let threads = spec.train.threads.and_then(|threads| u32::try_from(threads).ok());
        let options = ServerOptions { limits, threads, ..ServerOptions::default() };
        let identity = ModelIdentity::from_checkpoint(checkpoint);
        let identity = identity.with_formats(spec.model.weights, spec.model.compute_format());
        let server = Arc::new(BlockServer::embedded(stack, identity, options).map_err(AssembleError::Server)?);
        servers.insert(key, SharedServer { server: Arc::clone(&server), users: vec![user] });
        Ok(server)
    }

    /// Releases the servers that none of the remaining runs needs. A server that is in use stops with its last run. Waits
    /// while blocks are loaded.
    pub(crate) fn retain(&self, remaining: &[&Spec]) {
        let remaining: Vec<RunSettings> = remaining.iter().map(|spec| RunSettings::new(spec)).collect();
        let is_needed =
            |shared: &SharedServer| shared.users.iter().any(|user| remaining.iter().any(|run| run.may_share(user)));
        // The servers stop after the lock is free.
        let mut released = Vec::new();
        self.lock().retain(|_, shared| {
            let is_needed = is_needed(shared);
            if !is_needed {
                released.push(Arc::clone(&shared.server));
            }
            is_needed
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServerKey, SharedServer>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads blocks whose tapes take at most `tape_bytes`, if all of it fits into memory.
pub(crate) fn load_blocks(
    spec: &Spec,
    checkpoint: &Checkpoint,
    blocks: Range<usize>,
    tape_bytes: u64,
    observer: &mut dyn Observer,
) -> Result<BlockStack, AssembleError> {
    let error = |source: BoxError| AssembleError::Load { part: "blocks", source };
    let span = Span::new(blocks.start, blocks.end).map_err(|source| error(source.into()))?;
    check_memory(spec, checkpoint, span, tape_bytes, observer)?;
    if let Some(notice) = spec.model.compute_format().notice_on(spec.model.device) {
        observer.event(Event::Notice(&format!("blocks: {notice}; `model.compute` is the format")));
    }
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
    let (tapes, adapters, messages) = (Budget::AtMost(tape_bytes), Budget::AtMost(UNLIMITED), Budget::SPARE);
    let request = MemoryRequest { device, format, compute, tapes, adapters, messages };
    memory::check(&BlockSizes::from_checkpoint(checkpoint), span, request, free).map_err(AssembleError::Memory)?;
    if free.device.is_none() {
        let variable = memory::FREE_MB;
        let notice =
            format!("blocks: the free memory of {device} is unknown, so it was not checked ({variable} states it)");
        observer.event(Event::Notice(&notice));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sepal_config::SwarmSpec;

    use super::*;
    use crate::progress::Silent;
    use crate::testing::spec;

    fn server(servers: &EmbeddedServers, checkpoint: &Checkpoint, sets: &[&str]) -> Arc<BlockServer> {
        let spec = spec(sets);
        let SwarmSpec::Embedded(embedded) = &spec.swarm else { panic!("an embedded server is the default") };
        servers.server(&spec, embedded, checkpoint, &mut Silent).expect("a server")
    }

    #[test]
    fn runs_share_a_server_if_they_have_the_same_blocks() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Checkpoint::open(sepal_testkit::tiny::model(folder.path(), "llama-gqa")).expect("a model");
        let servers = EmbeddedServers::for_clients(2);
        let first = server(&servers, &checkpoint, &[]);
        let same = server(&servers.clone(), &checkpoint, &["train.seed=3", "optimizer.with.lr=0.5"]);
        assert!(Arc::ptr_eq(&first, &same));
        for other in ["model.local_blocks=1", "model.weights=int8", "model.compute=bf16", "train.threads=1"] {
            assert!(!Arc::ptr_eq(&first, &server(&servers, &checkpoint, &[other])), "{other}");
        }
        assert!(!Arc::ptr_eq(&first, &server(&EmbeddedServers::default(), &checkpoint, &[])));
        let servers = EmbeddedServers::for_predictions();
        let first = server(&servers, &checkpoint, &[]);
        assert!(Arc::ptr_eq(&first, &server(&servers, &checkpoint, &["train.threads=1"])));
        assert!(!Arc::ptr_eq(&first, &server(&servers, &checkpoint, &["model.weights=int8"])));
    }

    #[test]
    fn server_that_no_remaining_run_needs_is_released() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Checkpoint::open(sepal_testkit::tiny::model(folder.path(), "llama-gqa")).expect("a model");
        let servers = EmbeddedServers::for_clients(2);
        let needed = server(&servers, &checkpoint, &[]);
        let released = Arc::downgrade(&server(&servers, &checkpoint, &["model.weights=int8"]));
        let in_use = server(&servers, &checkpoint, &["model.local_blocks=1"]);
        assert!(released.upgrade().is_some());
        servers.retain(&[&spec(&["train.seed=3", "model.source=[elsewhere, tiny]"])]);
        assert!(released.upgrade().is_none());
        assert!(Arc::ptr_eq(&needed, &server(&servers, &checkpoint, &[])));
        assert_eq!(Arc::strong_count(&in_use), 1, "only its run uses it");
        servers.retain(&[&spec(&["model.source=elsewhere"])]);
        assert_eq!(Arc::strong_count(&needed), 1);
    }
}
