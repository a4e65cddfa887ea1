//! Keys that change the numbers of a model and are not supported, and tensors of that kind beside the weights.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::family::FamilySpec;
use crate::keys::Keys;
use crate::quantized::Quantization;

/// Former key of quantized weights.
const COMPRESSION: &str = "compression_config";

/// Keys that refer to other files or blocks, and the supported alternative.
const ELSEWHERE: [(&str, &str); 3] = [
    ("configuration_files", "a config.json that stands for itself"),
    ("per_layer_config", "the same configuration for all blocks"),
    ("transformers_weights", "weights in model.safetensors, or in the shards of its index"),
];

/// Last parts of the names of packed tensors.
const PACKED: [&str; 7] = ["qweight", "qzeros", "W_q", "weight_packed", "weight_scale", "SCB", "codes"];

/// Refuses keys that change a model's numbers and that no family applies, and quantizations that are not supported.
pub(crate) fn keys(keys: Keys<'_>, spec: &FamilySpec) -> Result<(), OpenError> {
    if let Some(value) = keys.get(COMPRESSION) {
        let format = value.get("format").and_then(Value::as_str);
        return Err(keys.quantized(COMPRESSION, format.unwrap_or("there").to_owned()));
    }
    if let Some(quantization) = Quantization::read(keys, spec.family)?
        && spec.has_rows_of_inputs
    {
        // Quantized layers have a row for each output.
        let found = format!("{} of a {} model", quantization.method(), spec.family.name());
        return Err(keys.quantized("quantization_config", found));
    }
    for (key, supported) in ELSEWHERE {
        if keys.get(key).is_some() {
            return Err(keys.unsupported(key, supported));
        }
    }
    match keys.get("is_causal") {
        None | Some(Value::Bool(true)) => Ok(()),
        Some(_) => Err(keys.unsupported("is_causal", "true")),
    }
}

/// Refuses quantized weights, by the names and types of tensors, and biases that the configuration rules out, which would
/// be left out. `path` is the file or folder of the weights.
pub(crate) fn weights<'a>(
    path: &Path,
    (config_path, config): (&Path, &Map<String, Value>),
    spec: &FamilySpec,
    tensors: impl Iterator<Item = (&'a str, Dtype)>,
) -> Result<(), OpenError> {
    let tensors: Vec<(&str, Dtype)> = tensors.collect();
    let names: BTreeSet<&str> = tensors.iter().map(|(name, _)| *name).collect();
    for &(name, dtype) in &tensors {
        if let Some(found) = quantized(name, dtype, &names) {
            return Err(OpenError::Quantized { path: path.to_owned(), key: name.to_owned(), found });
        }
    }
    let names = names.into_iter();
    match ruled_out_biases((config_path, config), spec, names)?.into_iter().next() {
        None => Ok(()),
        Some((name, supported)) => {
            let (path, found) = (path.to_owned(), "a tensor of it".to_owned());
            Err(OpenError::Unsupported { path, key: name.to_owned(), found, supported })
        }
    }
}

/// Biases that the configuration rules out, each with the supported alternative.
pub(crate) fn ruled_out_biases<'a>(
    (config_path, config): (&Path, &Map<String, Value>),
    spec: &FamilySpec,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<(&'a str, String)>, OpenError> {
    let keys = Keys::new(config_path, config);
    let biases: Vec<(&str, &str)> = names.filter_map(|name| Some((name, name.strip_suffix(".bias")?))).collect();
    let mut ruled_out = Vec::new();
    for without_bias in spec.without_bias {
        if let Some((key, default)) = without_bias.unless
            && keys.flag_unless_null(key, default)?
        {
            continue;
        }
        let is_layer = |layer: &str| without_bias.layers.iter().any(|end| layer.ends_with(end));
        let supported = match without_bias.unless {
            Some((key, _)) => format!("none of that name unless `{key}` is true in {}", config_path.display()),
            None => format!("the tensors of a {} model", spec.family.name()),
        };
        let of_layers = biases.iter().filter(|(_, layer)| is_layer(layer));
        ruled_out.extend(of_layers.map(|(name, _)| (*name, supported.clone())));
    }
    Ok(ruled_out)
}

/// The sign of quantized weights that a tensor bears, if any.
fn quantized(name: &str, dtype: Dtype, names: &BTreeSet<&str>) -> Option<String> {
    let (module, part) = name.rsplit_once('.')?;
    let is_beside = || name.contains(".weight.") || names.contains(format!("{module}.weight").as_str());
    match part {
        "weight" if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) => Some(format!("of {dtype}")),
        "weight" | "bias" => None,
        _ if PACKED.contains(&part) || is_beside() => Some("a tensor of it".to_owned()),
        _ => None,
    }
}
