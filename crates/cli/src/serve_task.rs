//! `sepal serve-task`: the classifier of a run over HTTP.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sepal_config::{Spec, SwarmSpec};
use sepal_data::{EncodedRow, RowTexts};
use sepal_gateway::{Answer, AnswerKind, ClassifierInfo, Classify, ClassifyError, Gateway, Options, Token, Worker};
use sepal_pipeline::{Classifier, ClassifierError, Session};
use sepal_plugin::{Prediction, Registry};
use sepal_track::Manifest;

use crate::args::{PipelineArgs, ServeTaskArgs};
use crate::console::Console;
use crate::interrupt::on_interrupt;
use crate::output::{Failure, describe, print};
use crate::pipeline_file::load;
use crate::units::grouped;

/// First pause before a new search for servers; each further pause is twice as long.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

pub(crate) fn serve(registry: &Registry, args: &ServeTaskArgs) -> Result<(), Failure> {
    let spec = load(registry, &PipelineArgs { file: args.run.join("pipeline.yaml"), set: args.set.clone() })?;
    let options = options(args)?;
    warn_if_public(&options);
    let (gateway, worker) = Gateway::start(options)?;
    let stopper = gateway.stopper();
    let stop = on_interrupt(move || {
        eprintln!("stopping after all open requests are answered; press Ctrl-C again to stop at once");
        stopper.stop();
    })?;
    print(&format!("listening on http://{}/", gateway.addr()))?;
    let result = answer_requests(registry, &spec, &args.run, &worker, &stop);
    // Open requests are answered before the port is closed.
    drop(worker);
    gateway.finish()?;
    result
}

fn answer_requests(
    registry: &Registry,
    spec: &Spec,
    run: &Path,
    worker: &Worker,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let opened = with_servers(worker, || Classifier::open(spec, run, registry, &mut Console::default(), stop));
    let Some(classifier) = (match opened {
        // The signal interrupted a download.
        Err(_) if stop.load(Ordering::Relaxed) => None,
        opened => opened?,
    }) else {
        return Ok(());
    };
    let info = info(&classifier)?;
    let Some(session) = with_servers(worker, || classifier.session())? else { return Ok(()) };
    let serving = format!("serving {}: {}", info.name, info.labels.join(", "));
    let is_remote = !matches!(spec.swarm, SwarmSpec::None(_) | SwarmSpec::Embedded(_));
    let mut classify = SessionClassifier { session, kind: info.kind, is_remote };
    // A closed standard output does not stop the service.
    Ok(worker.serve(info, &mut classify, || drop(print(&serving)))?)
}

/// Repeats `connect` until servers are available. Returns `None` if the gateway is stopped before.
fn with_servers<T>(
    worker: &Worker,
    mut connect: impl FnMut() -> Result<T, ClassifierError>,
) -> Result<Option<T>, Failure> {
    let mut backoff = MIN_BACKOFF;
    loop {
        match connect() {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.is_unreachable() => {
                eprintln!("waiting for servers: {}", describe(&error));
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

struct SessionClassifier<'a> {
    session: Session<'a>,
    kind: AnswerKind,
    is_remote: bool,
}

impl Classify for SessionClassifier<'_> {
    fn classify(&mut self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
        let tokens = match self.session.encode(RowTexts { texts, pairs, ..RowTexts::default() }) {
            Ok(tokens) => tokens,
            Err(error) => return Err(ClassifyError::Failed(error.into())),
        };
        if !tokens.iter().all(EncodedRow::has_tokens) {
            return Err(ClassifyError::NoToken);
        }
        match self.session.classify(&tokens) {
            Ok(prediction) => Ok(answers(prediction, self.kind, texts)),
            Err(error) if error.is_unreachable() => Err(ClassifyError::Unavailable(error.into())),
            Err(error) => Err(ClassifyError::Failed(error.into())),
        }
    }

    fn uses_remote_servers(&self) -> bool {
        self.is_remote
    }
}

fn answers(prediction: Prediction, kind: AnswerKind, texts: &[&str]) -> Vec<Answer> {
    let Prediction { class, probabilities, logits, items, .. } = prediction;
    // The gateway refuses an index out of range.
    let index = |class: i64| usize::try_from(class).unwrap_or(usize::MAX);
    match kind {
        AnswerKind::Class => {
            let rows = class.into_iter().map(index).zip(probabilities);
            rows.map(|(class, probabilities)| Answer::Class { class, probabilities }).collect()
        }
        AnswerKind::Labels => probabilities.into_iter().map(|probabilities| Answer::Labels { probabilities }).collect(),
        AnswerKind::Value => {
            logits.into_iter().map(|row| Answer::Value(row.first().copied().unwrap_or(f32::NAN))).collect()
        }
        AnswerKind::Tags => {
            let rows = texts.iter().zip(items).zip(probabilities);
            rows.map(|((text, tags), probabilities)| {
                let words = text.split_whitespace().map(str::to_owned).collect();
                Answer::Tags { words, tags: tags.into_iter().map(index).collect(), probabilities }
            })
            .collect()
        }
    }
}

fn info(classifier: &Classifier) -> Result<ClassifierInfo, Failure> {
    let task = classifier.task();
    let Some(kind) = AnswerKind::of_task(task) else {
        return Err(format!(
            "serve a task of this kind ({}): requests are texts or pairs of texts; use `sepal predict` or `sepal evaluate`",
            task.kind()
        )
        .into());
    };
    let manifest = classifier.manifest();
    Ok(ClassifierInfo {
        takes_pairs: classifier.takes_pairs(),
        facts: facts(manifest),
        ..ClassifierInfo::new(manifest.name.clone(), kind, task.labels())
    })
}

fn facts(manifest: &Manifest) -> Vec<(String, String)> {
    let metrics: Vec<String> = manifest.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let parameters = manifest.parameters;
    let share = 100.0 * parameters.trainable as f64 / parameters.total.max(1) as f64;
    // Paths of this machine are not public.
    let is_public = ["hub:", "pypi:"].iter().any(|kind| manifest.model.source.starts_with(kind));
    let source = if is_public { format!("{}: ", manifest.model.source) } else { String::new() };
    let model = format!("{source}{}", manifest.model.weights);
    let mut facts = vec![
        ("model", model),
        ("trained", format!("{} ({} steps)", manifest.started, manifest.steps)),
        ("trainable", format!("{} numbers, {share:.3} % of all", grouped(parameters.trainable))),
        ("training rows", grouped(manifest.data.train_rows as u64)),
    ];
    if !metrics.is_empty() {
        let rows = grouped(manifest.data.validation_rows as u64);
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
    eprintln!("warning: {} is open to other machines and not encrypted: {risk}", options.listen);
}
