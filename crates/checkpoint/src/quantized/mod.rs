//! Quantized layers in safetensors, in the layouts in which they are published: FP8, GPTQ, AWQ, bitsandbytes int8 and
//! NF4, and compressed-tensors.
//!
//! A quantized layer `X` has several tensors in place of `X.weight`, for example `X.qweight`, `X.qzeros` and `X.scales`.
//! [`fold`] replaces them by one tensor `X.weight [outputs, inputs]`. Its rows are encoded again without loss
//! ([`Store::packed_rows`]), or dequantized to fp32 ([`Store::dequantized`]): the product of the stored factor and the
//! stored number, rounded once to fp32, where other programs may round to 16 bits. Both read the same encoded rows.
//!
//! Only weights are quantized here. If a configuration also quantizes the inputs of layers, as FP8 with
//! `activation_scheme` and W8A8 do, the inputs keep their precision.

mod awq;
mod compressed;
mod config;
mod fp8;
mod gptq;
mod grouped;
mod int8;
mod nf4;
mod parts;
mod shapes;
mod sources;
mod widen;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use sepal_core::{DType, HostTensor, ModelConfig, PackedMatrix, RowEncoding};

pub(crate) use self::config::Quantization;
use self::fp8::Fp8;
use self::grouped::Grouped;
use self::int8::Int8;
use self::nf4::Nf4;
use self::parts::Parts;
use self::sources::Sources;
use crate::error::{OpenError, ReadError};
use crate::mxfp4::GROUP_BYTES;
use crate::store::{Encoding, Extent, Numbers, Store, Stored};

/// Quantization of a layer, for summaries and the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fp8,
    Int8,
    Gptq {
        bits: usize,
        is_v2: bool,
    },
    Awq,
    /// Integers of compressed-tensors in 32-bit words.
    Packed {
        bits: usize,
    },
    Nf4,
}

impl Kind {
    /// Usual name.
    pub(crate) fn name(self) -> String {
        match self {
            Kind::Fp8 => "FP8".to_owned(),
            Kind::Int8 => "INT8".to_owned(),
            Kind::Gptq { bits, is_v2: false } => format!("GPTQ-{bits}"),
            Kind::Gptq { bits, is_v2: true } => format!("GPTQ-v2-{bits}"),
            Kind::Awq => "AWQ-4".to_owned(),
            Kind::Packed { bits } => format!("INT{bits}"),
            Kind::Nf4 => "NF4".to_owned(),
        }
    }
}

/// The tensors that take the place of a layer's weight.
#[derive(Debug)]
pub(crate) enum Layer {
    Fp8(Fp8),
    Int8(Int8),
    Grouped(Grouped),
    Nf4(Nf4),
}

impl Layer {
    /// The tensors, in any order.
    fn sources(&self) -> Vec<&Stored> {
        match self {
            Layer::Fp8(layer) => layer.sources(),
            Layer::Int8(layer) => layer.sources(),
            Layer::Grouped(layer) => layer.sources(),
            Layer::Nf4(layer) => layer.sources(),
        }
    }

    /// Outputs and inputs.
    fn shape(&self) -> [usize; 2] {
        match self {
            Layer::Fp8(layer) => layer.shape,
            Layer::Int8(layer) => layer.shape,
            Layer::Grouped(layer) => layer.shape,
            Layer::Nf4(layer) => layer.shape,
        }
    }

    fn encoding(&self) -> RowEncoding {
        match self {
            Layer::Fp8(layer) => layer.encoding(),
            Layer::Int8(_) => RowEncoding::Int8,
            Layer::Grouped(layer) => layer.encoding(),
            Layer::Nf4(_) => RowEncoding::Nf4,
        }
    }

    /// True if the numbers are encoded as one row, because the blocks of NF4 begin and end within rows.
    fn is_one_row(&self) -> bool {
        matches!(self, Layer::Nf4(layer) if layer.is_one_row())
    }

