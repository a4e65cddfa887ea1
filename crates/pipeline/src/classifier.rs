//! A trained classifier: the adapter of a run over the same frozen model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sepal_assets::{Assets, Kind, Source, Sources};
use sepal_config::Spec;
use sepal_core::{Labels, Task};
use sepal_data::{
    EncodedRow, LabelError, LabelSet, ListLayout, Loader, LoaderConfig, OutputSpec, RowEncoder, RowTexts, Table,
    TableSpec, Template, TokenSpec, TokenTable,
};
use sepal_model::{BlocksSession, Model};
use sepal_plugin::{Phase, Prediction, Registry};
use sepal_tokenize::{Truncation, TruncationSide};
use sepal_track::{EvaluationRecord, Manifest};
use sepal_train::{Split, evaluate, headline};

use crate::connect::SwarmHandle;
use crate::data::{calibration_batch, predictions_file, read_split};
use crate::error::{AdapterError, AssembleError, BoxError, ClassifierError, DataError};
use crate::formats::OtherFormats;
use crate::frozen_model::{BuiltHead, FrozenModel, assemble};
use crate::model_files::{Fetcher, watched};
use crate::progress::{Observer, TrainEvents};
use crate::run::set_threads;

/// The classifier that a run trained, ready to predict.
pub struct Classifier {
    model: Model,
    frozen: FrozenModel,
    manifest: Manifest,
    template: Option<Template>,
    truncation: Truncation,
    batch_size: usize,
    prefetch: usize,
    /// Keeps the servers in use.
    _servers: SwarmHandle,
}

