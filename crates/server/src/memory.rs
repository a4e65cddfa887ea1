//! Memory of frozen blocks, compared with the free memory before a weight is read.
//!
//! A server, an embedded server and a process with blocks of its own call [`check`] with the same counts.

use std::fmt;
use std::ops::Add;

use sepal_blocks::{Placement, loading_bytes, weight_bytes};
use sepal_checkpoint::{Checkpoint, Part, PartSizes, linear_sites};
use sepal_core::{ComputeFormat, Device, ModelConfig, Span, WeightFormat};
use sepal_machine::{HostMemory, gpu_free_bytes};

pub use crate::device_memory::DeviceMemory;

/// Variable that states the free memory of each of the blocks' devices in MiB, where none or another amount is reported.
pub const FREE_MB: &str = "SEPAL_FREE_MB";

/// Sizes of a model's blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSizes {
    config: ModelConfig,
    /// Sizes of all blocks.
    blocks: PartSizes,
}

impl BlockSizes {
    /// Sizes by the tensors of a checkpoint.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config().clone();
        let all = Span::new(0, config.n_blocks).ok();
        let blocks = all.map(|span| checkpoint.part_sizes(Part::Blocks(span))).unwrap_or_default();
        Self { config, blocks }
    }

    /// Sizes by the linear layers that the configuration implies, without norms, biases and the router of experts. Files
    /// are taken to be unquantized.
    pub fn from_config(config: &ModelConfig) -> Self {
        let layers: usize = linear_sites(config).iter().map(|site| site.outputs * site.inputs).sum();
        let inner = config.experts.map_or(0, |experts| experts.inner_size(experts.count, config.ffn));
        let experts = 3 * config.hidden * inner;
        let plain = ((layers + experts) * config.n_blocks) as u64;
        Self { config: config.clone(), blocks: PartSizes { plain, ..PartSizes::default() } }
    }

    /// Number of blocks of the model.
    pub fn n_blocks(&self) -> usize {
        self.config.n_blocks
    }

    /// Parameters of `n_blocks` blocks.
    pub fn parameters(&self, n_blocks: usize) -> u64 {
        self.share(self.blocks.parameters(), n_blocks)
    }

    /// Memory of the weights of `n_blocks` blocks in bytes, see [`weight_bytes`].
    pub fn weight_bytes(&self, n_blocks: usize, placement: Placement) -> u64 {
        self.share(weight_bytes(&self.blocks, placement), n_blocks)
    }

    /// Share of `n_blocks` blocks of mean size in that of all.
    fn share(&self, all: u64, n_blocks: usize) -> u64 {
        all.div_ceil(self.n_blocks().max(1) as u64) * n_blocks as u64
    }
}

/// Device and formats of blocks, and the budgets beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRequest {
    /// Device of the blocks.
    pub device: Device,
    /// Format of the weights.
    pub format: WeightFormat,
    /// Format of the products.
    pub compute: ComputeFormat,
    /// Tapes; without a stated budget, at most a quarter of the free memory is reserved for them.
    pub tapes: Budget,
    /// Adapters, prompts and cached prefixes; without a stated budget, at most an eighth of the free memory.
    pub adapters: Budget,
    /// Messages, computations and the system; without a stated budget, at most an eighth of the free memory.
    pub messages: Budget,
}

/// Limit of the memory of one use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// A default, which few clients reach: at most a share of the free memory is reserved.
    AtMost(u64),
    /// A choice of the user, which is reserved completely.
    Stated(u64),
}

impl Budget {
    /// For messages and the system, without a stated budget.
    pub const SPARE: Self = Self::AtMost(512 << 20);

    fn reserved(self, share: u64) -> u64 {
        match self {
            Self::AtMost(bytes) => bytes.min(share),
            Self::Stated(bytes) => bytes,
        }
    }

