//! The optimizers and schedules of `sepal-optim` and the trackers of `sepal-track` as plugins.

use sepal_optim::{
    Adafactor, AdafactorConfig, Adam, AdamConfig, AdamW, AdamWConfig, Constant, ConstantConfig, Cosine, CosineConfig,
    CosineWithRestarts, CosineWithRestartsConfig, InverseSqrt, InverseSqrtConfig, Linear, LinearConfig, Lion,
    LionConfig, Optimizer, Polynomial, PolynomialConfig, ReduceOnPlateau, ReduceOnPlateauConfig, Schedule, Sgd,
    SgdConfig, WarmupStableDecay, WarmupStableDecayConfig,
};
use sepal_track::{Mlflow, MlflowAccess, MlflowConfig, TensorBoard, TensorBoardConfig, Tracker, Wandb, WandbConfig};

use crate::{
    BuildError, Opt, OptContext, OptionProblem, Options, Plugin, RegisterError, Registry, Sched, SchedContext, Track,
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

/// Implements `Plugin` for an optimizer.
macro_rules! optimizer {
    ($optimizer:ident, $config:ident) => {
        impl Plugin<Opt> for $optimizer {
            const NAME: &'static str = $config::NAME;
            type Config = $config;

            fn example() -> $config {
                $config::example()
            }

            fn check(config: &$config) -> Vec<OptionProblem> {
                config.check()
            }

            fn build(config: $config, _: &mut OptContext) -> Result<Box<dyn Optimizer>, BuildError> {
                Ok(Box::new($optimizer::new(config)))
            }
        }
    };
}

optimizer!(Adafactor, AdafactorConfig);
optimizer!(Adam, AdamConfig);
optimizer!(AdamW, AdamWConfig);
optimizer!(Lion, LionConfig);
optimizer!(Sgd, SgdConfig);

/// Implements `Plugin` for a schedule.
macro_rules! schedule {
    ($schedule:ident, $config:ident) => {
        impl Plugin<Sched> for $schedule {
            const NAME: &'static str = $config::NAME;
            type Config = $config;

            fn example() -> $config {
                $config::example()
            }

            fn check(config: &$config) -> Vec<OptionProblem> {
                config.check()
            }

            fn build(config: $config, cx: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
                Ok(Box::new($schedule::new(config, cx.total_steps)))
            }
        }
    };
}

schedule!(Constant, ConstantConfig);
schedule!(Cosine, CosineConfig);
schedule!(CosineWithRestarts, CosineWithRestartsConfig);
schedule!(InverseSqrt, InverseSqrtConfig);
schedule!(Linear, LinearConfig);
schedule!(Polynomial, PolynomialConfig);
schedule!(ReduceOnPlateau, ReduceOnPlateauConfig);
schedule!(WarmupStableDecay, WarmupStableDecayConfig);

impl Plugin<Track> for Mlflow {
    const NAME: &'static str = MlflowConfig::NAME;
    type Config = MlflowConfig;

    fn example() -> MlflowConfig {
        MlflowConfig::example()
    }

    fn check(config: &MlflowConfig) -> Vec<OptionProblem> {
        config.check()
    }

    fn build(config: MlflowConfig, _: &mut TrackContext) -> Result<Box<dyn Tracker>, BuildError> {
        match Mlflow::new(config, MlflowAccess::from_env()) {
            Ok(mlflow) => Ok(Box::new(mlflow)),
            Err(error) => Err(BuildError::Other(error.into())),
        }
    }
}

impl Plugin<Track> for TensorBoard {
    const NAME: &'static str = TensorBoardConfig::NAME;
    type Config = TensorBoardConfig;

    fn example() -> TensorBoardConfig {
        TensorBoardConfig::example()
    }

    fn check(config: &TensorBoardConfig) -> Vec<OptionProblem> {
        config.check()
    }

    fn build(config: TensorBoardConfig, _: &mut TrackContext) -> Result<Box<dyn Tracker>, BuildError> {
        Ok(Box::new(TensorBoard::new(config)))
    }
}

impl Plugin<Track> for Wandb {
    const NAME: &'static str = WandbConfig::NAME;
    type Config = WandbConfig;

    fn example() -> WandbConfig {
        WandbConfig::example()
    }

    fn check(config: &WandbConfig) -> Vec<OptionProblem> {
        config.check()
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
