//! Plan of servers for a model, from its configuration and the index of its shards alone.

use sepal_assets::{Asset, Assets, EventHandler, Source};
use sepal_blocks::Placement;
use sepal_checkpoint::{ModelSummary, Part, ends_bytes, linear_sites};
use sepal_core::{ComputeFormat, DType, Device, ModelConfig, SiteRole, WeightFormat};
use sepal_prepare::plan::Step;
use sepal_prepare::{ModelFiles, open_asset};
use sepal_server::memory::{BlockSizes, Budget, MemoryNeed, MemoryRequest};
use serde::Serialize;

use crate::error::ModelError;

/// Number format on the wire that bytes are counted for.
const WIRE: DType = DType::Bf16;

/// Step, and servers of one kind. The step has deep prompts in every block, and all blocks are on servers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServersSpec {
    /// Rows of a batch.
    pub rows: usize,
    /// Tokens of a batch, without prompts.
    pub tokens: usize,
    /// Prompts before each row, which all rows share.
    pub prompts: usize,
    /// Number format of products and tapes.
    pub compute: ComputeFormat,
    /// Free memory of a server in bytes; `None` for one server with all blocks.
    pub server_bytes: Option<u64>,
    /// Floating-point operations per second that a server reaches in products.
    pub server_flops: Option<f64>,
    /// Bytes per second between the client and a server, in each direction.
    pub link_bytes: Option<f64>,
}

/// Servers that a model needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServersPlan {
    /// Source of the configuration.
    pub source: String,
    /// Architecture.
    pub family: String,
    /// Number of transformer blocks.
    pub blocks: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Counted: parameters of the linear layers of all blocks.
    pub counted_block_parameters: u64,
    /// Size of the files in bytes, as the index states it.
    pub file_bytes: Option<u64>,
    /// Number of shards in the index.
    pub shards: Option<usize>,
    /// Estimated: largest memory of the embeddings and the final norm at the client, in bytes.
    pub estimated_ends_bytes: u64,
    /// Counted: floating-point operations of the products in a step, without attention scores.
    pub counted_step_operations: f64,
    /// Number format of products and tapes.
    pub compute: ComputeFormat,
    /// Servers for each format of the weights.
    pub formats: Vec<FormatPlan>,
}

/// Servers for one format of the weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FormatPlan {
    /// Format.
    pub weights: WeightFormat,
    /// Counted: bytes of the weights of one block.
    pub counted_block_bytes: u64,
    /// Counted: bytes of the weights of all blocks.
    pub counted_weight_bytes: u64,
    /// Servers that together hold all blocks; `None` if not one block fits.
    pub servers: Option<ServerGroup>,
}

/// Servers with equal shares of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ServerGroup {
    /// Number of servers.
    pub servers: usize,
    /// Blocks of the largest share.
    pub blocks_per_server: usize,
    /// Estimated: bytes of memory for the largest share: weights, loading, tapes and tunables of a step, and messages.
    pub estimated_server_bytes: u64,
    /// Estimated: bytes of the step's tapes in it. Tapes beyond a quarter of the memory are recomputed.
    pub estimated_tape_bytes: u64,
    /// Counted: bytes that the client sends in a step.
    pub counted_up: u64,
    /// Counted: bytes that it receives.
    pub counted_down: u64,
    /// Estimated: seconds of the products of a step, on one server after the other.
    pub estimated_compute_seconds: Option<f64>,
    /// Estimated: seconds of the transfers of a step.
    pub estimated_transfer_seconds: Option<f64>,
}

/// Plans servers for the model of the first available source: a folder with `config.json` and perhaps the index of its
/// shards, a GGUF file, or a repository of the hub, of which no shards and no large files are fetched.
///
/// # Errors
/// [`ModelError::Fetch`], [`ModelError::Open`].
pub fn plan_servers(
    sources: &[Source],
    spec: &ServersSpec,
    watch: &mut EventHandler<'_>,
) -> Result<ServersPlan, ModelError> {
    let assets = Assets::from_env();
    let asset = assets.fetch_first_model(sources, &mut |_| Ok(()), watch).map_err(ModelError::Fetch)?;
    let summary = summary(&assets, &asset, watch)?;
    Ok(count(asset.pinned().to_string(), &summary, spec))
}

