//! Runs: from a checked pipeline to a run folder.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sepal_assets::Assets;
use sepal_config::Spec;
use sepal_config::spec::{EvaluateEvery, ParameterGroup, RunLength};
use sepal_core::in_one_line;
use sepal_model::Model;
use sepal_nn::Parameters;
use sepal_optim::{GroupedOptimizer, Optimizer, Schedule};
use sepal_plugin::{BuildError, Opt, OptContext, Registry, Sched, SchedContext};
use sepal_prepare::{Fetcher, PreparedData, prepare_rows, read_rows};
use sepal_track::{RunFolder, WriteError};
use sepal_train::{
    Checkpoints, MetricError, MetricUsage, Outcome, Pause, Trainer, TrainerContext, TrainerInputs, TrainerOptions,
    has_checkpoint, metric_names, tokenizer_digest,
};
use serde_json::Value;

use crate::connect::check_built;
use crate::data::calibration_batch;
use crate::embedded::EmbeddedServers;
use crate::error::{AssembleError, CalibrateError, RecordError, RunError};
use crate::evidence::keep_evidence;
use crate::finish::Finish;
use crate::frozen_model::{BuiltHead, FrozenModel, assemble};
use crate::progress::{Event, Observer, Summary, TrainEvents};
use crate::records::{self, Records, run_info};
use crate::resume::{check_incomplete, check_same, pipeline_of};
use crate::sweep::KnownRows;

