//! AWQ in its `gemm` version: `X.qweight [inputs, outputs / 8]` and `X.qzeros [groups, outputs / 8]` of 4 bits, packed along
//! the outputs, and `X.scales [groups, outputs]`. A word holds eight outputs, the even ones in its low half.

use safetensors::Dtype;

use super::gptq::FACTORS;
use super::grouped::{Grouped, Offset, Words, Zeros};
use super::parts::Parts;
use super::{Kind, Layer};
use crate::error::OpenError;

const BITS: usize = 4;

/// Places of eight outputs in their word: the outputs of a word are 0, 2, 4, 6, 1, 3, 5, 7.
const ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Folds all layers with `qweight`. `group` is the number of inputs that share a factor; `None` for all.
pub(super) fn fold(parts: &mut Parts<'_>, group: Option<usize>) -> Result<(), OpenError> {
    for layer in parts.layers_with("qweight", None) {
        let qweight = parts.require(&layer, "qweight")?;
        parts.check_dtype((&layer, "qweight"), &qweight, &[Dtype::I32])?;
        let [inputs, words] = parts.matrix(&layer, "qweight", &qweight)?;
        let outputs = words * 32 / BITS;
        let group = group.unwrap_or(inputs).min(inputs);
        let groups = inputs.div_ceil(group);
        if group % 2 != 0 {
            let problem = format!("has the shape {:?}, expected an even number of inputs", qweight.shape);
            return Err(parts.error(&layer, "qweight", problem));
        }
        let scales = parts.require(&layer, "scales")?;
        parts.check((&layer, "scales"), &scales, &FACTORS, &[groups, outputs])?;
        let qzeros = parts.require(&layer, "qzeros")?;
        parts.check((&layer, "qzeros"), &qzeros, &[Dtype::I32], &[groups, words])?;
        let along_outputs =
            |stored| Words { stored, is_along_outputs: true, word_stride: 1, other_stride: words, order: ORDER };
        let grouped = Grouped {
            shape: [outputs, inputs],
            bits: BITS,
            group,
            numbers: along_outputs(qweight.clone()),
            zeros: Zeros::Stored(along_outputs(qzeros), Offset::Number(0)),
            factors: scales,
            factor_strides: [1, outputs],
            groups: None,
            is_reordered: false,
        };
        parts.add((&layer, "qweight"), Kind::Awq, &qweight, Layer::Grouped(grouped))?;
    }
    Ok(())
}
