//! `sepal serve`: blocks for other machines.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sepal_assets::{Assets, FetchEvent};
use sepal_blocks::{LoadError, Placement};
use sepal_checkpoint::{Checkpoint, Part};
use sepal_core::{Device, Span};
use sepal_discover::{Discovery, ServerRecord};
use sepal_pipeline::ModelFiles;
use sepal_route::{BALANCE_QUALITY, ServerThroughput, better_span, weakest_span};
use sepal_server::memory::{self, BlockSizes, DeviceMemory, MemoryNeed, MemoryRequest};
use sepal_server::{BlockServer, DeviceStacks, Limits, ModelIdentity, ServerOptions};
use sepal_status::{StatusServer, View};
use sepal_swarm::IdentityKey;

use crate::args::ServeArgs;
use crate::downloads::Downloads;
use crate::interrupt::on_interrupt;
use crate::network::{Announcement, Network, write_ticket};
use crate::output::{Failure, describe, print};
use crate::serve_memory::{ClientMemory, MemoryOptions};
use crate::units::size;

/// Time between checks that the server still computes.
const STOP_CHECK: Duration = Duration::from_secs(1);

/// Serves until Ctrl-C or SIGTERM, then finishes the work that clients have begun.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    sepal_connections::raise_open_file_limit();
    let model = ServedModel::open(args)?;
    let checkpoint = &model.files.checkpoint;
    let all_blocks = Span::new(0, checkpoint.config().n_blocks)?;
    if let Some(span) = args.blocks.filter(|&span| !all_blocks.covers(span)) {
        return Err(format!("serve blocks {span}: the model has blocks {all_blocks}").into());
    }
    let key = Arc::new(server_key(args)?);
    let mut network = Network::open(args, &key)?;
    let identity = ModelIdentity::from_checkpoint(checkpoint).with_formats(args.weights, args.compute_format());
    let (discovery, digest) = (network.discovery(), identity.digest.clone());
    let swarm = Swarm { discovery, digest, n_blocks: all_blocks.len() };
    let (sizes, free) = (BlockSizes::from_checkpoint(checkpoint), DeviceMemory::from_env(&args.devices)?);
    let mut span = match args.blocks {
        Some(span) => span,
        // A server without a swarm holds all blocks.
        None if swarm.discovery.is_none() && args.max_blocks.is_none() => all_blocks,
        None => swarm.weakest_span(affordable_blocks(args, &sizes, &free)?)?,
    };
    // A server that moves takes as many blocks again.
    let need = check_memory(args, &sizes, span, &free)?;
    let available = free.total().map(|bytes| bytes.saturating_sub(need.weights + need.loading));
    if let Some(notice) = args.devices.iter().find_map(|&device| args.compute_format().notice_on(device)) {
        tracing::warn!("{notice} (--compute)");
    }
    let options = options(args, checkpoint, ClientMemory::new(args.into(), available)?, &key);
    // Signals are not handled yet, so that Ctrl-C ends the download at once.
    model.bring(span, &AtomicBool::new(false))?;
    let stop = Stop::on_signal()?;
    let announcement = Announcement::default();
    let mut status_page: Option<StatusPage> = None;
    let _withdrawal = WithdrawOnDrop(network.discovery());
    let (mut previous, mut failed) = (None, None);
    loop {
        let server = match start(args, &mut network, checkpoint, identity.clone(), options.clone(), span) {
            Ok(server) => server,
            Err(error) => {
                let Some(old) = previous.take() else { return Err(error) };
                tracing::warn!("could not move to blocks {span}: {}; going back to {old}", describe(&*error));
                failed = Some(std::mem::replace(&mut span, old));
                continue;
            }
        };
        announcement.set_serving(server.stats());
        let (source, description) = (model.files.asset.pinned(), &identity.weights);
        print(&format!("serving blocks {span} of {source} ({description}) on {}", server.endpoint()))?;
        tracing::debug!(%span, model = %source, endpoint = %server.endpoint(), "serving");
        let status_page = match &mut status_page {
            Some(status_page) => status_page,
            None => {
                network.announce(&announcement)?;
                status_page.insert(StatusPage::start(args, &network, &server)?)
            }
        };
        status_page.view.show(Some(Arc::clone(server.stats())));
        let Some(better) = model.next_span(args, &stop, &swarm, &server, &mut failed) else {
            if server.stats().has_failed() {
                return Err("serve blocks: the thread of computations has ended by a bug, see the log".into());
            }
            tracing::info!("leaving: no new work is accepted; clients have {} s to finish theirs", args.drain_s);
            // The announcement stays while the server drains: clients need its name until their work is done.
            server.drain(Duration::from_secs(args.drain_s));
            return Ok(());
        };
        tracing::info!("moving from blocks {span} to {better}, which the swarm lacks");
        announcement.set_moving_to(better);
        server.drain(Duration::from_secs(args.drain_s));
        if stop.requested.load(Ordering::Relaxed) {
            return Ok(());
        }
        status_page.view.show(None);
        previous = Some(std::mem::replace(&mut span, better));
    }
}

