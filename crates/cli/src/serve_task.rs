//! `sepal serve-task`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sepal_gateway::{About, Answer, Classify, ClassifyError, Desk, Gateway, Kind, Options, Stopper, Token};
use sepal_pipeline::{Classifier, RunError, Session, Spec, SwarmSpec};
use sepal_plugin::{LabelKind, Prediction, Registry};
use sepal_remote::RemoteError;
use sepal_track::Manifest;

use crate::args::{PipelineArgs, ServeTaskArgs};
use crate::console::Console;
use crate::run::load;
use crate::{Failure, end_at_once, print};

/// How long it is waited before servers are looked for again, the first time; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(crate) fn serve(registry: &Registry, args: &ServeTaskArgs) -> Result<(), Failure> {
    let spec = load(registry, &PipelineArgs { file: args.run.join("pipeline.yaml"), set: args.set.clone() })?;
    let options = options(args)?;
    warn_of_others(&options);
    let (gateway, desk) = Gateway::start(options)?;
    let told = stop_on_signal(gateway.stopper())?;
    print(&format!("listening on http://{}/", gateway.addr()))?;
    let served = answer(registry, &spec, &args.run, &desk, &told);
    // Clients are told before the port is closed.
    drop(desk);
    gateway.finish()?;
    served
}

/// Loads the classifier, and predicts until told to stop.
fn answer(registry: &Registry, spec: &Spec, run: &Path, desk: &Desk, told: &AtomicBool) -> Result<(), Failure> {
    let Some(classifier) = open(registry, spec, run, desk, told)? else { return Ok(()) };
    let about = about(&classifier);
    let Some(session) = with_servers(desk, || classifier.session())? else { return Ok(()) };
    let serving = format!("serving {}: {}", about.name, about.labels.join(", "));
    let is_remote = !matches!(spec.swarm, SwarmSpec::None(_) | SwarmSpec::Embedded(_));
    let mut asked = Asked { session, kind: classifier.label_kind(), is_remote };
    // Clients may be served though nobody reads this.
    Ok(desk.serve(about, &mut asked, || drop(print(&serving)))?)
}

/// The classifier, once its servers are there; nothing if told to stop before.
fn open(
    registry: &Registry,
    spec: &Spec,
    run: &Path,
    desk: &Desk,
    told: &AtomicBool,
) -> Result<Option<Classifier>, Failure> {
    let opened = with_servers(desk, || Classifier::open(spec, run, registry, &mut Console::new(), told));
    match opened {
        // What was being fetched is left.
        Err(_) if told.load(Ordering::Relaxed) => Ok(None),
        opened => opened,
    }
}

/// What comes of `make`, once servers are there; nothing if the gateway was stopped before.
fn with_servers<T>(desk: &Desk, mut make: impl FnMut() -> Result<T, RunError>) -> Result<Option<T>, Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        match make() {
            Ok(made) => return Ok(Some(made)),
            Err(error) if is_passing(&error) => {
                eprintln!("waiting for servers: {}", crate::describe(&error));
                desk.unavailable();
            }
            Err(error) => return Err(error.into()),
        }
        if !desk.pause(pause) {
            return Ok(None);
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Whether the same may do later, without anybody changing anything here.
fn is_passing(error: &RunError) -> bool {
    matches!(error, RunError::Remote(RemoteError::Uncovered { .. } | RemoteError::NoServer { .. }))
}

/// The classifier as the gateway asks it.
struct Asked<'a> {
    session: Session<'a>,
    kind: LabelKind,
    is_remote: bool,
}

impl Classify for Asked<'_> {
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
        let tokens = match self.session.encode(texts, pairs) {
            Ok(tokens) => tokens,
            Err(error) => return Err(ClassifyError::Failed(error.into())),
        };
        if tokens.iter().any(|row| row.ids.is_empty()) {
            return Err(ClassifyError::NoToken);
        }
        match self.session.classify(&tokens) {
            Ok(prediction) => Ok(answers(prediction, self.kind)),
            Err(error) if is_passing(&error) => Err(ClassifyError::Unavailable(error.into())),
            Err(error) => Err(ClassifyError::Failed(error.into())),
        }
    }

    fn needs_others(&self) -> bool {
        self.is_remote
    }
}

