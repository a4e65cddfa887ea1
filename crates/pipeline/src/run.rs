//! From a checked pipeline to a run folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use sepal_assets::Assets;
use sepal_blocks::Ends;
use sepal_core::in_one_line;
use sepal_data::Loader;
use sepal_nn::Parameters;
use sepal_optim::Schedule;
use sepal_plugin::{BuildError, Opt, OptContext, PROMPTS, Registry, Sched, SchedContext};
use sepal_track::{Bytes, Manifest, NearWords, RunFolder, Status, Versions};

use crate::assemble::{Frozen, assemble, build_head, fetch_model};
use crate::data::{self, Prepared};
use crate::error::RunError;
use crate::evaluate::{Judge, Kept, metric_names};
use crate::model::Model;
use crate::precision::Scaling;
use crate::progress::{Event, Observer, Summary};
use crate::records::{self, NamedTrackers, Records, run_info};
use crate::run_checkpoint::{self, MadeOf, Saver};
use crate::spec::{EvaluateEvery, KeptAdapter, Spec};
use crate::train::{Length, Outcome, Training};
use crate::unfinished;

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
    Run { spec, registry, stop }.go(None, observer)
}

/// Goes on with the run in `folder` from its newest checkpoint: in deterministic mode, on processors of a kind, to the
/// adapter that it would have come to without the interruption, to the last bit. A run that is complete is refused, unless
/// its time was up.
///
/// # Errors
/// [`RunError`] as for [`run`]; [`RunError::Resume`] and [`RunError::RunCheckpoint`] if the folder's run is another one,
/// or has no checkpoint that can be used. The folder is as it was then.
pub fn resume(
    spec: &Spec,
    folder: &Path,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, RunError> {
    let old = unfinished::pipeline_of(folder, registry)?;
    unfinished::check_same(folder, &old, spec)?;
    unfinished::check_incomplete(folder)?;
    let spec = &old.model.source.first().map_or_else(|| spec.clone(), |used| spec.preferring(used));
    Run { spec, registry, stop }.go(Some(folder), observer)
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

struct Run<'a> {
    spec: &'a Spec,
    registry: &'a Registry,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    fn go(&self, resumed: Option<&Path>, observer: &mut dyn Observer) -> Result<Summary, RunError> {
        let Self { spec, registry, stop } = *self;
        let started = Instant::now();
        if let Some(threads) = spec.train.threads {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let trackers = records::trackers(spec, registry)?;
        let assets = Assets::from_env();
        let rows = data::read(spec, &assets, observer, stop)?;
        let mut frozen = Frozen::fetch(spec, &assets, observer, stop)?;
        if let Some(tokenizer) = resumed.and_then(run_checkpoint::tokenizer_of) {
            frozen.take_tokenizer(&tokenizer);
        }
        let mut params = Parameters::new();
        let mut head = build_head(spec, registry, &frozen, &mut params)?;
        let prepared = data::prepare(spec, rows, &assets, &frozen, &*head, observer)?;
        head.see_class_rows(&prepared.facts.class_rows).map_err(RunError::Head)?;
        let longest = prepared.validation.as_ref().map_or(0, Loader::longest_row).max(prepared.train.longest_row());
        let (mut model, servers) =
            assemble(spec, registry, &frozen, (head, params), longest, resumed.is_some(), observer)?;

        let folder = match resumed {
            Some(path) => RunFolder::open(path),
            None => RunFolder::create(&spec.output.folder, &spec.name),
        };
        let folder = folder.map_err(RunError::Write)?;
        let mut records = Records::open(&folder)?;
        // Nobody else is at work here now. What cannot be removed is in nobody's way.
        let _ = sepal_track::remove_unfinished(folder.path());
        let end = End { spec, started, folder: &folder, frozen: &frozen, prepared: &prepared };
        let mut outcome = Outcome::default();
        outcome.progress.started = sepal_track::now();
        let trained = self.train(&mut model, &end, resumed.is_some(), (&mut records, trackers), observer, &mut outcome);
        let is_untouched = resumed.is_some() && outcome.progress.steps == 0;
        // What could not be gone on with stays as it was.
        let trained = match trained {
            Err(error) if is_untouched => return Err(error),
            other => other,
        };
        let saved = end.save(&mut model, &outcome, trained.as_ref().err());
        if let Ok(manifest) = &saved {
            records.finish(manifest);
        }
        drop(model);
        drop(servers);
        // What ended the training comes before what kept it from being saved.
        if let (Err(_), Err(unsaved)) = (&trained, &saved) {
            observer.event(Event::Notice(&format!("not all was saved: {}", in_one_line(unsaved))));
        }
        trained?;
        Ok(end.summary(&outcome, &saved?))
    }

    fn train(
        &self,
        model: &mut Model,
        end: &End<'_>,
        is_resumed: bool,
        (records, trackers): (&mut Records, NamedTrackers),
        observer: &mut dyn Observer,
        outcome: &mut Outcome,
    ) -> Result<(), RunError> {
        let (spec, prepared, folder) = (self.spec, end.prepared, end.folder);
        let length = Length::of(spec, &prepared.train);
        let optimizer = self
            .registry
            .build::<Opt>(&spec.optimizer.name, spec.optimizer.options(), &mut OptContext {})
            .map_err(|source| RunError::Build { key: "optimizer", source })?;
        let mut cx = SchedContext { total_steps: usize::try_from(length.total_steps).unwrap_or(usize::MAX) };
        let schedule = self
            .registry
            .build::<Sched>(&spec.schedule.name, spec.schedule.options(), &mut cx)
            .map_err(|source| RunError::Build { key: "schedule", source })?;
        check_watched(&*schedule, spec, prepared)?;
        check_metrics(&*schedule, spec, prepared, model)?;
        if still_rises(&*schedule, cx.total_steps) {
            let steps = length.total_steps;
            let share = 100.0 * schedule.factor(cx.total_steps - 1);
            let notice = format!(
                "warning: the learning rate still rises in the last of {steps} steps, to {share:.1} % of `optimizer.with.lr`: \
                 is the warm-up (`schedule.with`) too long?"
            );
            observer.event(Event::Notice(&notice));
        }
        let trainable = model.params.count();
        let mut saver = Saver::new(&spec.checkpoint, folder, end.made_of(), end.started);
        let mut training = Training {
            model,
            optimizer,
            schedule,
            scaling: Scaling::new(spec.scaler()),
            train: &prepared.train,
            validation: prepared.validation.as_ref(),
            spec,
            length,
            judge: Judge::new(&spec.evaluate, usual_metric(&prepared.facts.train)),
            class_rows: &prepared.facts.class_rows,
            records,
            observer,
            stop: self.stop,
        };
        if is_resumed {
            *outcome = saver.restore(&mut training)?;
            let progress = &outcome.progress;
            let (steps, is_evaluated) = (progress.steps, progress.evaluated_at == Some(progress.steps));
            training.records.cut_behind(steps, is_evaluated)?;
            training.observer.event(Event::Notice(&format!("goes on after step {steps}")));
        }
        let yaml = spec
            .preferring(&end.frozen.asset.source)
            .to_yaml()
            .map_err(|error| RunError::Resolved { message: error.to_string() })?;
        folder.write("pipeline.yaml", yaml.as_bytes()).map_err(RunError::Write)?;
        let info = run_info(spec, folder, trainable, outcome.progress.steps);
        training.records.follow(trackers, &info);
        let (total_steps, done) = (length.total_steps, outcome.progress.steps);
        training.observer.event(Event::Started { total_steps, done, trainable });
        training.run(outcome, &mut saver)
    }
}

/// Whether the learning rate has not come to its height when the run ends.
fn still_rises(schedule: &dyn Schedule, total_steps: usize) -> bool {
    total_steps > 1 && schedule.factor(total_steps - 1) > schedule.factor(total_steps - 2)
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

/// The metrics that are named are some that evaluations have, as far as there are any.
fn check_metrics(schedule: &dyn Schedule, spec: &Spec, prepared: &Prepared, model: &Model) -> Result<(), RunError> {
    let Some(validation) = &prepared.validation else { return Ok(()) };
    let asked = [("evaluate.metric", spec.evaluate.metric.as_deref()), ("schedule.with.metric", schedule.watches())];
    for (key, metric) in asked.into_iter().filter_map(|(key, metric)| Some((key, metric?))) {
        let known = metric_names(model, validation)?;
        if !known.iter().any(|name| name == metric) {
            return Err(RunError::Metric { key, metric: metric.to_owned(), known });
        }
    }
    Ok(())
}

/// What is known at the end of a run.
struct End<'a> {
    spec: &'a Spec,
    started: Instant,
    folder: &'a RunFolder,
    frozen: &'a Frozen,
    prepared: &'a Prepared,
}

impl End<'_> {
    fn made_of(&self) -> MadeOf {
        let (model, data) = (self.frozen.facts(self.spec), &self.prepared.facts);
        MadeOf {
            pipeline: unfinished::digest(self.spec),
            model: model.digest,
            tokenizer: model.tokenizer,
            training_rows: data.train_digest.clone(),
            validation_rows: data.validation_digest.clone(),
        }
    }

    /// The evaluation of the parameters that are saved, if there was one.
    fn kept<'k>(&self, outcome: &'k Outcome) -> Option<&'k Kept> {
        let is_last = |kept: &&Kept| kept.best.step == outcome.progress.steps;
        outcome.kept.as_ref().filter(|kept| self.spec.output.adapter == KeptAdapter::Best || is_last(kept))
    }

    /// Writes what was trained, predicted and learned, also after an error.
    fn save(&self, model: &mut Model, outcome: &Outcome, error: Option<&RunError>) -> Result<Manifest, RunError> {
        if let Some(kept) = self.kept(outcome).filter(|_| self.spec.output.adapter == KeptAdapter::Best) {
            model.params.set(kept.params.clone()).map_err(RunError::Restore)?;
        }
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("model_digest".to_owned(), self.frozen.facts(self.spec).digest),
            ("task".to_owned(), self.spec.task.name.clone()),
            ("tuning".to_owned(), self.spec.tuning.name.clone()),
            ("labels".to_owned(), model.head.label_names().join("\n")),
        ]);
        model.params.save(&self.folder.path().join("adapter.safetensors"), &metadata).map_err(RunError::Save)?;
        if let Some(kept) = self.kept(outcome) {
            self.prepared.write_predictions(self.folder, &kept.evaluated.prediction)?;
        }
        let manifest = self.manifest(model, outcome, error)?;
        manifest.save(self.folder).map_err(RunError::Write)?;
        self.show();
        Ok(manifest)
    }

    /// Writes `metrics.parquet` and `report.html`. What was trained is none the worse without them.
    fn show(&self) {
        let folder = self.folder.path();
        let numbers = sepal_data::metrics_parquet(&folder.join("metrics.jsonl")).map_err(|error| in_one_line(&*error));
        let page = sepal_report::Run::read(folder).map(|run| sepal_report::report(&run).into_bytes());
        for (name, content) in
            [("metrics.parquet", numbers), ("report.html", page.map_err(|error| in_one_line(&error)))]
        {
            let written =
                content.and_then(|content| self.folder.write(name, &content).map_err(|error| in_one_line(&error)));
            if let Err(error) = written {
                tracing::warn!(error, "this run has no {name}");
            }
        }
    }

    fn manifest(&self, model: &Model, outcome: &Outcome, error: Option<&RunError>) -> Result<Manifest, RunError> {
        let status = match error {
            Some(error) => Status::Failed { error: in_one_line(error) },
            None if outcome.interrupted => Status::Interrupted,
            None => Status::Finished,
        };
        let progress = &outcome.progress;
        let traffic = model.blocks.traffic();
        let trainable = model.params.count() as u64;
        let versions = Versions { sepal: env!("CARGO_PKG_VERSION").to_owned(), libtorch: LIBTORCH.to_owned() };
        let kept = self.kept(outcome);
        Ok(Manifest {
            name: self.spec.name.clone(),
            status,
            versions,
            seed: self.spec.train.seed,
            model: self.frozen.facts(self.spec),
            data: self.prepared.facts.clone(),
            parameters: sepal_track::Parameters {
                trainable,
                total: trainable + self.frozen.checkpoint.parameter_count(),
            },
            steps: progress.steps,
            skipped_steps: progress.skipped,
            scale: progress.scale,
            bytes: Bytes {
                sent: progress.sent_before + traffic.up(),
                received: progress.received_before + traffic.down(),
            },
            started: progress.started.clone(),
            seconds: progress.seconds_before + self.started.elapsed().as_secs_f64(),
            train_seconds: progress.train_seconds,
            train_tokens: progress.tokens,
            metrics: kept.map(|kept| kept.evaluated.record.metrics.clone()).unwrap_or_default(),
            adapter_digest: model.params.digest().map_err(RunError::Numbers)?,
            labels: model.head.label_names().to_vec(),
            best: kept.map(|kept| kept.best.clone()),
            ended_early: progress.ended_early.clone(),
            resumed_at: progress.resumed_at.clone(),
            servers: model.blocks.uses(&progress.servers_before),
            near_words: near_words(&model.params, &model.ends, self.frozen),
        })
    }

    fn summary(&self, outcome: &Outcome, manifest: &Manifest) -> Summary {
        let progress = &outcome.progress;
        let per_second =
            |count: u64| if progress.train_seconds > 0.0 { count as f64 / progress.train_seconds } else { 0.0 };
        Summary {
            folder: self.folder.path().to_owned(),
            interrupted: outcome.interrupted,
            metrics: manifest.metrics.clone(),
            headline: self.kept(outcome).map(|kept| (kept.best.metric.clone(), kept.best.value)),
            best_step: self.kept(outcome).map(|kept| kept.best.step),
            ended_early: progress.ended_early.clone(),
            steps: progress.steps,
            skipped_steps: progress.skipped,
            rows_per_second: per_second(progress.rows),
            tokens_per_second: per_second(progress.tokens),
            bytes_sent: manifest.bytes.sent,
            bytes_received: manifest.bytes.received,
            seconds: manifest.seconds,
        }
    }
}

