//! The pipeline file as Rust types. Their doc comments are the manual that editors show.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use sepal_assets::{Source, Sources};
use sepal_core::{DType, Device, GradScalerConfig, WeightFormat};
use sepal_data::{Delimiter, Dialect, Encoding};
use sepal_tokenize::TruncationSide;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod train;

pub use self::train::{CheckpointSpec, EarlyStoppingSpec, EvaluateEvery, EvaluateSpec, Goal, Precision, TrainSpec};
pub use crate::swarm::{EmbeddedSpec, LanSpec, NoneSpec, P2pSpec, StaticSpec, SwarmSpec};

/// A pipeline: which frozen model is adapted to which task, by what, on which data.
///
/// Values can also be given as environment variables (`SEPAL__TRAIN__SEED=7`) and on the command line
/// (`--set train.seed=7`), which win over the file in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Begins the name of the run's folder: letters, digits, `-`, `_` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    #[schemars(extend("patternErrorMessage" = "letters, digits, `-`, `_` and `.`"))]
    pub name: String,
    /// The frozen model.
    pub model: ModelSpec,
    /// Where the model's blocks run.
    #[serde(default)]
    #[schemars(with = "Value")]
    pub swarm: SwarmSpec,
    /// What is to be predicted from a text.
    #[schemars(with = "Value")]
    pub task: PluginSpec,
    /// What trains, besides the task's head.
    #[schemars(with = "Value")]
    pub tuning: PluginSpec,
    /// The labelled texts.
    pub data: DataSpec,
    /// How texts become batches.
    #[serde(default)]
    pub loader: LoaderSpec,
    /// How the parameters move.
    #[schemars(with = "Value")]
    pub optimizer: PluginSpec,
    /// How the learning rate changes over the run.
    #[schemars(with = "Value")]
    pub schedule: PluginSpec,
    /// The training loop.
    #[serde(default)]
    pub train: TrainSpec,
    /// When the validation rows are predicted.
    #[serde(default)]
    pub evaluate: EvaluateSpec,
    /// What an interrupted run goes on from.
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// What a run leaves behind.
    #[serde(default)]
    pub output: OutputSpec,
    /// Where the run is shown as it goes, besides its folder. None of them can stop or slow a run.
    #[serde(default)]
    #[schemars(with = "Value")]
    pub track: Vec<PluginSpec>,
}

impl Spec {
    /// As a pipeline file with every default written out; reading it gives the same spec.
    ///
    /// # Errors
    /// [`WriteError`] if a value has no YAML form.
    pub fn to_yaml(&self) -> Result<String, WriteError> {
        serde_saphyr::to_string(self).map_err(WriteError)
    }

    /// With this source of the model before the others, if it is one of them. Others may be other models: that which a run
    /// was trained on is the one to go on with.
    #[must_use]
    pub fn preferring(&self, used: &Source) -> Self {
        let is_it = |source: &Source| match (source, used) {
            (Source::Hub(source), Source::Hub(used)) if used.revision().is_some_and(|it| source.at(it) == *used) => {
                true
            }
            _ => source == used,
        };
        let (mut sources, others): (Vec<Source>, Vec<Source>) = self.model.source.iter().cloned().partition(is_it);
        sources.extend(others);
        let source = Sources::new(sources).unwrap_or_else(|_| self.model.source.clone());
        Self { model: ModelSpec { source, ..self.model.clone() }, ..self.clone() }
    }

    /// How hidden states and gradients travel.
    pub fn wire_dtype(&self) -> DType {
        self.swarm.remote().wire_dtype.unwrap_or(self.train.precision.dtype())
    }

    /// How the loss is scaled; not at all if neither asked for nor needed. Wherever gradients are `f16`, small ones
    /// would be lost without it: beneath 6e-8 nothing is left of them.
    pub fn scaler(&self) -> Option<GradScalerConfig> {
        let is_f16 = [self.train.precision.dtype(), self.wire_dtype()].contains(&DType::F16);
        self.train.scaler.clone().or_else(|| is_f16.then(GradScalerConfig::default))
    }
}

/// A spec that has no YAML form.
#[derive(Debug, thiserror::Error)]
#[error("write the pipeline as YAML")]
pub struct WriteError(#[source] serde_saphyr::SerializeError);

/// A plugin and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginSpec {
    /// The plugin's name.
    #[serde(rename = "use")]
    pub name: String,
    /// Its options, every default filled in.
    #[serde(default)]
    pub with: Map<String, Value>,
}

impl PluginSpec {
    /// The options as the registry takes them.
    pub fn options(&self) -> Value {
        Value::Object(self.with.clone())
    }
}