fn start(
    args: &ServeArgs,
    network: &mut Network,
    checkpoint: &Checkpoint,
    identity: ModelIdentity,
    options: ServerOptions,
    span: Span,
) -> Result<BlockServer, Failure> {
    let place = |&device: &Device| Placement::on(device, args.weights, identity.compute);
    let placements = args.devices.iter().map(place).collect::<Result<Vec<Placement>, LoadError>>()?;
    network.start(DeviceStacks::load(checkpoint, span, &placements)?, identity, options)
}

/// Returns the key that identifies the server on secured connections and signs receipts: that of the identity file, if one is
/// named, or else a new one.
fn server_key(args: &ServeArgs) -> Result<IdentityKey, Failure> {
    Ok(match &args.identity {
        Some(path) => IdentityKey::read_or_create(path)?,
        None => IdentityKey::generate()?,
    })
}

/// Model to serve; some of its shards may not be fetched yet.
struct ServedModel {
    assets: Assets,
    files: ModelFiles,
}

impl ServedModel {
    fn open(args: &ServeArgs) -> Result<Self, Failure> {
        let (assets, mut downloads) = (Assets::from_env(), Downloads::default());
        let files = ModelFiles::open(&assets, &args.model, &mut downloads.watch())?;
        Ok(Self { assets, files })
    }

    fn bring(&self, span: Span, stop: &AtomicBool) -> Result<(), Failure> {
        let mut downloads = Downloads::default();
        let mut watch = |event: FetchEvent<'_>| {
            downloads.event(event);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        Ok(self.files.fetch(&self.assets, Part::Blocks(span), &mut watch)?)
    }

    /// Waits until the server would help the swarm more with another span. Returns that span once its shards are fetched,
    /// or `None` after a stop signal. The server works meanwhile.
    fn next_span(
        &self,
        args: &ServeArgs,
        stop: &Stop,
        swarm: &Swarm,
        server: &BlockServer,
        failed: &mut Option<Span>,
    ) -> Option<Span> {
        loop {
            let better = wait(args, &stop.signal, swarm, server, *failed)?;
            match self.bring(better, &stop.requested) {
                Ok(()) => return Some(better),
                Err(_) if stop.requested.load(Ordering::Relaxed) => return None,
                Err(error) => {
                    tracing::warn!("could not move to blocks {better}: {}; staying", describe(&*error));
                    *failed = Some(better);
                }
            }
        }
    }
}

struct WithdrawOnDrop(Option<Arc<dyn Discovery>>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        if let Some(discovery) = &self.0 {
            discovery.withdraw();
        }
    }
}

struct StatusPage {
    view: Arc<View>,
    _http: Option<StatusServer>,
}

impl StatusPage {
    fn start(args: &ServeArgs, network: &Network, server: &BlockServer) -> Result<Self, Failure> {
        let view = Arc::new(View::new(server.endpoint().to_string(), network.discovery()));
        let http = args.http.map(|addr| StatusServer::start(addr, Arc::clone(&view))).transpose()?;
        if let Some(notice) = network.secret_notice() {
            print(&notice)?;
        }
        match (network.ticket(), &args.ticket_file) {
            (Some(ticket), Some(path)) => {
                write_ticket(&ticket, path)?;
                print(&format!("ticket in {}", path.display()))?;
            }
            (Some(ticket), None) => print(&format!("ticket {ticket}"))?,
            (None, _) => {}
        }
        network.follow_ticket(args);
        if let Some(http) = &http {
            print(&format!("status on http://{}/", http.addr()))?;
        }
        Ok(Self { view, _http: http })
    }
}

/// Other servers of the model, if a discovery is configured.
struct Swarm {
    discovery: Option<Arc<dyn Discovery>>,
    digest: String,
    n_blocks: usize,
}

impl Swarm {
    /// Returns the records of the model's servers except the one named `name`.
    fn others(&self, name: &str) -> Vec<ServerRecord> {
        let members = self.discovery.as_ref().map(|discovery| discovery.members()).unwrap_or_default();
        let is_other = |member: &sepal_discover::Member| {
            let record = &member.record;
            let is_possible = record.n_blocks == self.n_blocks && record.span.end() <= self.n_blocks;
            record.digest == self.digest && is_possible && member.endpoint.to_string() != name
        };
        members.into_iter().filter(is_other).map(|member| member.record).collect()
    }

    /// Returns the shares of the other servers, and the median rate that stands for unmeasured ones.
    fn other_shares(&self, name: &str) -> (Vec<ServerThroughput>, f64) {
        let others = self.others(name);
        let median = median_rate(&others);
        (others.iter().map(|other| ServerThroughput::new(other.span, other.rate, median)).collect(), median)
    }

    fn weakest_span(&self, len: usize) -> Result<Span, Failure> {
        let (shares, _) = self.other_shares("");
        Ok(weakest_span(&shares, self.n_blocks, len).ok_or("choose blocks: the model has none")?)
    }

