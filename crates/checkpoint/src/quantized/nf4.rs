//! NF4 of bitsandbytes (arXiv 2305.14314): `X.weight` with two numbers in a byte, the first in the high half, row after row
//! without a gap, and `X.weight.absmax` with a factor for each block of numbers. With double quantization the factors are
//! bytes: `nested_quant_map[byte] * nested_absmax[block of factors] + nested_offset`.
//! `X.weight.quant_state.bitsandbytes__nf4` is JSON with the sizes.

use std::ops::Range;

use safetensors::Dtype;
use sepal_core::{ModelConfig, NF4_LEVELS};
use serde::Deserialize;

use super::parts::Parts;
use super::shapes::layer_shape;
use super::sources::Sources;
use super::widen::NF4_GROUP;
use super::{Kind, Layer};
use crate::error::{OpenError, ReadError};
use crate::store::Stored;

/// Number of weights that are read at a time, a multiple of [`NF4_GROUP`].
const CHUNK: usize = 1 << 22;

const STATE: &str = "weight.quant_state.bitsandbytes__nf4";
const STATE_OF_FP4: &str = "weight.quant_state.bitsandbytes__fp4";
const ABSMAX: &str = "weight.absmax";
const LEVELS: &str = "weight.quant_map";
const NESTED_ABSMAX: &str = "weight.nested_absmax";
const NESTED_LEVELS: &str = "weight.nested_quant_map";

#[derive(Debug)]
pub(crate) struct Nf4 {
    pub(super) shape: [usize; 2],
    numbers: Stored,
    state: Stored,
    levels: Stored,
    absmax: Stored,
    /// Factors and levels of quantized factors.
    nested: Option<(Stored, Stored)>,
}

/// Content of [`STATE`].
#[derive(Debug, Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Folds all layers with [`STATE`]. The shape of a layer is that of the configuration: the file states it in [`STATE`] only,
/// which is compared when the layer is read.
pub(super) fn fold(parts: &mut Parts<'_>, config: &ModelConfig) -> Result<(), OpenError> {
    if let Some(layer) = parts.layers_with(STATE_OF_FP4, None).first() {
        return Err(parts.error(layer, STATE_OF_FP4, "is of FP4, expected NF4".to_owned()));
    }
    for layer in parts.layers_with(STATE, None) {
        let state = parts.require(&layer, STATE)?;
        parts.check_dtype((&layer, STATE), &state, &[Dtype::U8])?;
        let numbers = parts.require(&layer, "weight")?;
        parts.check_dtype((&layer, "weight"), &numbers, &[Dtype::U8])?;
        let n_bytes: usize = numbers.shape.iter().product();
        let unknown =
            || parts.error(&layer, "weight", "is quantized, and the shape of such a layer is unknown".to_owned());
        let shape = layer_shape(config, &layer, n_bytes * 2).ok_or_else(unknown)?;
        if shape[0].checked_mul(shape[1]).map(|numbers| numbers.div_ceil(2)) != Some(n_bytes) {
            let problem = format!("has {n_bytes} bytes, expected two numbers in each of a matrix {shape:?}");
            return Err(parts.error(&layer, "weight", problem));
        }
        let levels = parts.require(&layer, LEVELS)?;
        parts.check((&layer, LEVELS), &levels, &[Dtype::F32], &[NF4_LEVELS.len()])?;
        let absmax = parts.require(&layer, ABSMAX)?;
        let nested = if parts.has(&layer, NESTED_ABSMAX) {
            parts.check_dtype((&layer, ABSMAX), &absmax, &[Dtype::U8])?;
            let nested_absmax = parts.require(&layer, NESTED_ABSMAX)?;
            parts.check_dtype((&layer, NESTED_ABSMAX), &nested_absmax, &[Dtype::F32])?;
            let nested_levels = parts.require(&layer, NESTED_LEVELS)?;
            parts.check((&layer, NESTED_LEVELS), &nested_levels, &[Dtype::F32], &[256])?;
            Some((nested_absmax, nested_levels))
        } else {
            parts.check_dtype((&layer, ABSMAX), &absmax, &[Dtype::F32])?;
            None
        };
        let main = numbers.clone();
        let nf4 = Nf4 { shape, numbers, state, levels, absmax, nested };
        parts.add((&layer, "weight"), Kind::Nf4, &main, Layer::Nf4(nf4))?;
    }
    Ok(())
}

impl Nf4 {
    pub(super) fn sources(&self) -> Vec<&Stored> {
        let nested = self.nested.iter().flat_map(|(absmax, levels)| [absmax, levels]);
        [&self.numbers, &self.state, &self.levels, &self.absmax].into_iter().chain(nested).collect()
    }

