//! FP8: `X.weight [outputs, inputs]` of 8-bit floats, and factors of the layer, of each output or of blocks of the matrix
//! in `X.weight_scale_inv` or `X.weight_scale`. A weight is the product of both.

use std::ops::Range;

use safetensors::Dtype;
use sepal_core::RowEncoding;

use super::parts::Parts;
use super::sources::Sources;
use super::{Kind, Layer};
use crate::error::{OpenError, ReadError};
use crate::store::Stored;

/// Types of factors.
const FACTORS: [Dtype; 4] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8_E8M0];

#[derive(Debug)]
pub(crate) struct Fp8 {
    pub(super) shape: [usize; 2],
    weight: Stored,
    factors: Stored,
    /// Outputs and inputs that share a factor.
    block: [usize; 2],
    zero_points: Option<Stored>,
}

/// Names of factors.
pub(super) const OF_BLOCKS: &str = "weight_scale_inv";
pub(super) const OF_OUTPUTS: &str = "weight_scale";

/// Folds all layers whose weight is of 8-bit floats. `block` is the size of blocks, if the factors are those of blocks, and
/// `usual` the usual name of factors.
pub(super) fn fold(parts: &mut Parts<'_>, block: [usize; 2], usual: &'static str) -> Result<(), OpenError> {
    for layer in parts.layers_with("weight", Some(Dtype::F8_E4M3)) {
        let weight = parts.require(&layer, "weight")?;
        let shape = parts.matrix(&layer, "weight", &weight)?;
        let part = [OF_BLOCKS, OF_OUTPUTS].into_iter().find(|part| parts.has(&layer, part)).unwrap_or(usual);
        let factors = parts.require(&layer, part)?;
        parts.check_dtype((&layer, part), &factors, &FACTORS)?;
        let [outputs, inputs] = shape;
        let blocks = [outputs.div_ceil(block[0]), inputs.div_ceil(block[1])];
        let block = match factors.shape[..] {
            [rows, columns] if [rows, columns] == blocks => block,
            [] | [1] | [1, 1] => shape,
            [rows] | [rows, 1] if rows == outputs => [1, inputs],
            _ => {
                let found = &factors.shape;
                let problem = format!("has the shape {found:?}, expected {blocks:?}, [{outputs}, 1] or [1]");
                return Err(parts.error(&layer, part, problem));
            }
        };
        let zero_points = parts.take(&layer, "weight_zero_point");
        let main = weight.clone();
        let fp8 = Fp8 { shape, weight, factors, block, zero_points };
        parts.add((&layer, "weight"), Kind::Fp8, &main, Layer::Fp8(fp8))?;
    }
    Ok(())
}

impl Fp8 {
    pub(super) fn sources(&self) -> Vec<&Stored> {
        [&self.weight, &self.factors].into_iter().chain(&self.zero_points).collect()
    }

    pub(super) fn encoding(&self) -> RowEncoding {
        RowEncoding::Fp8 { group: u32::try_from(self.group()).unwrap_or(u32::MAX) }
    }

    pub(super) fn encode(&self, sources: &Sources<'_>, rows: Range<usize>) -> Result<Vec<u8>, ReadError> {
        sources.require_zeros(self.zero_points.as_ref())?;
        let inputs = self.shape[1];
        let factors = sources.floats(&self.factors)?;
        let groups = inputs.div_ceil(self.group());
        let mut data = Vec::with_capacity(rows.len() * (inputs + 4 * groups));
        sources.for_each_row(&self.weight, inputs, rows, |row, numbers| {
            let factors = &factors[row / self.block[0] * groups..][..groups];
            for (factor, numbers) in factors.iter().zip(numbers.chunks(self.group())) {
                data.extend_from_slice(&factor.to_le_bytes());
                data.extend_from_slice(numbers);
            }
        })?;
        Ok(data)
    }

    /// Numbers of a row that share a factor.
    fn group(&self) -> usize {
        self.block[1].min(self.shape[1])
    }
}