fn answers(prediction: Prediction, kind: LabelKind) -> Vec<Answer> {
    let Prediction { class, probabilities, logits } = prediction;
    match kind {
        LabelKind::Class => {
            // A class that is none does not fit, which the gateway says.
            let index = |class| usize::try_from(class).unwrap_or(usize::MAX);
            let rows = class.into_iter().map(index).zip(probabilities);
            rows.map(|(class, probabilities)| Answer::Class { class, probabilities }).collect()
        }
        LabelKind::Multi => probabilities.into_iter().map(|probabilities| Answer::Labels { probabilities }).collect(),
        LabelKind::Value => {
            logits.into_iter().map(|row| Answer::Value(row.first().copied().unwrap_or(f32::NAN))).collect()
        }
    }
}

fn about(classifier: &Classifier) -> About {
    let kind = match classifier.label_kind() {
        LabelKind::Class => Kind::Class,
        LabelKind::Multi => Kind::Labels,
        LabelKind::Value => Kind::Value,
    };
    let manifest = classifier.manifest();
    About {
        takes_pairs: classifier.takes_pairs(),
        facts: facts(manifest),
        ..About::new(manifest.name.clone(), kind, classifier.label_names())
    }
}

/// What people may want to know of a run.
fn facts(manifest: &Manifest) -> Vec<(String, String)> {
    let metrics: Vec<String> = manifest.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let parameters = manifest.parameters;
    let share = 100.0 * parameters.trainable as f64 / parameters.total.max(1) as f64;
    // Where a file lies on this machine is nobody's business.
    let is_public = ["hub:", "pypi:"].iter().any(|kind| manifest.model.source.starts_with(kind));
    let source = if is_public { format!("{}: ", manifest.model.source) } else { String::new() };
    let model = format!("{source}{}", manifest.model.weights);
    let mut facts = vec![
        ("model", model),
        ("trained", format!("{} ({} steps)", manifest.started, manifest.steps)),
        ("trainable", format!("{} numbers, {share:.3} % of all", crate::console::grouped(parameters.trainable))),
        ("training rows", crate::console::grouped(manifest.data.train_rows as u64)),
    ];
    if !metrics.is_empty() {
        let rows = crate::console::grouped(manifest.data.validation_rows as u64);
        facts.push(("measured", format!("on {rows} validation rows: {}", metrics.join(", "))));
    }
    facts.push(("adapter", manifest.adapter_digest.clone()));
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn options(args: &ServeTaskArgs) -> Result<Options, Failure> {
    Ok(Options {
        listen: args.listen,
        token: args.token.as_deref().map(Token::read).transpose()?,
        max_body_bytes: args.max_body_kb << 10,
        max_rows: args.max_rows,
        max_text_bytes: args.max_text_kb << 10,
        max_requests: args.max_requests,
        max_connections: args.max_connections,
        batch_rows: args.batch_rows,
        batch_bytes: args.batch_kb << 10,
        timeout: Duration::from_secs(args.timeout_s),
        check: (args.check_s > 0).then(|| Duration::from_secs(args.check_s)),
        ..Options::default()
    })
}

/// Others than this machine can ask.
fn warn_of_others(options: &Options) {
    if options.listen.ip().is_loopback() {
        return;
    }
    let who = match options.token {
        Some(_) => "whoever reads along learns texts, answers and the token",
        None => "anybody who reaches it can ask (--token FILE), and whoever reads along learns texts and answers",
    };
    eprintln!("warning: {} is open to other machines and not encrypted: {who}", options.listen);
}

/// Ctrl-C or SIGTERM finishes what waits; the second one ends the program at once.
fn stop_on_signal(stopper: Stopper) -> Result<Arc<AtomicBool>, Failure> {
    let told = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&told);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            end_at_once();
        }
        eprintln!("stopping once all that was asked is answered; press Ctrl-C again to stop at once");
        stopper.stop();
    })?;
    Ok(told)
}
