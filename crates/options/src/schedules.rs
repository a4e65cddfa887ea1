//! Options of the schedules.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use sepal_catalog::{OptionProblem, Options, PluginKind};
use sepal_metrics::Metric;
use serde::{Deserialize, Serialize};

/// Defines the options of a schedule with a warm-up.
macro_rules! schedule {
    (
        $(#[$attribute:meta])* $config:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)* }
        $name:literal, { $($key:ident: $value:expr),+ }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $config {
            /// Number of steps over which the rate rises linearly from zero.
            pub warmup_steps: usize,
            /// Share of the run's steps for the warm-up, rounded up, instead of `warmup_steps`.
            #[schemars(range(min = 0.0, max = 1.0))]
            pub warmup_ratio: f64,
            $($(#[$field_attribute])* pub $field: $type,)*
        }

        impl Options for $config {
            const KIND: PluginKind = PluginKind::Schedule;
            const NAME: &'static str = $name;

            fn example() -> Self {
                Self { $($key: $value,)+ ..Self::default() }
            }

            fn check(&self) -> Vec<OptionProblem> {
                not_both("warmup", self.warmup_steps, self.warmup_ratio).into_iter().collect()
            }
        }
    };
}

schedule! {
    /// Warm-up, then the full rate.
    #[derive(Default)]
    ConstantConfig {}
    "constant", { warmup_steps: 10 }
}

schedule! {
    /// Warm-up, then a linear decay to zero at the end of the run.
    #[derive(Default)]
    LinearConfig {}
    "linear", { warmup_steps: 10 }
}

schedule! {
    /// Warm-up, then half a cosine down to zero at the end of the run.
    #[derive(Default)]
    CosineConfig {}
    "cosine", { warmup_steps: 10 }
}

schedule! {
    /// Warm-up, then several times half a cosine from the full rate down to zero.
    CosineWithRestartsConfig {
        /// Number of cycles, all of the same length.
        cycles: NonZeroUsize,
    }
    "cosine-with-restarts", { warmup_ratio: 0.05, cycles: NonZeroUsize::MIN.saturating_add(2) }
}

impl Default for CosineWithRestartsConfig {
    /// Returns the defaults of transformers.
    fn default() -> Self {
        Self { warmup_steps: 0, warmup_ratio: 0.0, cycles: NonZeroUsize::MIN }
    }
}

schedule! {
    /// Warm-up, then a decay as a power of the remaining share of the run.
    PolynomialConfig {
        /// Power of the decay: 1 is linear, a larger one is faster at first.
        #[schemars(range(min = 0.0))]
        power: f64,
        /// Remaining factor of the rate at the end of the run.
        #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
        end_factor: f64,
    }
    "polynomial", { warmup_ratio: 0.05, power: 2.0 }
}

impl Default for PolynomialConfig {
    /// Returns a linear decay to zero.
    fn default() -> Self {
        Self { warmup_steps: 0, warmup_ratio: 0.0, power: 1.0, end_factor: 0.0 }
    }
}

schedule! {
    /// Warm-up, then a decay as one over the root of the steps.
    #[derive(Default)]
    InverseSqrtConfig {
        /// Number of further steps after which the squared rate is halved; as many as the warm-up has if not given, or
        /// 10,000 without a warm-up.
        timescale: Option<NonZeroUsize>,
    }
    "inverse-sqrt", { warmup_steps: 100 }
}

/// Warm-up, then the full rate, then a decay up to the end of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupStableDecayConfig {
    /// Number of steps over which the rate rises linearly, from `end_factor`.
    pub warmup_steps: usize,
    /// Share of the run's steps for the warm-up, rounded up, instead of `warmup_steps`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// Number of last steps of the run, over which the rate decays.
    pub decay_steps: usize,
    /// Share of the run's steps for the decay, rounded up, instead of `decay_steps`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay_ratio: f64,
    /// Shape of the decay.
    pub decay: Decay,
    /// Remaining factor of the rate at the end of the run.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub end_factor: f64,
}

/// Shape of a decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine.
    #[default]
    Cosine,
    /// Linear.
    Linear,
    /// One minus the root of the completed share: fast at first.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl Options for WarmupStableDecayConfig {
    const KIND: PluginKind = PluginKind::Schedule;
    const NAME: &'static str = "warmup-stable-decay";

    fn example() -> Self {
        Self { warmup_ratio: 0.05, decay_ratio: 0.2, decay: Decay::Linear, ..Self::default() }
    }

    fn check(&self) -> Vec<OptionProblem> {
        let both = [
            not_both("warmup", self.warmup_steps, self.warmup_ratio),
            not_both("decay", self.decay_steps, self.decay_ratio),
        ];
        let is_without_decay = self.decay_steps == 0 && self.decay_ratio == 0.0;
        let message = "expected `decay_steps` or `decay_ratio` above 0, found neither".to_owned();
        let missing = is_without_decay.then(|| OptionProblem { key: "decay_steps".to_owned(), message });
        both.into_iter().flatten().chain(missing).collect()
    }
}

/// Full rate, reduced each time evaluations have not improved for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReduceOnPlateauConfig {
    /// Number of steps over which the rate rises linearly from zero. Evaluations during the warm-up only update the
    /// best value.
    pub warmup_steps: usize,
    /// Share of the run's steps for the warm-up, rounded up, instead of `warmup_steps`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// Compared value: `loss` of the validation rows, or a metric that the task reports.
    #[schemars(length(min = 1))]
    pub metric: String,
    /// Direction of improvement; if not given, that of known metrics, and `max` for others.
    pub mode: Option<PlateauMode>,
    /// Factor of a reduction.
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub factor: f64,
    /// Number of consecutive evaluations without improvement before a reduction.
    pub patience: u32,
    /// Minimum improvement over the best value.
    #[schemars(range(min = 0.0))]
    pub threshold: f64,
    /// Reference of `threshold`.
    pub threshold_mode: ThresholdMode,
    /// Number of evaluations after a reduction that are not counted.
    pub cooldown: u32,
    /// Lower bound of the factor.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_factor: f64,
}