    fn better_span(&self, server: &BlockServer) -> Option<Span> {
        let info = server.stats().info();
        let (shares, median) = self.other_shares(&server.endpoint().to_string());
        let own = ServerThroughput::new(info.span, info.load.rate, median);
        better_span(own, &shares, self.n_blocks, BALANCE_QUALITY)
    }
}

/// Returns the median of the measured rates, or 1 if none is measured, as only ratios count then.
fn median_rate(records: &[ServerRecord]) -> f64 {
    let mut rates: Vec<f64> = records.iter().map(|record| record.rate).filter(|rate| *rate > 0.0).collect();
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(1.0)
}

/// Waits until another span than `failed` would help the swarm more, and returns it, or `None` after a stop signal.
fn wait(
    args: &ServeArgs,
    stopped: &Receiver<()>,
    swarm: &Swarm,
    server: &BlockServer,
    failed: Option<Span>,
) -> Option<Span> {
    if args.blocks.is_some() || swarm.discovery.is_none() {
        while !is_stopped(stopped, server, STOP_CHECK) {}
        return None;
    }
    loop {
        // The jitter keeps the servers of a swarm from moving at the same time.
        let pause = Duration::from_secs(args.balance_s).mul_f64(rand::random_range(0.5..1.5));
        if is_stopped(stopped, server, pause) {
            return None;
        }
        if let Some(span) = swarm.better_span(server).filter(|span| Some(*span) != failed) {
            return Some(span);
        }
    }
}

/// Waits for at most `pause`. True after a stop signal, or if the server has stopped by itself.
fn is_stopped(stopped: &Receiver<()>, server: &BlockServer, pause: Duration) -> bool {
    let deadline = Instant::now() + pause;
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        // The signal handler lives as long as the process, so that the channel stays open.
        let signal = stopped.recv_timeout(remaining.min(STOP_CHECK));
        if signal != Err(RecvTimeoutError::Timeout) || server.stats().has_failed() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
    }
}

/// Returns the number of blocks that are allowed and fit into the free memory, at least one.
fn affordable_blocks(args: &ServeArgs, sizes: &BlockSizes, free: &DeviceMemory) -> Result<usize, Failure> {
    let allowed = args.max_blocks.map_or(sizes.n_blocks(), |max| sizes.n_blocks().min(max as usize));
    let fitting = free.fitting_blocks(sizes, allowed, memory_request(args)?);
    if (1..allowed).contains(&fitting) {
        let memory = free.total().map(|bytes| format!("{} of ", size(bytes))).unwrap_or_default();
        tracing::info!("{fitting} of {allowed} blocks fit into the {memory}free memory");
    }
    Ok(fitting.max(1))
}

/// Checks that the blocks fit into the free memory, and says so if it is unknown. Returns their need.
fn check_memory(args: &ServeArgs, sizes: &BlockSizes, span: Span, free: &DeviceMemory) -> Result<MemoryNeed, Failure> {
    let options = "--blocks, --weights, --max-memory, --tape-budget-mb, --adapter-memory-mb";
    let checked = free.check(sizes, span, memory_request(args)?);
    let need = checked.map_err(|error| format!("{error} ({options})"))?;
    if let Some(device) = free.unknown() {
        let bytes = size(need.weights + need.loading);
        tracing::info!(
            "the free memory of {device} is unknown; blocks {span} take {bytes} ({} states it)",
            memory::FREE_MB
        );
    }
    Ok(need)
}

fn memory_request(args: &ServeArgs) -> Result<MemoryRequest, Failure> {
    let [tapes, adapters, messages] = MemoryOptions::from(args).budgets()?;
    // Each device is checked by itself.
    let device = Device::default();
    Ok(MemoryRequest { device, format: args.weights, compute: args.compute_format(), tapes, adapters, messages })
}

fn options(args: &ServeArgs, checkpoint: &Checkpoint, memory: ClientMemory, key: &Arc<IdentityKey>) -> ServerOptions {
    let pace = args.pace_us.map(Duration::from_micros);
    let limits = Limits {
        max_rows: args.max_rows,
        max_tokens: args.max_tokens,
        max_message_bytes: args.max_message_mb.saturating_mul(1 << 20),
        ..Limits::default()
    };
    let (threads, max_connections, name) = (args.threads, args.max_connections, args.name.clone());
    let options = memory.server_options(limits, checkpoint.config());
    ServerOptions { threads, pace, name, key: Some(Arc::clone(key)), max_connections, ..options }
}

/// Stop signal of the process, as an event and as a flag.
struct Stop {
    signal: Receiver<()>,
    requested: Arc<AtomicBool>,
}

impl Stop {
    fn on_signal() -> Result<Self, Failure> {
        let (sender, signal) = mpsc::channel();
        let requested = on_interrupt(move || {
            // The receiver lives until the process ends.
            let _ = sender.send(());
        })?;
        Ok(Self { signal, requested })
    }
}
