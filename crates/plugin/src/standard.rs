//! The optimizers and schedules of `sepal-optim` and the trackers of `sepal-track` as plugins.

use std::num::NonZeroUsize;

use sepal_metrics::Metric;
use sepal_optim::{
    Adafactor, AdafactorConfig, Adam, AdamConfig, AdamW, AdamWConfig, Constant, ConstantConfig, Cosine, CosineConfig,
    CosineWithRestarts, CosineWithRestartsConfig, Decay, InverseSqrt, InverseSqrtConfig, Linear, LinearConfig, Lion,
    LionConfig, Optimizer, PlateauMode, Polynomial, PolynomialConfig, ReduceOnPlateau, ReduceOnPlateauConfig, Schedule,
    Sgd, SgdConfig, WarmupStableDecay, WarmupStableDecayConfig,
};
use sepal_track::{Mlflow, MlflowAccess, MlflowConfig, TensorBoard, TensorBoardConfig, Tracker, Wandb, WandbConfig};

use crate::{
    BuildError, Opt, OptContext, OptionProblem, Plugin, RegisterError, Registry, Sched, SchedContext, Track,
    TrackContext,
};

/// Registers the optimizers `adafactor`, `adam`, `adamw`, `lion` and `sgd`, the schedules `constant`, `cosine`,
/// `cosine-with-restarts`, `inverse-sqrt`, `linear`, `polynomial`, `reduce-on-plateau` and `warmup-stable-decay`, and the
/// trackers `mlflow`, `tensorboard` and `wandb`.
///
/// # Errors
/// [`RegisterError`] if one of the names is taken.
pub fn register(registry: &mut Registry) -> Result<(), RegisterError> {
    registry.register::<Opt, Adafactor>()?.register::<Opt, Adam>()?.register::<Opt, AdamW>()?;
    registry.register::<Opt, Lion>()?.register::<Opt, Sgd>()?;
    registry.register::<Sched, Constant>()?.register::<Sched, Cosine>()?.register::<Sched, CosineWithRestarts>()?;
    registry.register::<Sched, InverseSqrt>()?.register::<Sched, Linear>()?.register::<Sched, Polynomial>()?;
    registry.register::<Sched, ReduceOnPlateau>()?.register::<Sched, WarmupStableDecay>()?;
    registry.register::<Track, Mlflow>()?.register::<Track, TensorBoard>()?.register::<Track, Wandb>()?;
    Ok(())
}

macro_rules! optimizer {
    ($optimizer:ident, $config:ident, $name:literal, { $($field:ident: $value:expr),+ } $(, $problems:expr)?) => {
        impl Plugin<Opt> for $optimizer {
            const NAME: &'static str = $name;
            type Config = $config;

            fn example() -> $config {
                $config { $($field: $value,)+ ..$config::default() }
            }

            fn check(config: &$config) -> Vec<OptionProblem> {
                let checks: &[fn(&$config) -> Vec<OptionProblem>] = &[$($problems)?];
                checks.iter().flat_map(|problems| problems(config)).collect()
            }

            fn build(config: $config, _: &mut OptContext) -> Result<Box<dyn Optimizer>, BuildError> {
                Ok(Box::new($optimizer::new(config)))
            }
        }
    };
}

optimizer!(Adafactor, AdafactorConfig, "adafactor", { lr: 0.3, weight_decay: 1e-5 });
optimizer!(Adam, AdamConfig, "adam", { lr: 1e-2 });
optimizer!(AdamW, AdamWConfig, "adamw", { lr: 1e-2, weight_decay: 0.0 });
optimizer!(Lion, LionConfig, "lion", { lr: 1e-3 });
optimizer!(Sgd, SgdConfig, "sgd", { lr: 1e-1, momentum: 0.9 }, nesterov);

