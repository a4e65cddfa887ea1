//! The optimizers and schedules of `sepal-optim` and the trackers of `sepal-track` as plugins.

use sepal_optim::{
    AdamW, AdamWConfig, Constant, ConstantConfig, Cosine, CosineConfig, Linear, LinearConfig, Optimizer, Schedule, Sgd,
    SgdConfig,
};
use sepal_track::{Mlflow, MlflowAccess, MlflowConfig, TensorBoard, TensorBoardConfig, Tracker, Wandb, WandbConfig};

use crate::{
    BuildError, Opt, OptContext, OptionProblem, Plugin, RegisterError, Registry, Sched, SchedContext, Track,
    TrackContext,
};

/// Registers the optimizers `adamw` and `sgd`, the schedules `constant`, `cosine` and `linear`, and the trackers
/// `mlflow`, `tensorboard` and `wandb`.
///
/// # Errors
/// [`RegisterError`] if one of the names is taken.
pub fn register(registry: &mut Registry) -> Result<(), RegisterError> {
    registry.register::<Opt, AdamW>()?.register::<Opt, Sgd>()?;
    registry.register::<Sched, Constant>()?.register::<Sched, Cosine>()?.register::<Sched, Linear>()?;
    registry.register::<Track, Mlflow>()?.register::<Track, TensorBoard>()?.register::<Track, Wandb>()?;
    Ok(())
}

impl Plugin<Opt> for AdamW {
    const NAME: &'static str = "adamw";
    type Config = AdamWConfig;

    fn example() -> AdamWConfig {
        AdamWConfig { lr: 1e-2, weight_decay: 0.0, ..AdamWConfig::default() }
    }

    fn build(config: AdamWConfig, _: &mut OptContext) -> Result<Box<dyn Optimizer>, BuildError> {
        Ok(Box::new(AdamW::new(config)))
    }
}

impl Plugin<Opt> for Sgd {
    const NAME: &'static str = "sgd";
    type Config = SgdConfig;

    fn example() -> SgdConfig {
        SgdConfig { lr: 1e-1, momentum: 0.9, ..SgdConfig::default() }
    }

    fn build(config: SgdConfig, _: &mut OptContext) -> Result<Box<dyn Optimizer>, BuildError> {
        Ok(Box::new(Sgd::new(config)))
    }
}

impl Plugin<Sched> for Constant {
    const NAME: &'static str = "constant";
    type Config = ConstantConfig;

    fn example() -> ConstantConfig {
        ConstantConfig { warmup_steps: 10 }
    }

    fn build(config: ConstantConfig, _: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
        Ok(Box::new(Constant::new(config)))
    }
}

impl Plugin<Sched> for Cosine {
    const NAME: &'static str = "cosine";
    type Config = CosineConfig;

    fn example() -> CosineConfig {
        CosineConfig { warmup_steps: 10 }
    }

    fn build(config: CosineConfig, cx: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
        Ok(Box::new(Cosine::new(config, cx.total_steps)))
    }
}

impl Plugin<Sched> for Linear {
    const NAME: &'static str = "linear";
    type Config = LinearConfig;

    fn example() -> LinearConfig {
        LinearConfig { warmup_steps: 10 }
    }

    fn build(config: LinearConfig, cx: &mut SchedContext) -> Result<Box<dyn Schedule>, BuildError> {
        Ok(Box::new(Linear::new(config, cx.total_steps)))
    }
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
    use crate::Slot;

    fn registry() -> Registry {
        let mut registry = Registry::new();
        register(&mut registry).expect("names are free");
        registry
    }

    fn check<S: Slot>(expected: &[(&str, &str)]) {
        let registry = registry();
        let found: Vec<(&str, &str)> = registry.entries::<S>().map(|entry| (entry.name, &*entry.summary)).collect();
        assert_eq!(found, expected);
        for entry in registry.entries::<S>() {
            let resolved = registry.resolve::<S>(entry.name, entry.example.clone()).expect("an example is accepted");
            assert_eq!(resolved, entry.example, "{}", entry.name);
            assert!(registry.resolve::<S>(entry.name, json!({ "no_such_option": 1 })).is_err());
            assert_eq!(entry.schema["additionalProperties"], json!(false), "{}", entry.name);
        }
    }

    #[test]
    fn they_are_listed_by_name() {
        check::<Opt>(&[
            ("adamw", "Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."),
            ("sgd", "Gradient descent, with momentum if asked."),
        ]);
        check::<Sched>(&[
            ("constant", "Warm-up, then the full rate."),
            ("cosine", "Warm-up, then half a cosine down to zero at the end of the run."),
            ("linear", "Warm-up, then down evenly to zero at the end of the run."),
        ]);
        check::<Track>(&[
            (
                "mlflow",
                "A run on an MLflow server: options as parameters, losses and metrics, and the files of the run's folder.",
            ),
            ("tensorboard", "Event files that TensorBoard reads."),
            ("wandb", "An offline run of Weights & Biases; `wandb sync` sends it, then or later."),
        ]);
    }

    #[test]
    fn defaults_are_filled_in() {
        let resolved = registry().resolve::<Opt>("adamw", json!({ "lr": 0.5 })).expect("options");
        let expected = json!({ "lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01 });
        assert_eq!(resolved, expected);
        assert!(registry().resolve::<Sched>("linear", serde_json::Value::Null).is_ok());
    }

    #[test]
    fn a_name_is_registered_once_per_slot() {
        let mut registry = registry();
        let error = registry.register::<Opt, AdamW>().expect_err("taken");
        assert_eq!(error.to_string(), "register optimizer `adamw`: there is one of this name already");
        assert_eq!(registry.entries::<Opt>().count(), 2);
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        match registry().build::<Opt>("adam", json!({}), &mut OptContext {}) {
            Err(BuildError::Unknown { known, nearest, .. }) => {
                assert_eq!((known, nearest.as_deref()), (vec!["adamw", "sgd"], Some("adamw")));
            }
            other => panic!("expected an error, got {:?}", other.err()),
        }
    }

    #[test]
    fn what_is_built_has_its_options() {
        let optimizer = registry().build::<Opt>("sgd", json!({ "lr": 0.25 }), &mut OptContext {}).expect("built");
        assert_eq!(optimizer.lr(), 0.25);
        let mut cx = SchedContext { total_steps: 10 };
        let schedule = registry().build::<Sched>("cosine", json!({ "warmup_steps": 4 }), &mut cx).expect("built");
        assert_eq!((schedule.factor(2), schedule.factor(7)), (0.5, 0.5));
    }
}
