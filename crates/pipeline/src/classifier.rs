//! A trained classifier: the adapter of a run over the same frozen model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sepal_assets::{Assets, Kind, Source, Sources};
use sepal_core::{LabelKind, Labels, Ragged};
use sepal_data::{
    LabelError, LabelSet, ListLayout, Loader, LoaderConfig, OutputSpec, Table, TableSpec, Template, TokenRow,
    TokenSpec, TokenTable, encode_texts,
};
use sepal_nn::Parameters;
use sepal_plugin::{Phase, Prediction, Registry};
use sepal_tokenize::{Truncation, TruncationSide};
use sepal_track::{EvaluationRecord, Manifest};

use crate::assemble::{Frozen, assemble, build_head};
use crate::blocks::Tuned;
use crate::connect::Kept;
use crate::data::read_split;
use crate::error::{BoxError, RunError};
use crate::evaluate::{Split, evaluate, shown_first};
use crate::model::Model;
use crate::model_files::watched;
use crate::progress::Observer;
use crate::spec::Spec;

/// The classifier that a run trained, ready to be asked.
pub struct Classifier {
    model: Model,
    frozen: Frozen,
    manifest: Manifest,
    template: Option<Template>,
    truncation: Truncation,
    batch_size: usize,
    prefetch: usize,
    /// Servers are used as long as this is there.
    _servers: Kept,
}

/// Rows of which all have been asked for at once, and what the servers were given for them.
pub struct Session<'a> {
    classifier: &'a Classifier,
    tuned: Tuned<'a>,
}

/// Rows that were predicted, with their labels.
#[derive(Debug)]
pub struct Evaluation {
    /// The metrics.
    pub record: EvaluationRecord,
    /// The name of the one that says most of the run's classes.
    pub headline: String,
    /// `predictions.parquet` of these rows.
    pub predictions: Vec<u8>,
}

