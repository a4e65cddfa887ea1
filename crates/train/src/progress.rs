use std::time::Duration;

use sepal_config::spec::TrainSpec;
use sepal_data::Loader;
use sepal_track::{BestEvaluation, ServerUsage};
use serde::{Deserialize, Serialize};

/// Length of a run in optimizer steps.
#[derive(Debug, Clone, Copy)]
pub struct RunLength {
    /// Steps of one pass over the training rows.
    pub steps_per_epoch: u64,
    /// Steps of the run, if nothing ends it early.
    pub total_steps: u64,
}

impl RunLength {
    /// Returns the length of a run over the batches of `train`.
    pub fn new(spec: &TrainSpec, train: &Loader) -> Self {
        let steps_per_epoch = (train.batches_per_epoch() as u64).div_ceil(spec.accumulate as u64);
        let total_steps = spec.max_steps.unwrap_or(spec.epochs * steps_per_epoch);
        Self { steps_per_epoch, total_steps }
    }
}

/// Progress of a run, as its checkpoints hold it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps, made or skipped.
    pub steps: u64,
    /// Skipped steps.
    pub skipped: u64,
    /// Loss scale of the last step.
    pub scale: Option<f64>,
    /// Rows of all steps.
    pub rows: u64,
    /// Tokens of all steps.
    pub tokens: u64,
    /// Seconds of all steps.
    pub train_seconds: f64,
    /// Seconds of training and evaluation.
    pub loop_seconds: f64,
    /// Seconds of the earlier processes of the run.
    pub seconds_before: f64,
    /// Bytes sent by the earlier processes.
    pub sent_before: u64,
    /// Bytes received by the earlier processes.
    pub received_before: u64,
    /// Servers of the earlier processes.
    pub servers_before: Vec<ServerUsage>,
    /// Start of the run.
    pub started: String,
    /// Steps after which the run was resumed.
    pub resumed_at: Vec<u64>,
    /// Step of the last evaluation.
    pub evaluated_at: Option<u64>,
    /// Best evaluation so far.
    pub best: Option<BestEvaluation>,
    /// Evaluations since the best one.
    pub without_improvement: u64,
    /// Reason for ending before the last step.
    pub ended_early: Option<String>,
}

impl Progress {
    /// Adds the servers of this process to those of the earlier ones.
    pub fn server_usage(&self, current: Vec<sepal_remote::ServerUsage>) -> Vec<ServerUsage> {
        let mut usage = self.servers_before.clone();
        for now in current {
            let blocks = now.span.to_string();
            match usage.iter_mut().find(|earlier| earlier.server == now.server && earlier.blocks == blocks) {
                Some(earlier) => {
                    earlier.calls += now.calls;
                    earlier.failures += now.failures;
                    earlier.checks += now.checks;
                    earlier.differences += now.differences;
                    earlier.quarantined |= now.quarantined;
                }
                None => {
                    let sepal_remote::ServerUsage { server, calls, failures, checks, differences, quarantined, .. } =
                        now;
                    usage.push(ServerUsage { server, blocks, calls, failures, checks, differences, quarantined });
                }
            }
        }
        usage
    }
}

/// Beginning of the reason for ending because the time was up.
pub(crate) const TIME_LIMIT: &str = "`train.max_minutes`";

/// True if a run ended early because its time was up, so that it can be resumed with more time.
pub fn ended_by_time(ended_early: Option<&str>) -> bool {
    ended_early.is_some_and(|reason| reason.starts_with(TIME_LIMIT))
}

/// Converts minutes to a duration; values that are too large become the longest duration.
pub(crate) fn minutes(minutes: f64) -> Duration {
    Duration::try_from_secs_f64(minutes * 60.0).unwrap_or(Duration::MAX)
}
