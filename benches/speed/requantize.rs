//! Copies of a GGUF file with other quantizations of the blocks' linear layers.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result};

const LAYERS: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// Types of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    Q8_0,
    /// The rule of llama.cpp's Q4_K_M: Q4_K, and Q6_K for values and the last layer of the MLP in half of the blocks. Rows
    /// that are no multiple of 256 numbers are Q5_0 and Q8_0 instead.
    Q4KM,
}

impl Mix {
    fn dtype(self, Layer { block_idx, name }: Layer<'_>, n_blocks: usize, width: usize) -> GgmlDType {
        if self == Self::Q8_0 {
            return GgmlDType::Q8_0;
        }
        let eighth = n_blocks / 8;
        let is_chosen = block_idx < eighth || block_idx >= 7 * n_blocks / 8 || (block_idx - eighth) % 3 == 2;
        let is_sensitive = is_chosen && matches!(name, "attn_v" | "ffn_down");
        match (is_sensitive, width.is_multiple_of(256)) {
            (true, true) => GgmlDType::Q6K,
            (true, false) => GgmlDType::Q8_0,
            (false, true) => GgmlDType::Q4K,
            (false, false) => GgmlDType::Q5_0,
        }
    }
}

/// Linear layer by the name of its weight, for example `blk.3.attn_q.weight`.
#[derive(Debug, Clone, Copy)]
struct Layer<'a> {
    block_idx: usize,
    name: &'a str,
}

impl<'a> Layer<'a> {
    fn parse(tensor: &'a str) -> Option<Self> {
        let (block_idx, name) = tensor.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
        let layer = Self { block_idx: block_idx.parse().ok()?, name };
        LAYERS.contains(&name).then_some(layer)
    }
}

/// Returns the bytes of the blocks' linear layers in a GGUF file.
pub(crate) fn layer_bytes(path: &Path) -> Result<usize> {
    let content = Content::read(&mut BufReader::new(File::open(path)?))?;
    let layers = content.tensor_infos.iter().filter(|(name, _)| Layer::parse(name).is_some());
    let bytes =
        layers.map(|(_, info)| info.shape.elem_count() / info.ggml_dtype.block_size() * info.ggml_dtype.type_size());
    Ok(bytes.sum())
}

/// Writes the model of `source`, with the numbers of its linear layers rounded again, to `target`.
pub(crate) fn write(source: &Path, target: &Path, mix: Mix) -> Result<()> {
    let mut reader = BufReader::new(File::open(source)?);
    let content = Content::read(&mut reader)?;
    let layers = content.tensor_infos.keys().filter_map(|name| Layer::parse(name));
    let n_blocks = layers.map(|layer| layer.block_idx + 1).max().unwrap_or(0);
    let mut tensors: Vec<(&str, QTensor)> = Vec::new();
    for name in content.tensor_infos.keys() {
        let stored = content.tensor(&mut reader, name, &Device::Cpu)?;
        let width = stored.shape().dims().last().copied();
        let tensor = match (Layer::parse(name), width) {
            (Some(layer), Some(width)) => {
                QTensor::quantize(&stored.dequantize(&Device::Cpu)?, mix.dtype(layer, n_blocks, width))?
            }
            _ => stored,
        };
        tensors.push((name.as_str(), tensor));
    }
    let metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut writer = BufWriter::new(File::create(target)?);
    gguf_file::write(&mut writer, &metadata, &tensors)?;
    writer.flush()?;
    Ok(())
}
