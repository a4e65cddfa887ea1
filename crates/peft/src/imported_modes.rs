//! Tuning modes of a run from an imported adapter.

use sepal_core::TunableName;
use serde_json::{Map, Value, json};

use crate::adapter::{Adapter, AdapterError, AdapterKind};
use crate::lora_scaling::LoraScaling;
use crate::used_plugin::UsedPlugin;

/// Returns the tuning modes with the options that the tensors and the scaling tell. `n_blocks` is the number of the model's
/// blocks; without it, low-rank factors count as those of all blocks.
pub(crate) fn imported_modes(
    adapter: &Adapter,
    prefix_len: usize,
    scaling: Option<LoraScaling>,
    n_blocks: Option<usize>,
) -> Result<Vec<UsedPlugin>, AdapterError> {
    let mode = |kind: AdapterKind| -> Result<UsedPlugin, AdapterError> {
        let options = match kind {
            AdapterKind::Prompts | AdapterKind::DeepPrompts | AdapterKind::EncodedPrompts | AdapterKind::KeysValues => {
                json!({ "pre_seq_len": prefix_len })
            }
            AdapterKind::Lora => lora_options(adapter, scaling, n_blocks)?,
            AdapterKind::Ia3 => json!({ "targets": sites(adapter, is_scale) }),
        };
        let with = match options {
            Value::Object(with) => with,
            _ => Map::new(),
        };
        Ok(UsedPlugin { name: kind.mode().to_owned(), with })
    };
    adapter.kinds().into_iter().map(mode).collect()
}

fn lora_options(
    adapter: &Adapter,
    scaling: Option<LoraScaling>,
    n_blocks: Option<usize>,
) -> Result<Value, AdapterError> {
    let mut options = json!({ "targets": sites(adapter, is_first_factor) });
    let Some(shape) = adapter.lora_shape()? else { return Ok(options) };
    options["r"] = json!(shape.rank);
    if let Some(scaling) = scaling {
        options["alpha"] = scaling.alpha_json();
        options["rslora"] = json!(scaling.rslora);
    }
    if n_blocks.is_some_and(|n_blocks| shape.n_blocks < n_blocks) {
        options["blocks"] = json!({ "last": shape.n_blocks });
    }
    Ok(options)
}

fn is_first_factor(name: &TunableName) -> bool {
    matches!(name, TunableName::LoraA(_))
}

fn is_scale(name: &TunableName) -> bool {
    matches!(name, TunableName::ScaleOutput(_) | TunableName::ScaleInput(_))
}

fn sites(adapter: &Adapter, is_chosen: fn(&TunableName) -> bool) -> Vec<&str> {
    adapter.tunables().filter(|(name, _)| is_chosen(name)).filter_map(|(name, _)| name.site()).collect()
}

#[cfg(test)]
mod tests {
    use sepal_core::HostTensor;

    use super::*;
    use crate::adapter::{AdapterTensor, Facts, TensorRole};

    fn adapter(tensors: &[(&str, &[usize])]) -> Adapter {
        let zeros = |shape: &[usize]| {
            let numbers = vec![0.0; shape.iter().product()];
            HostTensor::from_f32(shape.to_vec(), &numbers).expect("fits")
        };
        let tensors = tensors
            .iter()
            .map(|(name, shape)| AdapterTensor { role: TensorRole::parse(name).expect("known"), tensor: zeros(shape) });
        Adapter { tensors: tensors.collect(), score: zeros(&[2, 8]), facts: Facts::default() }
    }

    fn check(tensors: &[(&str, &[usize])], expected: Value) {
        let scaling = LoraScaling { rank: 2, alpha: 6.0, rslora: false };
        let modes = imported_modes(&adapter(tensors), 4, Some(scaling), Some(3)).expect("modes");
        assert_eq!(serde_json::to_value(modes).expect("JSON"), expected);
    }

    #[test]
    fn options_follow_from_the_tensors() {
        check(&[("prompts", &[4, 8])], json!([{ "use": "ptune", "with": { "pre_seq_len": 4 } }]));
        let deep: [(&str, &[usize]); 2] = [("prompts", &[4, 8]), ("deep_prompts", &[3, 4, 8])];
        check(&deep, json!([{ "use": "deep-ptune", "with": { "pre_seq_len": 4 } }]));
        check(&[("p_tuning.x", &[1])], json!([{ "use": "p-tuning", "with": { "pre_seq_len": 4 } }]));
        check(
            &[("scale_output:self_attn.k_proj", &[3, 8]), ("scale_input:mlp.down_proj", &[3, 16])],
            json!([{ "use": "ia3", "with": { "targets": ["self_attn.k_proj", "mlp.down_proj"] } }]),
        );
        let factors: [(&str, &[usize]); 2] =
            [("lora_A:self_attn.q_proj", &[3, 2, 8]), ("lora_B:self_attn.q_proj", &[3, 8, 2])];
        let options = json!({ "targets": ["self_attn.q_proj"], "r": 2, "alpha": 6, "rslora": false });
        check(&factors, json!([{ "use": "lora", "with": options }]));
        let last: [(&str, &[usize]); 2] =
            [("lora_A:self_attn.q_proj", &[1, 2, 8]), ("lora_B:self_attn.q_proj", &[1, 8, 2])];
        let mut options = options;
        options["blocks"] = json!({ "last": 1 });
        check(&last, json!([{ "use": "lora", "with": options }]));
    }
}
