//! Tracker for MLflow servers in a build without the feature `mlflow`: its options are read and refused.

use std::convert::Infallible;

use sepal_core::NotBuilt;

use crate::mlflow_config::{MlflowAccess, MlflowConfig};
use crate::{EvaluationRecord, Manifest, RunInfo, StepRecord, TrackError, Tracker};

const NOT_BUILT: NotBuilt = NotBuilt { part: "an MLflow server", feature: "mlflow" };

/// Error of every use: the build has no tracker for MLflow servers.
pub type MlflowError = NotBuilt;

impl MlflowConfig {
    /// Returns an error for all options.
    pub fn problem(&self) -> Option<MlflowError> {
        Some(NOT_BUILT)
    }
}

/// Tracker without values.
#[derive(Debug)]
pub struct Mlflow(Infallible);

impl Mlflow {
    /// Creates no tracker.
    ///
    /// # Errors
    /// [`NotBuilt`], always.
    pub fn new(_config: MlflowConfig, _access: MlflowAccess) -> Result<Self, MlflowError> {
        Err(NOT_BUILT)
    }
}

impl Tracker for Mlflow {
    fn start(&mut self, _run: &RunInfo) -> Result<(), TrackError> {
        match self.0 {}
    }

    fn step(&mut self, _record: &StepRecord) -> Result<(), TrackError> {
        match self.0 {}
    }

    fn evaluation(&mut self, _record: &EvaluationRecord) -> Result<(), TrackError> {
        match self.0 {}
    }

    fn finish(&mut self, _manifest: &Manifest) -> Result<(), TrackError> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_an_absent_tracker_are_refused_by_its_feature() {
        let problem = MlflowConfig::default().problem().expect("a problem");
        assert_eq!(problem.feature, "mlflow");
        assert_eq!(Mlflow::new(MlflowConfig::default(), MlflowAccess::default()).expect_err("not built"), problem);
    }
}
