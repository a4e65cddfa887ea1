//! GPTQ: `X.qweight [inputs * bits / 32, outputs]`, packed along the inputs, `X.qzeros [groups, outputs * bits / 32]` and
//! `X.scales [groups, outputs]`. `X.g_idx [inputs]` is the group of each input; with `desc_act` inputs of a group do not lie
//! next to each other.
//!
//! In the first version of the format zeros are stored less one. GPTQModel subtracts a word of ones from the packed zeros, so a
//! zero of 0 borrows from the next one, and adds it when it reads (`convert_gptq_v1_to_v2_format_module`). With 3 bits its
//! words are not ones in the places of the zeros, so its files and those of AutoGPTQ differ.

use safetensors::Dtype;

use super::config::Gptq;
use super::grouped::{Grouped, IN_ORDER, Offset, Words, Zeros};
use super::parts::Parts;
use super::{Kind, Layer};
use crate::error::OpenError;

/// Types of factors.
pub(super) const FACTORS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// Folds all layers with `qweight`.
pub(super) fn fold(parts: &mut Parts<'_>, gptq: &Gptq) -> Result<(), OpenError> {
    let &Gptq { bits, group, is_v2, is_reordered, .. } = gptq;
    for layer in parts.layers_with("qweight", None) {
        let qweight = parts.require(&layer, "qweight")?;
        parts.check_dtype((&layer, "qweight"), &qweight, &[Dtype::I32])?;
        let [words, outputs] = parts.matrix(&layer, "qweight", &qweight)?;
        let (inputs, output_words) = (words * 32 / bits, outputs * bits / 32);
        if words * 32 % bits != 0 || outputs * bits % 32 != 0 {
            let problem = format!("has the shape {:?}, which numbers of {bits} bits do not fill", qweight.shape);
            return Err(parts.error(&layer, "qweight", problem));
        }
        let group = group.unwrap_or(inputs).min(inputs);
        let groups = inputs.div_ceil(group);
        let scales = parts.require(&layer, "scales")?;
        parts.check((&layer, "scales"), &scales, &FACTORS, &[groups, outputs])?;
        let qzeros = parts.require(&layer, "qzeros")?;
        parts.check((&layer, "qzeros"), &qzeros, &[Dtype::I32], &[groups, output_words])?;
        let g_idx = parts.take(&layer, "g_idx");
        match &g_idx {
            Some(g_idx) => parts.check((&layer, "g_idx"), g_idx, &[Dtype::I32], &[inputs])?,
            None if is_reordered => return Err(parts.error(&layer, "g_idx", "is missing with `desc_act`".to_owned())),
            None => {}
        }
        let (stored, order) = (qweight.clone(), IN_ORDER);
        let numbers = Words { stored, is_along_outputs: false, word_stride: outputs, other_stride: 1, order };
        let zeros = Words { stored: qzeros, is_along_outputs: true, word_stride: 1, other_stride: output_words, order };
        let grouped = Grouped {
            shape: [outputs, inputs],
            bits,
            group,
            numbers,
            zeros: if gptq.has_known_zeros() { Zeros::Constant(4) } else { Zeros::Stored(zeros, offset(gptq)) },
            factors: scales,
            factor_strides: [1, outputs],
            groups: g_idx,
            is_reordered: is_reordered && groups > 1,
        };
        parts.add((&layer, "qweight"), Kind::Gptq { bits, is_v2 }, &qweight, Layer::Grouped(grouped))?;
    }
    Ok(())
}

/// Addition to the stored zeros.
fn offset(gptq: &Gptq) -> Offset {
    match gptq.bits {
        _ if gptq.is_v2 => Offset::Number(0),
        2 => Offset::Words([0x5555_5555; 3]),
        3 if gptq.is_of_gptqmodel => Offset::Words([0x2492_4924, 0x9249_2492, 0x4924_9249]),
        4 => Offset::Words([0x1111_1111; 3]),
        8 => Offset::Words([0x0101_0101; 3]),
        _ => Offset::Number(1),
    }
}