/// Predictions with one upload of the trained parameters to the servers.
pub struct Session<'a> {
    classifier: &'a Classifier,
    blocks: Box<dyn BlocksSession + 'a>,
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
        let refused = |problem: String| AdapterError { path: run.into(), problem };
        let manifest = Manifest::read(run).map_err(|error| refused(sepal_core::in_one_line(&error)))?;
        set_threads(spec);
        let used = manifest.model.source.parse::<Source>();
        let spec = &used.map_or_else(|_| spec.clone(), |used| spec.preferring(&used));
        let assets = Assets::from_env();
        let mut frozen = FrozenModel::fetch(spec, &mut Fetcher { assets: &assets, observer: &mut *observer, stop })?;
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
        let template = manifest.data.template.as_deref().map(str::parse).transpose();
        let template = template.map_err(|error: sepal_data::TemplateError| refused(error.to_string()))?;
        let side = match (spec.data.truncation_side, manifest.data.truncation_side.as_deref()) {
            (Some(side), _) => side.into(),
            (None, Some("left")) => TruncationSide::Left,
            (None, _) => TruncationSide::Right,
        };
        let mut built = BuiltHead::new(spec, registry, &frozen, true)?;
        built.head.see_class_rows(&manifest.data.class_rows).map_err(AssembleError::Head)?;
        let longest = spec.data.max_length;
        let (mut model, servers) = assemble(spec, registry, &frozen, built, longest, true, observer)?;
        let path = run.join("adapter.safetensors");
        model.params.load(&path).map_err(|error| refused(sepal_core::in_one_line(&error)))?;
        let truncation = Truncation { max_length: spec.data.max_length, side };
        model.calibration = calibration_batch(&*model.head, template.as_ref(), &frozen.tokenizer, truncation)?;
        Ok(Self {
            model,
            frozen,
            manifest,
            template,
            truncation,
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
        let blocks = tch::no_grad(|| self.model.tune_for_predictions())?;
        Ok(Session { classifier: self, blocks })
    }

    /// Predicts labelled rows and computes their metrics. The first of the `splits` that the source has is read.
    ///
    /// # Errors
    /// [`ClassifierError`] if the rows are not available or have other labels, or a prediction is NaN or infinite.
    pub fn evaluate(
        &self,
        sources: &Sources,
        columns: &TableSpec,
        splits: &[&str],
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Evaluation, ClassifierError> {
        let data = |source: BoxError| DataError::Rows { split: "labelled", source };
        let asset = Assets::from_env().fetch_first(sources, Kind::Dataset, &mut watched("data", observer, stop));
        let asset = asset.map_err(DataError::Fetch)?;
        let table = read_split(&asset.path, columns, splits).map_err(data)?;
        let set = self.label_set().map_err(|error| data(error.into()))?;
        let labels = set.labels_as(&table, self.task().kind()).map_err(|error| data(error.into()))?;
        let loader = self.loader(&table, labels.clone()).map_err(data)?;
        let rows = Split { loader: &loader, name: "labelled" };
        let evaluation = evaluate(&self.model, rows, self.manifest.steps, &mut TrainEvents(observer), stop)?;
        let headline = headline(&evaluation, &self.manifest.data.class_rows).to_owned();
        let tokenizer = &self.frozen.tokenizer;
        let predictions = predictions_file(&table, &labels, self.task(), tokenizer, &evaluation.prediction)
            .map_err(|source| ClassifierError::Predictions(source.into()))?;
        Ok(Evaluation { record: evaluation.record, headline, predictions })
    }

    fn label_set(&self) -> Result<LabelSet, LabelError> {
        let layout = self.manifest.data.label_layout.as_deref().and_then(ListLayout::from_name);
        Ok(LabelSet::of_task(self.task())?.with_layout(layout))
    }

    fn loader(&self, table: &Table, labels: Labels) -> Result<Loader, BoxError> {
        let Truncation { max_length, side } = self.truncation;
        let mut spec = TokenSpec::new(max_length).with_side(side).with_form(self.task().row_form());
        if let Some(template) = &self.template {
            spec = spec.with_template(template.clone());
        }
        let tokens = Arc::new(TokenTable::build(table, &self.frozen.tokenizer, &spec)?);
        let Self { batch_size, prefetch, .. } = *self;
        let config = LoaderConfig { batch_size, drop_last: false, shuffle: false, seed: 0, prefetch };
        Ok(Loader::new(tokens, Some(labels), config)?)
    }
}

impl Session<'_> {
    /// Tokenizes these rows as the run did. A text of blanks may yield no token; such a row cannot be predicted.
    ///
    /// # Errors
    /// [`ClassifierError::Data`] if a text cannot be encoded, or the rows lack a part that the task needs.
    ///
    /// # Panics
    /// If a part has fewer entries than there are texts.
    pub fn encode(&self, rows: RowTexts<'_>) -> Result<Vec<EncodedRow>, ClassifierError> {
        let Classifier { frozen, template, truncation, .. } = self.classifier;
        let encoder = RowEncoder {
            form: self.classifier.task().row_form(),
            template: template.as_ref(),
            truncation: *truncation,
            encoder: &frozen.tokenizer,
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
        let mut predicted = Prediction::default();
        for batch in order.chunks(self.classifier.batch_size) {
            predicted.append(self.batch(rows, batch)?);
        }
        Ok(in_order(&predicted, &order))
    }

    fn batch(&self, rows: &[EncodedRow], batch: &[usize]) -> Result<Prediction, ClassifierError> {
        let encoded: Vec<&EncodedRow> = batch.iter().map(|&row| &rows[row]).collect();
        let tokens = EncodedRow::batch(&encoded).map_err(|error| given(error.into()))?;
        let model = &self.classifier.model;
        tch::no_grad(|| {
            let logits = model.forward(&*self.blocks, &tokens, Phase::Evaluate);
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

/// Reorders the predictions of the rows `order` to the order of the rows.
fn in_order(predicted: &Prediction, order: &[usize]) -> Prediction {
    let mut position = vec![0; order.len()];
    order.iter().enumerate().for_each(|(index, &row)| position[row] = index);
    predicted.select(&position)
}