    pub(super) fn is_one_row(&self) -> bool {
        !self.shape[1].is_multiple_of(NF4_GROUP)
    }

    /// Encodes rows, or the numbers of all rows as one row.
    pub(super) fn encode(&self, sources: &Sources<'_>, rows: Range<usize>) -> Result<Vec<u8>, ReadError> {
        let state = self.state(sources)?;
        self.check_levels(sources)?;
        let absmax = self.absmax(sources, &state)?;
        let [outputs, inputs] = self.shape;
        let numbers = match self.is_one_row() {
            true => 0..outputs * inputs,
            false => rows.start * inputs..rows.end * inputs,
        };
        let mut data = Vec::with_capacity(numbers.len().div_ceil(NF4_GROUP) * (4 + NF4_GROUP / 2));
        for start in numbers.clone().step_by(CHUNK) {
            let end = numbers.end.min(start + CHUNK);
            let bytes = sources.bytes(&self.numbers, start / 2..end.div_ceil(2))?;
            for (group, bytes) in bytes.chunks(NF4_GROUP / 2).enumerate() {
                let factor = absmax[(start + group * NF4_GROUP) / state.blocksize];
                data.extend_from_slice(&factor.to_le_bytes());
                data.extend_from_slice(&reordered(bytes));
            }
        }
        Ok(data)
    }

    fn state(&self, sources: &Sources<'_>) -> Result<State, ReadError> {
        let bytes = sources.all_bytes(&self.state)?;
        let state: State = serde_json::from_slice(&bytes).map_err(|source| sources.decode(&self.state, source))?;
        if state.shape != self.shape {
            let problem = format!("its shape is {:?}, and {:?} in the configuration", state.shape, self.shape);
            return Err(sources.decode(&self.state, problem));
        }
        if state.blocksize == 0 || !state.blocksize.is_multiple_of(NF4_GROUP) {
            let problem = format!(
                "its blocks have {} numbers, supported: multiples of {NF4_GROUP}; use the original checkpoint, or quantize it \
                 again with such blocks",
                state.blocksize
            );
            return Err(sources.decode(&self.state, problem));
        }
        Ok(state)
    }

    /// Error unless the levels of the file are those of NF4.
    fn check_levels(&self, sources: &Sources<'_>) -> Result<(), ReadError> {
        let levels = sources.floats(&self.levels)?;
        let is_near = |(level, expected): (&f32, &f32)| (level - expected).abs() <= 1e-6;
        if levels.len() == NF4_LEVELS.len() && levels.iter().zip(&NF4_LEVELS).all(is_near) {
            return Ok(());
        }
        Err(sources.decode(&self.levels, "the levels in its quant_map are not those of NF4"))
    }

    /// Factors of all blocks.
    fn absmax(&self, sources: &Sources<'_>, state: &State) -> Result<Vec<f32>, ReadError> {
        let absmax = match &self.nested {
            None => sources.floats(&self.absmax)?,
            Some((nested_absmax, levels)) => {
                let missing = || sources.decode(&self.state, "nested_blocksize or nested_offset is missing in it");
                let blocksize = state.nested_blocksize.filter(|blocksize| *blocksize > 0).ok_or_else(missing)?;
                let offset = state.nested_offset.ok_or_else(missing)? as f32;
                let (factors, levels) = (sources.floats(nested_absmax)?, sources.floats(levels)?);
                let bytes = sources.all_bytes(&self.absmax)?;
                if factors.len() != bytes.len().div_ceil(blocksize) {
                    let problem = format!("{} factors have {} factors of their own", bytes.len(), factors.len());
                    return Err(sources.decode(nested_absmax, problem));
                }
                let factor = |(index, byte): (usize, &u8)| {
                    let product = levels[usize::from(*byte)] * factors[index / blocksize];
                    product + offset
                };
                bytes.iter().enumerate().map(factor).collect()
            }
        };
        let expected = (self.shape[0] * self.shape[1]).div_ceil(state.blocksize);
        if absmax.len() != expected {
            let problem = format!("it has {} factors, expected {expected}", absmax.len());
            return Err(sources.decode(&self.absmax, problem));
        }
        Ok(absmax)
    }
}

/// The numbers of a group, of which the first lies in the high half of a byte, as [`RowEncoding`](sepal_core::RowEncoding)
/// orders them. Absent numbers become 0.
fn reordered(bytes: &[u8]) -> [u8; NF4_GROUP / 2] {
    let number = |index: usize| match bytes.get(index / 2) {
        Some(byte) if index.is_multiple_of(2) => byte >> 4,
        Some(byte) => byte & 15,
        None => 7,
    };
    std::array::from_fn(|place| number(place) | number(place + NF4_GROUP / 2) << 4)
}
