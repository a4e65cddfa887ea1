//! Adapters in folders that PEFT wrote.

use std::path::Path;

use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, HostTensor, ModelConfig, NamedHostTensor};
use sepal_nn::{share_from_host, to_host};
use tch::Tensor;

use crate::adapter::{Adapter, AdapterError, Facts, TrainedPrefix};
use crate::config::{AdapterConfig, CONFIG, HEADS, P_TUNING, PREFIX_TUNING, PROMPT_EMBEDDINGS, PROMPT_TUNING, TENSORS};
use crate::family;
use crate::fold::{by_block, cut};
use crate::import_error::ImportError;

/// Original head, which PEFT replaced by the trained one.
const REPLACED_HEAD: &str = "base_model.score.original_module.weight";

/// Reads prefix and head. PEFT saves P_TUNING as the output of its encoder, so that it is read as PROMPT_TUNING, and saves
/// PREFIX_TUNING after its projection.
pub(crate) fn read_adapter(
    folder: &Path,
    config: &AdapterConfig,
    checkpoint: Option<&Checkpoint>,
) -> Result<Adapter, ImportError> {
    let is_prefix = match config.peft_type.as_deref().unwrap_or("no method") {
        PROMPT_TUNING | P_TUNING => false,
        PREFIX_TUNING => true,
        other => return Err(ImportError::Method { found: other.to_owned() }),
    };
    let base_model = || config.base_model_name_or_path.clone();
    let checkpoint = checkpoint.ok_or_else(|| ImportError::NeedsModel { base_model: base_model() })?;
    let (table, score) = tensors(folder, config)?;
    let (prefix, tuning) = match is_prefix {
        true => (TrainedPrefix::KeysValues(keys_values(&table, checkpoint.config())?), "prefix-tuning"),
        false => (TrainedPrefix::Prompts { prompts: table, deep_prompts: None }, "ptune"),
    };
    let facts = Facts { task: "sequence-classification".to_owned(), tuning: tuning.to_owned(), ..Facts::default() };
    Ok(Adapter { prefix, score, facts })
}

fn tensors(folder: &Path, config: &AdapterConfig) -> Result<(HostTensor, HostTensor), ImportError> {
    let (mut table, mut score) = (None, None);
    for NamedHostTensor { name, tensor } in sepal_nn::file::read(&folder.join(TENSORS))?.tensors {
        match name.as_str() {
            PROMPT_EMBEDDINGS => table = Some(widened(&tensor)?),
            head if HEADS.contains(&head) => score = Some(widened(&tensor)?),
            REPLACED_HEAD => {}
            _ if name.ends_with("bias") => return Err(AdapterError::Bias { name }.into()),
            _ => return Err(AdapterError::Unknown { name }.into()),
        }
    }
    let table = table.ok_or(AdapterError::Missing { name: PROMPT_EMBEDDINGS })?;
    let score = score.ok_or(AdapterError::Missing { name: HEADS[0] })?;
    match config.num_virtual_tokens {
        Some(expected) if table.shape().first() != Some(&expected) => {
            let expected = format!("{expected} prompts, as {CONFIG} says");
            Err(AdapterError::Shape { name: PROMPT_EMBEDDINGS, expected, found: table.shape().to_vec() }.into())
        }
        _ => Ok((table, score)),
    }
}

/// Converts PEFT's table of keys and values to `[n_blocks, prefix_len, 2 * kv_size]`.
fn keys_values(table: &HostTensor, config: &ModelConfig) -> Result<HostTensor, ImportError> {
    let copies = family::cached_head_copies(config);
    let width = config.n_blocks * 2 * copies * config.kv_size();
    if !matches!(table.shape(), &[len, found] if len > 0 && found == width) {
        let expected =
            format!("[prefix_len, {width}], keys and values for each of the model's {} blocks", config.n_blocks);
        return Err(AdapterError::Shape { name: PROMPT_EMBEDDINGS, expected, found: table.shape().to_vec() }.into());
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