/// Of the soft prompts, if there are such; nothing else is the worse for it if that cannot be computed.
pub(crate) fn near_words(params: &Parameters, ends: &Ends, frozen: &Frozen) -> Vec<NearWords> {
    let Some(prompts) = params.get(PROMPTS).filter(|prompts| prompts.dim() == 2) else { return Vec::new() };
    let nearest = sepal_nn::nearest_words(prompts, ends.embedding_matrix(), NEAR_WORDS).unwrap_or_default();
    let word = |(id, near): (usize, f64)| (frozen.tokenizer.text_of(id as u32).unwrap_or_default(), near);
    let words = |(prompt, found): (usize, Vec<(usize, f64)>)| NearWords {
        prompt,
        // JSON has no NaN, which prompts or embeddings may hold.
        words: found.into_iter().filter(|(_, near)| near.is_finite()).map(word).collect(),
    };
    nearest.into_iter().enumerate().map(words).collect()
}

/// The metric that GLUE's table has of these rows, if they are of a task of GLUE.
fn usual_metric(source: &str) -> Option<&'static str> {
    sepal_metrics::glue::Task::find(source)?.metrics.first().copied()
}

/// Words that the manifest names of each soft prompt.
const NEAR_WORDS: usize = 5;

/// The libtorch that the bindings are made for.
pub(crate) const LIBTORCH: &str = "2.13.0";

#[cfg(test)]
mod tests {
    use super::*;

    /// Rises for so many steps.
    struct Warmup(f64);

    impl Schedule for Warmup {
        fn factor(&self, step: usize) -> f64 {
            (step as f64 / self.0).min(1.0)
        }
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_is_noticed() {
        assert!(still_rises(&Warmup(20.0), 20) && still_rises(&Warmup(100.0), 20));
        assert!(!still_rises(&Warmup(20.0), 40) && !still_rises(&Warmup(0.5), 20) && !still_rises(&Warmup(5.0), 1));
    }
}
