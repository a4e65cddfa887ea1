use sepal_catalog::{OptionProblem, Options, PluginKind};

use crate::{MlflowConfig, TensorBoardConfig, WandbConfig};

impl Options for MlflowConfig {
    const KIND: PluginKind = PluginKind::Tracker;
    const NAME: &'static str = "mlflow";

    fn example() -> Self {
        Self { tracking_uri: Some("http://127.0.0.1:5000".to_owned()), ..Self::default() }
    }

    fn check(&self) -> Vec<OptionProblem> {
        let problem = |error| OptionProblem { key: "tracking_uri".to_owned(), message: format!("{error}") };
        self.problem().map(problem).into_iter().collect()
    }
}

impl Options for TensorBoardConfig {
    const KIND: PluginKind = PluginKind::Tracker;
    const NAME: &'static str = "tensorboard";

    fn example() -> Self {
        Self::default()
    }
}

impl Options for WandbConfig {
    const KIND: PluginKind = PluginKind::Tracker;
    const NAME: &'static str = "wandb";

    fn example() -> Self {
        Self { project: Some("prompts".to_owned()), ..Self::default() }
    }
}
