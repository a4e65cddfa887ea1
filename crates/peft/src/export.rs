//! Folders for PEFT from adapters.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_blocks::Ends;
use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, HostTensor, NamedHostTensor};
use sepal_nn::{share_from_host, to_host};

use crate::adapter::{Adapter, AdapterError, AdapterKind};
use crate::block_inputs::BlockInputs;
use crate::compute::ComputeError;
use crate::config::{AdapterConfig, CONFIG, HeadNames, PROMPT_EMBEDDINGS, TENSORS};
use crate::export_options::{ExportOptions, Form, Method, Verify};
use crate::export_texts::ExportTexts;
use crate::family;
use crate::fold::{cut, fold, table};
use crate::folder::{FolderError, Staged};
use crate::import_error::ImportError;
use crate::lora_scaling::{LoraOptionsError, LoraScaling};
use crate::model_match::{ModelMismatch, Rounding, check_model};
use crate::site_tensors::{from_peft, to_peft};
use crate::used_plugin::{HeadMismatch, check_head};
use crate::verify::{Verified, WrittenExport, WrittenInputs, sample_rows, verify};

/// Summary of an export.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Exported {
    /// Trained parameters besides the head, for example `16 soft prompts and deep prompts`.
    pub description: String,
    /// Method of PEFT.
    pub form: Form,
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
    #[error("export the adapter")]
    Model(#[from] ModelMismatch),
    /// PEFT computes the model differently.
    #[error("export an adapter of {family}: {reason}")]
    Family { family: &'static str, reason: &'static str },
    /// Classes of transformers for the complete model have other names of layers.
    #[error(
        "export an adapter of the text model of a {model_type}: transformers loads the complete model, whose layers have other \
         names; an adapter of linear layers can be merged into the text model instead"
    )]
    Multimodal { model_type: &'static str },
    /// The method does not hold the adapter.
    #[error("export {mode} as {form}: {reason}; export it as {exact}, which is exact")]
    Form {
        /// Name of the tuning mode.
        mode: &'static str,
        form: Form,
        reason: &'static str,
        exact: Form,
    },
    /// The prompts of an encoder are missing.
    #[error(
        "export the adapter: it has the parameters of an encoder, and the prompts that they make were not computed"
    )]
    Prompts,
    /// The options of the tuning mode do not tell the scaling.
    #[error("export the adapter")]
    Options(#[from] LoraOptionsError),
    /// The head has no form in PEFT.
    #[error("export {0}")]
    Head(#[from] HeadMismatch),
    /// The name of the base model is missing.
    #[error("export the adapter: it needs the name under which PEFT finds the base model")]
    BaseModel,
    /// The export would compute other logits.
    #[error("export the adapter: its logits differ by {} from the trained ones, up to {}", found.difference, found.largest)]
    Differs { found: Verified },
    /// The model could not be run.
    #[error("run the model")]
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
    /// Written tensors are not those of an adapter, which is a bug.
    #[error("read back what was written")]
    Written(#[from] ImportError),
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
    if let Some(model_type) = checkpoint.multimodal_type() {
        return Err(ExportError::Multimodal { model_type });
    }
    check_head(options.task.as_ref())?;
    let trained = Adapter::read(adapter)?;
    let rounding = check_model(&trained, checkpoint)?;
    let resolved = with_prompts(options, &trained)?;
    let prepared = PreparedExport::new(options, &resolved, checkpoint)?;
    write_tensors(&staged, &prepared.tensors()?)?;
    let verified = match &options.verify {
        Verify::Nothing => None,
        Verify::Samples => Some(prepared.verify(&sample_rows(checkpoint.config(), resolved.prefix_len()), &staged)?),
        Verify::Rows(rows) => Some(prepared.verify(rows, &staged)?),
    };
    let PreparedExport { form, scaling, .. } = prepared;
    let mut notices = notices(options, form, checkpoint, rounding);
    notices.extend(trained.facts.model_digest.is_empty().then(|| UNKNOWN_MODEL.to_owned()));
    let texts = ExportTexts {
        options,
        form,
        scaling,
        notices: &notices,
        trained: &trained,
        adapter: &resolved,
        checkpoint,
        verified,
    };
    texts.write(&staged)?;
    staged.finish()?;
    let (description, labels) = (resolved.description(), trained.facts.labels);
    Ok(Exported { description, form, labels, verified, notices })
}

/// Returns true if the adapter at `path` has the parameters of an encoder, which a tuning mode must be built for, and no
/// prompts: [`ExportOptions::prompts`] has them.
///
/// # Errors
/// [`AdapterError`] if the adapter cannot be used.
pub fn has_encoder(path: &Path) -> Result<bool, AdapterError> {
    Ok(Adapter::read(path)?.kinds().contains(&AdapterKind::EncodedPrompts))
}

const UNKNOWN_MODEL: &str = "the adapter does not name the model it was trained on; this model was assumed";

/// Tolerance for rounding, relative to the largest logit.
const ROUNDING: f64 = 1e-4;

/// Returns the adapter with the prompts in the place of their encoder.
fn with_prompts(options: &ExportOptions, trained: &Adapter) -> Result<Adapter, ExportError> {
    if !trained.kinds().contains(&AdapterKind::EncodedPrompts) {
        return Ok(trained.clone());
    }
    let prompts = options.prompts.clone().ok_or(ExportError::Prompts)?;
    Ok(trained.clone().with_prompts(prompts).checked()?)
}

/// Returns the requested method, or the default one, if it holds the adapter exactly.
fn exact_form(requested: Option<Form>, kind: AdapterKind) -> Result<Form, ExportError> {
    let exact = Form::exact(kind);
    let form = requested.unwrap_or(exact[0]);
    if exact.contains(&form) {
        return Ok(form);
    }
    let reason = match kind {
        AdapterKind::DeepPrompts if form.has_prompts() => "PEFT has no such method for deep prompts",
        AdapterKind::KeysValues if form.has_prompts() => "in general no prompts produce trained keys and values",
        _ => "the method does not hold its tensors",
    };
    Err(ExportError::Form { mode: kind.mode(), form, reason, exact: exact[0] })
}

struct PreparedExport<'a> {
    form: Form,
    adapter: &'a Adapter,
    scaling: Option<LoraScaling>,
    checkpoint: &'a Checkpoint,
    ends: Ends,
    inputs: BlockInputs,
}

impl<'a> PreparedExport<'a> {
    fn new(options: &ExportOptions, adapter: &'a Adapter, checkpoint: &'a Checkpoint) -> Result<Self, ExportError> {
        let (config, kind) = (checkpoint.config(), adapter.kind()?);
        let form = exact_form(options.form, kind)?;
        if let Some(reason) = family::unsupported_reason(config).filter(|_| kind.has_prefix()) {
            return Err(ExportError::Family { family: config.family.name(), reason });
        }
        let scaling = adapter.lora_shape()?.map(|shape| LoraScaling::of_run(&options.tuning, shape)).transpose()?;
        let ends = Ends::load(checkpoint).map_err(ComputeError::from)?;
        let factor = scaling.map_or(1.0, |scaling| scaling.factor());
        let inputs = BlockInputs::new(adapter, factor, &ends, config)?;
        Ok(Self { form, adapter, scaling, checkpoint, ends, inputs })
    }

    /// Returns PEFT's tensors, with the head.
    fn tensors(&self) -> Result<Vec<NamedHostTensor>, ExportError> {
        let named = |name: &str, tensor: HostTensor| NamedHostTensor { name: name.to_owned(), tensor };
        let (head, mut tensors) = match self.form {
            Form::Lora | Form::Ia3 => (HeadNames::FOR_LAYERS, to_peft(self.adapter, self.checkpoint.config())?),
            Form::PrefixTuning => {
                (HeadNames::FOR_PROMPTS, vec![named(PROMPT_EMBEDDINGS, folded(&self.inputs, self.checkpoint)?)])
            }
            Form::PromptTuning | Form::PTuning => {
                let missing = || AdapterError::Missing { name: "prompts".to_owned() };
                let prompts = self.adapter.prompts().ok_or_else(missing)?;
                let prompts = share_from_host(prompts).map_err(ComputeError::from)?;
                let prompts = to_host(&prompts, DType::F32).map_err(ComputeError::from)?;
                (HeadNames::FOR_PROMPTS, vec![named(PROMPT_EMBEDDINGS, prompts)])
            }
        };
        tensors.insert(0, named(&head.written(), self.adapter.score.clone()));
        Ok(tensors)
    }

    fn verify(&self, rows: &[Vec<i64>], staged: &Staged) -> Result<Verified, ExportError> {
        let tensors = sepal_nn::file::read(&staged.path().join(TENSORS))?.tensors;
        let is_head = |named: &NamedHostTensor| {
            [HeadNames::FOR_PROMPTS, HeadNames::FOR_LAYERS].iter().any(|head| head.is_head(&named.name))
        };
        let (head, others): (Vec<_>, Vec<_>) = tensors.into_iter().partition(is_head);
        let missing = |name: String| AdapterError::Missing { name };
        let score = head.first().ok_or_else(|| missing(HeadNames::FOR_PROMPTS.written()))?;
        let inputs = match self.form {
            Form::Lora | Form::Ia3 => WrittenInputs::Layers(self.read_layers(others)?.tunables),
            _ => {
                let table = others.first().ok_or_else(|| missing(PROMPT_EMBEDDINGS.to_owned()))?;
                WrittenInputs::Prefix(self.read_prefix(&table.tensor)?)
            }
        };
        let written = WrittenExport { inputs, score: &score.tensor };
        let found = verify(rows, &self.inputs, &written, &self.ends, self.checkpoint)?;
        // The reverse comparison would accept NaN.
        if found.difference <= ROUNDING * found.largest.max(1.0) {
            Ok(found)
        } else {
            Err(ExportError::Differs { found })
        }
    }

    fn read_prefix(&self, table: &HostTensor) -> Result<Vec<sepal_blocks::KeysValues>, ComputeError> {
        if self.form == Form::PrefixTuning {
            return Ok(cut(&share_from_host(table)?, self.checkpoint.config())?);
        }
        // Written prompts have no keys and values yet.
        let read = self.adapter.clone().with_prompts(table.clone());
        fold(&BlockInputs::new(&read, 1.0, &self.ends, self.checkpoint.config())?, self.checkpoint)
    }

    fn read_layers(&self, tensors: Vec<NamedHostTensor>) -> Result<BlockInputs, ExportError> {
        let config = self.checkpoint.config();
        let saved = AdapterConfig {
            peft_type: Some(self.form.peft_type().to_owned()),
            lora_alpha: self.scaling.map(|scaling| scaling.alpha),
            use_rslora: self.scaling.map(|scaling| scaling.rslora),
            ..AdapterConfig::default()
        };
        let layers = from_peft(tensors, &saved, config)?;
        let factor = layers.scaling.map_or(1.0, |scaling| scaling.factor());
        let read = Adapter { tensors: layers.tensors, ..self.adapter.clone() };
        Ok(BlockInputs::new(&read, factor, &self.ends, config)?)
    }
}

fn folded(trained: &BlockInputs, checkpoint: &Checkpoint) -> Result<HostTensor, ComputeError> {
    let table = table(&fold(trained, checkpoint)?, checkpoint.config())?;
    Ok(to_host(&table, DType::F32)?)
}

fn notices(options: &ExportOptions, form: Form, checkpoint: &Checkpoint, rounding: Option<Rounding>) -> Vec<String> {
    let mut notices = Vec::new();
    if let Some(rounding) = rounding {
        notices.push(format!(
            "the blocks were {rounding} in training, and are loaded and computed in f32 for the export; PEFT gives the \
             logits of f32"
        ));
    }
    let description = checkpoint.describe();
    if description.format == sepal_checkpoint::Format::Gguf {
        notices.push(format!(
            "the adapter was trained for the weights of a {description}; if the weights of {} differ, its logits differ, too",
            options.base_model
        ));
    }
    if form.has_prompts() {
        notices.push(format!(
            "PEFT pools rows of padded batches at their padding with {form} (peft#764): give it one row at a time, or export \
             as prefix-tuning"
        ));
    }
    notices
}

fn write_tensors(staged: &Staged, tensors: &[NamedHostTensor]) -> Result<(), FolderError> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(sepal_nn::file::write(&staged.path().join(TENSORS), tensors, &metadata)?)
}
