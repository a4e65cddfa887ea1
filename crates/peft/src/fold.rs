//! Conversion of soft prompts, shallow and deep, to keys and values. It is exact: under a causal mask the states of a
//! prefix do not depend on the tokens after it.

use sepal_blocks::{Batch, BlockStack, KeysValues, Prefix, SaveMode};
use sepal_checkpoint::Checkpoint;
use sepal_core::{ModelConfig, PREFIX_KEYS_VALUES, Ragged, Span, Want};
use tch::{TchError, Tensor};

use crate::block_inputs::BlockInputs;
use crate::compute::ComputeError;
use crate::family;

/// Computes keys and values of the prefix in every block. One block at a time is in memory.
pub(crate) fn fold(trained: &BlockInputs, checkpoint: &Checkpoint) -> Result<Vec<KeysValues>, ComputeError> {
    if let Some(keys_values) = trained.tunables.iter().find(|tunable| tunable.name == PREFIX_KEYS_VALUES) {
        return Ok(by_head(&keys_values.tensor, checkpoint.config())?);
    }
    let prefix_len = trained.prefix_len();
    let row = Ragged::from_lengths([1])?;
    let mut hidden = trained.prefix.shallow_clone();
    let mut folded = Vec::with_capacity(checkpoint.config().n_blocks);
    for block_idx in 0..checkpoint.config().n_blocks {
        let block = Span::new(block_idx, block_idx + 1)?;
        let stack = BlockStack::load(checkpoint, block)?;
        // A batch needs a row; the prefix does not depend on it.
        let with_row = Tensor::f_cat(&[&hidden, &hidden.f_narrow(0, prefix_len as i64 - 1, 1)?], 0)?;
        let injected = stack.inject(block, &trained.tunables)?;
        let prefix = Prefix::Computed(prefix_len);
        let batch = Batch { hidden: &with_row, prefix, rows: &row, injected: &injected };
        let output = stack.forward_batches(block, &[batch], Want::All, SaveMode::PrefixCache)?.pop();
        let output = output.ok_or(ComputeError::Nothing { block_idx })?;
        let prefix_cache = output.prefix_cache.ok_or(ComputeError::Nothing { block_idx })?;
        folded.extend(stack.keys_and_values(&prefix_cache)?);
        hidden = output.hidden.f_narrow(0, 0, prefix_len as i64)?;
    }
    Ok(folded)
}

/// Splits `[n_blocks, prefix_len, 2 * kv_size]` into keys and values by head.
fn by_head(keys_values: &Tensor, config: &ModelConfig) -> Result<Vec<KeysValues>, TchError> {
    let [n_blocks, heads, dim] = [config.n_blocks, config.n_kv_heads, config.head_dim].map(|size| size as i64);
    let keys_values = keys_values.f_view([n_blocks, -1, 2, heads, dim])?;
    let keys_values = keys_values.f_permute([0, 2, 3, 1, 4])?; // [n_blocks, 2, heads, prefix_len, dim]
    let split = |block: i64| {
        let select = |part| keys_values.f_select(0, block)?.f_select(0, part)?.f_contiguous();
        Ok(KeysValues { keys: select(0)?, values: select(1)? })
    };
    (0..n_blocks).map(split).collect()
}

/// Joins keys and values by head to `[n_blocks, prefix_len, 2 * kv_size]`.
pub(crate) fn by_block(blocks: &[KeysValues]) -> Result<Tensor, TchError> {
    let flat = |tensor: &Tensor| tensor.f_transpose(0, 1)?.f_flatten(1, 2); // [prefix_len, kv_size]
    let lay = |block: &KeysValues| Tensor::f_cat(&[flat(&block.keys)?, flat(&block.values)?], 1);
    Tensor::f_stack(&blocks.iter().map(lay).collect::<Result<Vec<_>, _>>()?, 0)
}

/// Returns PEFT's table `[prefix_len, n_blocks * 2 * cached_heads * head_dim]`. A row is `K_0 V_0 K_1 V_1 ..`, each of them
/// head after head.
pub(crate) fn table(blocks: &[KeysValues], config: &ModelConfig) -> Result<Tensor, TchError> {
    let copies = family::cached_head_copies(config) as i64;
    let flat = |tensor: &Tensor| {
        let cached = match copies {
            1 => tensor.shallow_clone(),
            copies => tensor.f_repeat_interleave_self_int(copies, Some(0), None)?,
        };
        cached.f_transpose(0, 1)?.f_flatten(1, 2) // [prefix_len, cached_heads * head_dim]
    };
    let parts = blocks.iter().flat_map(|block| [flat(&block.keys), flat(&block.values)]);
    Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 1)
}

/// Splits PEFT's table into the keys and values of every block. PEFT views it as `[prefix_len, 2 n_blocks, heads, dim]`.
pub(crate) fn cut(table: &Tensor, config: &ModelConfig) -> Result<Vec<KeysValues>, TchError> {
    let copies = family::cached_head_copies(config) as i64;
    let [n_blocks, heads, dim] = [config.n_blocks, config.n_kv_heads, config.head_dim].map(|size| size as i64);
    let by_head = table.f_view([-1, 2 * n_blocks, heads * copies, dim])?;
    let by_head = by_head.f_permute([1, 2, 0, 3])?.f_slice(1, None, None, copies)?; // [2 n_blocks, heads, prefix_len, dim]
    let split = |block: i64| -> Result<KeysValues, TchError> {
        let select = |part| by_head.f_select(0, 2 * block + part)?.f_contiguous();
        Ok(KeysValues { keys: select(0)?, values: select(1)? })
    };
    (0..n_blocks).map(split).collect()
}