    /// The same kind of budget, with other bytes.
    pub(crate) fn map(self, bytes: impl Fn(u64) -> u64) -> Self {
        match self {
            Self::AtMost(all) => Self::AtMost(bytes(all)),
            Self::Stated(all) => Self::Stated(bytes(all)),
        }
    }
}

impl MemoryRequest {
    fn placement(self) -> Placement {
        Placement::new(self.device, self.format, self.compute)
    }
}

/// Memory that blocks need, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights.
    pub weights: u64,
    /// Weights in fp32 while blocks are read, and while rounded ones are widened for a product.
    pub loading: u64,
    /// Tapes.
    pub tapes: u64,
    /// Adapters, prompts and cached prefixes.
    pub adapters: u64,
    /// Messages and the system.
    pub spare: u64,
}

impl MemoryNeed {
    /// Need of `n_blocks` blocks on a device with `free` bytes. The shares of tapes, adapters and messages together are at
    /// most half of the free memory, unless their budgets are stated.
    pub fn new(sizes: &BlockSizes, n_blocks: usize, request: MemoryRequest, free: u64) -> Self {
        Self {
            weights: sizes.weight_bytes(n_blocks, request.placement()),
            loading: loading_bytes(&sizes.config, n_blocks, request.format),
            tapes: request.tapes.reserved(free / 4),
            adapters: request.adapters.reserved(free / 8),
            spare: request.messages.reserved(free / 8),
        }
    }

    /// Sum of all parts.
    pub fn total(&self) -> u64 {
        let parts = [self.weights, self.loading, self.tapes, self.adapters, self.spare];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

impl Add for MemoryNeed {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weights: self.weights + other.weights,
            loading: self.loading + other.loading,
            tapes: self.tapes + other.tapes,
            adapters: self.adapters + other.adapters,
            spare: self.spare + other.spare,
        }
    }
}

impl fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [weights, loading, tapes, adapters, spare] =
            [self.weights, self.loading, self.tapes, self.adapters, self.spare].map(Bytes);
        write!(
            f,
            "{weights} of weights, {loading} to load them, {tapes} for tapes, {adapters} for adapters and prefixes, "
        )?;
        write!(f, "{spare} for messages")
    }
}

/// Free memory in bytes; `None` if it is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FreeMemory {
    /// Memory of the blocks' device.
    pub device: Option<u64>,
    /// Memory of the host, which weights pass on their way to another device.
    pub host: Option<u64>,
}

impl FreeMemory {
    /// Free memory for blocks on `device`: that of the variable [`FREE_MB`], or else of the system or of the GPU, as
    /// `nvidia-smi` reports it.
    ///
    /// # Errors
    /// [`StatedMemoryError`] if the variable is set to another text than a number.
    pub fn from_env(device: Device) -> Result<Self, StatedMemoryError> {
        let stated = std::env::var_os(FREE_MB).map(|text| stated_bytes(&text.to_string_lossy())).transpose()?;
        let host = HostMemory::read().map(|memory| memory.free);
        let reported = || match device {
            Device::Cpu => host,
            Device::Cuda(index) => gpu_free_bytes(index),
        };
        Ok(Self { device: stated.or_else(reported), host })
    }
}

/// Value of [`FREE_MB`] that is no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("read the variable SEPAL_FREE_MB: `{text}` is no number of megabytes")]
pub struct StatedMemoryError {
    pub text: String,
}

fn stated_bytes(text: &str) -> Result<u64, StatedMemoryError> {
    let megabytes = text.trim().parse::<u64>().map_err(|_| StatedMemoryError { text: text.to_owned() })?;
    Ok(megabytes.saturating_mul(1 << 20))
}

/// Blocks that do not fit into the free memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error(
    "hold blocks {span} as {format}: they need {} ({need}), and {} of {device} are free. {alternatives}",
    Bytes(need.total()),
    Bytes(*free)
)]
pub struct MemoryError {
    pub span: Span,
    pub format: WeightFormat,
    /// Device that lacks memory.
    pub device: Device,
    pub need: MemoryNeed,
    /// Free bytes of the device.
    pub free: u64,
    pub alternatives: Alternatives,
}