    /// True if the configuration says that the columns are in another order than the groups of a row.
    fn is_reordered(&self) -> bool {
        matches!(self, Layer::Grouped(layer) if layer.is_reordered())
    }

    /// The column of each encoded number of a row; `None` if they are in order.
    fn column_order(&self, sources: &Sources<'_>) -> Result<Option<Vec<usize>>, ReadError> {
        match self {
            Layer::Grouped(layer) => layer.column_order(sources),
            Layer::Fp8(_) | Layer::Int8(_) | Layer::Nf4(_) => Ok(None),
        }
    }

    /// Encodes rows; all of them if they are encoded as one.
    fn encode(&self, sources: &Sources<'_>, rows: Range<usize>) -> Result<Vec<u8>, ReadError> {
        match self {
            Layer::Fp8(layer) => layer.encode(sources, rows),
            Layer::Int8(layer) => layer.encode(sources, rows),
            Layer::Grouped(layer) => layer.encode(sources, rows),
            Layer::Nf4(layer) => layer.encode(sources, rows),
        }
    }
}

/// Replaces the tensors of each quantized layer by one tensor and removes those that only quantize activations. `path` is
/// the file or folder of the weights. Reads no file.
///
/// # Errors
/// [`OpenError`] if tensors of a layer are missing or have other shapes or types, or if no layer is quantized.
pub(crate) fn fold(
    quantization: &Quantization,
    config: &ModelConfig,
    path: &Path,
    tensors: BTreeMap<String, Stored>,
) -> Result<(BTreeMap<String, Stored>, Vec<Layer>), OpenError> {
    let mut parts = Parts::new(path, tensors);
    match quantization {
        Quantization::Fp8 { block } => fp8::fold(&mut parts, *block, fp8::OF_BLOCKS)?,
        Quantization::Gptq(gptq) => gptq::fold(&mut parts, gptq)?,
        Quantization::Awq { group } => awq::fold(&mut parts, *group)?,
        Quantization::Int8 => int8::fold(&mut parts, int8::BITSANDBYTES)?,
        Quantization::Nf4 => nf4::fold(&mut parts, config)?,
        Quantization::Compressed { block, packed } => {
            fp8::fold(&mut parts, *block, fp8::OF_OUTPUTS)?;
            int8::fold(&mut parts, int8::COMPRESSED)?;
            if let Some(packed) = packed {
                compressed::fold(&mut parts, packed, config)?;
            }
        }
    }
    parts.finish(quantization.method())
}

impl Store {
    /// Reads the rows of a quantized layer in an encoding without loss; `None` if the tensor is of another kind, or has no
    /// such encoding: GPTQ whose columns are ordered by activation (`desc_act`), and NF4 with blocks that begin and end
    /// within rows.
    ///
    /// # Errors
    /// [`ReadError`] if a tensor of the layer cannot be read or decoded.
    pub(crate) fn packed_rows(&self, name: &str, stored: &Stored) -> Result<Option<PackedMatrix>, ReadError> {
        let Some(layer) = self.layer(stored).filter(|layer| !layer.is_one_row()) else { return Ok(None) };
        let sources = Sources { files: &self.files, name };
        self.require_files(name, stored)?;
        if layer.column_order(&sources)?.is_some() {
            return Ok(None);
        }
        let [outputs, inputs] = layer.shape();
        let data = Bytes::from(layer.encode(&sources, 0..outputs)?);
        let matrix = PackedMatrix::new(layer.encoding(), inputs, data);
        matrix.map(Some).map_err(|source| sources.decode(stored, source))
    }

    /// Encoding and number of bytes of [`Store::packed_rows`]; `None` if it returns `None`. Reads the groups of the layer's
    /// columns at most. If they are not there, the configuration tells the order.
    pub(crate) fn packed_bytes(&self, stored: &Stored) -> Option<(RowEncoding, u64)> {
        let layer = self.layer(stored).filter(|layer| !layer.is_one_row())?;
        // Its errors are not reported.
        let sources = Sources { files: &self.files, name: "" };
        let is_reordered = layer.column_order(&sources).map_or(layer.is_reordered(), |order| order.is_some());
        if is_reordered {
            return None;
        }
        let [outputs, inputs] = layer.shape();
        let encoding = layer.encoding();
        Some((encoding, encoding.row_bytes(inputs)? as u64 * outputs as u64))
    }

