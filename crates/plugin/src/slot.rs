use std::error::Error;
use std::fmt;

use sepal_catalog::PluginKind;
use sepal_core::LinearSite;
use sepal_nn::{Parameters, RowSource};
use sepal_optim::{Optimizer, Schedule};
use sepal_options::Tokenize;
use sepal_track::Tracker;
use tch::Tensor;

use crate::{TaskHead, TuningMode};

/// A position in a pipeline that a plugin fills.
pub trait Slot: 'static {
    /// Kind of the plugins of this slot.
    const KIND: PluginKind;
    /// Object that a plugin of this slot builds.
    type Object: ?Sized + 'static;
    /// Inputs of the build besides the options.
    type Context<'a>;
}

/// The slot of task heads.
#[derive(Debug, Clone, Copy)]
pub enum Head {}

/// Function from token ids to their rows of the language model's head, fp32 `[ids, hidden]`: the output layer's weights,
/// or the embeddings, unscaled, if the model ties them. The rows are read from the checkpoint at each call.
pub type LmRows<'a> = dyn Fn(&[i64]) -> Result<Tensor, Box<dyn Error + Send + Sync>> + 'a;

/// Inputs for building a task head.
pub struct HeadContext<'a> {
    /// Store to which the head adds its parameters.
    pub params: &'a mut Parameters,
    /// Size of a hidden state.
    pub hidden: usize,
    /// The model's embeddings `[vocab_size, hidden]`, with the family's scale, read row by row.
    pub embeddings: &'a dyn RowSource,
    /// Function from a text to its token ids.
    pub tokenize: &'a Tokenize<'a>,
    /// Rows of the language model's head.
    pub lm_rows: &'a LmRows<'a>,
    /// True if saved values replace all parameters after the build. Only shapes matter then.
    pub is_restored: bool,
    /// Seed of the run; draw from `sepal_nn::init::rng(seed, NAME_OF_THE_PARAMETER)`.
    pub seed: u64,
}

impl fmt::Debug for HeadContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { params, hidden, embeddings, tokenize: _, lm_rows: _, is_restored, seed } = self;
        f.debug_struct("HeadContext")
            .field("params", params)
            .field("hidden", hidden)
            .field("embeddings", embeddings)
            .field("is_restored", is_restored)
            .field("seed", seed)
            .finish_non_exhaustive()
    }
}

impl Slot for Head {
    const KIND: PluginKind = PluginKind::Head;
    type Object = dyn TaskHead;
    type Context<'a> = HeadContext<'a>;
}

/// The slot of tuning modes.
#[derive(Debug, Clone, Copy)]
pub enum Tuning {}

/// Inputs for building a tuning mode.
pub struct TuningContext<'a> {
    /// Store to which the tuning mode adds its parameters.
    pub params: &'a mut Parameters,
    /// Number of blocks of the model.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Size of one position's keys in a block, over all heads; the values have the same size.
    pub kv_size: usize,
    /// Linear layers of each block that adapters can change.
    pub sites: &'a [LinearSite],
    /// Standard deviation that the model's weights were initialised with.
    pub initializer_range: f64,
    /// The model's embeddings `[vocab_size, hidden]`, read row by row.
    pub embeddings: &'a dyn RowSource,
    /// Function from a text to rows of `embeddings`.
    pub tokenize: &'a Tokenize<'a>,
    /// The task's label names.
    pub labels: &'a [String],
    /// True if saved values replace all parameters after the build. Only shapes matter then, and files with initial values
    /// may be missing.
    pub is_restored: bool,
    /// Seed of the run; draw from `sepal_nn::init::rng(seed, NAME_OF_THE_PARAMETER)`.
    pub seed: u64,
}

impl fmt::Debug for TuningContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            params,
            n_blocks,
            hidden,
            kv_size,
            sites,
            initializer_range,
            embeddings,
            tokenize: _,
            labels,
            is_restored,
            seed,
        } = self;
        f.debug_struct("TuningContext")
            .field("params", params)
            .field("n_blocks", n_blocks)
            .field("hidden", hidden)
            .field("kv_size", kv_size)
            .field("sites", sites)
            .field("initializer_range", initializer_range)
            .field("embeddings", embeddings)
            .field("labels", labels)
            .field("is_restored", is_restored)
            .field("seed", seed)
            .finish_non_exhaustive()
    }
}

impl Slot for Tuning {
    const KIND: PluginKind = PluginKind::Tuning;
    type Object = dyn TuningMode;
    type Context<'a> = TuningContext<'a>;
}

/// The slot of optimizers.
#[derive(Debug, Clone, Copy)]
pub enum Opt {}

/// Inputs for building an optimizer: none.
#[derive(Debug, Clone, Copy, Default)]
pub struct OptContext {}

impl Slot for Opt {
    const KIND: PluginKind = PluginKind::Optimizer;
    type Object = dyn Optimizer;
    type Context<'a> = OptContext;
}

/// The slot of learning-rate schedules.
#[derive(Debug, Clone, Copy)]
pub enum Sched {}

/// Inputs for building a schedule.
#[derive(Debug, Clone, Copy)]
pub struct SchedContext {
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
}

impl Slot for Sched {
    const KIND: PluginKind = PluginKind::Schedule;
    type Object = dyn Schedule;
    type Context<'a> = SchedContext;
}

/// The slot of trackers, which show a run elsewhere as it goes. A pipeline may have several trackers.
#[derive(Debug, Clone, Copy)]
pub enum Track {}

/// Inputs for building a tracker: none. A tracker gets the facts of a run when the run starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrackContext {}

impl Slot for Track {
    const KIND: PluginKind = PluginKind::Tracker;
    type Object = dyn Tracker;
    type Context<'a> = TrackContext;
}
