//! Random tunables of tiny models.

use sepal_checkpoint::linear_sites;
use sepal_core::{DEEP_PROMPTS, LinearSite, SiteRole, TunableName};
use sepal_nn::Tunable;
use tch::Tensor;

use crate::model::Tiny;

/// Returns deep prompts of all blocks.
pub(crate) fn deep_prompts(model: &Tiny, prefix_len: usize, seed: u64) -> Tunable {
    Tunable::new(DEEP_PROMPTS, stacked(model, &[prefix_len, model.config.hidden], seed))
}

/// Returns low-rank factors of all blocks, for the layers with a selected role.
pub(crate) fn lora(model: &Tiny, rank: usize, is_selected: impl Fn(SiteRole) -> bool, seed: u64) -> Vec<Tunable> {
    let sites = linear_sites(&model.config).into_iter().filter(|site| is_selected(site.role));
    let factors = |(i, LinearSite { name, outputs, inputs, .. }): (usize, LinearSite)| {
        let factor = |shape: [usize; 2], part: u64| 0.4 * stacked(model, &shape, 1000 * seed + 2 * i as u64 + part);
        let (a, b) = (TunableName::LoraA(name.clone()), TunableName::LoraB(name));
        [
            Tunable::new(a.to_string(), factor([rank, inputs], 0)),
            Tunable::new(b.to_string(), factor([outputs, rank], 1)),
        ]
    };
    let tunables: Vec<Tunable> = sites.enumerate().flat_map(factors).collect();
    assert!(!tunables.is_empty(), "no layer is selected");
    tunables
}

/// Roles of the layers of queries and of values.
pub(crate) fn is_query_or_value(role: SiteRole) -> bool {
    matches!(role, SiteRole::Query | SiteRole::Value | SiteRole::QueryKeyValue)
}

/// Returns factors around 1 of all blocks: of the inputs of the MLP's last layer and of the outputs of the others.
pub(crate) fn ia3(model: &Tiny, seed: u64) -> Vec<Tunable> {
    let scales = |(i, LinearSite { name, outputs, inputs, role }): (usize, LinearSite)| {
        let (name, width) = match role {
            SiteRole::MlpOutput => (TunableName::ScaleInput(name), inputs),
            _ => (TunableName::ScaleOutput(name), outputs),
        };
        Tunable::new(name.to_string(), 0.8 * stacked(model, &[width], 2000 * seed + i as u64) + 1.0)
    };
    linear_sites(&model.config).into_iter().enumerate().map(scales).collect()
}

/// Returns random numbers `[n_blocks, ..]`.
fn stacked(model: &Tiny, shape: &[usize], seed: u64) -> Tensor {
    let shape: Vec<i64> = [model.config.n_blocks].iter().chain(shape).map(|&dim| dim as i64).collect();
    model.random(&shape, seed)
}