    /// Dequantizes a quantized layer, fp32 `[outputs, inputs]`.
    ///
    /// # Errors
    /// [`ReadError`] if the tensor is of another kind, or a tensor of the layer cannot be read or decoded.
    pub(crate) fn dequantized(&self, name: &str, stored: &Stored) -> Result<HostTensor, ReadError> {
        let sources = Sources { files: &self.files, name };
        let outputs = stored.shape.first().copied().unwrap_or(0);
        let values = Bytes::from_owner(Numbers(self.dequantized_rows(name, stored, 0..outputs)?));
        let tensor = HostTensor::new(DType::F32, stored.shape.clone(), values);
        tensor.map_err(|source| sources.decode(stored, source))
    }

    /// Dequantizes rows of a quantized layer, `[rows, inputs]`.
    ///
    /// # Errors
    /// As [`Store::dequantized`].
    pub(crate) fn dequantized_rows(
        &self,
        name: &str,
        stored: &Stored,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, ReadError> {
        let sources = Sources { files: &self.files, name };
        let layer = self.layer(stored).ok_or_else(|| sources.decode(stored, "it is not quantized"))?;
        self.require_files(name, stored)?;
        let [outputs, inputs] = layer.shape();
        let width = if layer.is_one_row() { outputs * inputs } else { inputs };
        let data = layer.encode(&sources, rows.clone())?;
        let widened = widen::widen(layer.encoding(), width, &data);
        let values = widened.ok_or_else(|| sources.decode(stored, "its rows are of another encoding"))?;
        if layer.is_one_row() {
            return Ok(values[rows.start * inputs..rows.end * inputs].to_vec());
        }
        match layer.column_order(&sources)? {
            None => Ok(values),
            Some(order) => Ok(restored_columns(&values, &order)),
        }
    }

    /// True if [`Store::dequantized_rows`] reads the requested rows only, apart from factors.
    pub(crate) fn has_separate_rows(&self, stored: &Stored) -> bool {
        matches!(self.layer(stored), Some(Layer::Fp8(_) | Layer::Int8(_)))
    }

    /// Files that hold a tensor, as indices into [`Store::files`].
    pub(crate) fn files_of(&self, stored: &Stored) -> Vec<usize> {
        self.sources_of(stored).into_iter().map(|source| source.file).collect()
    }

    /// Bytes from which a tensor is read.
    pub(crate) fn sources_of(&self, stored: &Stored) -> Vec<Extent> {
        match (self.layer(stored), stored.encoding) {
            (Some(layer), _) => layer.sources().into_iter().map(Stored::extent).collect(),
            (None, Encoding::Mxfp4 { scales_file, scales_offset }) => {
                let len = stored.len / GROUP_BYTES as u64;
                vec![stored.extent(), Extent { file: scales_file, offset: scales_offset, len }]
            }
            (None, _) => vec![stored.extent()],
        }
    }

    fn layer(&self, stored: &Stored) -> Option<&Layer> {
        match stored.encoding {
            Encoding::Quantized { layer, .. } => self.layers.get(layer),
            Encoding::Plain(_) | Encoding::Gguf(_) | Encoding::Mxfp4 { .. } => None,
        }
    }
}

/// Moves the numbers of each row to their columns: number `p` to column `order[p]`.
fn restored_columns(values: &[f32], order: &[usize]) -> Vec<f32> {
    let mut restored = vec![0.0; values.len()];
    for (row, numbers) in restored.chunks_exact_mut(order.len()).zip(values.chunks_exact(order.len())) {
        for (column, number) in order.iter().zip(numbers) {
            row[*column] = *number;
        }
    }
    restored
}
