//! Adapters in folders that PEFT wrote.

use std::path::Path;

use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, HostTensor, ModelConfig, NamedHostTensor, TunableName};
use sepal_nn::{share_from_host, to_host};
use tch::Tensor;

use crate::adapter::{Adapter, AdapterError, AdapterTensor, Facts, TensorRole};
use crate::config::{
    AdapterConfig, CONFIG, HeadNames, IA3, LORA, P_TUNING, PREFIX_TUNING, PROMPT_EMBEDDINGS, PROMPT_TUNING, TENSORS,
};
use crate::family;
use crate::fold::{by_block, cut};
use crate::import_error::ImportError;
use crate::lora_config::check_features;
use crate::lora_scaling::LoraScaling;
use crate::site_tensors::{SavedLayers, from_peft};

/// Adapter from a folder of PEFT.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) adapter: Adapter,
    pub(crate) scaling: Option<LoraScaling>,
    pub(crate) notices: Vec<String>,
}

/// Reads the trained tensors and the head. PEFT saves P_TUNING as the output of its encoder, so that it is read as
/// PROMPT_TUNING, and saves PREFIX_TUNING after its projection.
pub(crate) fn read_adapter(
    folder: &Path,
    config: &AdapterConfig,
    checkpoint: Option<&Checkpoint>,
) -> Result<Foreign, ImportError> {
    let method = config.method();
    if ![PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA, IA3].contains(&method) {
        return Err(ImportError::Method { found: method.to_owned() });
    }
    let base_model = || config.base_model_name_or_path.clone();
    let checkpoint = checkpoint.ok_or_else(|| ImportError::NeedsModel { base_model: base_model() })?;
    let model = checkpoint.config();
    let (mut scaling, mut notices) = (None, Vec::new());
    let (tensors, score) = match method {
        LORA | IA3 => {
            check_features(config)?;
            let (named, score) = with_head(folder, HeadNames::FOR_LAYERS)?;
            let layers: SavedLayers = from_peft(named, config, model)?;
            scaling = layers.scaling;
            notices.extend(layers.is_converted.then(|| CONVERTED.to_owned()));
            (layers.tensors, score)
        }
        _ => {
            let (table, score) = table(folder, config)?;
            let (role, tensor) = match method {
                PREFIX_TUNING => (TensorRole::Tunable(TunableName::PrefixKeysValues), keys_values(&table, model)?),
                _ => (TensorRole::Prompts, table),
            };
            notices.extend(family::unsupported_reason(model).map(|reason| format!("{DIFFERENT}: {reason}")));
            (vec![AdapterTensor { role, tensor }], score)
        }
    };
    let tuning = tensors.first().map_or("", |tensor| tensor.role.kind().mode()).to_owned();
    let facts = Facts { task: "sequence-classification".to_owned(), tuning, ..Facts::default() };
    Ok(Foreign { adapter: Adapter { tensors, score, facts }, scaling, notices })
}

const CONVERTED: &str = "layers with another rank or alpha were converted to those of the others: the logits are the same, \
                         further training changes these layers at another rate";

const DIFFERENT: &str = "predictions differ from those of PEFT";

/// Reads the head, and all tensors besides.
fn with_head(folder: &Path, head: HeadNames) -> Result<(Vec<NamedHostTensor>, HostTensor), ImportError> {
    let (mut others, mut score) = (Vec::new(), None);
    for NamedHostTensor { name, tensor } in sepal_nn::file::read(&folder.join(TENSORS))?.tensors {
        match name.as_str() {
            name if head.is_head(name) => score = Some(widened(&tensor)?),
            name if head.is_replaced_head(name) => {}
            _ => others.push(NamedHostTensor { name, tensor: widened(&tensor)? }),
        }
    }
    let score = score.ok_or_else(|| AdapterError::Missing { name: head.written() })?;
    Ok((others, score))
}

/// Reads the table of prompts or of keys and values, and the head.
fn table(folder: &Path, config: &AdapterConfig) -> Result<(HostTensor, HostTensor), ImportError> {
    let (named, score) = with_head(folder, HeadNames::FOR_PROMPTS)?;
    let mut table = None;
    for NamedHostTensor { name, tensor } in named {
        match name.as_str() {
            PROMPT_EMBEDDINGS => table = Some(tensor),
            _ if name.ends_with("bias") => return Err(AdapterError::Bias { name }.into()),
            _ => return Err(AdapterError::Unknown { name }.into()),
        }
    }
    let table = table.ok_or_else(|| AdapterError::Missing { name: PROMPT_EMBEDDINGS.to_owned() })?;
    match config.num_virtual_tokens {
        Some(expected) if table.shape().first() != Some(&expected) => {
            Err(shape(format!("{expected} prompts, as {CONFIG} says"), &table))
        }
        _ => Ok((table, score)),
    }
}

fn shape(expected: String, table: &HostTensor) -> ImportError {
    AdapterError::Shape { name: PROMPT_EMBEDDINGS.to_owned(), expected, found: table.shape().to_vec() }.into()
}

/// Converts PEFT's table of keys and values to `[n_blocks, prefix_len, 2 * kv_size]`.
fn keys_values(table: &HostTensor, config: &ModelConfig) -> Result<HostTensor, ImportError> {
    let copies = family::cached_head_copies(config);
    let width = config.n_blocks * 2 * copies * config.kv_size();
    if !matches!(table.shape(), &[len, found] if len > 0 && found == width) {
        let expected =
            format!("[prefix_len, {width}], keys and values for each of the model's {} blocks", config.n_blocks);
        return Err(shape(expected, table));
    }
    let table = share_from_host(table)?;
    if copies > 1 && !are_alike(&table, config, copies)? {
        return Err(ImportError::SplitHeads { family: config.family.name(), copies });
    }
    let keys_values = by_block(&cut(&table, config)?)?;
    Ok(to_host(&keys_values, DType::F32)?)
}

/// Returns true if all heads that share keys and values in the model have equal ones in the table.
fn are_alike(table: &Tensor, config: &ModelConfig, copies: usize) -> Result<bool, tch::TchError> {
    let [heads, copies, dim] = [config.n_kv_heads, copies, config.head_dim].map(|size| size as i64);
    let heads = table.f_view([table.size()[0], -1, heads, copies, dim])?;
    let first = heads.f_narrow(3, 0, 1)?;
    bool::try_from(heads.f_eq_tensor(&first)?.f_all()?)
}

fn widened(tensor: &HostTensor) -> Result<HostTensor, sepal_nn::HostError> {
    to_host(&share_from_host(tensor)?, DType::F32)
}
