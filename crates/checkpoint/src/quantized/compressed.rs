//! Integers in words of compressed-tensors (`pack-quantized`): `X.weight_packed [outputs, inputs * bits / 32]`, packed along
//! the inputs, `X.weight_scale [outputs, groups]` and, for asymmetric schemes, `X.weight_zero_point
//! [outputs * bits / 32, groups]`, packed along the outputs. Words at the end of a row, or of a column of zeros, may have places
//! without a number. `X.weight_g_idx` is as in GPTQ.

use safetensors::Dtype;
use sepal_core::ModelConfig;

use super::config::Packed;
use super::gptq::FACTORS;
use super::grouped::{Grouped, IN_ORDER, Offset, Words, Zeros};
use super::parts::Parts;
use super::shapes::layer_shape;
use super::{Kind, Layer};
use crate::error::OpenError;

/// Folds all layers with `weight_packed`.
pub(super) fn fold(parts: &mut Parts<'_>, packed: &Packed, config: &ModelConfig) -> Result<(), OpenError> {
    let &Packed { bits, group, is_symmetric } = packed;
    for layer in parts.layers_with("weight_packed", None) {
        let weight = parts.require(&layer, "weight_packed")?;
        parts.check_dtype((&layer, "weight_packed"), &weight, &[Dtype::I32])?;
        let [outputs, words] = parts.matrix(&layer, "weight_packed", &weight)?;
        let places = words * 32 / bits;
        let stated = layer_shape(config, &layer, outputs * places).map(|[_, inputs]| inputs);
        let inputs = stated.filter(|inputs| (inputs * bits).div_ceil(32) == words).unwrap_or(places);
        let group = group.unwrap_or(inputs).min(inputs);
        let groups = inputs.div_ceil(group);
        let scales = parts.require(&layer, "weight_scale")?;
        let factor_strides = match scales.shape[..] {
            [1] | [1, 1] if groups == 1 => {
                parts.check_dtype((&layer, "weight_scale"), &scales, &FACTORS)?;
                [0, 0]
            }
            _ => {
                parts.check((&layer, "weight_scale"), &scales, &FACTORS, &[outputs, groups])?;
                [groups, 1]
            }
        };
        let zeros = if is_symmetric && !parts.has(&layer, "weight_zero_point") {
            Zeros::Constant(1 << (bits - 1))
        } else {
            let stored = parts.require(&layer, "weight_zero_point")?;
            let shape = [(outputs * bits).div_ceil(32), groups];
            parts.check((&layer, "weight_zero_point"), &stored, &[Dtype::I32], &shape)?;
            let zeros = Words { stored, is_along_outputs: true, word_stride: groups, other_stride: 1, order: IN_ORDER };
            Zeros::Stored(zeros, Offset::Number(0))
        };
        let g_idx = parts.take(&layer, "weight_g_idx");
        if let Some(g_idx) = &g_idx {
            parts.check((&layer, "weight_g_idx"), g_idx, &[Dtype::I32], &[inputs])?;
        }
        let stored = weight.clone();
        let numbers = Words { stored, is_along_outputs: false, word_stride: 1, other_stride: words, order: IN_ORDER };
        let (is_reordered, factors) = (g_idx.is_some() && groups > 1, scales);
        let shape = [outputs, inputs];
        let grouped =
            Grouped { shape, bits, group, numbers, zeros, factors, factor_strides, groups: g_idx, is_reordered };
        parts.add((&layer, "weight_packed"), Kind::Packed { bits }, &weight, Layer::Grouped(grouped))?;
    }
    Ok(())
}
