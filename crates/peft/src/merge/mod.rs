//! Checkpoints for transformers with the changes of an adapter merged into the weights.

mod changes;
mod model_config;
mod shards;

use std::path::Path;

use sepal_checkpoint::{Checkpoint, Format, ReadError, classifier_class};
use sepal_track::Calibration;
use serde::Serialize;

use self::changes::{Changes, Weight};
use self::model_config::ConfigChanges;
use crate::adapter::{Adapter, AdapterError, AdapterKind};
use crate::folder::{FolderError, Staged, json};
use crate::lora_scaling::{LoraOptionsError, LoraScaling};
use crate::model_match::{ModelMismatch, check_model};
use crate::used_plugin::{HeadMismatch, UsedPlugin, check_head};

/// File that describes the origin of the folder.
const RECORD: &str = "sepal_merge.json";

const CONFIG: &str = "config.json";

/// Files of a tokenizer, of which those that exist are copied.
const TOKENIZER: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.json",
    "chat_template.jinja",
];

/// Options of a merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// Head of the run, if known.
    pub task: Option<UsedPlugin>,
    /// Tuning modes of the run. Low-rank additions need their options.
    pub tuning: Vec<UsedPlugin>,
    /// Fit of the run's probabilities and decisions, if there is one.
    pub calibration: Option<Calibration>,
    /// Maximum size of one file of weights in bytes.
    pub shard_bytes: u64,
    /// Replaces an existing merge.
    pub overwrite: bool,
}

impl Default for MergeOptions {
    /// Files of at most 5 GB, as transformers writes.
    fn default() -> Self {
        Self { task: None, tuning: Vec::new(), calibration: None, shard_bytes: 5_000_000_000, overwrite: false }
    }
}

/// Summary of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Merged {
    /// Trained parameters besides the head, for example low-rank additions and their layers.
    pub description: String,
    /// Class of transformers that loads the folder.
    pub class: &'static str,
    /// Number of changed tensors.
    pub changed: usize,
    /// Labels, in the order of the logits.
    pub labels: Vec<String>,
    /// Notices for the user, one line each.
    pub notices: Vec<String>,
}