/// Implements `Plugin` for a schedule with a warm-up.
macro_rules! schedule {
    ($schedule:ident, $config:ident, $name:literal, { $($field:ident: $value:expr),+ } $(, $problems:expr)?) => {
        impl Plugin<Sched> for $schedule {
            const NAME: &'static str = $name;
            type Config = $config;

            fn example() -> $config {
                $config { $($field: $value,)+ ..$config::default() }
            }

            fn check(config: &$config) -> Vec<OptionProblem> {
                let checks: &[fn(&$config) -> Vec<OptionProblem>] = &[$($problems)?];
                let warmup = not_both("warmup", config.warmup_steps, config.warmup_ratio);
                warmup.into_iter().chain(checks.iter().flat_map(|problems| problems(config))).collect()
            }

            fn build(config: $config, cx: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
                Ok(Box::new($schedule::new(config, cx.total_steps)))
            }
        }
    };
}

schedule!(Constant, ConstantConfig, "constant", { warmup_steps: 10 });
schedule!(Cosine, CosineConfig, "cosine", { warmup_steps: 10 });
schedule!(
    CosineWithRestarts,
    CosineWithRestartsConfig,
    "cosine-with-restarts",
    { warmup_ratio: 0.05, cycles: NonZeroUsize::MIN.saturating_add(2) }
);
schedule!(InverseSqrt, InverseSqrtConfig, "inverse-sqrt", { warmup_steps: 100 });
schedule!(Linear, LinearConfig, "linear", { warmup_steps: 10 });
schedule!(Polynomial, PolynomialConfig, "polynomial", { warmup_ratio: 0.05, power: 2.0 });
schedule!(
    WarmupStableDecay,
    WarmupStableDecayConfig,
    "warmup-stable-decay",
    { warmup_ratio: 0.05, decay_ratio: 0.2, decay: Decay::Linear },
    decays
);

/// Refuses a number of steps that is given both as a count and as a ratio.
fn not_both(what: &str, steps: usize, ratio: f64) -> Option<OptionProblem> {
    let message = format!("expected either `{what}_steps` or `{what}_ratio`, found both");
    (steps > 0 && ratio > 0.0).then(|| OptionProblem { key: format!("{what}_ratio"), message })
}

fn decays(config: &WarmupStableDecayConfig) -> Vec<OptionProblem> {
    let mut problems: Vec<_> = not_both("decay", config.decay_steps, config.decay_ratio).into_iter().collect();
    if config.decay_steps == 0 && config.decay_ratio == 0.0 {
        let message = "expected `decay_steps` or `decay_ratio` above 0, found neither".to_owned();
        problems.push(OptionProblem { key: "decay_steps".to_owned(), message });
    }
    problems
}

impl Plugin<Sched> for ReduceOnPlateau {
    const NAME: &'static str = "reduce-on-plateau";
    type Config = ReduceOnPlateauConfig;

    fn example() -> ReduceOnPlateauConfig {
        ReduceOnPlateauConfig { metric: "accuracy".to_owned(), factor: 0.5, patience: 2, ..Default::default() }
    }

    fn check(config: &ReduceOnPlateauConfig) -> Vec<OptionProblem> {
        let is_wrong = better(&config.metric) == Some(PlateauMode::Min) && config.mode == Some(PlateauMode::Max);
        let message = format!("expected min, or another `metric` than {}, of which less is better", config.metric);
        let mode = is_wrong.then(|| OptionProblem { key: "mode".to_owned(), message });
        not_both("warmup", config.warmup_steps, config.warmup_ratio).into_iter().chain(mode).collect()
    }

    fn build(config: ReduceOnPlateauConfig, cx: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
        let mode = config.mode.or_else(|| better(&config.metric));
        Ok(Box::new(ReduceOnPlateau::new(ReduceOnPlateauConfig { mode, ..config }, cx.total_steps)))
    }
}

/// Direction in which a usual metric improves.
fn better(metric: &str) -> Option<PlateauMode> {
    let known = Metric::find(metric).ok()?;
    Some(if known.larger_is_better { PlateauMode::Max } else { PlateauMode::Min })
}

/// Refuses Nesterov momentum with dampening or without momentum, like PyTorch.
fn nesterov(config: &SgdConfig) -> Vec<OptionProblem> {
    let is_wrong = config.nesterov && (config.momentum == 0.0 || config.dampening != 0.0);
    let message = "expected false, or `momentum` above 0 and no `dampening`".to_owned();
    is_wrong.then(|| OptionProblem { key: "nesterov".to_owned(), message }).into_iter().collect()
}