/// Choices that fit into the same memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternatives {
    /// Number of blocks in the same format; 0 if not one fits.
    pub n_blocks: usize,
    /// Number of servers with as much free memory that together hold all blocks of the model in this format.
    pub n_servers: Option<usize>,
    /// The most exact smaller format in which the blocks fit, and their need in bytes.
    pub format: Option<(WeightFormat, u64)>,
}

impl Alternatives {
    fn new(sizes: &BlockSizes, n_blocks: usize, request: MemoryRequest, free: u64) -> Self {
        let fitting = fitting_blocks(sizes, n_blocks, request, free);
        let in_format = |format| MemoryRequest { format, ..request };
        let block_bytes = |format| sizes.weight_bytes(1, in_format(format).placement());
        let smaller =
            WeightFormat::FIXED.into_iter().filter(|&format| block_bytes(format) < block_bytes(request.format));
        let need = |format| MemoryNeed::new(sizes, n_blocks, in_format(format), free).total();
        Self {
            n_blocks: fitting,
            n_servers: (fitting > 0).then(|| sizes.n_blocks().div_ceil(fitting)),
            format: smaller.map(|format| (format, need(format))).find(|&(_, need)| need <= free),
        }
    }
}

impl fmt::Display for Alternatives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.n_blocks, self.n_servers) {
            (0, _) | (_, None) => f.write_str("Not one of them fits in this format")?,
            (n_blocks, Some(n_servers)) => {
                let servers = if n_servers == 1 { "server" } else { "servers" };
                write!(f, "{n_blocks} of them fit; {n_servers} such {servers} hold the model in this format")?;
            }
        }
        match self.format {
            Some((format, need)) => write!(f, "; all of them fit as {format}, in {}", Bytes(need)),
            None => f.write_str("; no smaller format makes them fit"),
        }
    }
}

/// Number of blocks, at most `limit`, that fit into `free` bytes.
pub fn fitting_blocks(sizes: &BlockSizes, limit: usize, request: MemoryRequest, free: u64) -> usize {
    (1..=limit).rev().find(|&n| MemoryNeed::new(sizes, n, request, free).total() <= free).unwrap_or(0)
}

/// Checks that the blocks of `span` fit into the free memory. Returns their need. Unknown memory is not checked.
///
/// # Errors
/// [`MemoryError`], with the numbers and what would fit, if the device lacks memory, or if the host lacks memory for a
/// block on its way to another device.
pub fn check(
    sizes: &BlockSizes,
    span: Span,
    request: MemoryRequest,
    free: FreeMemory,
) -> Result<MemoryNeed, Box<MemoryError>> {
    let need = MemoryNeed::new(sizes, span.len(), request, free.device.unwrap_or(u64::MAX));
    let MemoryRequest { device, format, .. } = request;
    if let Some(free) = free.device.filter(|free| need.total() > *free) {
        let alternatives = Alternatives::new(sizes, span.len(), request, free);
        return Err(Box::new(MemoryError { span, format, device, need, free, alternatives }));
    }
    match free.host {
        Some(free) if device != Device::Cpu && need.loading > free => {
            let need = MemoryNeed { weights: 0, tapes: 0, adapters: 0, spare: 0, ..need };
            let alternatives = Alternatives { n_blocks: 0, n_servers: None, format: None };
            Err(Box::new(MemoryError { span, format, device: Device::Cpu, need, free, alternatives }))
        }
        _ => Ok(need),
    }
}

