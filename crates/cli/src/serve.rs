//! `sepal serve`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use sepal_assets::{Assets, FetchEvent};
use sepal_blocks::{BlockStack, Placement};
use sepal_checkpoint::{Checkpoint, Part};
use sepal_core::{Span, WeightFormat};
use sepal_discover::{Discovery, Notice};
use sepal_pipeline::ModelFiles;
use sepal_route::{BALANCE_QUALITY, Share, better_span, weakest_span};
use sepal_server::environment::SLEEPING_THREADS;
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use sepal_status::{StatusServer, View};

use crate::args::ServeArgs;
use crate::downloads::Downloads;
use crate::environment;
use crate::place::{Own, Place};
use crate::{Failure, end_at_once, print};

/// Memory that is left to the system and to messages, whatever the blocks take.
const SPARE_BYTES: u64 = 512 << 20;

/// Serves until it is told to stop (Ctrl-C, SIGTERM), then finishes what clients have begun.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    environment::start_with(&[SLEEPING_THREADS]);
    let model = Model::open(args)?;
    let checkpoint = &model.files.checkpoint;
    let whole = Span::new(0, checkpoint.config().n_blocks)?;
    if let Some(span) = args.blocks.filter(|&span| !whole.covers(span)) {
        return Err(format!("serve blocks {span}: the model has blocks {whole}").into());
    }
    let mut place = Place::open(args)?;
    let swarm =
        Swarm { discovery: place.discovery(), digest: args.weights.digest(checkpoint.digest()), n_blocks: whole.len() };
    let mut span = match args.blocks {
        Some(span) => span,
        // A server that stands alone holds all, as far as it is not told otherwise.
        None if swarm.discovery.is_none() && args.max_blocks.is_none() => whole,
        None => swarm.weakest(how_many(args, checkpoint)?)?,
    };
    // Before signals are handled and anything is announced: whoever stops this waits for nothing.
    model.bring(span, &AtomicBool::new(false))?;
    let stop = Stop::on_signal()?;
    let own = Own::default();
    let mut shown: Option<Shown> = None;
    // Whatever ends this, others are told.
    let _announced = Announced(place.discovery());
    let (mut before, mut refused) = (None, None);
    loop {
        let server = match start(args, &mut place, checkpoint, span) {
            Ok(server) => server,
            Err(error) => {
                let Some(old) = before.take() else { return Err(error) };
                eprintln!("could not move to blocks {span}: {}; going back to {old}", crate::describe(&*error));
                refused = Some(std::mem::replace(&mut span, old));
                continue;
            }
        };
        own.is(server.board());
        print(&format!(
            "serving blocks {span} of {} ({}) on {}",
            model.files.asset.pinned(),
            checkpoint.describe(),
            server.endpoint()
        ))?;
        let shown = match &mut shown {
            Some(shown) => shown,
            None => {
                place.announce(&own)?;
                shown.insert(Shown::start(args, &place, &server)?)
            }
        };
        shown.view.show(Some(Arc::clone(server.board())));
        let Some(better) = model.next_span(args, &stop, &swarm, &server, &mut refused) else {
            eprintln!(
                "leaving: nothing new is taken; what clients have begun here is finished within {} s",
                args.drain_s
            );
            // Others see that it leaves; its name is needed until what they have begun is done.
            server.drain(Duration::from_secs(args.drain_s));
            return Ok(());
        };
        eprintln!("moving from blocks {span} to {better}, which the swarm lacks");
        own.moves_to(better);
        server.drain(Duration::from_secs(args.drain_s));
        if stop.told.load(Ordering::Relaxed) {
            return Ok(());
        }
        shown.view.show(None);
        before = Some(std::mem::replace(&mut span, better));
    }
}

fn start(args: &ServeArgs, place: &mut Place, checkpoint: &Checkpoint, span: Span) -> Result<BlockServer, Failure> {
    let stack = BlockStack::load_as(checkpoint, span, Placement::on(args.device, args.weights)?)?;
    place.start(stack, ModelIdentity::of(checkpoint).kept_as(args.weights), options(args))
}

