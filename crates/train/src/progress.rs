use std::time::Duration;

use sepal_track::{BestEvaluation, ServerUsage};
use serde::{Deserialize, Serialize};

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

/// Greatest count of a run: more than one reaches, so that sums do not overflow.
const MAX_COUNT: u64 = 1 << 53;

impl Progress {
    /// Checks the counts of a checkpoint, to which those of this process are added. `skips` is the number of steps that were
    /// skipped at its end.
    ///
    /// # Errors
    /// The problem.
    pub(crate) fn check(&self, skips: u64) -> Result<(), String> {
        let of_server = |usage: &ServerUsage| [usage.calls, usage.failures, usage.checks, usage.differences];
        let of_servers = self.servers_before.iter().flat_map(of_server);
        let own =
            [self.steps, self.rows, self.tokens, self.sent_before, self.received_before, self.without_improvement];
        match own.into_iter().chain(of_servers).find(|count| *count > MAX_COUNT) {
            Some(count) => Err(format!("its state has the count {count}, which no run reaches")),
            None if self.skipped > self.steps || skips > self.skipped => Err(format!(
                "its state has {} steps, of which {} and at last {skips} were skipped",
                self.steps, self.skipped
            )),
            None => Ok(()),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_no_run_reaches_are_refused() {
        let progress = Progress { steps: 9, skipped: 2, ..Progress::default() };
        assert_eq!(progress.check(2), Ok(()));
        assert!(progress.check(3).is_err());
        let refused = |change: fn(&mut Progress)| {
            let mut changed = progress.clone();
            change(&mut changed);
            assert!(changed.check(0).is_err(), "{changed:?}");
        };
        refused(|progress| progress.steps = u64::MAX);
        refused(|progress| progress.skipped = 10);
        refused(|progress| progress.rows = u64::MAX);
        refused(|progress| progress.without_improvement = u64::MAX);
        refused(|progress| {
            let (server, blocks) = ("a".to_owned(), "0:1".to_owned());
            let (calls, failures, checks, differences, quarantined) = (u64::MAX, 0, 0, 0, false);
            let usage = ServerUsage { server, blocks, calls, failures, checks, differences, quarantined };
            progress.servers_before.push(usage);
        });
    }
}