/// Runs the pipeline and leaves a run folder.
///
/// `stop` is read between steps: when it is set, the run ends and saves what was trained.
///
/// # Errors
/// [`RunError`]. If training had started, the folder holds what was trained, and the manifest holds the error.
pub fn run(
    spec: &Spec,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, RunError> {
    Run { spec, registry, stop, member: None }.execute(None, observer)
}

/// Resumes the run in `folder` from its newest checkpoint. In deterministic mode, on processors of one kind, the adapter is
/// bit for bit that of an uninterrupted run. A complete run is refused, unless its time was up.
///
/// # Errors
/// [`RunError`] as for [`run`]; [`RunError::Resume`] and [`RunError::Train`] if the folder's run has other options or no
/// usable checkpoint. The folder is then unchanged.
pub fn resume(
    spec: &Spec,
    folder: &Path,
    registry: &Registry,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, RunError> {
    let spec = &resumable(spec, folder, registry)?;
    Run { spec, registry, stop, member: None }.execute(Some(folder), observer)
}

/// Returns the pipeline to resume the run in `folder` with.
fn resumable(spec: &Spec, folder: &Path, registry: &Registry) -> Result<Spec, RunError> {
    let old = pipeline_of(folder, registry)?;
    check_same(folder, &old, spec)?;
    check_incomplete(folder)?;
    Ok(old.model.source.first().map_or_else(|| spec.clone(), |used| spec.preferring(used)))
}

/// Environment of a run that is part of a sweep.
pub(crate) struct Membership<'a> {
    /// Folder of the run.
    pub(crate) folder: &'a Path,
    /// Name of the run for trackers, unique among sweeps.
    pub(crate) id: String,
    pub(crate) servers: &'a EmbeddedServers,
    /// Held while data and model are prepared, so that the first run fills the caches for the others.
    pub(crate) preparing: &'a Mutex<()>,
    pub(crate) pause: Option<Pause>,
    /// Rows of the runs that have begun.
    pub(crate) rows: &'a KnownRows,
}

/// Runs a member of a sweep, from its newest checkpoint if it has one. A folder without a checkpoint is begun again.
///
/// # Errors
/// [`RunError`] as for [`run`] and [`resume`].
pub(crate) fn run_member(
    spec: &Spec,
    registry: &Registry,
    member: &Membership<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, RunError> {
    let folder = member.folder;
    if has_checkpoint(folder) {
        let spec = &resumable(spec, folder, registry)?;
        return Run { spec, registry, stop, member: Some(member) }.execute(Some(folder), observer);
    }
    if folder.exists() {
        let failed = |source| RecordError::Write(WriteError { path: folder.to_owned(), source });
        std::fs::remove_dir_all(folder).map_err(failed)?;
    }
    Run { spec, registry, stop, member: Some(member) }.execute(None, observer)
}

pub(crate) fn set_threads(spec: &Spec) {
    if let Some(threads) = spec.train.threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}

struct Run<'a> {
    spec: &'a Spec,
    registry: &'a Registry,
    stop: &'a AtomicBool,
    /// Sweep that the run is part of.
    member: Option<&'a Membership<'a>>,
}

impl Run<'_> {
    fn execute(&self, resumed: Option<&Path>, observer: &mut dyn Observer) -> Result<Summary, RunError> {
        let Self { spec, registry, stop, member } = *self;
        let started = Instant::now();
        // Before anything is fetched.
        check_built(spec)?;
        let preparing = member.map(|member| member.preparing.lock().unwrap_or_else(PoisonError::into_inner));
        set_threads(spec);
        let trackers = records::trackers(spec, registry)?;
        let assets = Assets::from_env();
        let mut fetcher = Fetcher { assets: &assets, observer: &mut *observer, stop };
        let rows = read_rows(spec, &mut fetcher)?;
        let mut frozen = FrozenModel::fetch(spec, &mut fetcher)?;
        if let Some(tokenizer) = resumed.and_then(tokenizer_digest) {
            frozen.use_tokenizer(&tokenizer);
        }
        if let Some(member) = member {
            frozen.servers = member.servers.clone();
        }
        let mut built = BuiltHead::new(spec, registry, &frozen, resumed.is_some())?;
        spec.calibrate.check(built.head.task()).map_err(CalibrateError::from).map_err(AssembleError::from)?;
        let data = prepare_rows(spec, rows, &assets, &frozen.tokenizer, built.head.task(), observer)?;
        if let Some(member) = member {
            let run = member.folder.file_name().unwrap_or_default().to_string_lossy();
            member.rows.add(&run, spec, &data.facts)?;
        }
        built.head.see_class_rows(&data.facts.class_rows).map_err(AssembleError::Head)?;
        let longest = data.longest_row();
        let (mut model, servers) = assemble(spec, registry, &frozen, built, longest, resumed.is_some(), observer)?;
        model.calibration = calibration_batch(&*model.head, data.template.as_ref(), &frozen.tokenizer, data.limit)?;

        drop(preparing);

        let folder = match (resumed, member) {
            (Some(path), _) => RunFolder::open(path),
            (None, Some(member)) => RunFolder::create_at(member.folder),
            (None, None) => RunFolder::create(&spec.output.folder, &spec.name),
        };
        let folder = folder.map_err(RecordError::Write)?;
        keep_evidence(&*model.blocks, folder.path());
        let mut records = Records::open(&folder, trackers)?;
        // The records are locked: no other process works in this folder. A failed removal is harmless.
        let _ = sepal_track::remove_partial_files(folder.path());
        let finish = Finish { spec, started, folder: &folder, frozen: &frozen, data: &data };
        let (outcome, trained) = self.train(&mut model, &finish, resumed.is_some(), &mut records, observer);
        // A folder that could not be resumed stays as it was.
        let trained = match trained {
            Err(error) if resumed.is_some() && outcome.progress.steps == 0 => return Err(error),
            trained => trained,
        };
        let saved = finish.save(&mut model, &outcome, trained.as_ref().err());
        if let Ok(manifest) = &saved {
            records.finish(manifest);
        }
        drop(model);
        drop(servers);
        // The error of the training comes first.
        if let (Err(_), Err(unsaved)) = (&trained, &saved) {
            observer.event(Event::Notice(&format!("not all was saved: {}", in_one_line(unsaved))));
        }
        trained?;
        Ok(finish.summary(&outcome, &saved?))
    }

    /// Trains the model. The outcome is valid with and without an error.
    fn train(
        &self,
        model: &mut Model,
        finish: &Finish<'_>,
        is_resumed: bool,
        records: &mut Records,
        observer: &mut dyn Observer,
    ) -> (Outcome, Result<(), RunError>) {
        let started = sepal_track::timestamp();
        let trainable = model.params.count();
        match self.trainer(model, finish, started.clone(), observer) {
            Ok(mut trainer) => {
                let result = self.run_trainer(&mut trainer, finish, is_resumed, trainable, records, observer);
                (trainer.into_outcome(), result)
            }
            Err(error) => {
                let mut outcome = Outcome::default();
                outcome.progress.started = started;
                (outcome, Err(error))
            }
        }
    }

    /// Builds the trainer and checks that the data suit it.
    fn trainer<'m>(
        &self,
        model: &'m mut Model,
        finish: &'m Finish<'_>,
        started: String,
        observer: &mut dyn Observer,
    ) -> Result<Trainer<'m>, RunError> {
        let (spec, data) = (self.spec, finish.data);
        let length = RunLength::new(&spec.train, data.train.batches_per_epoch());
        let optimizer = self.optimizer(&model.params)?;
        let mut context = SchedContext { total_steps: usize::try_from(length.total_steps).unwrap_or(usize::MAX) };
        let schedule = self
            .registry
            .build::<Sched>(&spec.schedule.name, spec.schedule.options(), &mut context)
            .map_err(|source| AssembleError::Build { key: "schedule", source })?;
        check_watched(&*schedule, spec, data)?;
        let pause = self.member.and_then(|member| member.pause.clone());
        let halving = pause.as_ref().and_then(|pause| pause.metric.as_deref());
        check_metrics(&*schedule, halving, spec, data, model)?;
        if is_rising_at_end(&*schedule, context.total_steps) {
            let share = 100.0 * schedule.factor(context.total_steps - 1);
            observer.event(Event::Notice(&format!(
                "warning: the learning rate still rises in the last of {} steps, to {share:.1} % of `optimizer.with.lr`: \
                 is the warm-up (`schedule.with`) too long?",
                length.total_steps
            )));
        }
        let options = TrainerOptions {
            train: spec.train.clone(),
            scaler: spec.scaler(),
            evaluate: spec.evaluate.clone(),
            default_metric: glue_metric(&data.facts.train).map(str::to_owned),
            adapter: spec.output.adapter,
            class_rows: data.facts.class_rows.clone(),
            started: finish.started,
            pause,
        };
        let (train, validation) = (&data.train, data.validation.as_ref());
        Ok(Trainer::new(TrainerInputs { model, optimizer, schedule, train, validation, options }, started))
    }

    /// Builds the optimizer, with one of its own for each group of parameters.
    fn optimizer(&self, params: &Parameters) -> Result<Box<dyn Optimizer>, AssembleError> {
        let spec = &self.spec.optimizer;
        let build = |options: Value| {
            let built = self.registry.build::<Opt>(&spec.name, options, &mut OptContext {});
            built.map_err(|source| AssembleError::Build { key: "optimizer", source })
        };
        let others = build(spec.options())?;
        if spec.groups.is_empty() {
            return Ok(others);
        }
        let group = |group: &ParameterGroup| Ok((group.params.clone(), build(spec.options_of(group))?));
        let groups = spec.groups.iter().map(group).collect::<Result<Vec<_>, AssembleError>>()?;
        Ok(Box::new(GroupedOptimizer::new(others, groups, params).map_err(AssembleError::Groups)?))
    }

    fn run_trainer(
        &self,
        trainer: &mut Trainer<'_>,
        finish: &Finish<'_>,
        is_resumed: bool,
        trainable: usize,
        records: &mut Records,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let (spec, folder) = (self.spec, finish.folder);
        let mut checkpoints = Checkpoints::new(&spec.checkpoint, folder.path(), finish.identity());
        if is_resumed {
            checkpoints.restore(|state| trainer.load_state(state))?;
            let progress = trainer.progress();
            let (steps, is_evaluated) = (progress.steps, progress.evaluated_at == Some(progress.steps));
            records.truncate_after(steps, is_evaluated)?;
            observer.event(Event::Notice(&format!("goes on after step {steps}")));
        }
        let yaml = spec.preferring(&finish.frozen.asset.source).with_compute_format().to_yaml();
        let yaml = yaml.map_err(|error| RecordError::Pipeline(in_one_line(&error)))?;
        folder.write("pipeline.yaml", yaml.as_bytes()).map_err(RecordError::Write)?;
        let done = trainer.progress().steps;
        let mut info = run_info(spec, folder, trainable, done);
        if let Some(member) = self.member {
            info.id.clone_from(&member.id);
        }
        records.start_trackers(&info);
        let total_steps = trainer.length().total_steps;
        observer.event(Event::Started { total_steps, done, trainable });
        Ok(trainer.run(&mut TrainerContext {
            recorder: records,
            observer: &mut TrainEvents(observer),
            checkpoints: Some(checkpoints),
            stop: self.stop,
        })?)
    }
}

