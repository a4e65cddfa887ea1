//! A trained classifier: the adapter of a run over the same frozen model.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sepal_assets::{Assets, Source};
use sepal_config::Spec;
use sepal_config::spec::CalibrateSpec;
use sepal_core::{Labels, Task};
use sepal_data::{
    EncodedRow, LabelError, LabelSet, ListLayout, Loader, LoaderConfig, OutputSpec, RowEncoder, RowTexts, Table,
    TableSpec, Template, TokenSpec, TokenTable,
};
use sepal_metrics::Covered;
use sepal_model::{BlocksSession, Model, Repeatable, without_liars};
use sepal_plugin::{Phase, Prediction, Registry};
use sepal_prepare::{Fetcher, WithoutSplits, check_windows, read_split};
use sepal_tokenize::{Truncation, TruncationSide, Windows};
use sepal_track::{Calibration, EvaluationRecord, Manifest};
use sepal_train::{Split, evaluate, headline};

use crate::batches::batches;
use crate::calibrate::{self, Decisions, Fit};
use crate::connect::{SwarmHandle, check_built};
use crate::data::{calibration_batch, predictions_file};
use crate::error::{AdapterError, AssembleError, BoxError, CalibrateError, ClassifierError, DataError};
use crate::formats::OtherFormats;
use crate::frozen_model::{BuiltHead, FrozenModel, assemble};
use crate::labelled::{LabelledTable, skipped_without, unusable};
use crate::progress::{Observer, TrainEvents};
use crate::run::set_threads;
use crate::shared_base::{SharedBase, on_shared_server};

/// The classifier that a run trained, ready to predict.
pub struct Classifier {
    model: Model,
    frozen: FrozenModel,
    manifest: Manifest,
    decisions: Decisions,
    template: Option<Template>,
    truncation: Truncation,
    windows: Option<Windows>,
    batch_size: usize,
    prefetch: usize,
    /// Keeps the servers in use.
    _servers: SwarmHandle,
}

/// Predictions with one upload of the trained parameters to the servers.
pub struct Session<'a> {
    classifier: &'a Classifier,
    /// Begun anew when a server with wrong results was taken out of use.
    blocks: RefCell<Box<dyn BlocksSession + 'a>>,
}

/// Predictions of labelled rows.
#[derive(Debug)]
pub struct Evaluation {
    /// Measurements.
    pub record: EvaluationRecord,
    /// Name of the most informative metric.
    pub headline: String,
    /// Contents of `predictions.parquet` for these rows.
    pub predictions: Vec<u8>,
    /// Probability of the predicted label of each row, and true if it is right; empty unless rows have one class.
    outcomes: Vec<(f64, bool)>,
}

impl Evaluation {
    /// Returns the share of rows whose predicted label has at least this probability, and the accuracy among them; `None`
    /// unless rows have one class.
    pub fn covered(&self, abstain_below: f64) -> Option<Covered> {
        let (confidences, correct): (Vec<f64>, Vec<bool>) = self.outcomes.iter().copied().unzip();
        sepal_metrics::covered(&confidences, &correct, abstain_below).ok()
    }
}

/// Labelled rows with their predictions, as the head gives them.
struct LabelledRows {
    table: Table,
    labels: Labels,
    /// Source of the rows.
    source: String,
    evaluation: sepal_train::Evaluation,
}

