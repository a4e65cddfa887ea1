//! Folders for PEFT from adapters.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_blocks::Ends;
use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, HostTensor, NamedHostTensor, WeightFormat};
use sepal_nn::{share_from_host, to_host};

use crate::adapter::{Adapter, AdapterError, TrainedPrefix};
use crate::card::{self, CARD};
use crate::compute::ComputeError;
use crate::config::{AdapterConfigFile, CONFIG, HEAD, PROMPT_EMBEDDINGS, SEQ_CLS, TENSORS};
use crate::export_options::{ExportOptions, Form, Verify};
use crate::export_record::{self, ExportRecord, RECORD, TRAINED};
use crate::family;
use crate::fold::{PrefixInputs, fold, table};
use crate::folder::{FolderError, Staged, json};
use crate::verify::{Verified, WrittenExport, sample_rows, verify};

/// Summary of an export.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Exported {
    /// Number of prompts, which PEFT calls virtual tokens.
    pub prefix_len: usize,
    /// Labels, in the order of the logits.
    pub labels: Vec<String>,
    /// Result of the comparison, if one was requested.
    pub verified: Option<Verified>,
    /// Notices for the user, one line each.
    pub notices: Vec<String>,
}

/// Error of an export. No file was left behind.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ExportError {
    /// The adapter cannot be used.
    #[error("export the adapter")]
    Adapter(#[from] AdapterError),
    /// The adapter is of another model.
    #[error("export the adapter: it was trained on the model {trained}, and this one is {found}")]
    Model { trained: String, found: String },
    /// PEFT computes the model differently.
    #[error("export an adapter of {family}: {reason}")]
    Family { family: &'static str, reason: &'static str },
    /// PROMPT_TUNING has no deep prompts.
    #[error(
        "export deep prompts as prompt-tuning: PEFT has no such method; export them as prefix-tuning, which is exact"
    )]
    DeepPrompts,
    /// Trained keys and values do not correspond to prompts.
    #[error(
        "export trained keys and values as prompt-tuning: in general no prompts produce them; export them as \
         prefix-tuning, which is exact"
    )]
    KeysValues,
    /// The name of the base model is missing.
    #[error("export the adapter: it needs the name under which PEFT finds the base model")]
    BaseModel,
    /// The export would compute other logits.
    #[error("export the adapter: its logits differ by {} from the trained ones, up to {}", found.difference, found.largest)]
    Differs { found: Verified },
    /// The model could not be run.
    #[error("fold the prompts")]
    Compute(#[from] ComputeError),
    /// The folder cannot be written.
    #[error("write the export")]
    Folder(#[from] FolderError),
    /// A written file cannot be read back.
    #[error("read back what was written")]
    Io(#[from] std::io::Error),
    /// A written tensor cannot be read back.
    #[error("read back what was written")]
    ReadBack(#[from] sepal_nn::file::ReadError),
    /// A value cannot be written as JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
}

/// Writes the adapter at `adapter` as a folder `out` that PEFT loads. For [`Form::PrefixTuning`] and for a comparison, the
/// model's blocks are loaded one at a time, in fp32.
///
/// # Errors
/// [`ExportError`] if `out` exists, the adapter belongs to another model or has no equivalent in PEFT, or logits differ by
/// more than 1e-4 of the largest logit (at least of 1). No file is left behind.
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
    let prepared = PreparedExport::new(options, &adapter, checkpoint)?;
    let embeddings = prepared.embeddings()?;
    write_tensors(&staged, &embeddings, &adapter.score)?;
    let verified = match &options.verify {
        Verify::Nothing => None,
        Verify::Samples => Some(prepared.verify(&sample_rows(checkpoint.config(), adapter.prefix_len()), &staged)?),
        Verify::Rows(rows) => Some(prepared.verify(rows, &staged)?),
    };
    let mut notices = notices(options, checkpoint, rounded);
    notices.extend(adapter.facts.model_digest.is_empty().then(|| UNKNOWN_MODEL.to_owned()));
    write_texts(options, &staged, checkpoint, &notices, &adapter, verified)?;
    staged.finish()?;
    Ok(Exported { prefix_len: adapter.prefix_len(), labels: adapter.facts.labels.clone(), verified, notices })
}

const UNKNOWN_MODEL: &str = "the adapter does not name the model it was trained on; this model was assumed";

/// Tolerance for rounding, relative to the largest logit.
const ROUNDING: f64 = 1e-4;

/// Error if the adapter was trained on another model. Returns the format of the blocks in training if it was rounded.
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

struct PreparedExport<'a> {
    form: Form,
    adapter: &'a Adapter,
    checkpoint: &'a Checkpoint,
    ends: Ends,
    trained: PrefixInputs,
}

impl<'a> PreparedExport<'a> {
    fn new(options: &ExportOptions, adapter: &'a Adapter, checkpoint: &'a Checkpoint) -> Result<Self, ExportError> {
        let config = checkpoint.config();
        match (options.form, &adapter.prefix) {
            (Form::PromptTuning, TrainedPrefix::Prompts { deep_prompts: Some(_), .. }) => {
                return Err(ExportError::DeepPrompts);
            }
            (Form::PromptTuning, TrainedPrefix::KeysValues(_)) => return Err(ExportError::KeysValues),
            _ => {}
        }
        if let Some(reason) = family::unsupported_reason(config) {
            return Err(ExportError::Family { family: config.family.name(), reason });
        }
        let ends = Ends::load(checkpoint).map_err(ComputeError::from)?;
        let trained = PrefixInputs::new(adapter, &ends)?;
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

    fn verify(&self, rows: &[Vec<i64>], staged: &Staged) -> Result<Verified, ExportError> {
        let tensors = sepal_nn::file::read(&staged.path().join(TENSORS))?.tensors;
        let find = |name: &'static str| {
            let found = tensors.iter().find(|named| named.name == name);
            found.map(|named| &named.tensor).ok_or(AdapterError::Missing { name })
        };
        let (embeddings, score) = (find(PROMPT_EMBEDDINGS)?, find(HEAD)?);
        // Written prompts have no keys and values yet.
        let folded = match self.form {
            Form::PrefixTuning => None,
            Form::PromptTuning => {
                let prefix = TrainedPrefix::Prompts { prompts: embeddings.clone(), deep_prompts: None };
                let read = Adapter { prefix, ..self.adapter.clone() };
                Some(folded(&PrefixInputs::new(&read, &self.ends)?, self.checkpoint)?)
            }
        };
        let table = folded.as_ref().unwrap_or(embeddings);
        let written = WrittenExport { trained: &self.trained, table, score };
        let found = verify(rows, &written, &self.ends, self.checkpoint)?;
        // The reverse comparison would accept NaN.
        if found.difference <= ROUNDING * found.largest.max(1.0) {
            Ok(found)
        } else {
            Err(ExportError::Differs { found })
        }
    }
}

fn folded(trained: &PrefixInputs, checkpoint: &Checkpoint) -> Result<HostTensor, ComputeError> {
    let table = table(&fold(trained, checkpoint)?, checkpoint.config())?;
    Ok(to_host(&table, DType::F32)?)
}

fn notices(options: &ExportOptions, checkpoint: &Checkpoint, rounded: Option<WeightFormat>) -> Vec<String> {
    let mut notices = Vec::new();
    if let Some(format) = rounded {
        notices.push(format!(
            "the blocks were loaded as {format} in training and as f32 for the export; PEFT gives the logits of f32"
        ));
    }
    let description = checkpoint.describe();
    if description.format == sepal_checkpoint::Format::Gguf {
        notices.push(format!(
            "the prompts were trained for the weights of a {description}; if the weights of {} differ, its logits differ, too",
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
    options: &ExportOptions,
    staged: &Staged,
    checkpoint: &Checkpoint,
    notices: &[String],
    adapter: &Adapter,
    verified: Option<Verified>,
) -> Result<(), ExportError> {
    let config = checkpoint.config();
    let is_prefix = options.form == Form::PrefixTuning;
    // For a prefix PEFT counts key heads; before 0.16 it uses this value unchanged.
    let cached_heads = config.n_kv_heads * family::cached_head_copies(config);
    let (heads, width) = match options.form {
        Form::PrefixTuning => (cached_heads, cached_heads * config.head_dim),
        Form::PromptTuning => (config.n_heads, config.hidden),
    };
    let written = AdapterConfigFile {
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
    let record = ExportRecord {
        version: export_record::VERSION,
        sepal: env!("CARGO_PKG_VERSION").to_owned(),
        model_digest: checkpoint.digest().to_owned(),
        trained: export_record::digest(&trained)?,
        exported: export_record::digest(&staged.path().join(TENSORS))?,
        config: Some(export_record::digest(&staged.path().join(CONFIG))?),
        verified: verified.map(|found| found.difference),
        run: options.run.clone(),
    };
    staged.write(RECORD, &json(&record)?)?;
    staged.write(CARD, card::text(options, notices, adapter, verified).as_bytes())?;
    Ok(())
}