impl Classifier {
    /// Loads the adapter in the folder `run`, and the model as `spec` says, which is the run's pipeline with other servers
    /// perhaps.
    ///
    /// # Errors
    /// [`RunError`] if a part cannot be had, or the adapter was trained on another model.
    pub fn open(
        spec: &Spec,
        run: &Path,
        registry: &Registry,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Self, RunError> {
        let refused = |problem: String| RunError::Adapter { path: run.into(), problem };
        let manifest = Manifest::read(run).map_err(|error| refused(sepal_core::in_one_line(&error)))?;
        if let Some(threads) = spec.train.threads {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let used = manifest.model.source.parse::<Source>();
        let spec = &used.map_or_else(|_| spec.clone(), |used| spec.preferring(&used));
        let mut frozen = Frozen::fetch(spec, &Assets::from_env(), observer, stop)?;
        frozen.take_tokenizer(&manifest.model.tokenizer);
        let facts = frozen.facts(spec);
        for (what, own, others) in [
            ("model", &facts.digest, &manifest.model.digest),
            ("tokenizer", &facts.tokenizer, &manifest.model.tokenizer),
        ] {
            if own != others {
                let source = &manifest.model.source;
                return Err(refused(format!(
                    "it was trained with another {what} ({others}, this one is {own}); it came from {source}, which can be \
                     named by --set model.source=SOURCE"
                )));
            }
        }
        let template = manifest.data.template.as_deref().map(str::parse).transpose();
        let template = template.map_err(|error: sepal_data::TemplateError| refused(error.to_string()))?;
        let side = match (spec.data.truncation_side, manifest.data.truncation_side.as_deref()) {
            (Some(side), _) => side.into(),
            (None, Some("left")) => TruncationSide::Left,
            (None, _) => TruncationSide::Right,
        };
        let mut params = Parameters::new();
        let mut head = build_head(spec, registry, &frozen, &mut params)?;
        head.see_class_rows(&manifest.data.class_rows).map_err(RunError::Head)?;
        let longest = spec.data.max_length;
        let (mut model, servers) = assemble(spec, registry, &frozen, (head, params), longest, true, observer)?;
        let path = run.join("adapter.safetensors");
        model.params.load(&path).map_err(|error| refused(sepal_core::in_one_line(&error)))?;
        Ok(Self {
            model,
            frozen,
            manifest,
            template,
            truncation: Truncation { max_length: spec.data.max_length, side },
            batch_size: spec.evaluate.batch_size,
            prefetch: spec.loader.prefetch,
            _servers: servers,
        })
    }

    /// What is known of the run.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The names of the labels, in the order of the probabilities.
    pub fn label_names(&self) -> &[String] {
        self.model.head.label_names()
    }

    /// What is predicted for a row.
    pub fn label_kind(&self) -> LabelKind {
        self.model.head.label_kind()
    }

    /// How its predictions are written, as far as that is a matter of its labels.
    ///
    /// # Errors
    /// [`RunError::Predictions`] if the names of its labels cannot be told apart.
    pub fn output(&self) -> Result<OutputSpec, RunError> {
        let labels = self.label_set().map_err(|error| RunError::Predictions(error.into()))?;
        Ok(OutputSpec::new(labels, self.label_kind()))
    }

    /// Whether rows are pairs of texts.
    pub fn takes_pairs(&self) -> bool {
        self.manifest.data.text_pair.is_some()
    }

    /// Gives the servers what was trained, once for all that is asked in the session.
    ///
    /// # Errors
    /// [`RunError`] if the blocks cannot be had.
    pub fn session(&self) -> Result<Session<'_>, RunError> {
        let tuned = tch::no_grad(|| self.model.blocks.tune(self.model.tunables()?))?;
        Ok(Session { classifier: self, tuned })
    }

    /// Predicts labelled rows, of a file or any other source, and measures how right that is.
    ///
    /// `files` are the splits of which the first that the source has is read, if it has several.
    ///
    /// # Errors
    /// [`RunError`] if the rows cannot be had, or have other labels, or a prediction is NaN or infinite.
    pub fn evaluate(
        &self,
        sources: &Sources,
        columns: &TableSpec,
        splits: &[&str],
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Evaluation, RunError> {
        let data = |source: BoxError| RunError::Data { split: "labelled", source };
        let asset = {
            let mut watch = watched("data", observer, stop);
            Assets::from_env().fetch_first(sources, Kind::Dataset, &mut watch)
        };
        let asset = asset.map_err(|source| RunError::Fetch { what: "data", source })?;
        let table = read_split(&asset.path, columns, splits).map_err(data)?;
        let set = self.label_set().map_err(|error| data(error.into()))?;
        let labels = set.labels_as(&table, self.label_kind()).map_err(|error| data(error.into()))?;
        let loader = self.loader(&table, labels.clone()).map_err(data)?;
        let rows = Split { loader: &loader, name: "labelled" };
        let evaluated = evaluate(&self.model, rows, self.manifest.steps, observer, stop)?;
        let headline = shown_first(&evaluated, &self.manifest.data.class_rows).to_owned();
        let Prediction { class, probabilities, logits } = &evaluated.prediction;
        let predicted = sepal_data::Predicted { class, logits, probabilities };
        let predictions = sepal_data::predictions_parquet(&table, &labels, self.label_names(), predicted)
            .map_err(|source| RunError::Predictions(source.into()))?;
        Ok(Evaluation { record: evaluated.record, headline, predictions })
    }

    /// The labels, as they were read for training.
    fn label_set(&self) -> Result<LabelSet, LabelError> {
        let layout = self.manifest.data.label_layout.as_deref().and_then(ListLayout::named);
        Ok(LabelSet::new(self.label_names())?.with_layout(layout))
    }

    fn loader(&self, table: &Table, labels: Labels) -> Result<Loader, BoxError> {
        let Truncation { max_length, side } = self.truncation;
        let mut spec = TokenSpec::new(max_length).with_side(side);
        if let Some(template) = &self.template {
            spec = spec.with_template(template.clone());
        }
        let tokens = Arc::new(TokenTable::build(table, &self.frozen.tokenizer, &spec)?);
        let config = LoaderConfig {
            batch_size: self.batch_size,
            drop_last: false,
            shuffle: false,
            seed: 0,
            prefetch: self.prefetch,
        };
        Ok(Loader::new(tokens, Some(labels), config)?)
    }
}

impl Session<'_> {
    /// Tokenizes these rows as the run did. A text of blanks may be a row without a token, which cannot be predicted.
    ///
    /// # Errors
    /// [`RunError::Data`] if a text cannot be encoded.
    ///
    /// # Panics
    /// If there are second texts, but fewer than first ones.
    pub fn encode(&self, texts: &[&str], pairs: Option<&[&str]>) -> Result<Vec<TokenRow>, RunError> {
        let Classifier { frozen, template, truncation, .. } = self.classifier;
        encode_texts(texts, pairs, template.as_ref(), &frozen.tokenizer, *truncation)
            .map_err(|source| RunError::Data { split: "given", source })
    }

    /// Predicts these rows; the answer is in their order, whatever the batches that they go in.
    ///
    /// # Errors
    /// [`RunError`] if a row has no token, or the blocks failed; [`RunError::NonFiniteLogits`] with the places of the rows,
    /// from 1, if a prediction is NaN or infinite.
    pub fn classify(&self, rows: &[TokenRow]) -> Result<Prediction, RunError> {
        if rows.iter().any(|row| row.ids.is_empty()) {
            return Err(RunError::Data { split: "given", source: "a text yields no token".into() });
        }
        // Rows of similar length go together; servers pad nothing then.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].ids.len());
        let mut predicted = Prediction::default();
        for batch in order.chunks(self.classifier.batch_size) {
            predicted.append(self.batch(rows, batch)?);
        }
        Ok(in_order(predicted, &order))
    }

    fn batch(&self, rows: &[TokenRow], batch: &[usize]) -> Result<Prediction, RunError> {
        let ids: Vec<i64> = batch.iter().flat_map(|&row| &rows[row].ids).map(|&id| i64::from(id)).collect();
        let given = |source: BoxError| RunError::Data { split: "given", source };
        let ragged =
            Ragged::from_lengths(batch.iter().map(|&row| rows[row].ids.len())).map_err(|error| given(error.into()))?;
        let model = &self.classifier.model;
        tch::no_grad(|| {
            let logits = model.forward(&self.tuned, &ids, &ragged, Phase::Evaluate);
            let logits = logits.map_err(|error| error.of_rows("given", batch))?;
            model.head.predict(&logits).map_err(RunError::Head)
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

/// What was predicted for the rows `order`, in the order of the rows.
fn in_order(predicted: Prediction, order: &[usize]) -> Prediction {
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(at, &row)| place[row] = at);
    let pick = |rows: &[Vec<f32>]| place.iter().filter_map(|&at| rows.get(at)).cloned().collect();
    Prediction {
        class: place.iter().filter_map(|&at| predicted.class.get(at)).copied().collect(),
        probabilities: pick(&predicted.probabilities),
        logits: pick(&predicted.logits),
    }
}
