//! Options and credentials of the tracker for MLflow servers, which every build reads.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Run on an MLflow server: options as parameters, losses, metrics, and the files of the run folder.
///
/// Credentials come from the variables of MLflow's own client: `MLFLOW_TRACKING_USERNAME` with
/// `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MlflowConfig {
    /// Address of the server, for example `http://127.0.0.1:5000`; `MLFLOW_TRACKING_URI` if not given. Passwords belong
    /// in the environment: this file is copied to the run folder.
    pub tracking_uri: Option<String>,
    /// Name of the experiment, which is created if missing; the pipeline's name if not given.
    pub experiment: Option<String>,
    /// Name of the run on the server; the name of its folder if not given.
    pub run_name: Option<String>,
    /// Seconds between two requests with the numbers of steps; those of an evaluation are sent at once.
    #[schemars(range(min = 0.0))]
    pub flush_seconds: f64,
    /// Store the adapter, the report, the manifest and the pipeline with the run, if the server stores artifacts itself
    /// (the default of MLflow).
    pub artifacts: bool,
}

impl Default for MlflowConfig {
    fn default() -> Self {
        Self { tracking_uri: None, experiment: None, run_name: None, flush_seconds: 5.0, artifacts: true }
    }
}

/// Address and credentials of an MLflow server.
#[derive(Clone, Default)]
pub struct MlflowAccess {
    /// Address of the server.
    pub tracking_uri: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password of the user.
    pub password: Option<String>,
    /// Token, used without a user name and password.
    pub token: Option<String>,
}

impl MlflowAccess {
    /// Reads `MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` and `MLFLOW_TRACKING_TOKEN`.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(format!("MLFLOW_TRACKING_{name}")).ok().filter(|v| !v.is_empty());
        Self {
            tracking_uri: variable("URI"),
            username: variable("USERNAME"),
            password: variable("PASSWORD"),
            token: variable("TOKEN"),
        }
    }
}

impl fmt::Debug for MlflowAccess {
    /// Hides the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MlflowAccess").finish_non_exhaustive()
    }
}
