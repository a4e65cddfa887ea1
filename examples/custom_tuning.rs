//! A tuning mode of your own: low-rank additions to the layers of values, with one factor for all blocks, as a plugin.
//!
//! The mode `tied-lora` trains `lora_A [rank, inputs]` once where `lora` trains it for every block (Tied-LoRA, arXiv
//! 2311.09578). `custom_tuning` registers it and shows the tensors that the blocks get.

use std::error::Error;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_nn::Parameters;
use sepal_nn::init::{rng, uniform};
use sepal_plugin::{
    BuildError, LinearSite, Plugin, Registry, SiteRole, Tunable, TunableName, Tuning, TuningContext, TuningError,
    TuningMode,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Low-rank additions to the layers of values, whose first factor all blocks share.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TiedLoraConfig {
    /// Rank of the additions.
    rank: NonZeroUsize,
}

struct TiedLora {
    site: String,
    shared: Tensor,    // [rank, inputs]
    of_blocks: Tensor, // [n_blocks, outputs, rank]
}

impl Plugin<Tuning> for TiedLora {
    const NAME: &'static str = "tied-lora";
    type Config = TiedLoraConfig;

    fn example() -> TiedLoraConfig {
        TiedLoraConfig { rank: NonZeroUsize::MIN.saturating_add(3) }
    }

    fn build(config: TiedLoraConfig, cx: &mut TuningContext<'_>) -> Result<Box<dyn TuningMode>, BuildError> {
        let of_values = cx.sites.iter().find(|site| site.role == SiteRole::Value);
        let site = of_values.ok_or_else(|| BuildError::Other("the model has no layer of values alone".into()))?;
        let (rank, bound) = (config.rank.get() as i64, 1.0 / (site.inputs as f64).sqrt());
        let shared = uniform(&[rank, site.inputs as i64], bound, &mut rng(cx.seed, "shared"))?;
        // Zeros, so that the first step sees the unchanged model.
        let zeros = [cx.n_blocks as i64, site.outputs as i64, rank];
        let of_blocks = Tensor::f_zeros(zeros, (Kind::Float, Device::Cpu))?;
        let (shared, of_blocks) = (cx.params.add("shared", &shared)?, cx.params.add("of_blocks", &of_blocks)?);
        Ok(Box::new(Self { site: site.name.clone(), shared, of_blocks }))
    }
}

impl TuningMode for TiedLora {
    fn prefix(&self) -> Result<Option<Tensor>, TuningError> {
        Ok(None)
    }

    fn tunables(&self) -> Result<Vec<Tunable>, TuningError> {
        let name = |of: fn(String) -> TunableName| of(self.site.clone()).to_string();
        // The gradient of an expanded tensor is the sum over the blocks.
        let a = self.shared.f_unsqueeze(0)?.f_expand([self.of_blocks.size()[0], -1, -1], false)?; // [n_blocks, rank, inputs]
        let b = self.of_blocks.shallow_clone(); // [n_blocks, outputs, rank]
        Ok(vec![Tunable::new(name(TunableName::LoraA), a), Tunable::new(name(TunableName::LoraB), b)])
    }

    fn pre_seq_len(&self) -> usize {
        0
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut registry = Registry::new();
    registry.register::<Tuning, TiedLora>()?;

    let mut params = Parameters::new();
    let embeddings = Tensor::randn([100, 16], (Kind::Float, Device::Cpu)); // [vocab_size, hidden]
    let mut context = TuningContext {
        params: &mut params,
        n_blocks: 12,
        hidden: 16,
        kv_size: 8,
        sites: &[LinearSite::new("self_attn.v_proj", 8, 16, SiteRole::Value)],
        initializer_range: 0.02,
        embeddings: &embeddings,
        tokenize: &|_| Ok(Vec::new()),
        labels: &[],
        is_restored: false,
        seed: 42,
    };
    let mode = registry.build::<Tuning>("tied-lora", json!({ "rank": 4 }), &mut context)?;
    for Tunable { name, first_block, tensor } in mode.tunables()? {
        println!("the blocks from {first_block} get {name} {:?}; {} values train", tensor.size(), params.count());
    }
    Ok(())
}