fn summary(assets: &Assets, asset: &Asset, watch: &mut EventHandler<'_>) -> Result<ModelSummary, ModelError> {
    if asset.path.join("config.json").is_file() {
        return ModelSummary::read(&asset.path)
            .map_err(|source| ModelError::Open { path: asset.path.clone(), source: source.into() });
    }
    let files = ModelFiles { asset: asset.clone(), checkpoint: open_asset(assets, asset, watch)? };
    files.check_types(Part::All)?;
    let checkpoint = &files.checkpoint;
    let size_bytes = Some(checkpoint.describe().size_bytes);
    Ok(ModelSummary { config: checkpoint.config().clone(), n_shards: None, size_bytes })
}

fn count(source: String, summary: &ModelSummary, spec: &ServersSpec) -> ServersPlan {
    let config = &summary.config;
    let counts = Counts::new(config, spec);
    ServersPlan {
        source,
        family: config.family.name().to_owned(),
        blocks: config.n_blocks,
        hidden: config.hidden,
        counted_block_parameters: counts.sizes.parameters(config.n_blocks),
        file_bytes: summary.size_bytes,
        shards: summary.n_shards,
        estimated_ends_bytes: ends_bytes(config),
        counted_step_operations: counts.operations,
        compute: spec.compute,
        formats: WeightFormat::FIXED.map(|format| counts.format_plan(format)).to_vec(),
    }
}

struct Counts<'a> {
    spec: &'a ServersSpec,
    sizes: BlockSizes,
    step: Step,
    /// Bytes of a block's tape.
    tape_bytes: u64,
    /// Bytes of a block's tunables and their gradients.
    tunable_bytes: u64,
    operations: f64,
}

impl<'a> Counts<'a> {
    fn new(config: &ModelConfig, spec: &'a ServersSpec) -> Self {
        let step = Step::with_deep_prompts(config, spec.prompts, spec.tokens, spec.rows);
        let bytes = |numbers: usize| (numbers * size_of::<f32>()) as u64;
        // Two operations for each parameter and position in the forward pass, and two for the gradient of the input.
        let operations = 4.0 * (used_parameters(config) * config.n_blocks) as f64 * step.positions() as f64;
        Self {
            spec,
            sizes: BlockSizes::from_config(config),
            step,
            tape_bytes: tape_bytes(config, spec.compute) * step.positions() as u64,
            tunable_bytes: bytes(2 * spec.prompts * config.hidden),
            operations,
        }
    }

    fn format_plan(&self, format: WeightFormat) -> FormatPlan {
        let placement = Placement::new(Device::Cpu, format, self.spec.compute);
        FormatPlan {
            weights: format,
            counted_block_bytes: self.sizes.weight_bytes(1, placement),
            counted_weight_bytes: self.sizes.weight_bytes(self.sizes.n_blocks(), placement),
            servers: self.group(format),
        }
    }

    fn group(&self, format: WeightFormat) -> Option<ServerGroup> {
        let (n_blocks, free) = (self.sizes.n_blocks(), self.spec.server_bytes.unwrap_or(u64::MAX));
        let largest = (1..=n_blocks).rev().find(|&n| self.need(n, format, free).total() <= free)?;
        let servers = n_blocks.div_ceil(largest);
        let blocks_per_server = n_blocks.div_ceil(servers);
        let need = self.need(blocks_per_server, format, free);
        let is_star = true;
        let [counted_up, counted_down] = self.step.count(WIRE, servers, is_star);
        Some(ServerGroup {
            servers,
            blocks_per_server,
            estimated_server_bytes: need.total(),
            estimated_tape_bytes: need.tapes,
            counted_up,
            counted_down,
            estimated_compute_seconds: self.spec.server_flops.map(|rate| self.operations / rate),
            estimated_transfer_seconds: self.spec.link_bytes.map(|rate| (counted_up + counted_down) as f64 / rate),
        })
    }

    /// Memory of `n` blocks with the tapes and tunables of one step.
    fn need(&self, n: usize, format: WeightFormat, free: u64) -> MemoryNeed {
        let of_blocks = |bytes: u64| Budget::AtMost(bytes * n as u64);
        let (tapes, adapters) = (of_blocks(self.tape_bytes), of_blocks(self.tunable_bytes));
        let (device, compute, messages) = (Device::Cpu, self.spec.compute, Budget::SPARE);
        MemoryNeed::new(&self.sizes, n, MemoryRequest { device, format, compute, tapes, adapters, messages }, free)
    }
}