/// The model that is served, as far as its files are here.
struct Model {
    assets: Assets,
    files: ModelFiles,
}

impl Model {
    fn open(args: &ServeArgs) -> Result<Self, Failure> {
        let (assets, mut downloads) = (Assets::from_env(), Downloads::new());
        let files = ModelFiles::open(&assets, &args.model, &mut downloads.watch())?;
        Ok(Self { assets, files })
    }

    /// Fetches the shards of these blocks that are not here.
    fn bring(&self, span: Span, stop: &AtomicBool) -> Result<(), Failure> {
        let mut downloads = Downloads::new();
        let mut watch = |event: FetchEvent<'_>| {
            downloads.event(event);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        Ok(self.files.bring(&self.assets, Part::Blocks(span), &mut watch)?)
    }

    /// Waits until told to stop, or until the server would help more elsewhere: then it says where, once the shards of
    /// those blocks are here. The server works on meanwhile.
    fn next_span(
        &self,
        args: &ServeArgs,
        stop: &Stop,
        swarm: &Swarm,
        server: &BlockServer,
        refused: &mut Option<Span>,
    ) -> Option<Span> {
        loop {
            let better = wait(args, &stop.signal, swarm, server, *refused)?;
            match self.bring(better, &stop.told) {
                Ok(()) => return Some(better),
                Err(_) if stop.told.load(Ordering::Relaxed) => return None,
                Err(error) => {
                    eprintln!("could not move to blocks {better}: {}; staying", crate::describe(&*error));
                    *refused = Some(better);
                }
            }
        }
    }
}

/// Tells others that the server is gone when it is dropped.
struct Announced(Option<Arc<dyn Discovery>>);

impl Drop for Announced {
    fn drop(&mut self) {
        if let Some(discovery) = &self.0 {
            discovery.withdraw();
        }
    }
}

/// What people see of the server beside its first line.
struct Shown {
    view: Arc<View>,
    _http: Option<StatusServer>,
}

impl Shown {
    fn start(args: &ServeArgs, place: &Place, server: &BlockServer) -> Result<Self, Failure> {
        let view = Arc::new(View::new(server.endpoint().to_string(), place.discovery()));
        let http = args.http.map(|addr| StatusServer::start(addr, Arc::clone(&view))).transpose()?;
        if let Some(ticket) = place.ticket() {
            print(&format!("ticket {ticket}"))?;
            if let Some(path) = &args.ticket_file {
                ticket.write(path).map_err(|error| format!("write the ticket into {}: {error}", path.display()))?;
            }
        }
        if let Some(http) = &http {
            print(&format!("status on http://{}/", http.addr()))?;
        }
        Ok(Self { view, _http: http })
    }
}

/// The other servers, as far as there is a way to find them.
struct Swarm {
    discovery: Option<Arc<dyn Discovery>>,
    digest: String,
    n_blocks: usize,
}

impl Swarm {
    /// What the others of the model say, without the server of this name.
    fn others(&self, name: &str) -> Vec<Notice> {
        let members = self.discovery.as_ref().map(|discovery| discovery.members()).unwrap_or_default();
        let is_other = |member: &sepal_discover::Member| {
            let notice = &member.notice;
            let is_possible = notice.n_blocks == self.n_blocks && notice.span.end() <= self.n_blocks;
            notice.digest == self.digest && is_possible && member.endpoint.to_string() != name
        };
        members.into_iter().filter(is_other).map(|member| member.notice).collect()
    }

    fn weakest(&self, len: usize) -> Result<Span, Failure> {
        let others = self.others("");
        let typical = typical(&others);
        let shares: Vec<Share> = others.iter().map(|other| Share::new(other.span, other.rate, typical)).collect();
        Ok(weakest_span(&shares, self.n_blocks, len).ok_or("choose blocks: the model has none")?)
    }