fn is_rising_at_end(schedule: &dyn Schedule, total_steps: usize) -> bool {
    total_steps > 1 && schedule.factor(total_steps - 1) > schedule.factor(total_steps - 2)
}

/// Returns an error if the schedule follows evaluations and there are none.
fn check_watched(schedule: &dyn Schedule, spec: &Spec, data: &PreparedData) -> Result<(), AssembleError> {
    let evaluates =
        data.validation.is_some() && !matches!(spec.evaluate.every, EvaluateEvery::Never | EvaluateEvery::End);
    match schedule.watches() {
        Some(watched) if !evaluates => {
            let message =
                format!("expected evaluations while it trains (`evaluate.every`), because `{watched}` is watched");
            Err(AssembleError::Build { key: "schedule", source: BuildError::Option { key: "metric", message } })
        }
        _ => Ok(()),
    }
}

/// Returns an error if the evaluations lack a metric that the pipeline names.
fn check_metrics(
    schedule: &dyn Schedule,
    halving: Option<&str>,
    spec: &Spec,
    data: &PreparedData,
    model: &Model,
) -> Result<(), RunError> {
    let Some(validation) = &data.validation else { return Ok(()) };
    let named = [
        (MetricUsage::Selection, spec.evaluate.metric.as_deref()),
        (MetricUsage::Schedule, schedule.watches()),
        (MetricUsage::Halving, halving),
    ];
    for (usage, metric) in named.into_iter().filter_map(|(usage, metric)| Some((usage, metric?))) {
        let known = metric_names(model, validation)?;
        if !known.iter().any(|name| name == metric) {
            return Err(MetricError { usage, metric: metric.to_owned(), known }.into());
        }
    }
    Ok(())
}

/// Metric that GLUE reports for these rows, if they are of one of its tasks.
fn glue_metric(source: &str) -> Option<&'static str> {
    sepal_metrics::glue::Task::find(source)?.metrics.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rises for this many steps.
    struct Warmup(f64);

    impl Schedule for Warmup {
        fn factor(&self, step: usize) -> f64 {
            (step as f64 / self.0).min(1.0)
        }
    }

    #[test]
    fn warmup_as_long_as_the_run_is_noticed() {
        assert!(is_rising_at_end(&Warmup(20.0), 20) && is_rising_at_end(&Warmup(100.0), 20));
        assert!(
            !is_rising_at_end(&Warmup(20.0), 40)
                && !is_rising_at_end(&Warmup(0.5), 20)
                && !is_rising_at_end(&Warmup(5.0), 1)
        );
    }
}
