use std::num::NonZero;

use sepal_autograd::memory::TightHeap;
use sepal_checkpoint::{PartSizes, linear_sites, tensor_names};
use sepal_core::{ModelConfig, Span, WeightFormat};

use crate::exec::block::Block;
use crate::exec::block_sequence::BlockSequence;
use crate::families;
use crate::layers::rope::Rotaries;
use crate::weights::{LoadError, Placement, Reader, Weights};

/// Number of blocks that are rounded at the same time, since each needs more memory meanwhile.
const ROUNDED_AT_A_TIME: usize = 2;
/// fp32 weights that several readers may hold at the same time, in bytes. Larger blocks are read one at a time.
const READ_AT_A_TIME: u64 = 512 << 20;

/// Memory that reading `n_blocks` blocks needs beyond that of the loaded blocks, in bytes: each reader holds at most about one
/// block in fp32, of a mixture of experts one expert. Matrices that stay as they are stored need less.
pub fn loading_bytes(config: &ModelConfig, n_blocks: usize, format: WeightFormat) -> u64 {
    n_readers(config, n_blocks, format) as u64 * fp32_bytes(config)
}

/// Memory of weights of these sizes in bytes, see [`PartSizes::weight_bytes`].
pub fn weight_bytes(sizes: &PartSizes, placement: Placement) -> u64 {
    sizes.weight_bytes(placement.format, placement.compute, placement.device == tch::Device::Cpu)
}

/// Reads the blocks of `span`, several at a time.
pub(crate) fn load_blocks(weights: &dyn Weights, span: Span, placement: Placement) -> Result<BlockSequence, LoadError> {
    let config = weights.config();
    if span.end() > config.n_blocks {
        return Err(LoadError::Span { span, n_blocks: config.n_blocks });
    }
    check(config)?;
    let model = Reader::new(weights, tensor_names(config.family).prefix, placement);
    let positions = if span.start() == 0 { families::positions(&model, config)? } else { None };
    let threads = n_readers(config, span.len(), placement.format);
    let _heap = TightHeap::begin();
    let blocks = load_in_parallel(span, threads, |block_idx| {
        let reader = Reader::new(weights, tensor_names(config.family).block_prefix(block_idx), placement);
        (families::spec(config.family).block)(&reader, config, block_idx)
    })?;
    let rotaries = Rotaries::new(config, placement.device)?;
    Ok(BlockSequence { first_block: span.start(), blocks, rotaries, positions })
}

/// Number of blocks that are read at the same time.
fn n_readers(config: &ModelConfig, n_blocks: usize, format: WeightFormat) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let limit = match format {
        WeightFormat::Auto | WeightFormat::F32 => cores,
        _ => cores.min(ROUNDED_AT_A_TIME),
    };
    let small_enough = usize::try_from(READ_AT_A_TIME / fp32_bytes(config).max(1)).unwrap_or(usize::MAX);
    limit.min(small_enough.max(1)).min(n_blocks)
}

/// Memory of the linear layers that a reader holds in fp32.
fn fp32_bytes(config: &ModelConfig) -> u64 {
    let product =
        |sizes: [usize; 3]| sizes.into_iter().fold(1_u64, |product, size| product.saturating_mul(size as u64));
    let layers = linear_sites(config).iter().map(|site| product([1, site.outputs, site.inputs])).sum::<u64>();
    let ffn = config.experts.map_or(0, |experts| config.ffn.max(experts.shared_ffn.unwrap_or(0)));
    layers.saturating_add(product([3, config.hidden, ffn])).saturating_mul(size_of::<f32>() as u64)
}

