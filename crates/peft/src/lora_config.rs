//! Keys of a LORA's `adapter_config.json`.

use sepal_checkpoint::site_path;
use sepal_core::Family;
use serde_json::{Map, Value};

use crate::config::AdapterConfig;
use crate::import_error::ImportError;
use crate::lora_scaling::LoraScaling;

/// Keys that change the computation beyond the low-rank additions, with the name of their method.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("use_dora", "DoRA"),
    ("lora_bias", "biases of the second factors"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("arrow_config", "Arrow routing"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "MonteCLoRA"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("layer_replication", "replicated blocks"),
    ("target_parameters", "additions to parameters outside of linear layers"),
    ("trainable_token_indices", "trained embeddings"),
    ("megatron_config", "layers of Megatron"),
];

/// Beginnings of `init_lora_weights` that replace the weights of the base model.
const REPLACED_WEIGHTS: [&str; 5] = ["pissa", "olora", "corda", "lora_ga", "loftq"];

/// Error if the configuration has a feature that a run does not have.
pub(crate) fn check_features(config: &AdapterConfig) -> Result<(), ImportError> {
    let value = |key: &str| config.others.get(key).filter(|value| is_set(value));
    let refused = |key: &str, value: &Value, feature: &str| {
        Err(ImportError::Feature { key: key.to_owned(), value: value.to_string(), feature: feature.to_owned() })
    };
    for (key, feature) in UNSUPPORTED {
        if let Some(value) = value(key) {
            return refused(key, value, feature);
        }
    }
    if let Some(bias) = value("bias").filter(|bias| bias.as_str() != Some("none")) {
        return refused("bias", bias, "trained biases");
    }
    let key = "init_lora_weights";
    match value(key) {
        Some(init) if REPLACED_WEIGHTS.iter().any(|name| init.as_str().is_some_and(|init| init.starts_with(name))) => {
            refused(key, init, "changed weights of the base model")
        }
        _ => Ok(()),
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(_) => true,
    }
}

/// Alpha of each layer.
#[derive(Debug)]
pub(crate) struct Alphas {
    default: f64,
    rslora: bool,
    /// Ends of the names of layers, in the order of the file, of which the first that fits counts.
    patterns: Vec<(String, f64)>,
}

/// PEFT's default.
const ALPHA: f64 = 8.0;

impl Alphas {
    pub(crate) fn read(config: &AdapterConfig) -> Result<Self, ImportError> {
        let default = config.lora_alpha.unwrap_or(ALPHA);
        let patterns = config.alpha_pattern.iter().flat_map(Map::iter).map(|(pattern, alpha)| {
            let end = literal(pattern).ok_or_else(|| ImportError::Pattern { pattern: pattern.clone() })?;
            Ok((end, positive("alpha_pattern", alpha.as_f64().unwrap_or(f64::NAN))?))
        });
        Ok(Self {
            default: positive("lora_alpha", default)?,
            rslora: config.use_rslora.unwrap_or(false),
            patterns: patterns.collect::<Result<_, ImportError>>()?,
        })
    }

    /// Scaling of a layer without a pattern.
    pub(crate) fn default_scaling(&self, rank: usize) -> LoraScaling {
        LoraScaling { rank, alpha: self.default, rslora: self.rslora }
    }

    /// Scaling of one layer with a first factor of this rank.
    pub(crate) fn of_layer(&self, family: Family, block_idx: usize, site: &str, rank: usize) -> LoraScaling {
        let layer = site_path(family, block_idx, site);
        let fits = |end: &str| match end.strip_prefix('^') {
            Some(start) => layer == start,
            None => layer == end || layer.ends_with(&format!(".{end}")),
        };
        let alpha = self.patterns.iter().find(|(end, _)| fits(end)).map_or(self.default, |(_, alpha)| *alpha);
        LoraScaling { alpha, ..self.default_scaling(rank) }
    }
}

fn positive(key: &'static str, alpha: f64) -> Result<f64, ImportError> {
    if alpha.is_finite() && alpha > 0.0 { Ok(alpha) } else { Err(ImportError::Alpha { key }) }
}

/// Returns the names that a regular expression matches, if it is only text: `^` at its beginning stays, `\.` becomes a dot.
fn literal(pattern: &str) -> Option<String> {
    let text = pattern.replace("\\.", ".");
    let name = text.strip_prefix('^').unwrap_or(&text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    (!name.is_empty() && name.chars().all(is_plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> AdapterConfig {
        serde_json::from_value(json).expect("a configuration")
    }

    #[test]
    fn alpha_of_a_layer_is_that_of_the_first_pattern() {
        let json = serde_json::json!({ "lora_alpha": 6, "use_rslora": false, "alpha_pattern": {
            "^model.layers.0.self_attn.q_proj": 1, "layers\\.1.self_attn.q_proj": 2.5, "q_proj": 3, "proj": 4,
        }});
        let alphas = Alphas::read(&config(json)).expect("read");
        let alpha = |block_idx, site| alphas.of_layer(Family::Llama, block_idx, site, 2).alpha;
        let found = [0, 1, 2].map(|block_idx| alpha(block_idx, "self_attn.q_proj"));
        assert_eq!((found, alpha(0, "self_attn.v_proj")), ([1.0, 2.5, 3.0], 6.0));
        assert_eq!(alphas.of_layer(Family::Llama, 2, "self_attn.q_proj", 2).factor(), 1.5);
        let defaults = Alphas::read(&config(serde_json::json!({}))).expect("read");
        assert_eq!(defaults.default_scaling(4).factor(), 2.0);
    }

    #[test]
    fn unusable_alphas_are_refused() {
        let refused = |json, expected: &str| {
            let error = Alphas::read(&config(json)).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(serde_json::json!({ "lora_alpha": 0 }), "`lora_alpha`");
        refused(serde_json::json!({ "alpha_pattern": { "q_proj": "a" } }), "`alpha_pattern`");
        refused(serde_json::json!({ "alpha_pattern": { "layers.(0|1).mlp": 2 } }), "layers.(0|1).mlp");
    }

    #[test]
    fn features_beyond_low_rank_additions_are_refused() {
        let check = |json| check_features(&config(json)).map_err(|error| error.to_string());
        let plain = serde_json::json!({ "use_dora": false, "bias": "none", "arrow_config": null, "layer_replication": null,
            "target_parameters": [], "init_lora_weights": true, "lora_dropout": 0.1, "exclude_modules": ["x"] });
        assert_eq!(check(plain), Ok(()));
        for (key, value, expected) in [
            ("use_dora", serde_json::json!(true), "`use_dora: true` (DoRA)"),
            ("bias", serde_json::json!("lora_only"), "`bias: \"lora_only\"` (trained biases)"),
            ("layer_replication", serde_json::json!([[0, 2]]), "replicated blocks"),
            ("init_lora_weights", serde_json::json!("pissa_niter_4"), "changed weights of the base model"),
        ] {
            let error = check(serde_json::json!({ key: value })).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