impl Default for ReduceOnPlateauConfig {
    /// Returns PyTorch's defaults, on the loss.
    fn default() -> Self {
        Self {
            warmup_steps: 0,
            warmup_ratio: 0.0,
            metric: Self::LOSS.to_owned(),
            mode: None,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_factor: 0.0,
        }
    }
}

/// Direction of improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlateauMode {
    /// A smaller value is better.
    Min,
    /// A larger value is better.
    Max,
}

/// Reference of a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// The threshold is a share of the best value.
    Rel,
    /// The threshold is a difference from the best value.
    Abs,
}

impl ReduceOnPlateauConfig {
    /// Value of `metric` for the loss.
    pub const LOSS: &'static str = "loss";

    /// Direction of improvement: the stated one, or that of a known metric.
    pub fn direction(&self) -> Option<PlateauMode> {
        self.mode.or_else(|| better(&self.metric))
    }
}

impl Options for ReduceOnPlateauConfig {
    const KIND: PluginKind = PluginKind::Schedule;
    const NAME: &'static str = "reduce-on-plateau";

    fn example() -> Self {
        Self { metric: "accuracy".to_owned(), factor: 0.5, patience: 2, ..Self::default() }
    }

    fn check(&self) -> Vec<OptionProblem> {
        let is_wrong = better(&self.metric) == Some(PlateauMode::Min) && self.mode == Some(PlateauMode::Max);
        let message = format!("expected min, or another `metric` than {}, of which less is better", self.metric);
        let mode = is_wrong.then(|| OptionProblem { key: "mode".to_owned(), message });
        not_both("warmup", self.warmup_steps, self.warmup_ratio).into_iter().chain(mode).collect()
    }
}

/// Direction in which a usual metric improves.
fn better(metric: &str) -> Option<PlateauMode> {
    let known = Metric::find(metric).ok()?;
    Some(if known.larger_is_better { PlateauMode::Max } else { PlateauMode::Min })
}

/// Refuses a number of steps that is given both as a count and as a ratio.
fn not_both(what: &str, steps: usize, ratio: f64) -> Option<OptionProblem> {
    let message = format!("expected either `{what}_steps` or `{what}_ratio`, found both");
    (steps > 0 && ratio > 0.0).then(|| OptionProblem { key: format!("{what}_ratio"), message })
}