/// The frozen model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// A Hugging Face folder or a GGUF file, or a list of which the first that can be had is used.
    pub source: Sources,
    /// How the weights of all blocks are kept, in this process and on servers; servers that keep them otherwise are not
    /// used.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::weight_format")]
    pub weights: WeightFormat,
    /// What the blocks of this process compute on: `cpu`, or `cuda:0` and so on.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::device")]
    pub device: Device,
    /// So many blocks, the first ones, run in this process, so that servers see less of the text.
    #[serde(default)]
    pub local_blocks: usize,
}

/// The labelled texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// The first source of the rows.
    #[serde(flatten)]
    pub rows: RowsSpec,
    /// Tokens of a row at most, special tokens and template included. Longer texts are shortened, of a pair the longer one
    /// first; the template stays. Prompts do not count.
    #[serde(default = "default_max_length")]
    #[schemars(range(min = 1))]
    pub max_length: usize,
    /// End of a long text that is removed; by default the one that the tokenizer's files name, or else the right one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncation_side: Option<Side>,
    /// Other data, tried in order where the data above cannot be had.
    #[serde(default)]
    pub otherwise: Vec<RowsSpec>,
}

const fn default_max_length() -> usize {
    128
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

/// One source of labelled texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowsSpec {
    /// The rows to train on: a source, or a list of which the first that can be had is used.
    pub train: Sources,
    /// The rows to evaluate on.
    #[serde(default)]
    pub validation: Option<Sources>,
    /// Instead of `validation`: the share of the training rows that is kept aside, chosen by the seed.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub validation_split: Option<f64>,
    /// The column that holds the text.
    pub text: String,
    /// The column that holds a second text, for tasks on pairs.
    #[serde(default)]
    pub text_pair: Option<String>,
    /// The column that holds the label: its name, the value of its name (`true` for `True`, 1 for `1.0`), or, where no
    /// name is a number or truth value, its index from 0. Several labels are a list of them, a multi-hot vector, or a text
    /// in which `|`, `;` or `,` separates them.
    pub label: String,
    /// Only rows whose columns have these values.
    #[serde(default, rename = "where")]
    pub filter: BTreeMap<String, Cell>,
    /// The file format, where its name does not tell.
    #[serde(default)]
    pub format: Option<FileFormat>,
    // An unset later key is not written: checkpoints hold a digest of the written form.
    /// The character between the cells of a csv or tsv file: `;`, `tab` or another. If not given, a comma, or what parts the
    /// header of a csv file without commas; a tab in tsv files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub delimiter: Option<Delimiter>,
    /// The character encoding of text files, for example `windows-1252` (latin-1) or `utf-16`. If not given, UTF-8, or what a
    /// byte order mark says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub encoding: Option<Encoding>,
    /// What is put around the text, for example `Movie review: {text}`.
    #[serde(default)]
    pub template: Option<String>,
}

impl RowsSpec {
    /// Delimiter and encoding of its text files, as far as they are set.
    pub fn dialect(&self) -> Dialect {
        Dialect { delimiter: self.delimiter, encoding: self.encoding }
    }
}

/// The value of a column, as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Cell(#[schemars(schema_with = "crate::schema::cell")] pub String);

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl Visitor<'_> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, true or false")
    }

    fn visit_str<E>(self, text: &str) -> Result<Cell, E> {
        Ok(Cell(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }
}

/// An end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Its beginning.
    Left,
    /// Its end.
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

/// The format of a data file.
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
    /// One JSON object per line.
    Jsonl,
}

/// How texts become batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderSpec {
    /// Rows of a batch.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Leaves out the last batch of a pass if it is not full.
    pub drop_last: bool,
    /// Mixes the training rows anew for each pass, by the seed; otherwise they keep the file's order.
    pub shuffle: bool,
    /// Batches that are prepared ahead.
    pub prefetch: usize,
}

impl Default for LoaderSpec {
    fn default() -> Self {
        Self { batch_size: 32, drop_last: false, shuffle: true, prefetch: 2 }
    }
}

/// What a run leaves behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSpec {
    /// The folder in which each run makes its own.
    #[schemars(with = "String")]
    pub folder: PathBuf,
    /// Which parameters become the adapter.
    pub adapter: KeptAdapter,
}

/// Which parameters become the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeptAdapter {
    /// Those of the evaluation that was best by `evaluate.metric`.
    Best,
    /// Those of the last step.
    Last,
}

impl Default for OutputSpec {
    fn default() -> Self {
        Self { folder: PathBuf::from("runs"), adapter: KeptAdapter::Best }
    }
}