/// Calls `load` for each block on `threads` threads; returns the blocks in order.
fn load_in_parallel(
    span: Span,
    threads: usize,
    load: impl Fn(usize) -> Result<Block, LoadError> + Sync,
) -> Result<Vec<Block>, LoadError> {
    let block_indices: Vec<usize> = span.blocks().collect();
    let load_chunk = |chunk: &[usize]| {
        // Grad mode is local to the thread.
        tch::no_grad(|| chunk.iter().map(|&block_idx| load(block_idx)).collect::<Result<Vec<Block>, LoadError>>())
    };
    std::thread::scope(|scope| {
        let chunks = block_indices.chunks(span.len().div_ceil(threads));
        let threads: Vec<_> = chunks.map(|chunk| scope.spawn(|| load_chunk(chunk))).collect();
        let mut blocks = Vec::with_capacity(span.len());
        for thread in threads {
            match thread.join() {
                Ok(chunk) => blocks.extend(chunk?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(blocks)
    })
}

fn check(config: &ModelConfig) -> Result<(), LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    if [hidden, n_heads, n_kv_heads, head_dim, ffn].contains(&0) {
        return problem("a size is zero".to_owned());
    }
    if n_heads % n_kv_heads != 0 {
        return problem(format!("{n_heads} query heads are no multiple of {n_kv_heads} heads of keys"));
    }
    if config.scores.alibi && n_heads != n_kv_heads {
        return problem(format!("ALiBi needs a head of keys for each of {n_heads} query heads, found {n_kv_heads}"));
    }
    let family = families::spec(config.family);
    if family.has_equal_heads && (n_heads != n_kv_heads || n_heads * head_dim != hidden) {
        let heads = format!("{n_heads} heads of {head_dim}, {n_kv_heads} of keys");
        return problem(format!("{heads}, do not fit a hidden size of {hidden}"));
    }
    match &config.rope {
        None if !config.scores.alibi && family.positions.is_none() => {
            problem(format!("a {} block needs rotary positions", config.family.name()))
        }
        Some(rope) if rope.dim % 2 != 0 || rope.dim > head_dim => {
            problem(format!("a rotary dimension of {} does not fit heads of {head_dim}", rope.dim))
        }
        _ => Ok(()),
    }
}

fn problem(problem: String) -> Result<(), LoadError> {
    Err(LoadError::Config { problem })
}

#[cfg(test)]
mod tests {
    use sepal_checkpoint::EncodedSize;
    use sepal_core::{ComputeFormat, Device, Family, RowEncoding};

    use super::*;

    #[test]
    fn weights_that_a_placement_does_not_keep_take_the_format_of_products() {
        let size = |encoding, bytes| EncodedSize { encoding, numbers: 1024, bytes };
        let encoded = vec![size(RowEncoding::Q4K, 576), size(RowEncoding::Bf16, 2048), size(RowEncoding::Nf4, 576)];
        let sizes = PartSizes { encoded, plain: 512, vectors: 64 };
        let (cpu, cuda) = (Device::Cpu, Device::Cuda(9));
        let (f32, bf16) = (ComputeFormat::F32, ComputeFormat::Bf16);
        for (device, format, compute, expected) in [
            (cpu, WeightFormat::Auto, f32, 576 + 2048 + 576 + 4 * 512 + 4 * 64),
            (cpu, WeightFormat::Auto, bf16, 576 + 2048 + 576 + 2 * 512 + 4 * 64),
            (cuda, WeightFormat::Auto, f32, 4 * 1024 + 2048 + 576 + 4 * 512 + 4 * 64),
            (cuda, WeightFormat::Auto, bf16, 2 * 1024 + 2048 + 576 + 2 * 512 + 4 * 64),
            (cpu, WeightFormat::F32, f32, 4 * (3 * 1024 + 512 + 64)),
            (cuda, WeightFormat::F32, bf16, 2 * (3 * 1024 + 512) + 4 * 64),
            (cuda, WeightFormat::Int8, bf16, 3 * 1024 + 512 + 64),
        ] {
            let found = weight_bytes(&sizes, Placement::new(device, format, compute));
            assert_eq!(found, expected, "{format} on {device}, computed in {compute}");
        }
    }

    #[test]
    fn large_blocks_are_read_one_at_a_time() {
        let llama_8b =
            ModelConfig { n_kv_heads: 8, ..ModelConfig::plain(Family::Llama, 32, 4096, 32, 14_336, 128_256) };
        let block = 4 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14_336);
        for format in WeightFormat::ALL {
            assert_eq!(loading_bytes(&llama_8b, 32, format), block, "{format}");
        }
        let tiny = ModelConfig::plain(Family::Llama, 2, 8, 2, 12, 32);
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        assert_eq!(n_readers(&tiny, 2, WeightFormat::F32), cores.min(2));
        assert_eq!(n_readers(&tiny, 1, WeightFormat::Nf4), 1);
    }
}
