//! Options of the optimizers.

use schemars::JsonSchema;
use sepal_catalog::{OptionProblem, Options, PluginKind};
use serde::{Deserialize, Serialize};

/// Adafactor with factored squared gradients (Shazeer and Stern, arXiv 1804.04235).
///
/// With `lr: 0.3`, `weight_decay: 1e-5` and a constant schedule it is the optimizer of the prompt tuning paper (Lester
/// et al., arXiv 2104.08691). Adafactor's own step sizes are left to schedules: `inverse-sqrt` is the closest one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdafactorConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Term added to squared gradients, and lower bound of the factor of `scale_parameter`.
    #[schemars(inner(range(min = 0.0)))]
    pub eps: [f64; 2],
    /// Maximum root mean square of a parameter's step at learning rate 1; a larger step is scaled down to it.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub clip_threshold: f64,
    /// Exponent of the decay: in step `t` the new squared gradients have the weight `t` to this power in their running
    /// mean. At 0 the mean keeps no past values.
    #[schemars(range(max = 0.0))]
    pub decay_rate: f64,
    /// Decay of a running mean of the steps, at least 0 and below 1; no running mean if not given.
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub beta1: Option<f64>,
    /// Share of each weight that one step at learning rate 1 removes.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Multiply the learning rate of a parameter by the root mean square of its numbers.
    pub scale_parameter: bool,
}

impl Default for AdafactorConfig {
    /// Returns the defaults of transformers, with the learning rate and without the scaling that it advises for
    /// fine-tuning.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: false,
        }
    }
}

/// Adam (Kingma and Ba, arXiv 1412.6980), with weight decay as a part of the gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Decays of the running means of gradient and squared gradient, each at least 0 and below 1.
    #[schemars(inner(range(min = 0.0, max = 0.999_999_999)))]
    pub betas: [f64; 2],
    /// Term added to the denominator.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Factor of the weight in its gradient. (`adamw` subtracts from the weight itself.)
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    /// Returns PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Decays of the running means of gradient and squared gradient, each at least 0 and below 1.
    #[schemars(inner(range(min = 0.0, max = 0.999_999_999)))]
    pub betas: [f64; 2],
    /// Term added to the denominator.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Share of each weight that one step at learning rate 1 removes.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// Returns PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 1e-2 }
    }
}

/// Lion: each number changes by the learning rate, in the direction of the sign of a running mean (Chen et al., arXiv
/// 2302.06675).
///
/// Its authors suggest a learning rate 3 to 10 times smaller than that of `adamw`, and a weight decay as many times
/// larger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LionConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Decays of the past in the direction of a step and in the stored running mean, each at least 0 and at most 1.
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    pub betas: [f64; 2],
    /// Share of each weight that one step at learning rate 1 removes.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

impl Default for LionConfig {
    /// Returns the defaults of the paper.
    fn default() -> Self {
        Self { lr: 1e-4, betas: [0.9, 0.99], weight_decay: 0.0 }
    }
}

/// Stochastic gradient descent with optional momentum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Share of the last step's direction that is kept.
    #[schemars(range(min = 0.0))]
    pub momentum: f64,
    /// Share of the gradient that is removed from the direction from the second step on, with momentum.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub dampening: f64,
    /// Use Nesterov momentum; requires `momentum` and no `dampening`.
    pub nesterov: bool,
    /// Factor of the weight in its gradient.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    /// Returns PyTorch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

impl Options for AdafactorConfig {
    const KIND: PluginKind = PluginKind::Optimizer;
    const NAME: &'static str = "adafactor";

    fn example() -> Self {
        Self { lr: 0.3, weight_decay: 1e-5, ..Self::default() }
    }
}

impl Options for AdamConfig {
    const KIND: PluginKind = PluginKind::Optimizer;
    const NAME: &'static str = "adam";

    fn example() -> Self {
        Self { lr: 1e-2, ..Self::default() }
    }
}

impl Options for AdamWConfig {
    const KIND: PluginKind = PluginKind::Optimizer;
    const NAME: &'static str = "adamw";

    fn example() -> Self {
        Self { lr: 1e-2, weight_decay: 0.0, ..Self::default() }
    }
}

impl Options for LionConfig {
    const KIND: PluginKind = PluginKind::Optimizer;
    const NAME: &'static str = "lion";

    fn example() -> Self {
        Self { lr: 1e-3, ..Self::default() }
    }
}

impl Options for SgdConfig {
    const KIND: PluginKind = PluginKind::Optimizer;
    const NAME: &'static str = "sgd";

    fn example() -> Self {
        Self { lr: 1e-1, momentum: 0.9, ..Self::default() }
    }

    /// Refuses Nesterov momentum with dampening or without momentum, like PyTorch.
    fn check(&self) -> Vec<OptionProblem> {
        let is_wrong = self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0);
        let message = "expected false, or `momentum` above 0 and no `dampening`".to_owned();
        is_wrong.then(|| OptionProblem { key: "nesterov".to_owned(), message }).into_iter().collect()
    }
}