/// Error of a merge. No file was left behind.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum MergeError {
    /// The adapter cannot be used.
    #[error("merge the adapter")]
    Adapter(#[from] AdapterError),
    /// The adapter is of another model.
    #[error("merge the adapter")]
    Model(#[from] ModelMismatch),
    /// The options of the tuning mode do not tell the scaling.
    #[error("merge the adapter")]
    Options(#[from] LoraOptionsError),
    /// The tuning mode changes no weights.
    #[error(
        "merge {mode}: it puts trained positions before each row and changes no weights of the model; export the run to PEFT \
         instead"
    )]
    Prefix {
        /// Name of the tuning mode.
        mode: &'static str,
    },
    /// Two modes change a layer, and the order matters.
    #[error("merge the adapter: both `lora` and `ia3` change `{site}`; train with one of them")]
    Both { site: String },
    /// The head has no form in transformers.
    #[error("merge {0}")]
    Head(#[from] HeadMismatch),
    /// transformers has no class with a classifier.
    #[error("merge into a {family}: transformers has no class of this family with a classifier")]
    NoClass { family: &'static str },
    /// The model has no `config.json`.
    #[error(
        "merge into a {format} file: transformers needs a folder with config.json and safetensors; name the model's folder"
    )]
    Format { format: Format },
    /// A changed weight is not in the model.
    #[error("merge the adapter: the model has no tensor `{name}`")]
    Missing { name: String },
    /// A weight cannot be read.
    #[error("read the model")]
    Read(#[from] ReadError),
    /// The configuration cannot be read.
    #[error("read {CONFIG} of the model")]
    Config(#[source] std::io::Error),
    /// A file of the tokenizer cannot be read.
    #[error("copy {file} of the model")]
    Tokenizer { file: &'static str, source: std::io::Error },
    /// A merged weight exceeds its number format.
    #[error(
        "merge `{name}`: it holds numbers that are not finite in {dtype}; the adapter or the weights are too large"
    )]
    NotFinite { name: String, dtype: sepal_core::DType },
    /// Tensors cannot be moved.
    #[error("move tensors")]
    Host(#[from] sepal_nn::HostError),
    /// libtorch failed.
    #[error("compute with libtorch")]
    Torch(#[from] tch::TchError),
    /// The folder cannot be written.
    #[error("write the merged model")]
    Folder(#[from] FolderError),
    /// A value cannot be written as JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
}

/// Content of [`RECORD`].
#[derive(Debug, Serialize)]
struct MergeRecord<'a> {
    sepal: &'a str,
    /// Digest of the model before the merge.
    model_digest: &'a str,
    tuning: &'a str,
}

/// Merges the adapter at `adapter` into the model in the folder `model`, which is open as `checkpoint`, and writes the
/// result to the folder `out`: the weights in the checkpoint's number format, the head, the configuration of the class with
/// a classifier, and the tokenizer. One tensor at a time is in memory.
///
/// # Errors
/// [`MergeError`] if `out` exists, the adapter belongs to another model, has a prefix or another head than a linear one, or
/// the model is not a folder in the HF layout. No file is left behind.
pub fn merge(
    options: &MergeOptions,
    model: &Path,
    checkpoint: &Checkpoint,
    adapter: &Path,
    out: &Path,
) -> Result<Merged, MergeError> {
    let staged = Staged::new(out, RECORD, options.overwrite)?;
    let format = checkpoint.describe().format;
    if format != Format::Safetensors {
        return Err(MergeError::Format { format });
    }
    check_head(options.task.as_ref())?;
    let family = checkpoint.config().family;
    let class = classifier_class(family).ok_or(MergeError::NoClass { family: family.name() })?;
    let adapter = Adapter::read(adapter)?;
    check_kinds(&adapter)?;
    let rounding = check_model(&adapter, checkpoint)?;
    let factor = match adapter.lora_shape()? {
        Some(shape) => LoraScaling::of_run(&options.tuning, shape)?.factor(),
        None => 1.0,
    };
    let changes = Changes::new(&adapter, factor, checkpoint)?;
    let weights = Weight::all(checkpoint, &adapter.score);
    changes.check_names(&weights)?;
    shards::write(&staged, &weights, options.shard_bytes, |weight| changes.merged(weight, checkpoint, &adapter.score))?;
    let config = ConfigChanges::new(&adapter, options.task.as_ref(), class);
    let mut notices = config.write(model, checkpoint, &staged)?;
    notices.extend(checkpoint.multimodal_type().map(|model_type| {
        format!("the merged model is the text model of the {model_type}, without its image encoder")
    }));
    notices.extend(rounding.map(|rounding| {
        format!("the blocks were {rounding} in training; the merged weights are those of the checkpoint, changed")
    }));
    copy_tokenizer(model, &staged)?;
    let record = MergeRecord {
        sepal: env!("CARGO_PKG_VERSION"),
        model_digest: checkpoint.digest(),
        tuning: &adapter.facts.tuning,
    };
    staged.write(RECORD, &json(&record)?)?;
    if let Some(calibration) = &options.calibration {
        staged.write(Calibration::FILE, &json(calibration)?)?;
        let (file, description) = (Calibration::FILE, calibration.description());
        notices.push(format!("the logits are those before the calibration ({description}); {file} has it"));
    }
    staged.finish()?;
    let description = adapter.description();
    let changed = changes.len();
    Ok(Merged { description, class: config.class(), changed, labels: adapter.facts.labels, notices })
}

/// Error unless all tuning modes change linear layers, and each layer is changed by one of them.
fn check_kinds(adapter: &Adapter) -> Result<(), MergeError> {
    if let Some(kind) = adapter.kinds().into_iter().find(|kind| kind.has_prefix()) {
        return Err(MergeError::Prefix { mode: kind.mode() });
    }
    let has = |kind: AdapterKind, site: &str| {
        adapter.tensors.iter().any(|tensor| tensor.role.kind() == kind && tensor.role.site() == Some(site))
    };
    let mut sites = adapter.sites().into_iter();
    match sites.find(|site| has(AdapterKind::Lora, site) && has(AdapterKind::Ia3, site)) {
        Some(site) => Err(MergeError::Both { site: site.to_owned() }),
        None => Ok(()),
    }
}

fn copy_tokenizer(model: &Path, staged: &Staged) -> Result<(), MergeError> {
    for file in TOKENIZER {
        match sepal_machine::regular::read(&model.join(file)) {
            Ok(content) => staged.write(file, &content)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(MergeError::Tokenizer { file, source }),
        }
    }
    Ok(())
}
