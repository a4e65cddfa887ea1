use sepal_core::{Experts, Family, ModelConfig};

use super::{llama, mistral};
use crate::config::with_window;
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, GgufExperts, GgufSpec, RowOrder};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Mixtral,
    classifier: Some("MixtralForSequenceClassification"),
    defaults: ClassDefaults { norm_eps: 1e-5, theta: 1_000_000.0, ..mistral::SPEC.defaults },
    read_config,
    sites: linear_sites::MIXTRAL,
    gguf: Some(GgufSpec {
        architecture: "llama",
        experts: Some(GgufExperts { is_softmax_of_all: false, has_own_width: false, has_shared: false }),
        rows: RowOrder::InterleavedHeads,
        ..GgufSpec::LLAMA
    }),
    ..mistral::SPEC
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let config = ModelConfig { experts: Some(experts(keys)?), ..config };
    let size = keys.optional_count("sliding_window")?;
    let blocks = vec![true; if size.is_some() { config.n_blocks } else { 0 }];
    with_window(keys, config, size, blocks)
}

/// `num_experts` is an older name, which takes precedence.
fn experts(keys: Keys<'_>) -> Result<Experts, OpenError> {
    let count = keys.experts_of(&["num_experts", "num_local_experts"], 8)?;
    let per_token = keys.optional_count("num_experts_per_tok")?.unwrap_or(2);
    if per_token > count {
        return Err(keys.wrong("num_experts_per_tok", format!("at most num_local_experts, {count}")));
    }
    Ok(Experts::new(count, per_token))
}
