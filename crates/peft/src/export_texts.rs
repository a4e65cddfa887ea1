//! Files of an export beside its tensors.

use sepal_checkpoint::{Checkpoint, linear_sites};
use sepal_core::SiteRole;
use sepal_track::Calibration;
use sepal_track::export::{self, CARD, ExportRecord, RECORD, TRAINED};
use serde::Serialize;

use crate::adapter::{Adapter, AdapterError, LoraShape};
use crate::card::Card;
use crate::config::{CONFIG, HEAD_MODULE, Ia3ConfigFile, LoraConfigFile, PromptConfigFile, SEQ_CLS, TENSORS};
use crate::export::ExportError;
use crate::export_options::{ExportOptions, Form, Method};
use crate::family;
use crate::folder::{FolderError, Staged, json};
use crate::lora_scaling::{LoraOptionsError, LoraScaling};
use crate::site_names::target_modules;
use crate::verify::Verified;

/// Inputs of the configuration, the record and the model card.
pub(crate) struct ExportTexts<'a> {
    pub(crate) options: &'a ExportOptions,
    pub(crate) form: Form,
    pub(crate) scaling: Option<LoraScaling>,
    pub(crate) notices: &'a [String],
    /// Adapter of the run.
    pub(crate) trained: &'a Adapter,
    /// The same, with prompts in the place of an encoder.
    pub(crate) adapter: &'a Adapter,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) verified: Option<Verified>,
}

impl ExportTexts<'_> {
    pub(crate) fn write(&self, staged: &Staged) -> Result<(), ExportError> {
        let Self { options, form, notices, adapter, verified, .. } = *self;
        match form {
            Form::Lora => write_json(staged, CONFIG, &self.lora_config()?)?,
            Form::Ia3 => write_json(staged, CONFIG, &self.ia3_config())?,
            Form::PrefixTuning | Form::PromptTuning | Form::PTuning => {
                write_json(staged, CONFIG, &self.prompt_config())?;
            }
        }
        let trained = staged.path().join(TRAINED);
        self.trained.write(&trained).map_err(FolderError::from)?;
        let record = ExportRecord {
            version: export::VERSION,
            sepal: env!("CARGO_PKG_VERSION").to_owned(),
            model_digest: self.checkpoint.digest().to_owned(),
            trained: export::digest(&trained)?,
            exported: export::digest(&staged.path().join(TENSORS))?,
            config: Some(export::digest(&staged.path().join(CONFIG))?),
            verified: verified.map(|found| found.difference),
            run: options.run.clone(),
        };
        write_json(staged, RECORD, &record)?;
        if let Some(calibration) = options.run.as_ref().and_then(|run| run.manifest.calibration.as_ref()) {
            write_json(staged, Calibration::FILE, calibration)?;
        }
        let card = Card { options, form, notices, adapter, verified };
        staged.write(CARD, card.text().as_bytes())?;
        Ok(())
    }

    fn prompt_config(&self) -> PromptConfigFile<'_> {
        let (config, is_prefix) = (self.checkpoint.config(), self.form == Form::PrefixTuning);
        // For a prefix PEFT counts key heads; before 0.16 it uses this value unchanged.
        let cached_heads = config.n_kv_heads * family::cached_head_copies(config);
        let (heads, width) =
            if is_prefix { (cached_heads, cached_heads * config.head_dim) } else { (config.n_heads, config.hidden) };
        PromptConfigFile {
            base_model_name_or_path: &self.options.base_model,
            inference_mode: true,
            num_attention_heads: heads,
            num_layers: config.n_blocks,
            num_virtual_tokens: self.adapter.prefix_len(),
            peft_type: self.form.peft_type(),
            prefix_projection: is_prefix.then_some(false),
            revision: self.options.revision.as_deref(),
            task_type: SEQ_CLS,
            token_dim: width,
        }
    }

    fn lora_config(&self) -> Result<LoraConfigFile<'_>, ExportError> {
        let config = self.checkpoint.config();
        let all = linear_sites(config);
        let all: Vec<&str> = all.iter().map(|site| site.name.as_str()).collect();
        let missing = || AdapterError::Missing { name: "lora_A:LAYER".to_owned() };
        let LoraShape { rank, n_blocks } = self.adapter.lora_shape()?.ok_or_else(missing)?;
        let first_block = config.n_blocks.saturating_sub(n_blocks);
        let scaling = self.scaling.ok_or(LoraOptionsError::Missing)?;
        Ok(LoraConfigFile {
            base_model_name_or_path: &self.options.base_model,
            bias: "none",
            fan_in_fan_out: family::is_transposed(self.checkpoint.config()),
            inference_mode: true,
            layers_to_transform: (first_block > 0).then(|| (first_block..config.n_blocks).collect()),
            lora_alpha: scaling.alpha_json(),
            lora_dropout: 0.0,
            modules_to_save: [HEAD_MODULE],
            peft_type: self.form.peft_type(),
            r: rank,
            revision: self.options.revision.as_deref(),
            target_modules: target_modules(&self.adapter.sites(), &all),
            task_type: SEQ_CLS,
            use_rslora: scaling.rslora,
        })
    }

    fn ia3_config(&self) -> Ia3ConfigFile<'_> {
        let sites = linear_sites(self.checkpoint.config());
        let is_last = |name: &str| sites.iter().any(|site| site.name == name && site.role == SiteRole::MlpOutput);
        let target_modules = self.adapter.sites();
        Ia3ConfigFile {
            base_model_name_or_path: &self.options.base_model,
            fan_in_fan_out: family::is_transposed(self.checkpoint.config()),
            feedforward_modules: target_modules.iter().copied().filter(|name| is_last(name)).collect(),
            inference_mode: true,
            modules_to_save: [HEAD_MODULE],
            peft_type: self.form.peft_type(),
            revision: self.options.revision.as_deref(),
            target_modules,
            task_type: SEQ_CLS,
        }
    }
}

fn write_json(staged: &Staged, name: &str, value: &impl Serialize) -> Result<(), ExportError> {
    Ok(staged.write(name, &json(value)?)?)
}
