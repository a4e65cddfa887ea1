//! `sepal serve-task`: the classifiers of runs over HTTP.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use sepal_config::{Spec, SwarmSpec};
use sepal_core::Device;
use sepal_gateway::{Gateway, LoadRequest, ModelName, Options, Stopper, Token, Worker};
use sepal_pipeline::{Classifier, ClassifierError, SharedBase};
use sepal_plugin::Registry;
use sepal_server::memory::FreeMemory;

use crate::abstain::check_abstaining;
use crate::advice::advice;
use crate::args::{PipelineArgs, ServeTaskArgs};
use crate::console::Console;
use crate::interrupt::on_interrupt;
use crate::output::{Failure, describe, listed, print};
use crate::pipeline_file::load;
use crate::runs;
use crate::session_classifier::{SessionClassifier, info};

/// First pause before a new search for servers; each further pause is twice as long.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Memory that must be free before a model is loaded for a client, in bytes.
const MIN_FREE_BYTES: u64 = 256 << 20;
/// Stack of a thread that computes, in bytes: that of the main thread.
const STACK_BYTES: usize = 8 << 20;

pub(crate) fn serve(registry: &Registry, args: &ServeTaskArgs) -> Result<(), Failure> {
    sepal_connections::raise_open_file_limit();
    let runs = served_runs(registry, args)?;
    let options = options(args)?;
    warn_if_public(&options);
    // A single run keeps the blocks where its pipeline places them.
    let base = (runs.len() > 1 || options.admin_token.is_some()).then(SharedBase::new);
    let (gateway, models) = Gateway::start(options)?;
    let (stopper, failed) = (gateway.stopper(), gateway.stopper());
    let stop = on_interrupt(move || {
        tracing::info!("stopping after all open requests are answered; press Ctrl-C again to stop at once");
        stopper.stop();
    })?;
    let workers = runs.iter().map(|run| models.add(run.name.clone())).collect::<Result<Vec<_>, _>>()?;
    print(&format!("listening on http://{}/", gateway.addr()))?;
    let host = Host { registry, args, base, stop: &stop, stopper: failed, failure: Mutex::new(None) };
    thread::scope(|scope| {
        for (run, worker) in runs.into_iter().zip(workers) {
            host.spawn(scope, move |host| host.serve(&run, worker));
        }
        while let Some(request) = models.next_load() {
            host.spawn(scope, move |host| host.load(request));
        }
    });
    gateway.finish()?;
    match host.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(text) => Err(text.into()),
        None => Ok(()),
    }
}

/// Run that is served, with its checked pipeline.
struct ServedRun {
    name: ModelName,
    folder: PathBuf,
    spec: Spec,
}

fn served_runs(registry: &Registry, args: &ServeTaskArgs) -> Result<Vec<ServedRun>, Failure> {
    let specs = args.runs.iter().map(|run| pipeline(registry, &run.folder, args)).collect::<Result<Vec<_>, _>>()?;
    let runs = runs::named(&args.runs)?.into_iter().zip(specs);
    runs.map(|(run, spec)| Ok(ServedRun { name: run.name.parse()?, folder: run.folder, spec })).collect()
}

fn pipeline(registry: &Registry, run: &Path, args: &ServeTaskArgs) -> Result<Spec, Failure> {
    load(registry, &PipelineArgs { file: run.join("pipeline.yaml"), set: args.set.clone() })
}

/// Threads of the models. Each opens its run and computes for it.
struct Host<'a> {
    registry: &'a Registry,
    args: &'a ServeTaskArgs,
    base: Option<SharedBase>,
    stop: &'a AtomicBool,
    stopper: Stopper,
    /// Text of the first failure of a run that was named on the command line.
    failure: Mutex<Option<String>>,
}