/// Parameters of a block's linear layers that a position passes: of a mixture, those of its experts.
fn used_parameters(config: &ModelConfig) -> usize {
    let layers: usize = linear_sites(config).iter().map(|site| site.outputs * site.inputs).sum();
    layers + 3 * config.hidden * used_inner_size(config)
}

/// Inner size of the MLPs of a mixture that a position passes.
fn used_inner_size(config: &ModelConfig) -> usize {
    config.experts.map_or(0, |experts| experts.inner_size(experts.per_token, config.ffn))
}

/// Bytes that a block saves for each position, by the formula of `BlockStack::tape_bytes` for a Llama: sums of softmax and
/// scales of norms in fp32, the others in the format of the products.
fn tape_bytes(config: &ModelConfig, compute: ComputeFormat) -> u64 {
    let bytes = |dtype: DType, numbers: usize| dtype.n_bytes(numbers).unwrap_or(usize::MAX) as u64;
    let statistics = config.n_heads + 2;
    bytes(DType::F32, statistics) + bytes(compute.dtype(), tape_numbers(config) - statistics)
}

/// Numbers that a block saves for each position.
fn tape_numbers(config: &ModelConfig) -> usize {
    let inputs = linear_sites(config).into_iter().filter(|site| site.role == SiteRole::MlpInput);
    let dense: usize = inputs.map(|site| site.outputs).sum();
    let experts = 2 * used_inner_size(config);
    let q_size = config.n_heads * config.head_dim;
    2 * (config.hidden + q_size + config.kv_size() + 1) + dense + experts + config.n_heads
}

#[cfg(test)]
mod tests {
    use sepal_core::{Experts, Family};

    use super::*;

    const STEP: ServersSpec = ServersSpec {
        rows: 32,
        tokens: 426,
        prompts: 16,
        compute: ComputeFormat::F32,
        server_bytes: None,
        server_flops: None,
        link_bytes: None,
    };

    /// Plan of a published Llama 3.1 of these sizes.
    fn llama(n_blocks: usize, hidden: usize, n_heads: usize, ffn: usize, spec: &ServersSpec) -> ServersPlan {
        let plain = ModelConfig::plain(Family::Llama, n_blocks, hidden, n_heads, ffn, 128_256);
        let config = ModelConfig { n_kv_heads: 8, ..plain };
        count("made up".to_owned(), &ModelSummary { config, n_shards: Some(4), size_bytes: None }, spec)
    }

    fn servers_as(plan: &ServersPlan, format: WeightFormat) -> Option<ServerGroup> {
        plan.formats.iter().find(|plan| plan.weights == format).expect("each format").servers
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let billions = |plan: ServersPlan| plan.counted_block_parameters as f64 / 1e9;
        // The published sizes are 8.03, 70.6 and 406 with embeddings and output layer.
        assert!((billions(llama(32, 4096, 32, 14_336, &STEP)) - 6.98).abs() < 0.01);
        assert!((billions(llama(80, 8192, 64, 28_672, &STEP)) - 68.45).abs() < 0.01);
        assert!((billions(llama(126, 16_384, 128, 53_248, &STEP)) - 401.6).abs() < 0.1);
    }

    #[test]
    fn servers_of_a_stated_size_hold_all_blocks() {
        let spec = ServersSpec { server_bytes: Some(80_000_000_000), ..STEP };
        for (n_blocks, hidden, n_heads, ffn, bf16, nf4) in
            [(32, 4096, 32, 14_336, 1, 1), (80, 8192, 64, 28_672, 2, 1), (126, 16_384, 128, 53_248, 14, 5)]
        {
            let plan = llama(n_blocks, hidden, n_heads, ffn, &spec);
            for (format, expected) in [(WeightFormat::Bf16, bf16), (WeightFormat::Nf4, nf4)] {
                let group = servers_as(&plan, format).expect("a block fits");
                assert_eq!(group.servers, expected, "{n_blocks} blocks as {format}: {group:?}");
                assert!(group.servers * group.blocks_per_server >= n_blocks);
                assert!((group.servers - 1) * group.blocks_per_server < n_blocks, "no server is idle");
                assert!(group.estimated_server_bytes <= 80_000_000_000);
            }
        }
        let little = ServersSpec { server_bytes: Some(4_000_000_000), ..STEP };
        assert_eq!(servers_as(&llama(126, 16_384, 128, 53_248, &little), WeightFormat::Nf4), None);
    }