impl Plugin<Track> for Mlflow {
    const NAME: &'static str = "mlflow";
    type Config = MlflowConfig;

    fn example() -> MlflowConfig {
        MlflowConfig { tracking_uri: Some("http://127.0.0.1:5000".to_owned()), ..MlflowConfig::default() }
    }

    fn check(config: &MlflowConfig) -> Vec<OptionProblem> {
        let problem = |error| OptionProblem { key: "tracking_uri".to_owned(), message: format!("{error}") };
        config.problem().map(problem).into_iter().collect()
    }

    fn build(config: MlflowConfig, _: &mut TrackContext) -> Result<Box<dyn Tracker>, BuildError> {
        match Mlflow::new(config, MlflowAccess::from_env()) {
            Ok(mlflow) => Ok(Box::new(mlflow)),
            Err(error) => Err(BuildError::Other(error.into())),
        }
    }
}

impl Plugin<Track> for TensorBoard {
    const NAME: &'static str = "tensorboard";
    type Config = TensorBoardConfig;

    fn example() -> TensorBoardConfig {
        TensorBoardConfig::default()
    }

    fn build(config: TensorBoardConfig, _: &mut TrackContext) -> Result<Box<dyn Tracker>, BuildError> {
        Ok(Box::new(TensorBoard::new(config)))
    }
}

impl Plugin<Track> for Wandb {
    const NAME: &'static str = "wandb";
    type Config = WandbConfig;

    fn example() -> WandbConfig {
        WandbConfig { project: Some("prompts".to_owned()), ..WandbConfig::default() }
    }

