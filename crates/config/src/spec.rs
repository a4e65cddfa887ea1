//! Types of the pipeline file. Their doc comments are the manual that editors show.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use sepal_assets::{Source, Sources};
use sepal_core::{ComputeFormat, DType, Device, GradScalerConfig, WeightFormat};
use sepal_data::{Delimiter, Dialect, Encoding, FilterValue};
use sepal_tokenize::TruncationSide;
use serde::de::{Deserializer, Error, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod calibrate;
mod halving;
mod long_texts;
pub(crate) mod plugins;
mod train;

pub use self::calibrate::{CalibrateSpec, ThresholdGoal, UnfittableTask};
pub use self::halving::HalvingSpec;
pub use self::long_texts::{LongTexts, PoolSpec, WindowsSpec};
pub use self::plugins::{OptimizerSpec, ParameterGroup, PluginSpec, TuningSpec};
pub use self::train::{
    CheckpointSpec, EarlyStoppingSpec, EvaluateEvery, EvaluateSpec, Goal, Precision, RunLength, TrainSpec,
};
pub use crate::swarm::{EmbeddedSpec, LanSpec, NoneSpec, P2pSpec, StaticSpec, SwarmSpec};

/// Pipeline: a frozen model, a task, a tuning mode and data.
///
/// Environment variables (`SEPAL__TRAIN__SEED=7`) override values of the file, and options of the command line (`--set
/// train.seed=7`) override both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Prefix of the run folder's name: letters, digits, `-`, `_` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    #[schemars(extend("patternErrorMessage" = "letters, digits, `-`, `_` and `.`"))]
    pub name: String,
    /// The frozen model.
    pub model: ModelSpec,
    /// Placement of the model's blocks.
    #[serde(default)]
    #[schemars(with = "Value")]
    pub swarm: SwarmSpec,
    /// Task: the prediction for a text.
    #[schemars(with = "Value")]
    pub task: PluginSpec,
    /// Tuning mode: the trained parameters besides the task's head. A list of modes trains them together.
    #[schemars(with = "Value")]
    pub tuning: TuningSpec,
    /// The labelled texts.
    pub data: DataSpec,
    /// Batches of rows.
    #[serde(default)]
    pub loader: LoaderSpec,
    /// Optimizer of the trained parameters.
    #[schemars(with = "Value")]
    pub optimizer: OptimizerSpec,
    /// Schedule of the learning rate.
    #[schemars(with = "Value")]
    pub schedule: PluginSpec,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSpec,
    /// Evaluation on the validation rows.
    #[serde(default)]
    pub evaluate: EvaluateSpec,
    // An unset later key is not written: checkpoints hold a digest of the written form.
    /// Fit of probabilities and decisions on the validation rows, after the training.
    #[serde(default, skip_serializing_if = "CalibrateSpec::is_empty")]
    pub calibrate: CalibrateSpec,
    /// Checkpoints, from which an interrupted run is resumed.
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// Output of a run.
    #[serde(default)]
    pub output: OutputSpec,
    /// Trackers, which show the run elsewhere while it goes. A tracker cannot stop or slow a run.
    #[serde(default)]
    #[schemars(with = "Value")]
    pub track: Vec<PluginSpec>,
}

impl Spec {
    /// Returns a pipeline file with every default written out, which reads as the same spec.
    ///
    /// # Errors
    /// [`WriteError`] if a value has no YAML form.
    pub fn to_yaml(&self) -> Result<String, WriteError> {
        serde_saphyr::to_string(self).map_err(WriteError)
    }

    /// Returns the spec with this source of the model first, if it is one of the sources. A run continues with the
    /// source that it was trained on, because the others may be other models.
    #[must_use]
    pub fn preferring(&self, used: &Source) -> Self {
        let is_at_commit = |source: &Source| match (source, used) {
            (Source::Hub(source), Source::Hub(used)) => used.revision().is_some_and(|it| source.at_commit(it) == *used),
            _ => false,
        };
        let is_it = |source: &Source| source == used || is_at_commit(source);
        let (mut sources, others): (Vec<Source>, Vec<Source>) = self.model.source.iter().cloned().partition(is_it);
        sources.extend(others);
        let source = Sources::new(sources).unwrap_or_else(|_| self.model.source.clone());
        Self { model: ModelSpec { source, ..self.model.clone() }, ..self.clone() }
    }

    /// Returns the spec with the number format of products written out, so that it does not change with the device.
    #[must_use]
    pub fn with_compute_format(&self) -> Self {
        let compute = Some(self.model.compute_format());
        Self { model: ModelSpec { compute, ..self.model.clone() }, ..self.clone() }
    }

    /// Number format of hidden states and gradients on the wire.
    pub fn wire_dtype(&self) -> DType {
        self.swarm.remote().wire_dtype.unwrap_or(self.train.precision.dtype())
    }

    /// Loss scaling, if it is set or needed. Gradients below 6e-8 vanish in `f16`.
    pub fn scaler(&self) -> Option<GradScalerConfig> {
        let formats = [self.train.precision.dtype(), self.wire_dtype(), self.model.compute_format().dtype()];
        let is_f16 = formats.contains(&DType::F16);
        self.train.scaler.clone().or_else(|| is_f16.then(GradScalerConfig::default))
    }
}