    #[test]
    fn bytes_and_times_follow_from_the_stated_rates() {
        let spec = ServersSpec { server_flops: Some(1e14), link_bytes: Some(1e8), ..STEP };
        let plan = llama(32, 4096, 32, 14_336, &spec);
        let group = servers_as(&plan, WeightFormat::Bf16).expect("no size is stated");
        assert_eq!((group.servers, group.blocks_per_server), (1, 32));
        // Two bytes: all positions, the last tokens, and the tunables; back the last tokens, the prompts and the tunables.
        let (up, down) = (2 * 4096 * (442 + 32 + 16 * 32), 2 * 4096 * (32 + 16 + 16 * 32));
        assert_eq!((group.counted_up, group.counted_down), (up, down));
        assert_eq!(plan.counted_step_operations, 4.0 * 6_979_321_856.0 * 442.0);
        let seconds = group.estimated_compute_seconds.expect("a rate");
        assert!((seconds - 0.1234).abs() < 1e-4, "{seconds}");
        let seconds = group.estimated_transfer_seconds.expect("a rate");
        assert!((seconds - (up + down) as f64 / 1e8).abs() < 1e-9, "{seconds}");
        let unstated = servers_as(&llama(32, 4096, 32, 14_336, &STEP), WeightFormat::Bf16).expect("a group");
        assert_eq!((unstated.estimated_compute_seconds, unstated.estimated_transfer_seconds), (None, None));
    }

    #[test]
    fn shared_mlp_of_a_mixture_is_counted() {
        // Qwen2-57B-A14B: 64 MLPs of 2560, 8 of them for each position, and a shared one of 20,480.
        let experts = Experts { shared_ffn: Some(20_480), ..Experts::new(64, 8) };
        let plain = ModelConfig::plain(Family::Qwen2Moe, 28, 3584, 28, 2560, 151_936);
        let config = ModelConfig { n_kv_heads: 4, experts: Some(experts), ..plain };
        let attention = 2 * 3584 * 3584 + 2 * 3584 * 512;
        assert_eq!(used_parameters(&config), attention + 3 * 3584 * (8 * 2560 + 20_480));
        let sizes = BlockSizes::from_config(&config);
        assert_eq!(sizes.parameters(28), 28 * (attention + 3 * 3584 * (64 * 2560 + 20_480)) as u64);
        assert_eq!(tape_numbers(&config), 2 * (2 * 3584 + 512 + 1) + 2 * (8 * 2560 + 20_480) + 28);
    }

    #[test]
    fn tape_of_a_llama_block_has_the_documented_size() {
        let config = ModelConfig { n_kv_heads: 8, ..ModelConfig::plain(Family::Llama, 32, 4096, 32, 14_336, 128_256) };
        let states = 2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 14_336;
        assert_eq!(tape_numbers(&config), states + 32 + 2);
        assert_eq!(tape_bytes(&config, ComputeFormat::F32), 4 * (states as u64 + 32 + 2));
        assert_eq!(tape_bytes(&config, ComputeFormat::Bf16), 2 * states as u64 + 4 * (32 + 2));
    }

    #[test]
    fn unrounded_weights_take_the_format_of_products() {
        for compute in ComputeFormat::ALL {
            let plan = llama(32, 4096, 32, 14_336, &ServersSpec { compute, ..STEP });
            let bytes = |format: WeightFormat| {
                plan.formats.iter().find(|plan| plan.weights == format).expect("each format").counted_weight_bytes
            };
            let number_bytes = if compute == ComputeFormat::F32 { 4 } else { 2 };
            assert_eq!(plan.compute, compute);
            assert_eq!(bytes(WeightFormat::F32), number_bytes * 6_979_321_856, "{compute}");
            assert_eq!(bytes(WeightFormat::Bf16), 2 * 6_979_321_856, "{compute}");
        }
    }

    #[test]
    fn formats_of_weights_are_those_of_every_model() {
        let plan = llama(32, 4096, 32, 14_336, &STEP);
        let formats: Vec<WeightFormat> = plan.formats.iter().map(|plan| plan.weights).collect();
        assert_eq!(formats, WeightFormat::FIXED);
        let half = ServersSpec { compute: ComputeFormat::Bf16, ..STEP };
        let tapes = |spec: &ServersSpec| {
            let plan = llama(32, 4096, 32, 14_336, spec);
            servers_as(&plan, WeightFormat::Bf16).expect("a group").estimated_tape_bytes as f64
        };
        let ratio = tapes(&half) / tapes(&STEP);
        assert!((0.5..0.51).contains(&ratio), "{ratio}");
    }
}