    /// Where the server would help more than where it is.
    fn better(&self, server: &BlockServer) -> Option<Span> {
        let (name, info) = (server.endpoint().to_string(), server.board().info());
        let others = self.others(&name);
        let typical = typical(&others);
        let shares: Vec<Share> = others.iter().map(|other| Share::new(other.span, other.rate, typical)).collect();
        let own = Share::new(info.span, info.load.rate, typical);
        better_span(own, &shares, self.n_blocks, BALANCE_QUALITY)
    }
}

/// The middle of the measured speeds; only ratios count where none is measured.
fn typical(notices: &[Notice]) -> f64 {
    let mut rates: Vec<f64> = notices.iter().map(|notice| notice.rate).filter(|rate| *rate > 0.0).collect();
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(1.0)
}

/// Waits until told to stop, or until the server would help more elsewhere: then it says where. Where it could not go
/// before it does not try again.
fn wait(
    args: &ServeArgs,
    stopped: &Receiver<()>,
    swarm: &Swarm,
    server: &BlockServer,
    refused: Option<Span>,
) -> Option<Span> {
    if args.blocks.is_some() || swarm.discovery.is_none() {
        // An error only if the handler is gone, which it is not while the process lives.
        let _ = stopped.recv();
        return None;
    }
    loop {
        // Not all servers of a swarm at the same time.
        let pause = Duration::from_secs(args.balance_s).mul_f64(rand::random_range(0.5..1.5));
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {
                if let Some(span) = swarm.better(server).filter(|span| Some(*span) != refused) {
                    return Some(span);
                }
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// How many blocks to serve: as many as are allowed, and fit into the memory that is free.
fn how_many(args: &ServeArgs, checkpoint: &Checkpoint) -> Result<usize, Failure> {
    let n_blocks = checkpoint.config().n_blocks;
    let allowed = args.max_blocks.map_or(n_blocks, |max| n_blocks.min(max as usize));
    let Some(free) = free_memory() else { return Ok(allowed) };
    // Embeddings are counted, too, which leaves some room.
    let model_bytes = checkpoint.parameter_count() as f64 * args.weights.bits() / 8.0;
    let block_bytes = (model_bytes / n_blocks as f64).ceil().max(1.0) as u64;
    // The budget of graphs is a limit; a quarter of the memory does for most.
    let graphs = (args.tape_budget_mb << 20).min(free / 4);
    // Where weights are rounded, two blocks are there in fp32 while they are loaded, and one matrix while it computes.
    let in_f32 = (checkpoint.parameter_count() * 4).div_ceil(n_blocks as u64);
    let loading = if args.weights == WeightFormat::F32 { 0 } else { 3 * in_f32 };
    let room = free.saturating_sub(graphs + loading + SPARE_BYTES) / block_bytes;
    match usize::try_from(room).unwrap_or(usize::MAX).min(allowed) {
        0 => Err(format!(
            "serve a block: {} MB are free, and {} MB of them are for graphs and messages; say --blocks to do it anyway",
            free >> 20,
            (graphs + loading + SPARE_BYTES) >> 20
        )
        .into()),
        fits => {
            if fits < allowed {
                eprintln!("{fits} of {allowed} blocks fit into the {} MB of memory that are free", free >> 20);
            }
            Ok(fits)
        }
    }
}

/// Bytes of memory that can be had; `None` where the system does not say.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn options(args: &ServeArgs) -> ServerOptions {
    let limits = Limits {
        max_rows: args.max_rows,
        max_tokens: args.max_tokens,
        max_message_bytes: args.max_message_mb << 20,
        tape_budget_bytes: args.tape_budget_mb << 20,
    };
    let pace = args.pace_us.map(Duration::from_micros);
    ServerOptions { limits, threads: args.threads, pace, ..ServerOptions::default() }
}

/// Is told once when the process is to stop; whoever says it twice does not want to wait.
struct Stop {
    signal: Receiver<()>,
    told: Arc<AtomicBool>,
}

impl Stop {
    /// On Ctrl-C and SIGTERM.
    fn on_signal() -> Result<Self, Failure> {
        let (stop, signal) = mpsc::channel();
        let told = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&told);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                end_at_once();
            }
            // The receiver is there until the process ends.
            let _ = stop.send(());
        })?;
        Ok(Self { signal, told })
    }
}
