use sepal_core::ModelConfig;

use crate::linear_sites::linear_sites;

/// Outputs and inputs of a layer, for layouts whose tensors do not have them. Of layers of experts and routers, `numbers` gives
/// the size that the configuration does not. `None` if the name of the layer is unknown.
pub(super) fn layer_shape(config: &ModelConfig, layer: &str, numbers: usize) -> Option<[usize; 2]> {
    let is_named =
        |name: &str| layer.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    if let Some(site) = linear_sites(config).into_iter().find(|site| is_named(&site.name)) {
        return Some([site.outputs, site.inputs]);
    }
    let (hidden, inner) = (config.hidden, numbers / config.hidden.max(1));
    if ["lm_head", "embed_out"].into_iter().any(is_named) {
        return Some([config.vocab_size, hidden]);
    }
    // Layers of experts, and routers.
    let of_inner = ["w1", "w3", "gate_proj", "up_proj", "gate", "shared_expert_gate", "router"];
    if of_inner.into_iter().any(is_named) {
        return Some([inner, hidden]);
    }
    ["w2", "down_proj"].into_iter().any(is_named).then_some([hidden, inner])
}

#[cfg(test)]
mod tests {
    use sepal_core::{Experts, Family};

    use super::*;

    #[test]
    fn shapes_of_routers_and_experts_follow_from_their_names() {
        let plain = ModelConfig::plain(Family::Mixtral, 2, 64, 4, 96, 10);
        let config = ModelConfig { experts: Some(Experts::new(8, 2)), ..plain };
        for (layer, shape) in [
            ("model.layers.0.block_sparse_moe.gate", [8, 64]),
            ("model.layers.0.mlp.shared_expert_gate", [1, 64]),
            ("model.layers.0.mlp.router", [8, 64]),
            ("model.layers.0.block_sparse_moe.experts.3.w1", [96, 64]),
            ("model.layers.0.block_sparse_moe.experts.3.w2", [64, 96]),
        ] {
            assert_eq!(layer_shape(&config, layer, shape[0] * shape[1]), Some(shape), "{layer}");
        }
        assert_eq!(layer_shape(&config, "model.layers.0.mlp.investigate", 64), None);
    }
}