/// A spec without a YAML form.
#[derive(Debug, thiserror::Error)]
#[error("write the pipeline as YAML")]
pub struct WriteError(#[source] serde_saphyr::SerializeError);

/// The frozen model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Hugging Face folder or GGUF file, or a list of them, of which the first available one is used.
    pub source: Sources,
    /// Storage format of the weights of all blocks, in this process and on servers. `auto` keeps matrices in 16
    /// or fewer bits as the file has them; the numbers are those of `f32`. Servers with another format are not used.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::weight_format")]
    pub weights: WeightFormat,
    /// Number format of the products of linear layers in all blocks, in this process and on servers; by default `f32` if
    /// `device` is the CPU, and `bf16` if it is a GPU. `fast` is `bf16` also on CPUs that multiply bf16 (AVX512-BF16) if all
    /// blocks run in this process; the run's folder states which format it was. Servers with another format are not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::compute_format")]
    pub compute: Option<ComputeFormat>,
    /// Device of the blocks in this process: `cpu`, `cuda:0` and so on.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::device")]
    pub device: Device,
    /// Number of first blocks that run in this process, so that servers see less of the text.
    #[serde(default)]
    pub local_blocks: usize,
}

impl ModelSpec {
    /// Number format of the products of the blocks: the one that is set, or the default of the device.
    pub fn compute_format(&self) -> ComputeFormat {
        self.compute.unwrap_or_else(|| ComputeFormat::default_on(self.device))
    }

    /// Digest of the model with the digest `checkpoint`, in the formats of its weights and products.
    pub fn digest(&self, checkpoint: &str) -> String {
        self.compute_format().digest(&self.weights.digest(checkpoint))
    }
}

/// The labelled texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// The first source of the rows.
    #[serde(flatten)]
    pub rows: RowsSpec,
    /// Maximum number of tokens of a row, including special tokens and template, without prompts. Longer texts are
    /// shortened, of a pair the longer one first; the template stays.
    #[serde(default = "default_max_length")]
    #[schemars(range(min = 1))]
    pub max_length: usize,
    /// Trains on few rows of each class, drawn after validation rows are split off; on all rows if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<FewShotSpec>,
    /// End of a long text that is removed; by default the one that the tokenizer's files name, or else the right one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncation_side: Option<Side>,
    /// Use of texts that are longer than `max_length`: `cut` truncates them, `windows` divides them into windows of at most
    /// `max_length` tokens, each with the template, whose logits are joined to those of the text. Of a pair the longer text is
    /// divided. Windows are for tasks whose rows have a class, a number or several labels.
    #[serde(default, skip_serializing_if = "LongTexts::is_cut")]
    #[schemars(schema_with = "long_texts::long_texts")]
    pub long_texts: LongTexts,
    /// Other data, tried in order if the data above is not available.
    #[serde(default)]
    pub otherwise: Vec<RowsSpec>,
}

/// Default of `data.max_length`.
pub(crate) const DEFAULT_MAX_LENGTH: usize = 128;

const fn default_max_length() -> usize {
    DEFAULT_MAX_LENGTH
}

impl DataSpec {
    /// All sources, in the order in which they are tried.
    pub fn sources(&self) -> impl Iterator<Item = &RowsSpec> {
        std::iter::once(&self.rows).chain(&self.otherwise)
    }

    /// All sources, for changes.
    pub fn sources_mut(&mut self) -> impl Iterator<Item = &mut RowsSpec> {
        std::iter::once(&mut self.rows).chain(&mut self.otherwise)
    }
}