    fn build(config: WandbConfig, _: &mut TrackContext) -> Result<Box<dyn Tracker>, BuildError> {
        Ok(Box::new(Wandb::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{PluginKind, ResolveError, Slot};

    fn registry() -> Registry {
        let mut registry = Registry::new();
        register(&mut registry).expect("names are free");
        registry
    }

    fn check<S: Slot>(expected: &[(&str, &str)]) {
        let registry = registry();
        let catalog = registry.catalog();
        let found: Vec<(&str, &str)> = catalog.entries(S::KIND).map(|entry| (entry.name, &*entry.summary)).collect();
        assert_eq!(found, expected);
        for entry in catalog.entries(S::KIND) {
            let resolved = entry.resolve(entry.example.clone()).expect("an example is accepted");
            assert_eq!(resolved, entry.example, "{}", entry.name);
            assert!(entry.resolve(json!({ "no_such_option": 1 })).is_err());
            assert_eq!(entry.schema["additionalProperties"], json!(false), "{}", entry.name);
        }
    }

    #[test]
    fn plugins_are_listed_by_name() {
        check::<Opt>(&[
            ("adafactor", "Adafactor with factored squared gradients (Shazeer and Stern, arXiv 1804.04235)."),
            ("adam", "Adam (Kingma and Ba, arXiv 1412.6980), with weight decay as a part of the gradient."),
            ("adamw", "Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."),
            (
                "lion",
                "Lion: each number changes by the learning rate, in the direction of the sign of a running mean \
                 (Chen et al., arXiv 2302.06675).",
            ),
            ("sgd", "Stochastic gradient descent with optional momentum."),
        ]);
        check::<Sched>(&[
            ("constant", "Warm-up, then the full rate."),
            ("cosine", "Warm-up, then half a cosine down to zero at the end of the run."),
            ("cosine-with-restarts", "Warm-up, then several times half a cosine from the full rate down to zero."),
            ("inverse-sqrt", "Warm-up, then a decay as one over the root of the steps."),
            ("linear", "Warm-up, then a linear decay to zero at the end of the run."),
            ("polynomial", "Warm-up, then a decay as a power of the remaining share of the run."),
            ("reduce-on-plateau", "Full rate, reduced each time evaluations have not improved for a while."),
            ("warmup-stable-decay", "Warm-up, then the full rate, then a decay up to the end of the run."),
        ]);
        check::<Track>(&[
            (
                "mlflow",
                "Run on an MLflow server: options as parameters, losses, metrics, and the files of the run folder.",
            ),
            ("tensorboard", "Event files for TensorBoard."),
            ("wandb", "Offline run of Weights & Biases, which `wandb sync` uploads during or after training."),
        ]);
    }

    #[test]
    fn resolve_fills_in_defaults() {
        let resolved =
            registry().catalog().resolve(PluginKind::Optimizer, "adamw", json!({ "lr": 0.5 })).expect("options");
        let expected = json!({ "lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01 });
        assert_eq!(resolved, expected);
        assert!(registry().catalog().resolve(PluginKind::Schedule, "linear", serde_json::Value::Null).is_ok());
    }

    #[test]
    fn register_twice_is_refused() {
        let mut registry = registry();
        let error = registry.register::<Opt, AdamW>().expect_err("taken");
        assert_eq!(error.to_string(), "register optimizer `adamw`: there is one of this name already");
        assert_eq!(registry.catalog().entries(PluginKind::Optimizer).count(), 5);
    }

    #[test]
    fn build_unknown_name_lists_known_names() {
        let error = registry().build::<Opt>("adamx", json!({}), &mut OptContext {}).err().expect("an unknown name");
        let BuildError::Resolve(ResolveError::Unknown { known, nearest, .. }) = &error else { panic!("{error:?}") };
        assert_eq!(known, &["adafactor", "adam", "adamw", "lion", "sgd"]);
        assert_eq!(nearest.as_deref(), Some("adamw"));
    }

    #[test]
    fn build_uses_options() {
        let optimizer = registry().build::<Opt>("sgd", json!({ "lr": 0.25 }), &mut OptContext {}).expect("built");
        assert_eq!(optimizer.lr(), 0.25);
        let mut cx = SchedContext { total_steps: 10 };
        let schedule = registry().build::<Sched>("cosine", json!({ "warmup_steps": 4 }), &mut cx).expect("built");
        assert_eq!((schedule.factor(2), schedule.factor(7)), (0.5, 0.5));
    }

    #[test]
    fn conflicting_options_are_problems() {
        fn problems<S: Slot>(name: &str, options: serde_json::Value) -> Vec<(String, String)> {
            let problems = registry().catalog().check(S::KIND, name, options).expect("options");
            problems.into_iter().map(|problem| (problem.key, problem.message)).collect()
        }
        let both = json!({ "warmup_steps": 5, "warmup_ratio": 0.1 });
        let registry = registry();
        let schedules = registry.catalog().entries(PluginKind::Schedule);
        for entry in schedules.filter(|entry| entry.name != "warmup-stable-decay") {
            let expected = ("warmup_ratio", "expected either `warmup_steps` or `warmup_ratio`, found both");
            let expected = (expected.0.to_owned(), expected.1.to_owned());
            assert_eq!(problems::<Sched>(entry.name, both.clone()), [expected], "{}", entry.name);
        }
        let keys = |found: Vec<(String, String)>| found.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(problems::<Sched>("warmup-stable-decay", both)), ["warmup_ratio", "decay_steps"]);
        let decays = json!({ "decay_steps": 5, "decay_ratio": 0.1 });
        assert_eq!(keys(problems::<Sched>("warmup-stable-decay", decays)), ["decay_ratio"]);
        assert_eq!(keys(problems::<Sched>("reduce-on-plateau", json!({ "mode": "max" }))), ["mode"]);
        assert!(problems::<Sched>("reduce-on-plateau", json!({ "mode": "max", "metric": "f1" })).is_empty());
        for options in [json!({ "nesterov": true }), json!({ "nesterov": true, "momentum": 0.9, "dampening": 0.1 })] {
            assert_eq!(keys(problems::<Opt>("sgd", options)), ["nesterov"]);
        }
        assert!(problems::<Opt>("sgd", json!({ "nesterov": true, "momentum": 0.9 })).is_empty());
    }
}
