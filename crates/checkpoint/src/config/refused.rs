//! Keys that change the numbers of a model and are not supported, and tensors of that kind beside the weights.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::family::FamilySpec;
use crate::keys::Keys;

/// Keys of quantized weights.
const QUANTIZED: [&str; 2] = ["quantization_config", "compression_config"];

/// Keys that refer to other files or blocks, and the supported alternative.
const ELSEWHERE: [(&str, &str); 3] = [
    ("configuration_files", "a config.json that stands for itself"),
    ("per_layer_config", "the same configuration for all blocks"),
    ("transformers_weights", "weights in model.safetensors, or in the shards of its index"),
];

/// Last parts of the names of packed tensors.
const PACKED: [&str; 7] = ["qweight", "qzeros", "W_q", "weight_packed", "weight_scale", "SCB", "codes"];

/// Refuses keys that change a model's numbers and that no family applies.
pub(crate) fn keys(keys: Keys<'_>) -> Result<(), OpenError> {
    for key in QUANTIZED {
        if let Some(value) = keys.get(key) {
            return Err(keys.quantized(key, method(value)));
        }
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

/// Name of the quantization method.
fn method(value: &Value) -> String {
    let word = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let flag = |key: &str| (value.get(key) == Some(&Value::Bool(true))).then(|| key.to_owned());
    let known = word("quant_method").or_else(|| word("format")).or_else(|| flag("load_in_4bit"));
    known.or_else(|| flag("load_in_8bit")).unwrap_or_else(|| "there".to_owned())
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
    let keys = Keys::new(config_path, config);
    for without_bias in spec.without_bias {
        if let Some((key, default)) = without_bias.unless
            && keys.flag_unless_null(key, default)?
        {
            continue;
        }
        let is_layer = |layer: &str| without_bias.layers.iter().any(|end| layer.ends_with(end));
        let found = names.iter().find(|name| name.strip_suffix(".bias").is_some_and(is_layer));
        if let Some(name) = found {
            let supported = match without_bias.unless {
                Some((key, _)) => format!("none of that name unless `{key}` is true in {}", config_path.display()),
                None => format!("the tensors of a {} model", spec.family.name()),
            };
            let (path, found) = (path.to_owned(), "a tensor of it".to_owned());
            return Err(OpenError::Unsupported { path, key: (*name).to_owned(), found, supported });
        }
    }
    Ok(())
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