/// Few training rows of each class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FewShotSpec {
    /// Number of training rows of each class. If rows have several labels or labelled words, the number of rows that each
    /// label has at least. Numbers, options and answers have no classes.
    #[schemars(range(min = 1))]
    pub per_class: usize,
    /// Seed of the draw; `train.seed` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// One source of labelled texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowsSpec {
    /// Training rows: a source, or a list of sources, of which the first available one is used. With `train.max_steps: 0`
    /// the validation rows stand in for them. A folder is read by its split `train`, or wholly if it has no splits; its
    /// folders named `COLUMN=VALUE` are columns. Text files may be compressed by gzip.
    pub train: Sources,
    /// Validation rows. Of a folder, the first of the splits `validation`, `val`, `valid`, `dev`, `eval` and `test`.
    #[serde(default)]
    pub validation: Option<Sources>,
    /// Fraction of the training rows that becomes the validation rows, chosen by the seed; instead of `validation`.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub validation_split: Option<f64>,
    /// Column with the text.
    pub text: String,
    /// Reads lists of words in the column `text`, for tasks that label words; their labels are lists in the column `label`.
    /// Texts that are no lists are divided at blanks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = false))]
    pub words: bool,
    /// Columns with the options of a row, for tasks that choose one of them, or one column with lists of options. In a
    /// template `{text_pair}` is the option; the default template is `{text} {text_pair}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = []))]
    pub options: Vec<String>,
    /// Column with a second text, for tasks on pairs.
    #[serde(default)]
    pub text_pair: Option<String>,
    /// Column with the label: its name, the value of its name (`true` for `True`, 1 for `1.0`), or its index from 0 if
    /// no name is a number or truth value. Several labels are a list, a multi-hot vector, or a text with `|`, `;` or
    /// `,` as separator. Of tasks with options it is the index of the right one or its text, and of tasks with answers the
    /// answer.
    pub label: String,
    /// Filter: only rows whose columns have these values. A number or truth value equals every cell of its value: 1 is
    /// `1.0` and `01`, `true` is `True`. A text, also `'01'` in quotation marks, equals the same text; in columns of
    /// numbers or truth values its value. Dates and times are ISO texts such as `2024-01-31`.
    #[serde(default, rename = "where")]
    pub filter: BTreeMap<String, Cell>,
    /// Leaves out rows whose text, second text or label is missing, empty or blank; a run says and records how many.
    /// Otherwise such a row is an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = false))]
    pub skip_empty: bool,
    /// File format, if the file's name does not tell.
    #[serde(default)]
    pub format: Option<FileFormat>,
    // An unset later key is not written: checkpoints hold a digest of the written form.
    /// Character between the cells of a csv or tsv file: `;`, `tab` or another. Defaults to a comma, or the separator
    /// of a csv header without commas, and to a tab in tsv files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub delimiter: Option<Delimiter>,
    /// Character encoding of text files, for example `windows-1252` (latin-1) or `utf-16`. Defaults to the encoding of
    /// the byte order mark, or UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub encoding: Option<Encoding>,
    /// Template around the text, for example `Movie review: {text}`.
    #[serde(default)]
    pub template: Option<String>,
}

impl RowsSpec {
    /// Delimiter and encoding of its text files, as far as they are set.
    pub fn dialect(&self) -> Dialect {
        Dialect { delimiter: self.delimiter, encoding: self.encoding }
    }
}

/// Value of a column: a text, also a number in quotation marks, or a number or truth value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Cell(#[schemars(schema_with = "crate::schema::cell")] Value);

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = match Value::deserialize(deserializer)? {
            value @ (Value::String(_) | Value::Bool(_) | Value::Number(_)) => return Ok(Self(value)),
            Value::Null => Unexpected::Unit,
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        };
        Err(Error::invalid_type(found, &"text, a number, true or false"))
    }
}

impl From<&Cell> for FilterValue {
    fn from(Cell(value): &Cell) -> Self {
        match value {
            Value::String(text) => Self::Text(text.clone()),
            value => Self::Value(value.to_string()),
        }
    }
}

/// Side of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Beginning of the text.
    Left,
    /// End of the text.
    Right,
}

impl From<Side> for TruncationSide {
    fn from(side: Side) -> Self {
        match side {
            Side::Left => TruncationSide::Left,
            Side::Right => TruncationSide::Right,
        }
    }
}

/// Format of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// Apache Parquet.
    Parquet,
    /// Apache Arrow IPC, file or stream.
    Arrow,
    /// Comma-separated, with a header.
    Csv,
    /// Tab-separated, with a header.
    Tsv,
    /// JSON: a list of objects, an object of columns, an object with one list of objects, or one object per line.
    Json,
    /// One JSON object per line.
    Jsonl,
}

/// Batches of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderSpec {
    /// Rows of a batch.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Skips the last batch of an epoch if it is not full.
    pub drop_last: bool,
    /// Shuffles the training rows for each epoch, by the seed; otherwise they keep the file's order.
    pub shuffle: bool,
    /// Batches that are prepared ahead.
    pub prefetch: usize,
}

impl Default for LoaderSpec {
    fn default() -> Self {
        Self { batch_size: 32, drop_last: false, shuffle: true, prefetch: 2 }
    }
}

/// Output of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSpec {
    /// Parent folder of the run folders.
    #[schemars(with = "String")]
    pub folder: PathBuf,
    /// Parameters that become the adapter.
    pub adapter: KeptAdapter,
}

/// Parameters that become the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeptAdapter {
    /// Parameters of the best evaluation by `evaluate.metric`.
    Best,
    /// Parameters of the last step.
    Last,
}

impl Default for OutputSpec {
    fn default() -> Self {
        Self { folder: PathBuf::from("runs"), adapter: KeptAdapter::Best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_filters_differ_from_numbers() {
        let value = crate::yaml::parse("{a: '007', b: 7, c: true, d: 'true', e: 2024-01-31, f: 1.5}").expect("YAML");
        let cells: BTreeMap<String, Cell> = serde_json::from_value(value.clone()).expect("cells");
        assert_eq!(serde_json::to_value(&cells).expect("JSON"), value, "a run's file keeps the quotation marks");
        let values: Vec<FilterValue> = cells.values().map(FilterValue::from).collect();
        let (text, value) = (|text: &str| FilterValue::Text(text.into()), |text: &str| FilterValue::Value(text.into()));
        assert_eq!(values, [text("007"), value("7"), value("true"), text("true"), text("2024-01-31"), value("1.5")]);
        assert!(serde_json::from_value::<Cell>(Value::Null).is_err());
    }
}
