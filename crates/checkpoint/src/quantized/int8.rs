//! Signed bytes with a factor for each output: `X.weight [outputs, inputs]` beside `X.SCB [outputs]` of bitsandbytes, whose
//! weight is `byte * SCB / 127`, or beside `X.weight_scale` of compressed-tensors, whose weight is `byte * scale`.

use std::ops::Range;

use safetensors::Dtype;

use super::parts::Parts;
use super::sources::Sources;
use super::{Kind, Layer};
use crate::error::{OpenError, ReadError};
use crate::store::Stored;

/// Part with the factors, and the number by which they are divided.
pub(super) const BITSANDBYTES: (&str, f64) = ("SCB", 127.0);
pub(super) const COMPRESSED: (&str, f64) = ("weight_scale", 1.0);

/// Order of the bytes in files of old versions of bitsandbytes: a number, of which 0 stands for rows.
const ORDER: &str = "weight_format";

#[derive(Debug)]
pub(crate) struct Int8 {
    pub(super) shape: [usize; 2],
    weight: Stored,
    factors: Stored,
    divisor: f64,
    order: Option<Stored>,
    zero_points: Option<Stored>,
}

/// Folds all layers whose weight is of signed bytes.
pub(super) fn fold(parts: &mut Parts<'_>, (part, divisor): (&str, f64)) -> Result<(), OpenError> {
    for layer in parts.layers_with("weight", Some(Dtype::I8)) {
        let weight = parts.require(&layer, "weight")?;
        let shape = parts.matrix(&layer, "weight", &weight)?;
        let factors = parts.require(&layer, part)?;
        parts.check_dtype((&layer, part), &factors, &[Dtype::F32, Dtype::BF16, Dtype::F16])?;
        match factors.shape[..] {
            [] | [1] | [1, 1] => {}
            [rows] | [rows, 1] if rows == shape[0] => {}
            _ => {
                let problem = format!("has the shape {:?}, expected [{}] or [1]", factors.shape, shape[0]);
                return Err(parts.error(&layer, part, problem));
            }
        }
        let zero_points = parts.take(&layer, "weight_zero_point");
        let order = parts.take(&layer, ORDER);
        let main = weight.clone();
        let int8 = Int8 { shape, weight, factors, divisor, order, zero_points };
        parts.add((&layer, "weight"), Kind::Int8, &main, Layer::Int8(int8))?;
    }
    Ok(())
}

impl Int8 {
    pub(super) fn sources(&self) -> Vec<&Stored> {
        [&self.weight, &self.factors].into_iter().chain(&self.order).chain(&self.zero_points).collect()
    }

    pub(super) fn encode(&self, sources: &Sources<'_>, rows: Range<usize>) -> Result<Vec<u8>, ReadError> {
        if let Some(order) = &self.order
            && sources.all_bytes(order)?.iter().any(|byte| *byte != 0)
        {
            let problem = format!(
                "`{ORDER}` beside it states another order than rows; save the model again with a newer \
                                   version of bitsandbytes, or use the original checkpoint"
            );
            return Err(sources.decode(order, problem));
        }
        sources.require_zeros(self.zero_points.as_ref())?;
        let inputs = self.shape[1];
        let factors = sources.floats(&self.factors)?;
        let factor = |row: usize| (f64::from(factors[if factors.len() == 1 { 0 } else { row }]) / self.divisor) as f32;
        let mut data = Vec::with_capacity(rows.len() * (inputs + 4));
        sources.for_each_row(&self.weight, inputs, rows, |row, numbers| {
            data.extend_from_slice(&factor(row).to_le_bytes());
            data.extend_from_slice(numbers);
        })?;
        Ok(data)
    }
}
