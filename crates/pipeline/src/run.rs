//! From a checked pipeline to a run folder.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use sepal_assets::{Asset, Assets};
use sepal_blocks::Ends;
use sepal_checkpoint::{Checkpoint, Part};
use sepal_core::{Span, in_one_line};
use sepal_data::Loader;
use sepal_nn::Parameters;
use sepal_optim::Schedule;
use sepal_plugin::{
    BuildError, Head, HeadContext, Opt, OptContext, Registry, Sched, SchedContext, TaskHead, Tuning, TuningContext,
    TuningMode,
};
use sepal_server::ModelIdentity;
use sepal_tokenize::Tokenizer;
use sepal_track::{Bytes, Manifest, ModelFacts, RunFolder, Status, Versions};
use tch::Tensor;

use crate::connect::connect;
use crate::data::{self, Prepared};
use crate::error::RunError;
use crate::model::Model;
use crate::model_files::{ModelFiles, watched};
use crate::precision::Scaling;
use crate::progress::{Event, Observer, Summary};
use crate::spec::{EvaluateEvery, Spec, SwarmSpec};
use crate::train::{Outcome, Training};

/// Trains as the pipeline says and leaves a run folder.
///
/// `stop` is looked at between steps: when it is set, the run ends cleanly with what was trained.
///
/// # Errors
/// [`RunError`]. If training had begun, the folder holds what was trained, and the manifest the error.
pub fn run(
    spec: &Spec,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, RunError> {
    let started = Started { instant: Instant::now(), stamp: sepal_track::now() };
    if let Some(threads) = spec.train.threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
    let assets = Assets::from_env();
    let ModelFiles { asset, checkpoint } = fetch_model(spec, &assets, observer, stop)?;
    let tokenizer = checkpoint
        .tokenizer()
        .map_err(|source| RunError::Tokenizer { path: asset.path.clone(), source: source.into() })?;
    let mut params = Parameters::new();
    let hidden = checkpoint.config().hidden;
    let mut cx = HeadContext { params: &mut params, hidden, seed: spec.train.seed };
    let head = registry
        .build::<Head>(&spec.task.name, spec.task.options(), &mut cx)
        .map_err(|source| RunError::Build { key: "task", source })?;
    let prepared = data::prepare(spec, &assets, &tokenizer, &*head, observer, stop)?;
    let ends = Ends::load(&checkpoint)
        .map_err(|source| RunError::Load { what: "embeddings and final norm", source: source.into() })?;
    let tuning = build_tuning(spec, registry, &checkpoint, ends.embedding_matrix(), &tokenizer, &*head, &mut params)?;
    check_positions(&checkpoint, &prepared, tuning.pre_seq_len())?;
    let (kept, blocks) = connect(spec, &checkpoint, observer)?;
    let whole = whole(&checkpoint)?;
    let mut model = Model { ends, blocks, tuning, head, params, whole, precision: spec.train.precision };

    let folder = RunFolder::create(&spec.output.folder, &spec.name).map_err(RunError::Write)?;
    let yaml = spec.to_yaml().map_err(|error| RunError::Resolved { message: error.to_string() })?;
    folder.write("pipeline.yaml", yaml.as_bytes()).map_err(RunError::Write)?;
    let mut outcome = Outcome::default();
    let trained = train(spec, registry, &mut model, &prepared, &folder, observer, stop, &mut outcome);
    let facts = model_facts(spec, &asset, &checkpoint, tokenizer.digest());
    let end = End { spec, started, folder: &folder, facts, checkpoint: &checkpoint, prepared: &prepared };
    let summary = end.save(&model, &outcome, trained.as_ref().err());
    drop(model);
    drop(kept);
    trained?;
    summary
}

/// Fetches the model and the data of a pipeline into the cache.
///
/// # Errors
/// [`RunError::Fetch`] if a source cannot be had.
pub fn fetch(spec: &Spec, observer: &mut dyn Observer) -> Result<(), RunError> {
    let (assets, never) = (Assets::from_env(), AtomicBool::new(false));
    fetch_model(spec, &assets, observer, &never)?;
    data::fetch(spec, &assets, observer, &never)?;
    Ok(())
}

struct Started {
    instant: Instant,
    stamp: String,
}

/// The model, with the shards that this process needs: all of them only where the blocks run here.
fn fetch_model(
    spec: &Spec,
    assets: &Assets,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<ModelFiles, RunError> {
    let mut watch = watched("model", observer, stop);
    let files = ModelFiles::open(assets, &spec.model.source, &mut watch)?;
    match (&spec.swarm, Span::new(0, spec.model.local_blocks.min(files.checkpoint.config().n_blocks))) {
        (SwarmSpec::Embedded(_) | SwarmSpec::None(_), _) => files.bring(assets, Part::Whole, &mut watch)?,
        (_, first) => {
            files.bring(assets, Part::Ends, &mut watch)?;
            // There is no span of no blocks.
            if let Ok(first) = first {
                files.bring(assets, Part::Blocks(first), &mut watch)?;
            }
        }
    }
    Ok(files)
}

/// Every row fits the model, with its prompts.
fn check_positions(checkpoint: &Checkpoint, prepared: &Prepared, prompts: usize) -> Result<(), RunError> {
    let validation = prepared.validation.as_ref().map_or(0, Loader::longest_row);
    let tokens = prepared.train.longest_row().max(validation);
    match checkpoint.config().max_positions {
        Some(max_positions) if tokens + prompts > max_positions => {
            Err(RunError::Positions { tokens, prompts, max_positions })
        }
        _ => Ok(()),
    }
}

fn whole(checkpoint: &Checkpoint) -> Result<Span, RunError> {
    Span::new(0, checkpoint.config().n_blocks)
        .map_err(|source| RunError::Load { what: "blocks", source: source.into() })
}

fn build_tuning(
    spec: &Spec,
    registry: &Registry,
    checkpoint: &Checkpoint,
    embeddings: &Tensor,
    tokenizer: &Tokenizer,
    head: &dyn TaskHead,
    params: &mut Parameters,
) -> Result<Box<dyn TuningMode>, RunError> {
    let config = checkpoint.config();
    let mut cx = TuningContext {
        params,
        n_blocks: config.n_blocks,
        hidden: config.hidden,
        initializer_range: config.initializer_range,
        embeddings,
        tokenize: &|text| Ok(tokenizer.encode_plain(text)?.into_iter().map(i64::from).collect()),
        labels: head.label_names(),
        seed: spec.train.seed,
    };
    registry
        .build::<Tuning>(&spec.tuning.name, spec.tuning.options(), &mut cx)
        .map_err(|source| RunError::Build { key: "tuning", source })
}

#[expect(clippy::too_many_arguments, reason = "the one place where everything meets")]
fn train(
    spec: &Spec,
    registry: &Registry,
    model: &mut Model,
    prepared: &Prepared,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    outcome: &mut Outcome,
) -> Result<(), RunError> {
    let batches = prepared.train.batches_per_epoch() as u64;
    let steps_per_epoch = batches.div_ceil(spec.train.accumulate as u64);
    let total_steps = spec.train.max_steps.unwrap_or(spec.train.epochs * steps_per_epoch);
    let optimizer = registry
        .build::<Opt>(&spec.optimizer.name, spec.optimizer.options(), &mut OptContext {})
        .map_err(|source| RunError::Build { key: "optimizer", source })?;
    let mut cx = SchedContext { total_steps: usize::try_from(total_steps).unwrap_or(usize::MAX) };
    let schedule = registry
        .build::<Sched>(&spec.schedule.name, spec.schedule.options(), &mut cx)
        .map_err(|source| RunError::Build { key: "schedule", source })?;
    check_watched(&*schedule, spec, prepared)?;
    observer.event(Event::Started { total_steps, trainable: model.params.count() });
    let mut log = folder.metrics().map_err(RunError::Write)?;
    let mut training = Training {
        model,
        optimizer,
        schedule,
        scaling: Scaling::new(spec.scaler()),
        train: &prepared.train,
        validation: prepared.validation.as_ref(),
        spec: &spec.train,
        every: spec.evaluate.every,
        total_steps,
        log: &mut log,
        observer,
        stop,
    };
    training.run(outcome)
}

/// A schedule that follows evaluations has some.
fn check_watched(schedule: &dyn Schedule, spec: &Spec, prepared: &Prepared) -> Result<(), RunError> {
    let evaluates =
        prepared.validation.is_some() && !matches!(spec.evaluate.every, EvaluateEvery::Never | EvaluateEvery::End);
    match schedule.watches() {
        Some(watched) if !evaluates => {
            let message =
                format!("expected evaluations while it trains (`evaluate.every`), because `{watched}` is watched");
            Err(RunError::Build { key: "schedule", source: BuildError::Option { key: "metric", message } })
        }
        _ => Ok(()),
    }
}

/// What the model is, in the format in which its blocks were kept.
fn model_facts(spec: &Spec, asset: &Asset, checkpoint: &Checkpoint, tokenizer: &str) -> ModelFacts {
    let model = ModelIdentity::of(checkpoint).kept_as(spec.model.weights);
    ModelFacts {
        source: asset.pinned().to_string(),
        passed_over: data::passed_over(&asset.attempts),
        digest: model.digest,
        weights: model.weights,
        tokenizer: tokenizer.to_owned(),
    }
}

/// What is known at the end of a run.
struct End<'a> {
    spec: &'a Spec,
    started: Started,
    folder: &'a RunFolder,
    facts: ModelFacts,
    checkpoint: &'a Checkpoint,
    prepared: &'a Prepared,
}

impl End<'_> {
    /// Writes what was trained, predicted and learned, also after an error.
    fn save(&self, model: &Model, outcome: &Outcome, error: Option<&RunError>) -> Result<Summary, RunError> {
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("model_digest".to_owned(), self.facts.digest.clone()),
            ("task".to_owned(), self.spec.task.name.clone()),
            ("tuning".to_owned(), self.spec.tuning.name.clone()),
            ("labels".to_owned(), model.head.label_names().join("\n")),
        ]);
        model.params.save(&self.folder.path().join("adapter.safetensors"), &metadata).map_err(RunError::Save)?;
        if let Some(last) = &outcome.last {
            self.prepared.write_predictions(self.folder, &last.prediction)?;
        }
        let manifest = self.manifest(model, outcome, error)?;
        manifest.save(self.folder).map_err(RunError::Write)?;
        Ok(self.summary(outcome, &manifest))
    }

    fn manifest(&self, model: &Model, outcome: &Outcome, error: Option<&RunError>) -> Result<Manifest, RunError> {
        let status = match error {
            Some(error) => Status::Failed { error: in_one_line(error) },
            None if outcome.interrupted => Status::Interrupted,
            None => Status::Finished,
        };
        let traffic = model.blocks.traffic();
        let trainable = model.params.count() as u64;
        let versions = Versions { sepal: env!("CARGO_PKG_VERSION").to_owned(), libtorch: LIBTORCH.to_owned() };
        Ok(Manifest {
            name: self.spec.name.clone(),
            status,
            versions,
            seed: self.spec.train.seed,
            model: self.facts.clone(),
            data: self.prepared.facts.clone(),
            parameters: sepal_track::Parameters { trainable, total: trainable + self.checkpoint.parameter_count() },
            steps: outcome.steps,
            skipped_steps: outcome.skipped,
            scale: outcome.scale,
            bytes: Bytes { sent: traffic.up(), received: traffic.down() },
            started: self.started.stamp.clone(),
            seconds: self.started.instant.elapsed().as_secs_f64(),
            train_seconds: outcome.seconds,
            train_tokens: outcome.tokens,
            metrics: outcome.last.as_ref().map(|last| last.record.metrics.clone()).unwrap_or_default(),
            adapter_digest: model
                .params
                .digest()
                .map_err(|source| RunError::Load { what: "adapter", source: source.into() })?,
            labels: model.head.label_names().to_vec(),
            best: None,
            ended_early: None,
            resumed_at: Vec::new(),
            servers: Vec::new(),
            near_words: Vec::new(),
        })
    }

    fn summary(&self, outcome: &Outcome, manifest: &Manifest) -> Summary {
        let per_second = |count: u64| if outcome.seconds > 0.0 { count as f64 / outcome.seconds } else { 0.0 };
        Summary {
            folder: self.folder.path().to_owned(),
            interrupted: outcome.interrupted,
            metrics: manifest.metrics.clone(),
            headline: outcome.last.as_ref().and_then(|last| last.headline.clone()),
            steps: outcome.steps,
            skipped_steps: outcome.skipped,
            rows_per_second: per_second(outcome.rows),
            tokens_per_second: per_second(outcome.tokens),
            bytes_sent: manifest.bytes.sent,
            bytes_received: manifest.bytes.received,
            seconds: manifest.seconds,
        }
    }
}

/// The libtorch that the bindings are made for.
const LIBTORCH: &str = "2.13.0";
