use std::error::Error;
use std::fmt;

use sepal_nn::Parameters;
use sepal_optim::{Optimizer, Schedule};
use sepal_track::Tracker;
use tch::Tensor;

use crate::{TaskHead, TuningMode};

/// A place in a pipeline that a plugin fills.
pub trait Slot: 'static {
    /// What messages call it, for example `task head`.
    const NAME: &'static str;
    /// What a plugin of this slot builds.
    type Object: ?Sized + 'static;
    /// What it is built with besides its options.
    type Context<'a>;
}

/// The slot of task heads.
#[derive(Debug, Clone, Copy)]
pub enum Head {}

/// What a task head is built with.
#[derive(Debug)]
pub struct HeadContext<'a> {
    /// Where the head adds what it trains.
    pub params: &'a mut Parameters,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Seed of the run; draw from `sepal_nn::init::rng(seed, NAME_OF_THE_PARAMETER)`.
    pub seed: u64,
}

impl Slot for Head {
    const NAME: &'static str = "task head";
    type Object = dyn TaskHead;
    type Context<'a> = HeadContext<'a>;
}

/// The slot of tuning modes.
#[derive(Debug, Clone, Copy)]
pub enum Tuning {}

/// A text's tokens, without those that a model puts around a text.
pub type Tokenize<'a> = dyn Fn(&str) -> Result<Vec<i64>, Box<dyn Error + Send + Sync>> + 'a;

/// What a tuning mode is built with.
pub struct TuningContext<'a> {
    /// Where the tuning mode adds what it trains.
    pub params: &'a mut Parameters,
    /// Blocks of the whole model.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Numbers of one position's keys in a block, all heads together; values have as many.
    pub kv_size: usize,
    /// Standard deviation that the model's weights were initialised with.
    pub initializer_range: f64,
    /// The model's embedding matrix `[vocab_size, hidden]`.
    pub embeddings: &'a Tensor,
    /// Texts to rows of `embeddings`.
    pub tokenize: &'a Tokenize<'a>,
    /// The task's label names.
    pub labels: &'a [String],
    /// Whether all numbers are replaced by saved ones afterwards, so that only shapes matter: files to start from need not
    /// be there any more.
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
            .field("initializer_range", initializer_range)
            .field("embeddings", embeddings)
            .field("labels", labels)
            .field("is_restored", is_restored)
            .field("seed", seed)
            .finish_non_exhaustive()
    }
}

impl Slot for Tuning {
    const NAME: &'static str = "tuning mode";
    type Object = dyn TuningMode;
    type Context<'a> = TuningContext<'a>;
}

/// The slot of optimizers.
#[derive(Debug, Clone, Copy)]
pub enum Opt {}

/// What an optimizer is built with: nothing yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct OptContext {}

impl Slot for Opt {
    const NAME: &'static str = "optimizer";
    type Object = dyn Optimizer;
    type Context<'a> = OptContext;
}

/// The slot of learning-rate schedules.
#[derive(Debug, Clone, Copy)]
pub enum Sched {}

/// What a schedule is built with.
#[derive(Debug, Clone, Copy)]
pub struct SchedContext {
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
}

impl Slot for Sched {
    const NAME: &'static str = "schedule";
    type Object = dyn Schedule;
    type Context<'a> = SchedContext;
}

/// The slot of trackers, which show a run elsewhere as it goes. A pipeline may have several.
#[derive(Debug, Clone, Copy)]
pub enum Track {}

/// What a tracker is built with: nothing, what is known of the run is told at its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrackContext {}

impl Slot for Track {
    const NAME: &'static str = "tracker";
    type Object = dyn Tracker;
    type Context<'a> = TrackContext;
}
