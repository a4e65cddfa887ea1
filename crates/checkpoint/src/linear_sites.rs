use sepal_core::{Family, LinearSite, ModelConfig, SiteRole};

use crate::families::spec;

/// Linear layers of a block by their names in the HF layout, after the block's prefix.
pub(crate) type Sites = &'static [(&'static str, SiteRole)];

/// Separate queries, keys, values, gate and other half.
pub(crate) const LLAMA: Sites = &[
    ("self_attn.q_proj", SiteRole::Query),
    ("self_attn.k_proj", SiteRole::Key),
    ("self_attn.v_proj", SiteRole::Value),
    ("self_attn.o_proj", SiteRole::AttentionOutput),
    ("mlp.gate_proj", SiteRole::MlpInput),
    ("mlp.up_proj", SiteRole::MlpInput),
    ("mlp.down_proj", SiteRole::MlpOutput),
];

/// As [`LLAMA`], without the MLP: the layers of experts take no adapters.
pub(crate) const MIXTRAL: Sites = LLAMA.split_at(4).0;

pub(crate) const BLOOM: Sites = &[
    ("self_attention.query_key_value", SiteRole::QueryKeyValue),
    ("self_attention.dense", SiteRole::AttentionOutput),
    ("mlp.dense_h_to_4h", SiteRole::MlpInput),
    ("mlp.dense_4h_to_h", SiteRole::MlpOutput),
];

pub(crate) const GPT_NEOX: Sites = &[
    ("attention.query_key_value", SiteRole::QueryKeyValue),
    ("attention.dense", SiteRole::AttentionOutput),
    ("mlp.dense_h_to_4h", SiteRole::MlpInput),
    ("mlp.dense_4h_to_h", SiteRole::MlpOutput),
];

pub(crate) const GPT2: Sites = &[
    ("attn.c_attn", SiteRole::QueryKeyValue),
    ("attn.c_proj", SiteRole::AttentionOutput),
    ("mlp.c_fc", SiteRole::MlpInput),
    ("mlp.c_proj", SiteRole::MlpOutput),
];

pub(crate) const OPT: Sites = &[
    ("self_attn.q_proj", SiteRole::Query),
    ("self_attn.k_proj", SiteRole::Key),
    ("self_attn.v_proj", SiteRole::Value),
    ("self_attn.out_proj", SiteRole::AttentionOutput),
    ("fc1", SiteRole::MlpInput),
    ("fc2", SiteRole::MlpOutput),
];

pub(crate) const PHI3: Sites = &[
    ("self_attn.qkv_proj", SiteRole::QueryKeyValue),
    ("self_attn.o_proj", SiteRole::AttentionOutput),
    (GATE_UP, SiteRole::MlpInput),
    ("mlp.down_proj", SiteRole::MlpOutput),
];

pub(crate) const GLM4: Sites = &[
    ("self_attn.q_proj", SiteRole::Query),
    ("self_attn.k_proj", SiteRole::Key),
    ("self_attn.v_proj", SiteRole::Value),
    ("self_attn.o_proj", SiteRole::AttentionOutput),
    (GATE_UP, SiteRole::MlpInput),
    ("mlp.down_proj", SiteRole::MlpOutput),
];

/// A layer with the outputs of the gate and of the other half.
const GATE_UP: &str = "mlp.gate_up_proj";

/// Returns the linear layers of each block of a model that adapters can change.
pub fn linear_sites(config: &ModelConfig) -> Vec<LinearSite> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let (q, kv) = (config.n_heads * config.head_dim, config.kv_size());
    let site = |&(name, role): &(&str, SiteRole)| {
        let (outputs, inputs) = match role {
            SiteRole::Query => (q, hidden),
            SiteRole::Key | SiteRole::Value => (kv, hidden),
            SiteRole::QueryKeyValue => (q + 2 * kv, hidden),
            SiteRole::AttentionOutput => (hidden, q),
            SiteRole::MlpInput => (if name == GATE_UP { 2 * ffn } else { ffn }, hidden),
            SiteRole::MlpOutput => (hidden, ffn),
        };
        LinearSite::new(name, outputs, inputs, role)
    };
    spec(config.family).sites.iter().map(site).collect()
}

/// Name of a block's layer in the HF layout, for example `model.layers.3.self_attn.q_proj`.
pub fn site_path(family: Family, block_idx: usize, site: &str) -> String {
    format!("{}{site}", crate::tensor_names(family).block_prefix(block_idx))
}
