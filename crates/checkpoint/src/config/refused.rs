//! Keys that change the numbers of a model and are not followed here, and tensors of that kind beside the weights.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;
use sepal_core::Family;
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::keys::Keys;

/// Keys that say that the weights are quantized.
const QUANTIZED: [&str; 2] = ["quantization_config", "compression_config"];

/// Keys that lead elsewhere, and what is read in their place.
const ELSEWHERE: [(&str, &str); 3] = [
    ("configuration_files", "a config.json that stands for itself"),
    ("per_layer_config", "the same configuration for all blocks"),
    ("transformers_weights", "weights in model.safetensors, or in the shards of its index"),
];

/// The last part of the names of tensors that packed weights are made of.
const PACKED: [&str; 7] = ["qweight", "qzeros", "W_q", "weight_packed", "weight_scale", "SCB", "codes"];

const QKV: [&str; 3] = [".q_proj", ".k_proj", ".v_proj"];
const QKVO: [&str; 4] = [".q_proj", ".k_proj", ".v_proj", ".o_proj"];
const GATED: [&str; 3] = [".gate_proj", ".up_proj", ".down_proj"];
const FUSED: [&str; 4] = [".query_key_value", ".self_attention.dense", ".dense_h_to_4h", ".dense_4h_to_h"];
const OPT: [&str; 6] = [".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2"];

/// Refuses keys that no family follows.
pub(super) fn keys(keys: Keys<'_>) -> Result<(), OpenError> {
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

/// The method of quantization, in a word.
fn method(value: &Value) -> String {
    let word = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let flag = |key: &str| (value.get(key) == Some(&Value::Bool(true))).then(|| key.to_owned());
    let known = word("quant_method").or_else(|| word("format")).or_else(|| flag("load_in_4bit"));
    known.or_else(|| flag("load_in_8bit")).unwrap_or_else(|| "there".to_owned())
}

/// Refuses weights, by their names and types, that mean something else than their numbers: quantized ones, and biases
/// that the configuration says are not there, which would be left out. `path` is where the weights are.
pub(crate) fn weights<'a>(
    path: &Path,
    (config_path, config): (&Path, &Map<String, Value>),
    family: Family,
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
    for (layers, key) in without_bias(keys, family)? {
        let of_layers = |layer: &str| layers.iter().any(|end| layer.ends_with(end));
        let found = names.iter().find(|name| name.strip_suffix(".bias").is_some_and(of_layers));
        if let Some(name) = found {
            let supported = match key {
                Some(key) => format!("none of that name unless `{key}` is true in {}", config_path.display()),
                None => format!("the tensors of a {} model", family.name()),
            };
            let (path, found) = (path.to_owned(), "a tensor of it".to_owned());
            return Err(OpenError::Unsupported { path, key: (*name).to_owned(), found, supported });
        }
    }
    Ok(())
}

/// The sign by which a tensor is one of quantized weights, if it is.
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

/// Linear layers that have no biases by the configuration, each group with the key that would say that they have.
type WithoutBias = Vec<(&'static [&'static str], Option<&'static str>)>;

fn without_bias(keys: Keys<'_>, family: Family) -> Result<WithoutBias, OpenError> {
    let unless = |key: &'static str, layers: &'static [&'static str], default: bool| {
        let has = keys.flag_unless_null(key, default)?;
        Ok::<_, OpenError>((if has { &[] } else { layers }, Some(key)))
    };
    Ok(match family {
        Family::Llama => vec![unless("attention_bias", &QKVO, false)?, unless("mlp_bias", &GATED, false)?],
        Family::Mistral | Family::Mixtral => vec![(&QKVO, None), (&GATED, None)],
        Family::Qwen2 => vec![(&[".o_proj"], None), (&GATED, None)],
        Family::Qwen3 | Family::Gemma | Family::Gemma2 | Family::Gemma3 => {
            vec![unless("attention_bias", &QKVO, false)?, (&GATED, None)]
        }
        Family::Phi3 => vec![(&[".qkv_proj", ".o_proj", ".gate_up_proj", ".down_proj"], None)],
        Family::Stablelm => vec![unless("use_qkv_bias", &QKV, false)?, (&[".o_proj"], None), (&GATED, None)],
        Family::Falcon => vec![unless("bias", &FUSED, false)?],
        Family::GptNeox => vec![unless("attention_bias", &[".query_key_value", ".attention.dense"], true)?],
        Family::Opt => vec![unless("enable_bias", &OPT, true)?],
        // BLOOM and GPT-2 have them everywhere.
        _ => Vec::new(),
    })
}
