//! Cohere's second generation: Command R7B and Command A.

use sepal_core::{Family, ModelConfig};

use super::cohere;
use super::gemma::windowed_blocks;
use crate::config::with_window;
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Cohere2,
    defaults: ClassDefaults { theta: 10_000.0, ..cohere::SPEC.defaults },
    read_config,
    ..cohere::SPEC
};

/// All but every fourth block, unless stated, have a window. The others have no positions.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = cohere::read_parallel(keys, spec)?;
    let period = keys.optional_count("sliding_window_pattern")?.unwrap_or(4);
    let (size, blocks) = windowed_blocks(keys, config.n_blocks, period)?;
    let unrotated_blocks = match blocks.contains(&false) {
        true => blocks.iter().map(|has_window| !has_window).collect(),
        false => Vec::new(),
    };
    with_window(keys, ModelConfig { unrotated_blocks, ..config }, size, blocks)
}
