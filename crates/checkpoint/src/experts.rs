//! Layers of all experts of a block in one tensor, and the layers of single experts in them (GPT-OSS).

use std::collections::BTreeMap;

use safetensors::Dtype;
use sepal_core::ModelConfig;

use crate::error::OpenError;
use crate::mxfp4::{GROUP, GROUP_BYTES};
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

/// Ends of the names of a tensor in MXFP4: numbers `[experts, outputs, groups, 16]` and factors `[experts, outputs, groups]`.
const NUMBERS: &str = "_blocks";
const FACTORS: &str = "_scales";

/// Adds the layers of single experts to the store, for example `mlp.experts.3.gate_proj.weight` `[outputs, inputs]` beside
/// `mlp.experts.gate_up_proj` `[experts, inputs, 2 * outputs]`, where columns of gate and up alternate. Numbers in MXFP4 and
/// their factors become one tensor `[experts, inputs, outputs]`.
///
/// # Errors
/// [`OpenError::Unsupported`] for numbers in MXFP4 without factors, or of another shape, and for another number of experts
/// than that of the configuration.
pub(crate) fn separate(store: &mut Store, config: &ModelConfig) -> Result<(), OpenError> {
    let is_quantized = |name: &&String| name.contains(".experts.") && name.ends_with(NUMBERS);
    let quantized: Vec<String> = store.tensors.keys().filter(is_quantized).cloned().collect();
    for name in quantized {
        join(store, &name)?;
    }
    let count = config.experts.map_or(0, |experts| experts.count);
    let mut experts = BTreeMap::new();
    for (name, stored) in &store.tensors {
        let Some((folder, parts)) = parts_of_experts(name) else { continue };
        if stored.shape.first() != Some(&count) || stored.shape.contains(&0) {
            return Err(OpenError::Unsupported {
                path: store.files[stored.file].path().to_owned(),
                key: name.clone(),
                found: format!("of the shape {:?}", stored.shape),
                supported: format!("the layers of {count} experts, as in the configuration"),
            });
        }
        experts.extend(layers_of_experts(folder, parts, stored));
    }
    store.experts = experts;
    Ok(())
}

/// Replaces the tensor `name` of numbers in MXFP4 and that of their factors by one tensor.
fn join(store: &mut Store, name: &str) -> Result<(), OpenError> {
    let Some(layer) = name.strip_suffix(NUMBERS) else { return Ok(()) };
    let factors_name = format!("{layer}{FACTORS}");
    let (Some(numbers), factors) = (store.tensors.remove(name), store.tensors.remove(&factors_name)) else {
        return Ok(());
    };
    if store.tensors.contains_key(layer) {
        return Err(OpenError::Unsupported {
            path: store.files[numbers.file].path().to_owned(),
            key: name.to_owned(),
            found: format!("beside `{layer}`"),
            supported: "one of them".to_owned(),
        });
    }
    let bytes = Encoding::Plain(Dtype::U8);
    let joined = match (&numbers.shape[..], &factors) {
        (&[experts, outputs, groups, GROUP_BYTES], Some(factors))
            if numbers.encoding == bytes
                && factors.encoding == bytes
                && factors.shape == [experts, outputs, groups]
                && !factors.shape.contains(&0)
                && groups.checked_mul(GROUP).is_some() =>
        {
            let encoding = Encoding::Mxfp4 { scales_file: factors.file, scales_offset: factors.offset };
            Stored { encoding, shape: vec![experts, groups * GROUP, outputs], ..numbers }
        }
        _ => {
            let factors = format!("`{factors_name}` of U8 [experts, outputs, groups]");
            return Err(OpenError::Unsupported {
                path: store.files[numbers.file].path().to_owned(),
                key: name.to_owned(),
                found: format!("{} {:?}", numbers.encoding.name(), numbers.shape),
                supported: format!("U8 [experts, outputs, groups, 16] beside {factors}"),
            });
        }
    };
    store.tensors.insert(layer.to_owned(), joined);
    Ok(())
}

/// Layers of an expert in a tensor of all experts: the end of its name, the first of its columns and their distance.
type PartsOfExpert = &'static [(&'static str, usize, usize)];

/// The beginning of the names of experts, and their layers, in the tensor `name` of all experts; `None` for another tensor.
fn parts_of_experts(name: &str) -> Option<(&str, PartsOfExpert)> {
    let (folder, layer) = name.rsplit_once(".experts.")?;
    let parts: PartsOfExpert = match layer {
        "gate_up_proj" => &[("gate_proj.weight", 0, 2), ("up_proj.weight", 1, 2)],
        "gate_up_proj_bias" => &[("gate_proj.bias", 0, 2), ("up_proj.bias", 1, 2)],
        "down_proj" => &[("down_proj.weight", 0, 1)],
        "down_proj_bias" => &[("down_proj.bias", 0, 1)],
        _ => return None,
    };
    Some((folder, parts))
}

/// Layers of single experts in a tensor of all experts.
fn layers_of_experts(folder: &str, parts: PartsOfExpert, stored: &Stored) -> Vec<(String, Stored)> {
    let experts = 0..stored.shape.first().copied().unwrap_or(0);
    let layer = |expert: usize, &(end, first, step): &(&str, usize, usize)| {
        let is_plain = matches!(stored.encoding, Encoding::Plain(_));
        let (shape, rows) = match stored.shape[..] {
            [_, inputs, width] if is_plain => (vec![width / step, inputs], Rows::Columns { first, step }),
            [_, inputs, width] => (vec![width / step, inputs], Rows::Every { first, step }),
            [_, width] => (vec![width / step], Rows::Every { first, step }),
            _ => return None,
        };
        let is_whole = stored.shape.last().is_some_and(|width| width.is_multiple_of(step));
        let layer = (format!("{folder}.experts.{expert}.{end}"), Stored { shape, rows, ..stored.expert(expert) });
        is_whole.then_some(layer)
    };
    experts.flat_map(|expert| parts.iter().filter_map(move |part| layer(expert, part))).collect()
}

impl Stored {
    /// The part of one expert of a tensor of all experts, with the shape of all.
    pub(crate) fn expert(&self, expert: usize) -> Self {
        let len = self.len / self.shape.first().map_or(1, |experts| *experts as u64).max(1);
        let start = expert as u64 * len;
        let encoding = match self.encoding {
            Encoding::Mxfp4 { scales_file, scales_offset } => {
                Encoding::Mxfp4 { scales_file, scales_offset: scales_offset + start / GROUP_BYTES as u64 }
            }
            plain => plain,
        };
        Self { encoding, offset: self.offset + start, len, ..self.clone() }
    }
}
