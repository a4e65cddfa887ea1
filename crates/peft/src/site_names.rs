//! Names of the tensors that PEFT saves for linear layers.

use sepal_checkpoint::{site_path, tensor_names};
use sepal_core::{Family, ModelConfig};

/// Name of the wrapped model in files of LORA and IA3.
pub(crate) const WRAPPED: &str = "base_model.model.";

/// Tensor that PEFT saves for a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SitePart {
    LoraA,
    LoraB,
    /// Factors of IA3.
    Factors,
}

impl SitePart {
    const ALL: [Self; 3] = [Self::LoraA, Self::LoraB, Self::Factors];

    /// Ends of a tensor's name: in a file, and in the state of a module.
    fn ends(self) -> [&'static str; 2] {
        match self {
            Self::LoraA => [".lora_A.weight", ".lora_A.default.weight"],
            Self::LoraB => [".lora_B.weight", ".lora_B.default.weight"],
            Self::Factors => [".ia3_l", ".ia3_l.default"],
        }
    }

    /// Splits the name of a tensor into that of the layer and the part.
    pub(crate) fn split(name: &str) -> Option<(&str, Self)> {
        Self::ALL.into_iter().find_map(|part| {
            let layer = part.ends().into_iter().find_map(|end| name.strip_suffix(end))?;
            Some((layer.strip_prefix(WRAPPED)?, part))
        })
    }
}

/// Returns PEFT's name of a tensor, for example `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`.
pub(crate) fn tensor_name(family: Family, block_idx: usize, site: &str, part: SitePart) -> String {
    format!("{WRAPPED}{}{}", site_path(family, block_idx, site), part.ends()[0])
}

/// Splits the name of a layer, for example `model.layers.3.self_attn.q_proj`, into the block and the layer within it.
pub(crate) fn block_and_site<'a>(config: &ModelConfig, layer: &'a str) -> Option<(usize, &'a str)> {
    let names = tensor_names(config.family);
    let within = layer.strip_prefix(names.prefix)?.strip_prefix(names.blocks)?.strip_prefix('.')?;
    let (block_idx, site) = within.split_once('.')?;
    let block_idx: usize = block_idx.parse().ok()?;
    (block_idx < config.n_blocks).then_some((block_idx, site))
}

/// Returns names for `target_modules`: the last part of a layer's name where it means chosen layers only, otherwise the
/// name within the block. PEFT compares the ends of names.
pub(crate) fn target_modules(chosen: &[&str], all: &[&str]) -> Vec<String> {
    let shortest = |site: &&str| {
        let last = site.rsplit('.').next().unwrap_or(site);
        let is_meant = |other: &&&str| **other == last || other.ends_with(&format!(".{last}"));
        let is_exact = all.iter().filter(is_meant).all(|other| chosen.contains(other));
        if is_exact { last.to_owned() } else { (*site).to_owned() }
    };
    let mut names: Vec<String> = chosen.iter().map(shortest).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_peft() {
        let name = tensor_name(Family::Llama, 3, "self_attn.q_proj", SitePart::LoraA);
        assert_eq!(name, "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight");
        assert_eq!(SitePart::split(&name), Some(("model.layers.3.self_attn.q_proj", SitePart::LoraA)));
        let name = tensor_name(Family::Opt, 0, "fc2", SitePart::Factors);
        assert_eq!(name, "base_model.model.model.decoder.layers.0.fc2.ia3_l");
        let layers = [
            (Family::Gpt2, "transformer.h.1.attn.c_attn", "attn.c_attn"),
            (Family::Bloom, "transformer.h.1.self_attention.query_key_value", "self_attention.query_key_value"),
            (Family::GptNeox, "gpt_neox.layers.1.attention.dense", "attention.dense"),
            (Family::Opt, "model.decoder.layers.1.fc1", "fc1"),
        ];
        for (family, layer, site) in layers {
            let config = ModelConfig::plain(family, 2, 8, 2, 16, 32);
            assert_eq!(block_and_site(&config, layer), Some((1, site)));
        }
        let config = ModelConfig::plain(Family::Llama, 2, 8, 2, 16, 32);
        for other in ["model.layers.2.mlp.up_proj", "layers.0.mlp.up_proj", "model.layers.x.mlp.up_proj", "lm_head"] {
            assert_eq!(block_and_site(&config, other), None, "{other}");
        }
        assert_eq!(SitePart::split("base_model.model.score.weight"), None);
    }

    #[test]
    fn targets_mean_chosen_layers_only() {
        let all = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
        assert_eq!(target_modules(&["attn.c_attn", "mlp.c_proj"], &all), ["c_attn", "mlp.c_proj"]);
        assert_eq!(target_modules(&all, &all), ["c_attn", "c_fc", "c_proj"]);
        let all = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "fc1"];
        assert_eq!(target_modules(&["attention.dense", "fc1"], &all), ["dense", "fc1"]);
    }
}
