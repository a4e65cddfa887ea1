//! The end of a run: adapter, predictions, manifest, report and summary.

use std::collections::BTreeMap;
use std::time::Instant;

use sepal_blocks::Ends;
use sepal_config::Spec;
use sepal_config::spec::KeptAdapter;
use sepal_core::{LABEL_KIND, RowForm, in_one_line};
use sepal_model::Model;
use sepal_nn::Parameters;
use sepal_plugin::{PROMPTS, TaskHead};
use sepal_prepare::PreparedData;
use sepal_track::{Calibration, Manifest, NearestWords, RunFolder, Status, Traffic, Versions};
use sepal_train::{Outcome, RunIdentity, SelectedEvaluation};

use crate::calibrate::{self, Decisions, Fit};
use crate::data::write_predictions;
use crate::error::{RecordError, RunError};
use crate::frozen_model::FrozenModel;
use crate::progress::Summary;
use crate::resume;

pub(crate) struct Finish<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) started: Instant,
    pub(crate) folder: &'a RunFolder,
    pub(crate) frozen: &'a FrozenModel,
    pub(crate) data: &'a PreparedData,
}

impl Finish<'_> {
    pub(crate) fn identity(&self) -> RunIdentity {
        let (model, data) = (self.frozen.facts(self.spec), &self.data.facts);
        RunIdentity {
            pipeline: resume::digest(self.spec),
            model: model.digest,
            tokenizer: model.tokenizer,
            training_rows: data.train_digest.clone(),
            validation_rows: data.validation_digest.clone(),
        }
    }

    /// Evaluation of the parameters that become the adapter, if there was one.
    fn selected<'o>(&self, outcome: &'o Outcome) -> Option<&'o SelectedEvaluation> {
        let is_last = |selected: &&SelectedEvaluation| selected.best.step == outcome.progress.steps;
        outcome.selected.as_ref().filter(|selected| self.spec.output.adapter == KeptAdapter::Best || is_last(selected))
    }

    /// Writes adapter, predictions, manifest and report, also after an error.
    pub(crate) fn save(
        &self,
        model: &mut Model,
        outcome: &Outcome,
        error: Option<&RunError>,
    ) -> Result<Manifest, RecordError> {
        if let Some(selected) = self.selected(outcome).filter(|_| self.spec.output.adapter == KeptAdapter::Best) {
            model.params.set(selected.params.clone()).map_err(RecordError::Restore)?;
        }
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("model_digest".to_owned(), self.frozen.facts(self.spec).digest),
            ("task".to_owned(), self.spec.task.name.clone()),
            ("tuning".to_owned(), self.spec.tuning.names()),
            ("labels".to_owned(), sepal_core::join_labels(model.head.label_names())),
        ]);
        let task = model.head.task();
        // Rows of plain texts, of which PEFT knows the heads, need no further description.
        if task.row_form() != RowForm::Text {
            metadata.insert(LABEL_KIND.to_owned(), task.kind().to_string());
        }
        model.params.save(&self.folder.path().join("adapter.safetensors"), &metadata).map_err(RecordError::Adapter)?;
        let calibration = self.calibration(&*model.head, outcome);
        if let Some(selected) = self.selected(outcome) {
            let decisions = Decisions::new(model.head.task(), calibration.as_ref());
            let prediction = decisions.apply(selected.evaluation.prediction.clone());
            write_predictions(self.data, self.folder, model.head.task(), &self.frozen.tokenizer, &prediction)?;
        }
        let manifest = Manifest { calibration, ..self.manifest(model, outcome, error)? };
        manifest.save(self.folder).map_err(RecordError::Write)?;
        self.write_report();
        Ok(manifest)
    }

    /// Fits what the pipeline names on the predictions of the validation rows. A failure is only a warning.
    fn calibration(&self, head: &dyn TaskHead, outcome: &Outcome) -> Option<Calibration> {
        let spec = Some(self.spec.calibrate).filter(|spec| !spec.is_empty())?;
        let (Some(selected), Some(labels)) = (self.selected(outcome), self.data.validation_labels()) else {
            tracing::warn!("probabilities are not fitted: the parameters of the adapter were not evaluated");
            return None;
        };
        let rows = &self.data.facts.validation;
        match calibrate::fit(spec, head, &selected.evaluation.prediction, labels, rows) {
            Ok(Fit { calibration, warnings }) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                Some(calibration).filter(|calibration| !calibration.is_empty())
            }
            Err(error) => {
                tracing::warn!(error = in_one_line(&error), "probabilities are not fitted");
                None
            }
        }
    }

    /// Writes `metrics.parquet` and `report.html`. A failure is only a warning.
    fn write_report(&self) {
        let folder = self.folder.path();
        let numbers = sepal_data::metrics_parquet(&folder.join("metrics.jsonl")).map_err(|error| in_one_line(&*error));
        let page = sepal_report::Run::read(folder).map_err(|error| in_one_line(&error));
        let page = page.map(|run| sepal_report::report(&run).into_bytes());
        for (name, content) in [("metrics.parquet", numbers), ("report.html", page)] {
            let written =
                content.and_then(|content| self.folder.write(name, &content).map_err(|error| in_one_line(&error)));
            if let Err(error) = written {
                tracing::warn!(error, "this run has no {name}");
            }
        }
    }

    fn manifest(&self, model: &Model, outcome: &Outcome, error: Option<&RunError>) -> Result<Manifest, RecordError> {
        let status = match error {
            Some(error) => Status::Failed { error: in_one_line(error) },
            None if outcome.interrupted => Status::Interrupted,
            None => Status::Finished,
        };
        let progress = &outcome.progress;
        let traffic = model.blocks.traffic();
        let trainable = model.params.count() as u64;
        let versions = Versions { sepal: env!("CARGO_PKG_VERSION").to_owned(), libtorch: LIBTORCH.to_owned() };
        let selected = self.selected(outcome);
        Ok(Manifest {
            name: self.spec.name.clone(),
            status,
            versions,
            seed: self.spec.train.seed,
            model: self.frozen.facts(self.spec),
            data: self.data.facts.clone(),
            parameters: sepal_track::ParameterCounts {
                trainable,
                total: trainable + self.frozen.checkpoint.parameter_count(),
            },
            steps: progress.steps,
            skipped_steps: progress.skipped,
            scale: progress.scale,
            bytes: Traffic {
                sent: progress.sent_before + traffic.up(),
                received: progress.received_before + traffic.down(),
            },
            started: progress.started.clone(),
            seconds: progress.seconds_before + self.started.elapsed().as_secs_f64(),
            train_seconds: progress.train_seconds,
            train_tokens: progress.tokens,
            metrics: selected.map(|selected| selected.evaluation.record.metrics.clone()).unwrap_or_default(),
            adapter_digest: model.params.digest().map_err(RecordError::Parameters)?,
            labels: model.head.label_names().to_vec(),
            calibration: None,
            best: selected.map(|selected| selected.best.clone()),
            ended_early: progress.ended_early.clone(),
            resumed_at: progress.resumed_at.clone(),
            servers: progress.server_usage(model.blocks.server_usage()),
            nearest_words: nearest_words(&model.params, &model.ends, self.frozen),
        })
    }

    pub(crate) fn summary(&self, outcome: &Outcome, manifest: &Manifest) -> Summary {
        let progress = &outcome.progress;
        let per_second =
            |count: u64| if progress.train_seconds > 0.0 { count as f64 / progress.train_seconds } else { 0.0 };
        Summary {
            folder: self.folder.path().to_owned(),
            interrupted: outcome.interrupted,
            paused: outcome.paused.clone(),
            metrics: manifest.metrics.clone(),
            calibration: manifest.calibration.clone(),
            headline: self.selected(outcome).map(|selected| (selected.best.metric.clone(), selected.best.value)),
            best_step: self.selected(outcome).map(|selected| selected.best.step),
            ended_early: progress.ended_early.clone(),
            steps: progress.steps,
            skipped_steps: progress.skipped,
            rows_per_second: per_second(progress.rows),
            tokens_per_second: per_second(progress.tokens),
            quarantined: manifest.quarantined().map(|usage| usage.server.clone()).collect(),
            bytes_sent: manifest.bytes.sent,
            bytes_received: manifest.bytes.received,
            seconds: manifest.seconds,
        }
    }
}

/// Words nearest to each soft prompt; empty if there are no prompts, or libtorch fails.
pub(crate) fn nearest_words(params: &Parameters, ends: &Ends, frozen: &FrozenModel) -> Vec<NearestWords> {
    let Some(prompts) = params.get(PROMPTS).filter(|prompts| prompts.dim() == 2) else { return Vec::new() };
    let nearest = sepal_nn::nearest_words(prompts, ends.embeddings(), NEAR_WORDS).unwrap_or_default();
    let word = |(id, near): (usize, f64)| (frozen.tokenizer.token_text(id as u32).unwrap_or_default(), near);
    let words = |(prompt, found): (usize, Vec<(usize, f64)>)| NearestWords {
        prompt,
        // JSON has no NaN, which prompts and embeddings may hold.
        words: found.into_iter().filter(|(_, near)| near.is_finite()).map(word).collect(),
    };
    nearest.into_iter().enumerate().map(words).collect()
}

const NEAR_WORDS: usize = 5;

/// Version of libtorch that the bindings are made for.
pub(crate) const LIBTORCH: &str = "2.13.0";