impl Host<'_> {
    fn spawn<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, work: impl FnOnce(&Self) + Send + 'scope)
    where
        'env: 'scope,
    {
        let thread = thread::Builder::new().name("sepal-model".into()).stack_size(STACK_BYTES);
        // A worker that is not started drops, and so its model.
        if let Err(error) = thread.spawn_scoped(scope, move || work(self)) {
            self.fail(format!("start a thread of a model: {error}"));
        }
    }

    /// Serves a run that was named on the command line. A failure ends the program.
    fn serve(&self, run: &ServedRun, worker: Worker) {
        let _guard = StopOnPanic(&self.stopper);
        if let Err(error) = self.answer_requests(&run.spec, &run.folder, &worker) {
            self.fail(format!("{}{}", describe(&*error), advice(&*error).unwrap_or_default()));
        }
    }

    fn fail(&self, text: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        self.stopper.stop();
    }

    /// Serves a run that a client asked for. A failure is the answer to the client.
    fn load(&self, LoadRequest { worker, run }: LoadRequest) {
        let loaded = check_free_memory().and_then(|()| self.requested(&run)).and_then(|folder| {
            let spec = pipeline(self.registry, &folder, self.args)?;
            self.answer_requests(&spec, &folder, &worker)
        });
        if let Err(error) = loaded {
            let text = format!("failed to {}", describe(&*error));
            tracing::warn!("model {}: {text}", worker.name());
            worker.reject(&text);
        }
    }

    /// Folder of a run that a client names, if it lies under the root.
    fn requested(&self, run: &str) -> Result<PathBuf, Failure> {
        let Some(root) = &self.args.runs_root else { return Err("load a run: no folder of runs is served".into()) };
        let root = root.canonicalize().map_err(|error| format!("open the folder of the runs: {error}"))?;
        // The path is resolved first, so that links and `..` lead nowhere else.
        let folder = root.join(run).canonicalize().ok().filter(|folder| folder.starts_with(&root) && *folder != root);
        folder.ok_or_else(|| format!("find the run `{run}`: there is no such folder under the root of the runs").into())
    }

    fn answer_requests(&self, spec: &Spec, run: &Path, worker: &Worker) -> Result<(), Failure> {
        let opened = with_servers(worker, || self.open(spec, run));
        let Some(classifier) = (match opened {
            // The signal interrupted a download.
            Err(_) if self.stop.load(Ordering::Relaxed) => None,
            opened => opened?,
        }) else {
            return Ok(());
        };
        check_abstaining(self.args.abstain_below, worker.name().as_str(), classifier.task())?;
        let info = info(&classifier)?;
        let Some(session) = with_servers(worker, || classifier.session())? else { return Ok(()) };
        let serving = format!("serving {}: {}", worker.name(), listed(&info.labels));
        let is_remote = !matches!(spec.swarm, SwarmSpec::None(_) | SwarmSpec::Embedded(_));
        let mut classify = SessionClassifier { session, kind: info.kind, is_remote };
        // A closed standard output does not stop the service.
        Ok(worker.serve(info, &mut classify, || drop(print(&serving)))?)
    }

    fn open(&self, spec: &Spec, run: &Path) -> Result<Classifier, ClassifierError> {
        let mut console = Console::default();
        match &self.base {
            Some(base) => Classifier::open_on(base, spec, run, self.registry, &mut console, self.stop),
            None => Classifier::open(spec, run, self.registry, &mut console, self.stop),
        }
    }
}

/// Returns an error if another model could take the memory that the loaded ones need for requests.
fn check_free_memory() -> Result<(), Failure> {
    match FreeMemory::from_env(Device::Cpu)?.device {
        Some(free) if free < MIN_FREE_BYTES => Err(format!(
            "load a model: {} MB of memory are free, and at least {} MB stay free for requests; unload another model first",
            free >> 20,
            MIN_FREE_BYTES >> 20
        )
        .into()),
        _ => Ok(()),
    }
}

/// Ends the program if the thread of a run that was named on the command line panics.
struct StopOnPanic<'a>(&'a Stopper);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

/// Repeats `connect` until servers are available. Returns `None` if the gateway is stopped or the model unloaded before.
fn with_servers<T>(
    worker: &Worker,
    mut connect: impl FnMut() -> Result<T, ClassifierError>,
) -> Result<Option<T>, Failure> {
    let mut backoff = MIN_BACKOFF;
    loop {
        match connect() {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.is_unreachable() => {
                tracing::warn!("waiting for servers: {}", describe(&error));
                worker.set_unavailable();
            }
            Err(error) => return Err(error.into()),
        }
        if !worker.sleep(backoff) {
            return Ok(None);
        }
        backoff = (2 * backoff).min(MAX_BACKOFF);
    }
}

fn options(args: &ServeTaskArgs) -> Result<Options, Failure> {
    Ok(Options {
        listen: args.listen,
        token: args.token.as_deref().map(Token::read).transpose()?,
        admin_token: args.admin_token.as_deref().map(Token::read).transpose()?,
        abstain_below: args.abstain_below,
        max_body_bytes: args.max_body_kb << 10,
        max_rows: args.max_rows,
        max_text_bytes: args.max_text_kb << 10,
        max_requests: args.max_requests,
        max_model_requests: args.max_model_requests,
        max_model_rows: args.max_model_rows,
        max_models: args.max_models,
        max_connections: args.max_connections,
        batch_rows: args.batch_rows,
        batch_bytes: args.batch_kb << 10,
        timeout: Duration::from_secs(args.timeout_s),
        check_interval: (args.check_s > 0).then(|| Duration::from_secs(args.check_s)),
        ..Options::default()
    })
}

fn warn_if_public(options: &Options) {
    if options.listen.ip().is_loopback() {
        return;
    }
    let risk = match options.token {
        Some(_) => "texts, answers and the token can be read on the network",
        None => {
            "any client can send requests (--token FILE restricts them), and texts and answers can be read on the network"
        }
    };
    tracing::warn!("{} is open to other machines and not encrypted: {risk}", options.listen);
}