impl Classifier {
    /// Loads the adapter in the folder `run`, and the model of `spec`: the run's pipeline, possibly with other servers.
    ///
    /// # Errors
    /// [`ClassifierError`] if a part is not available, or the adapter was trained on another model.
    pub fn open(
        spec: &Spec,
        run: &Path,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Self, ClassifierError> {
        Self::open_with(None, spec, run, registry, observer, stop)
    }

    /// Same as [`open`](Self::open), with a base model that other classifiers use, too. Blocks that would run in this process
    /// run on the embedded server of the base.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`ClassifierError::Adapter`] also if the run has another model than the base.
    pub fn open_on(
        base: &SharedBase,
        spec: &Spec,
        run: &Path,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Self, ClassifierError> {
        Self::open_with(Some(base), &on_shared_server(spec), run, registry, observer, stop)
    }

    fn open_with(
        base: Option<&SharedBase>,
        spec: &Spec,
        run: &Path,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Self, ClassifierError> {
        let refused = |problem: String| AdapterError { path: run.into(), problem };
        let manifest = Manifest::read(run).map_err(|error| refused(sepal_core::in_one_line(&error)))?;
        check_built(spec)?;
        set_threads(spec);
        let used = manifest.model.source.parse::<Source>();
        let spec = &used.map_or_else(|_| spec.clone(), |used| spec.preferring(&used));
        let assets = Assets::from_env();
        let fetcher = &mut Fetcher { assets: &assets, observer: &mut *observer, stop };
        let mut frozen = match base {
            Some(base) => base.frozen(spec, run, &manifest.model, fetcher)?,
            None => FrozenModel::fetch(spec, fetcher)?,
        };
        frozen.use_tokenizer(&manifest.model.tokenizer);
        let facts = frozen.facts(spec);
        for (what, own, others) in [
            ("model", &facts.digest, &manifest.model.digest),
            ("tokenizer", &facts.tokenizer, &manifest.model.tokenizer),
        ] {
            if own != others {
                let source = &manifest.model.source;
                let advice = match OtherFormats::new(own, others) {
                    Some(formats) => format!("add {}", formats.overrides()),
                    None => format!("it came from {source}, which can be named by --set model.source=SOURCE"),
                };
                return Err(ClassifierError::Adapter(refused(format!(
                    "it was trained with another {what} ({others}, this one is {own}); {advice}"
                ))));
            }
        }
        let temperature = manifest.calibration.as_ref().and_then(|calibration| calibration.temperature);
        if let Some(temperature) = temperature.filter(|&temperature| !(temperature.is_finite() && temperature > 0.0)) {
            let problem = format!("the temperature of its calibration is {temperature}, expected a number above 0");
            return Err(refused(problem).into());
        }
        let template = manifest.data.template.as_deref().map(str::parse).transpose();
        let template = template.map_err(|error: sepal_data::TemplateError| refused(error.to_string()))?;
        let side = match (spec.data.truncation_side, manifest.data.truncation_side.as_deref()) {
            (Some(side), _) => side.into(),
            (None, Some("left")) => TruncationSide::Left,
            (None, _) => TruncationSide::Right,
        };
        let mut built = BuiltHead::new(spec, registry, &frozen, true)?;
        let windows = spec.data.long_texts.windows();
        check_windows(windows, built.head.task()).map_err(given)?;
        built.head.see_class_rows(&manifest.data.class_rows).map_err(AssembleError::Head)?;
        let longest = spec.data.max_length;
        let (mut model, servers) = assemble(spec, registry, &frozen, built, longest, true, observer)?;
        let path = run.join("adapter.safetensors");
        model.params.load(&path).map_err(|error| refused(sepal_core::in_one_line(&error)))?;
        let truncation = Truncation { max_length: spec.data.max_length, side };
        model.calibration = calibration_batch(&*model.head, template.as_ref(), &frozen.tokenizer, truncation)?;
        Ok(Self {
            decisions: Decisions::new(model.head.task(), manifest.calibration.as_ref()),
            model,
            frozen,
            manifest,
            template,
            truncation,
            windows,
            batch_size: spec.evaluate.batch_size,
            prefetch: spec.loader.prefetch,
            _servers: servers,
        })
    }

    /// Manifest of the run.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Names of the labels, in the order of the probabilities.
    pub fn label_names(&self) -> &[String] {
        self.model.head.label_names()
    }

    /// Description of the task.
    pub fn task(&self) -> &Task {
        self.model.head.task()
    }

    /// Returns the layout of prediction files for its labels.
    ///
    /// # Errors
    /// [`ClassifierError::Predictions`] if two labels have the same name, or rows of this task cannot be predicted without
    /// their labels.
    pub fn output(&self) -> Result<OutputSpec, ClassifierError> {
        if !self.task().is_predictable() {
            let problem = "the task measures given answers; evaluate labelled rows instead";
            return Err(ClassifierError::Predictions(problem.into()));
        }
        let labels = self.label_set().map_err(|error| ClassifierError::Predictions(error.into()))?;
        Ok(OutputSpec::new(labels, self.task().kind()))
    }

    /// True if rows are pairs of texts.
    pub fn takes_pairs(&self) -> bool {
        self.manifest.data.text_pair.is_some()
    }

    /// Starts a session with the blocks.
    ///
    /// # Errors
    /// [`ClassifierError`] if the blocks refuse the trained tunables.
    pub fn session(&self) -> Result<Session<'_>, ClassifierError> {
        let start = || tch::no_grad(|| self.model.tune_for_predictions()).map_err(ClassifierError::from);
        Ok(Session { classifier: self, blocks: RefCell::new(without_liars(start)?) })
    }

    /// Least probability of each predicted label, `[n_labels]`, where rows have any number of labels; empty for one half.
    pub fn label_thresholds(&self) -> &[f32] {
        self.decisions.label_thresholds()
    }

    /// Predicts labelled rows and computes their metrics.
    ///
    /// # Errors
    /// [`ClassifierError`] if the rows have other labels, or a prediction is NaN or infinite.
    pub fn evaluate(
        &self,
        rows: LabelledTable,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Evaluation, ClassifierError> {
        let LabelledRows { table, labels, mut evaluation, .. } = self.labelled_rows(rows, observer, stop)?;
        let prediction = self.decisions.apply(std::mem::take(&mut evaluation.prediction));
        let metrics = self.model.head.metrics(&prediction, &labels).map_err(ClassifierError::Head)?;
        evaluation.record.metrics = metrics.into_iter().collect();
        let calibrated = self.decisions.loss(&*self.model.head, &prediction, &labels);
        if let Some(loss) = calibrated.map_err(ClassifierError::Head)? {
            evaluation.record.loss = loss;
        }
        let headline = headline(&evaluation, &self.manifest.data.class_rows).to_owned();
        let predictions = predictions_file(&table, &labels, self.task(), &self.frozen.tokenizer, &prediction)
            .map_err(|source| ClassifierError::Predictions(source.into()))?;
        let outcomes = outcomes(&prediction, &labels);
        Ok(Evaluation { record: evaluation.record, headline, predictions, outcomes })
    }

    /// Fits what `spec` names on labelled rows, from the predictions without an earlier fit. Returns the fit and its warnings;
    /// the manifest of the run stays as it is.
    ///
    /// # Errors
    /// [`ClassifierError`] as for [`evaluate`](Self::evaluate), or if the task or the rows allow no such fit.
    pub fn calibrate(
        &self,
        spec: CalibrateSpec,
        rows: LabelledTable,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<(Calibration, Vec<String>), ClassifierError> {
        let head = &*self.model.head;
        spec.check(head.task()).map_err(CalibrateError::from)?;
        let LabelledRows { labels, source, evaluation, .. } = self.labelled_rows(rows, observer, stop)?;
        let Fit { calibration, warnings } = calibrate::fit(spec, head, &evaluation.prediction, &labels, &source)?;
        match calibration.is_empty() {
            true => Err(CalibrateError::Nothing { reasons: warnings }.into()),
            false => Ok((calibration, warnings)),
        }
    }

    fn labelled_rows(
        &self,
        LabelledTable { table, source, label }: LabelledTable,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<LabelledRows, ClassifierError> {
        let (table, labels, loader) = self.with_labels(table, label.as_deref()).map_err(unusable)?;
        let rows = Split { loader: &loader, name: "labelled" };
        let evaluation = evaluate(&self.model, rows, self.manifest.steps, &mut TrainEvents(observer), stop)?;
        Ok(LabelledRows { table, labels, source, evaluation })
    }

    /// Labelled rows of a file, at most `max_rows` of them, in its order.
    pub(crate) fn first_rows(
        &self,
        path: &Path,
        columns: &TableSpec,
        max_rows: usize,
    ) -> Result<Loader, ClassifierError> {
        let mut table = read_split(path, columns, &[], WithoutSplits::All).map_err(unusable)?;
        if table.len() > max_rows {
            table = table.select(&(0..max_rows).collect::<Vec<_>>());
        }
        let (_, _, loader) = self.with_labels(table, skipped_without(columns)).map_err(unusable)?;
        Ok(loader)
    }

    /// Returns a table with its labels and a loader of its rows, without rows that lack a label in the column `label`.
    fn with_labels(&self, mut table: Table, label: Option<&str>) -> Result<(Table, Labels, Loader), BoxError> {
        let (set, kind) = (self.label_set()?, self.task().kind());
        if let Some(label) = label {
            table = set.skip_unlabelled(table, label, kind)?;
        }
        let labels = set.labels_as(&table, kind)?;
        let loader = self.loader(&table, labels.clone())?;
        Ok((table, labels, loader))
    }

    /// Model with the trained parameters.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Number of blocks in the model.
    pub(crate) fn n_blocks(&self) -> usize {
        self.frozen.checkpoint.config().n_blocks
    }

    fn label_set(&self) -> Result<LabelSet, LabelError> {
        let layout = self.manifest.data.label_layout.as_deref().and_then(ListLayout::from_name);
        Ok(LabelSet::of_task(self.task())?.with_layout(layout))
    }

    fn loader(&self, table: &Table, labels: Labels) -> Result<Loader, BoxError> {
        let Truncation { max_length, side } = self.truncation;
        let mut spec =
            TokenSpec::new(max_length).with_side(side).with_form(self.task().row_form()).with_windows(self.windows);
        if let Some(template) = &self.template {
            spec = spec.with_template(template.clone());
        }
        let tokens = Arc::new(TokenTable::build(table, &*self.frozen.tokenizer, &spec)?);
        let Self { batch_size, prefetch, .. } = *self;
        let config = LoaderConfig { batch_size, drop_last: false, shuffle: false, seed: 0, prefetch };
        Ok(Loader::new(tokens, Some(labels), config)?)
    }
}

impl Session<'_> {
    /// Tokenizes these rows as the run did. A text of blanks may yield no token; such a row cannot be predicted.
    ///
    /// # Errors
    /// [`ClassifierError::Data`] if a text cannot be encoded, or the rows lack a part that the task needs. The row is named by
    /// [`located`](ClassifierError::located).
    ///
    /// # Panics
    /// If a part has fewer entries than there are texts.
    pub fn encode(&self, rows: RowTexts<'_>) -> Result<Vec<EncodedRow>, ClassifierError> {
        let Classifier { frozen, template, truncation, windows, .. } = self.classifier;
        let encoder = RowEncoder {
            form: self.classifier.task().row_form(),
            template: template.as_ref(),
            truncation: *truncation,
            windows: *windows,
            encoder: &*frozen.tokenizer,
        };
        encoder.encode(rows).map_err(given)
    }

    /// Predicts these rows, in their order.
    ///
    /// # Errors
    /// [`ClassifierError`] if a row has no token, a block fails, or a prediction is NaN or infinite; row numbers start at 1.
    pub fn classify(&self, rows: &[EncodedRow]) -> Result<Prediction, ClassifierError> {
        if !rows.iter().all(EncodedRow::has_tokens) {
            return Err(given("a text yields no token".into()));
        }
        // Batches of rows of similar length take the least time in attention.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].n_tokens());
        // A server that lies may have answered earlier batches, too: all of them are repeated without it.
        let predicted = without_liars(|| {
            let predicted = self.batches(rows, &order);
            if predicted.as_ref().is_err_and(Repeatable::is_quarantine) {
                self.blocks.replace(self.classifier.session()?.blocks.into_inner());
            }
            predicted
        })?;
        Ok(self.classifier.decisions.apply(in_order(&predicted, &order)))
    }

    fn batches(&self, rows: &[EncodedRow], order: &[usize]) -> Result<Prediction, ClassifierError> {
        let Classifier { batch_size, windows, .. } = self.classifier;
        // A batch of texts of many windows would take much memory.
        let max_sequences = windows.map_or(usize::MAX, |windows| windows.max_windows.max(*batch_size));
        let mut predicted = Prediction::default();
        for batch in batches(rows, order, *batch_size, max_sequences) {
            predicted.append(self.batch(rows, batch)?);
        }
        Ok(predicted)
    }

    fn batch(&self, rows: &[EncodedRow], batch: &[usize]) -> Result<Prediction, ClassifierError> {
        let encoded: Vec<&EncodedRow> = batch.iter().map(|&row| &rows[row]).collect();
        let tokens = EncodedRow::batch(&encoded).map_err(|error| given(error.into()))?;
        let model = &self.classifier.model;
        tch::no_grad(|| {
            let logits = model.forward(&**self.blocks.borrow(), &tokens, Phase::Evaluate);
            let logits = logits.map_err(|error| error.with_rows_of("given", batch))?;
            model.head.predict(&logits).map_err(ClassifierError::Head)
        })
    }
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Classifier").field("run", &self.manifest.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("classifier", self.classifier).finish_non_exhaustive()
    }
}

fn given(source: BoxError) -> ClassifierError {
    DataError::Rows { split: "given", source }.into()
}

/// Probability of the predicted class of each row, and true if it is the label; empty for other labels.
fn outcomes(prediction: &Prediction, labels: &Labels) -> Vec<(f64, bool)> {
    let Labels::Class(actual) = labels else { return Vec::new() };
    let confidence = |class: i64, row: &[f32]| usize::try_from(class).ok().and_then(|class| row.get(class)).copied();
    let rows = prediction.class.iter().zip(&prediction.probabilities).zip(actual);
    rows.map(|((&class, row), &label)| (f64::from(confidence(class, row).unwrap_or(f32::NAN)), class == label))
        .collect()
}

/// Reorders the predictions of the rows `order` to the order of the rows.
fn in_order(predicted: &Prediction, order: &[usize]) -> Prediction {
    let mut position = vec![0; order.len()];
    order.iter().enumerate().for_each(|(index, &row)| position[row] = index);
    predicted.select(&position)
}
