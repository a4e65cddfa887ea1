use std::collections::BTreeMap;
use std::path::Path;

use sepal_blocks::Ends;
use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, HostTensor, NamedHostTensor, WeightFormat};
use sepal_nn::{share_from_host, to_host};

use crate::adapter::{Adapter, AdapterError, TrainedPrefix};
use crate::card::{self, CARD};
use crate::compute::ComputeError;
use crate::config::{CONFIG, HEAD, PREFIX_TUNING, PROMPT_EMBEDDINGS, PROMPT_TUNING, SEQ_CLS, TENSORS, Written};
use crate::family;
use crate::fold::{Trained, fold, table};
use crate::folder::{FolderError, Staged, json};
use crate::side::{self, Run, SIDE, Side, TRAINED};
use crate::verify::{Verified, sample_rows, verify};

/// As which of PEFT's methods prompts are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// Keys and values for each block: for shallow and deep prompts, and right for padded batches.
    #[default]
    PrefixTuning,
    /// The prompts themselves: for shallow ones; PEFT pools padded batches wrongly with it (peft#764).
    PromptTuning,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::PrefixTuning, Self::PromptTuning];

    /// `prefix-tuning` or `prompt-tuning`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefixTuning => "prefix-tuning",
            Self::PromptTuning => "prompt-tuning",
        }
    }

    /// PEFT's name for it.
    pub(crate) fn peft_type(self) -> &'static str {
        match self {
            Self::PrefixTuning => PREFIX_TUNING,
            Self::PromptTuning => PROMPT_TUNING,
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|form| form.name() == text);
        named.ok_or_else(|| format!("`{text}` is no form of an export; write prefix-tuning or prompt-tuning"))
    }
}

/// The rows whose logits by what was written are compared with those of the trained prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verify {
    /// None: nothing is compared.
    #[default]
    Nothing,
    /// A few of several lengths, spread over the vocabulary.
    Samples,
    /// These, as token ids.
    Rows(Vec<Vec<i64>>),
}

/// How an adapter is exported.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// What PEFT loads the frozen model from: a hub name or a folder in the HF layout.
    pub base_model: String,
    /// The revision of a hub name, if one is meant.
    pub revision: Option<String>,
    /// As which method.
    pub form: Form,
    /// Whether logits are compared before anything is left behind.
    pub verify: Verify,
    /// The run, which others will see: in the model card, and beside it for [`Import`](crate::Import).
    pub run: Option<Run>,
    /// Puts the export in the place of an older one.
    pub overwrite: bool,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Exported {
    /// Prompts, which PEFT calls virtual tokens.
    pub prefix_len: usize,
    /// Labels, in the order of the logits.
    pub labels: Vec<String>,
    /// What the check found, if one was asked for.
    pub verified: Option<Verified>,
    /// What people should know, one line each.
    pub notices: Vec<String>,
}