/// Bytes as text, in MB or GB of powers of ten.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 1_000_000_000.. => write!(f, "{:.1} GB", bytes as f64 / 1e9),
            bytes => write!(f, "{:.0} MB", bytes as f64 / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use sepal_checkpoint::EncodedSize;
    use sepal_core::{Family, RowEncoding};

    use super::*;

    /// Sizes of Llama-3.1-8B.
    fn llama_8b() -> BlockSizes {
        let plain = ModelConfig::plain(Family::Llama, 32, 4096, 32, 14_336, 128_256);
        BlockSizes::from_config(&ModelConfig { n_kv_heads: 8, ..plain })
    }

    fn request(format: WeightFormat) -> MemoryRequest {
        let compute = ComputeFormat::F32;
        let (tapes, adapters, messages) = (Budget::AtMost(1 << 30), Budget::AtMost(1 << 30), Budget::SPARE);
        MemoryRequest { device: Device::Cpu, format, compute, tapes, adapters, messages }
    }

    fn free(gigabytes: u64) -> FreeMemory {
        FreeMemory { device: Some(gigabytes << 30), host: Some(gigabytes << 30) }
    }

    fn span(end: usize) -> Span {
        Span::new(0, end).expect("a span")
    }

    #[test]
    fn blocks_beyond_the_free_memory_are_refused_with_what_fits() {
        let sizes = llama_8b();
        assert_eq!(sizes.parameters(32), 6_979_321_856);
        let error = check(&sizes, span(32), request(WeightFormat::F32), free(24)).expect_err("too large");
        assert_eq!(error.need.weights, 4 * 6_979_321_856);
        assert_eq!(error.need.loading, 4 * 6_979_321_856 / 32);
        let Alternatives { n_blocks, n_servers, format } = error.alternatives.clone();
        assert_eq!(n_servers, Some(2));
        let need = |n: usize| MemoryNeed::new(&sizes, n, request(WeightFormat::F32), 24 << 30).total();
        assert!(need(n_blocks) <= 24 << 30 && need(n_blocks + 1) > 24 << 30, "{n_blocks}");
        assert_eq!(format.map(|(format, _)| format), Some(WeightFormat::Bf16));
        let text = error.to_string();
        let parts =
            ["hold blocks 0:32 as f32: they need ", "27.9 GB of weights", "872 MB to load them", "25.8 GB of cpu"];
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.contains("2 such servers hold the model") && text.contains("all of them fit as bf16"), "{text}");
    }

    /// Sizes of a Llama-3.1-8B whose matrices are stored as Q4_K, in blocks of `bytes`.
    fn encoded(bytes: u64) -> BlockSizes {
        let sizes = llama_8b();
        let numbers = sizes.blocks.plain;
        let encoded = vec![EncodedSize { encoding: RowEncoding::Q4K, numbers, bytes: 32 * bytes }];
        BlockSizes { blocks: PartSizes { encoded, ..PartSizes::default() }, ..sizes }
    }

    #[test]
    fn blocks_as_stored_have_the_bytes_of_the_file() {
        let sizes = encoded(110 << 20);
        let on_cpu = |format: WeightFormat| request(format).placement();
        assert_eq!(sizes.weight_bytes(32, on_cpu(WeightFormat::Auto)), 32 * (110 << 20));
        let plain = |format: WeightFormat| llama_8b().weight_bytes(32, on_cpu(format));
        assert_eq!(plain(WeightFormat::Auto), plain(WeightFormat::F32));
        assert!(check(&sizes, span(32), request(WeightFormat::Auto), free(8)).is_ok(), "4 GB");
        // Every fixed format takes more.
        let error = check(&sizes, span(32), request(WeightFormat::Auto), free(5)).expect_err("too large");
        assert_eq!(error.alternatives.format.map(|(format, _)| format), None);
        let large = encoded(500 << 20);
        let error = check(&large, span(32), request(WeightFormat::Auto), free(14)).expect_err("too large");
        assert_eq!(error.alternatives.format.map(|(format, _)| format), Some(WeightFormat::Int8));
        assert!(error.to_string().starts_with("hold blocks 0:32 as auto: they need "), "{error}");
    }

    #[test]
    fn blocks_that_a_device_does_not_keep_have_the_bytes_of_products() {
        let request = MemoryRequest { compute: ComputeFormat::Bf16, ..request(WeightFormat::Auto) };
        let on_gpu = MemoryRequest { device: Device::Cuda(0), ..request };
        let two_bytes = 2 * 6_979_321_856;
        let weights = |sizes: &BlockSizes, request| MemoryNeed::new(sizes, 32, request, 80 << 30).weights;
        assert_eq!(weights(&encoded(110 << 20), on_gpu), two_bytes);
        assert_eq!(weights(&encoded(110 << 20), request), 32 * (110 << 20));
        for format in [WeightFormat::Auto, WeightFormat::F32] {
            assert_eq!(weights(&llama_8b(), MemoryRequest { format, ..request }), two_bytes, "{format}");
        }
        let memory = FreeMemory { device: Some(8 << 30), host: Some(64 << 30) };
        let error = check(&encoded(110 << 20), span(32), on_gpu, memory).expect_err("14 GB");
        assert_eq!(error.need.weights, two_bytes);
    }

    #[test]
    fn blocks_within_the_free_memory_pass() {
        let sizes = llama_8b();
        let need = check(&sizes, span(32), request(WeightFormat::Nf4), free(8)).expect("they fit");
        assert!(need.total() <= 8 << 30 && need.tapes == 1 << 30, "{need:?}");
        let unknown = FreeMemory::default();
        assert!(check(&sizes, span(32), request(WeightFormat::F32), unknown).is_ok(), "unknown memory is not checked");
    }

    #[test]
    fn memory_for_no_block_is_said_so() {
        let error = check(&llama_8b(), span(1), request(WeightFormat::Nf4), free(1)).expect_err("too little");
        assert_eq!(error.alternatives, Alternatives { n_blocks: 0, n_servers: None, format: None });
        assert!(error.to_string().ends_with("Not one of them fits in this format; no smaller format makes them fit"));
    }

    #[test]
    fn host_memory_is_checked_for_blocks_of_another_device() {
        let cuda = MemoryRequest { device: Device::Cuda(0), ..request(WeightFormat::Bf16) };
        let little = FreeMemory { device: None, host: Some(500 << 20) };
        let error = check(&llama_8b(), span(32), cuda, little).expect_err("a block is larger");
        assert_eq!((error.device, error.need.weights), (Device::Cpu, 0));
        assert!(check(&llama_8b(), span(32), cuda, FreeMemory { host: Some(1 << 30), ..little }).is_ok());
    }

    #[test]
    fn budgets_reserve_at_most_half_of_the_free_memory() {
        let all = Budget::AtMost(u64::MAX);
        let unlimited = MemoryRequest { tapes: all, adapters: all, ..request(WeightFormat::F32) };
        let need = MemoryNeed::new(&llama_8b(), 1, unlimited, 1 << 30);
        assert_eq!(need.tapes + need.adapters + need.spare, 1 << 29);
    }

    #[test]
    fn stated_budgets_are_reserved_completely_or_refused() {
        let nf4 = request(WeightFormat::Nf4);
        for (tapes, fits) in [(2_u64 << 30, true), (6 << 30, false), (u64::MAX, false)] {
            let stated = MemoryRequest { tapes: Budget::Stated(tapes), ..nf4 };
            match check(&llama_8b(), span(32), stated, free(8)) {
                Ok(need) => assert!(fits && need.tapes == tapes, "{need:?}"),
                Err(error) => assert!(!fits && error.need.tapes == tapes, "{error}"),
            }
            assert!(
                check(&llama_8b(), span(32), MemoryRequest { tapes: Budget::AtMost(tapes), ..nf4 }, free(8)).is_ok()
            );
        }
    }

    #[test]
    fn stated_memory_is_a_number_of_megabytes() {
        assert_eq!(stated_bytes(" 24 "), Ok(24 << 20));
        let error = stated_bytes("24 GB").expect_err("no number");
        assert_eq!(error.to_string(), "read the variable SEPAL_FREE_MB: `24 GB` is no number of megabytes");
    }
}
