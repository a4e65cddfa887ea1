use sepal_core::NamedHostTensor;

use crate::evaluate::SelectedEvaluation;
use crate::progress::Progress;

/// Everything that the next step of a run depends on, on the host.
#[derive(Debug)]
pub struct TrainState {
    /// Progress of the run, this process included.
    pub progress: Progress,
    /// Evaluation whose parameters become the adapter, if there is one yet.
    pub selected: Option<SelectedEvaluation>,
    /// Trained parameters.
    pub parameters: Vec<NamedHostTensor>,
    /// State of the optimizer.
    pub optimizer: Vec<NamedHostTensor>,
    /// State of the schedule.
    pub schedule: Vec<NamedHostTensor>,
    /// State of the loss scale.
    pub scaler: Vec<NamedHostTensor>,
    /// Consecutive skipped steps, and the loss scale of the last one.
    pub skips: (u64, f64),
}