/// An adapter that was not exported. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The adapter cannot be used.
    #[error("export the adapter")]
    Adapter(#[from] AdapterError),
    /// The adapter is of another model.
    #[error("export the adapter: it was trained on the model {trained}, and this one is {found}")]
    Model {
        /// The digest of the model that it was trained on.
        trained: String,
        /// That of the model that was given.
        found: String,
    },
    /// PEFT cannot compute what we do.
    #[error("export an adapter of {family}: {reason}")]
    Family {
        /// The model's family.
        family: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Deep prompts have no place there.
    #[error(
        "export deep prompts as prompt-tuning: PEFT has no such thing; export them as prefix-tuning, which is exact"
    )]
    DeepPrompts,
    /// Keys and values are of no prompts.
    #[error(
        "export trained keys and values as prompt-tuning: in general no prompts produce them; export them as \
         prefix-tuning, which is exact"
    )]
    KeysValues,
    /// The name of the base model is missing.
    #[error("export the adapter: it needs the name under which PEFT finds the base model (--base-model OWNER/NAME)")]
    BaseModel,
    /// What would be written computes something else.
    #[error("export the adapter: its logits differ by {} from the trained ones, up to {}", found.difference, found.largest)]
    Differs {
        /// What was found.
        found: Verified,
    },
    /// The model could not be run.
    #[error("fold the prompts")]
    Compute(#[from] ComputeError),
    /// The folder cannot be written.
    #[error("write the export")]
    Folder(#[from] FolderError),
    /// A file that was just written cannot be read again.
    #[error("read back what was written")]
    Io(#[from] std::io::Error),
    /// A tensor that was just written cannot be read again.
    #[error("read back what was written")]
    ReadBack(#[from] sepal_nn::file::ReadError),
    /// A value has no JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
}

/// Writes the adapter at `adapter` as a folder `out` that PEFT loads. The model's blocks are loaded one at a time, in
/// fp32, for [`Form::PrefixTuning`] and for a check.
///
/// # Errors
/// [`ExportError`], with nothing left behind: if there is something at `out`, the adapter is of another model or of a
/// kind that PEFT cannot compute, or the check finds a difference of more than 1e-4 of the largest logit (of 1, if that is
/// less).
pub fn export(
    options: &ExportOptions,
    checkpoint: &Checkpoint,
    adapter: &Path,
    out: &Path,
) -> Result<Exported, ExportError> {
    let staged = Staged::new(out, CONFIG, options.overwrite)?;
    if options.base_model.is_empty() {
        return Err(ExportError::BaseModel);
    }
    let adapter = Adapter::read(adapter)?;
    let rounded = check_model(&adapter, checkpoint)?;
    let verifier = Made::new(options, &adapter, checkpoint)?;
    let embeddings = verifier.embeddings()?;
    write_tensors(&staged, &embeddings, &adapter.score)?;
    let verified = match &options.verify {
        Verify::Nothing => None,
        Verify::Samples => Some(verifier.verify(&sample_rows(checkpoint.config(), adapter.prefix_len()), &staged)?),
        Verify::Rows(rows) => Some(verifier.verify(rows, &staged)?),
    };
    let mut notices = notices(options, checkpoint, rounded);
    notices.extend(adapter.facts.model_digest.is_empty().then(|| UNKNOWN_MODEL.to_owned()));
    write_texts(&staged, (options, &notices), &adapter, checkpoint, verified)?;
    staged.finish()?;
    Ok(Exported { prefix_len: adapter.prefix_len(), labels: adapter.facts.labels.clone(), verified, notices })
}

const UNKNOWN_MODEL: &str = "the adapter does not say which model it was trained on; it was taken for this one";

/// Differences up to here are rounding: 1e-4 of the largest logit.
const ROUNDING: f64 = 1e-4;

/// Whether it was trained on this model; gives the format in which the blocks were kept, if that rounded.
fn check_model(adapter: &Adapter, checkpoint: &Checkpoint) -> Result<Option<WeightFormat>, ExportError> {
    adapter.check_model(checkpoint.config())?;
    let (trained, found) = (&adapter.facts.model_digest, checkpoint.digest());
    let is_in = |format: &WeightFormat| &format.digest(found) == trained;
    match WeightFormat::ALL.into_iter().find(is_in) {
        Some(WeightFormat::F32) => Ok(None),
        Some(rounded) => Ok(Some(rounded)),
        None if trained.is_empty() => Ok(None),
        None => Err(ExportError::Model { trained: trained.clone(), found: found.to_owned() }),
    }
}

/// What is put into the file, and what it is checked against.
struct Made<'a> {
    form: Form,
    adapter: &'a Adapter,
    checkpoint: &'a Checkpoint,
    ends: Ends,
    trained: Trained,
}

impl<'a> Made<'a> {
    fn new(options: &ExportOptions, adapter: &'a Adapter, checkpoint: &'a Checkpoint) -> Result<Self, ExportError> {
        let config = checkpoint.config();
        match (options.form, &adapter.prefix) {
            (Form::PromptTuning, TrainedPrefix::Prompts { deep_prompts: Some(_), .. }) => {
                return Err(ExportError::DeepPrompts);
            }
            (Form::PromptTuning, TrainedPrefix::KeysValues(_)) => return Err(ExportError::KeysValues),
            _ => {}
        }
        if let Some(reason) = family::refused(config) {
            return Err(ExportError::Family { family: config.family.name(), reason });
        }
        let ends = Ends::load(checkpoint).map_err(ComputeError::from)?;
        let trained = Trained::new(adapter, &ends)?;
        Ok(Self { form: options.form, adapter, checkpoint, ends, trained })
    }

    fn embeddings(&self) -> Result<HostTensor, ComputeError> {
        match (self.form, &self.adapter.prefix) {
            (Form::PromptTuning, TrainedPrefix::Prompts { prompts, .. }) => {
                Ok(to_host(&share_from_host(prompts)?, DType::F32)?)
            }
            _ => folded(&self.trained, self.checkpoint),
        }
    }

    /// Compares what lies in the staged folder with what was trained.
    fn verify(&self, rows: &[Vec<i64>], staged: &Staged) -> Result<Verified, ExportError> {
        let tensors = sepal_nn::file::read(&staged.path().join(TENSORS))?.tensors;
        let find = |name: &'static str| {
            let found = tensors.iter().find(|named| named.name == name);
            found.map(|named| &named.tensor).ok_or(AdapterError::Missing { name })
        };
        let (embeddings, score) = (find(PROMPT_EMBEDDINGS)?, find(HEAD)?);
        // Prompts that are written as they are have no keys and values yet.
        let folded = match self.form {
            Form::PrefixTuning => None,
            Form::PromptTuning => {
                let prefix = TrainedPrefix::Prompts { prompts: embeddings.clone(), deep_prompts: None };
                let read = Adapter { prefix, ..self.adapter.clone() };
                Some(folded(&Trained::new(&read, &self.ends)?, self.checkpoint)?)
            }
        };
        let table = folded.as_ref().unwrap_or(embeddings);
        let found = verify(rows, (&self.trained, table, score), &self.ends, self.checkpoint)?;
        // The other way round it would let numbers pass that are none.
        if found.difference <= ROUNDING * found.largest.max(1.0) {
            Ok(found)
        } else {
            Err(ExportError::Differs { found })
        }
    }
}

/// The prompts as PEFT's table of keys and values.
fn folded(trained: &Trained, checkpoint: &Checkpoint) -> Result<HostTensor, ComputeError> {
    let table = table(&fold(trained, checkpoint)?, checkpoint.config())?;
    Ok(to_host(&table, DType::F32)?)
}

fn notices(options: &ExportOptions, checkpoint: &Checkpoint, rounded: Option<WeightFormat>) -> Vec<String> {
    let mut notices = Vec::new();
    if let Some(format) = rounded {
        notices.push(format!(
            "the blocks were kept as {format} while it was trained, and as f32 now; PEFT gives what f32 gives"
        ));
    }
    let description = checkpoint.describe();
    if description.format == sepal_checkpoint::Format::Gguf {
        notices.push(format!(
            "the prompts were trained for the weights of a {description}; {} may hold others, and gives other logits then",
            options.base_model
        ));
    }
    if options.form == Form::PromptTuning {
        notices.push(
            "PEFT pools rows of padded batches at their padding with prompt-tuning (peft#764): give it one row at a time, \
             or export as prefix-tuning"
                .to_owned(),
        );
    }
    notices
}

fn write_tensors(staged: &Staged, embeddings: &HostTensor, score: &HostTensor) -> Result<(), FolderError> {
    let named = |name: &str, tensor: &HostTensor| NamedHostTensor { name: name.to_owned(), tensor: tensor.clone() };
    let tensors = [named(HEAD, score), named(PROMPT_EMBEDDINGS, embeddings)];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(sepal_nn::file::write(&staged.path().join(TENSORS), &tensors, &metadata)?)
}

fn write_texts(
    staged: &Staged,
    (options, notices): (&ExportOptions, &[String]),
    adapter: &Adapter,
    checkpoint: &Checkpoint,
    verified: Option<Verified>,
) -> Result<(), ExportError> {
    let config = checkpoint.config();
    let is_prefix = options.form == Form::PrefixTuning;
    // For a prefix PEFT counts heads of keys; before 0.16 it takes what stands here as it is.
    let cached_heads = config.n_kv_heads * family::copies(config);
    let (heads, width) = match options.form {
        Form::PrefixTuning => (cached_heads, cached_heads * config.head_dim),
        Form::PromptTuning => (config.n_heads, config.hidden),
    };
    let written = Written {
        base_model_name_or_path: &options.base_model,
        inference_mode: true,
        num_attention_heads: heads,
        num_layers: config.n_blocks,
        num_virtual_tokens: adapter.prefix_len(),
        peft_type: options.form.peft_type(),
        prefix_projection: is_prefix.then_some(false),
        revision: options.revision.as_deref(),
        task_type: SEQ_CLS,
        token_dim: width,
    };
    staged.write(CONFIG, &json(&written)?)?;
    let trained = staged.path().join(TRAINED);
    adapter.write(&trained).map_err(FolderError::from)?;
    let side = Side {
        version: side::VERSION,
        sepal: env!("CARGO_PKG_VERSION").to_owned(),
        model_digest: checkpoint.digest().to_owned(),
        trained: side::digest(&trained)?,
        exported: side::digest(&staged.path().join(TENSORS))?,
        config: Some(side::digest(&staged.path().join(CONFIG))?),
        verified: verified.map(|found| found.difference),
        run: options.run.clone(),
    };
    staged.write(SIDE, &json(&side)?)?;
    staged.write(CARD, card::text(options, notices, adapter, verified).as_bytes())?;
    Ok(())
}
