use sepal_config::spec::RunLength;
use sepal_data::{Batch, Epoch, Loader};

/// Position in the batches of a run.
///
/// Steps in sequence read on in the open epoch; any other step opens its epoch at the right batch.
#[derive(Debug)]
pub struct BatchCursor<'a> {
    train: &'a Loader,
    length: RunLength,
    accumulate: usize,
    open: Option<OpenEpoch>,
}

#[derive(Debug)]
struct OpenEpoch {
    epoch: u64,
    /// Index of the next step in the epoch.
    next_step: u64,
    batches: Epoch,
}

impl<'a> BatchCursor<'a> {
    /// Starts at the first batch; each step takes `accumulate` batches.
    pub fn new(train: &'a Loader, length: RunLength, accumulate: usize) -> Self {
        Self { train, length, accumulate, open: None }
    }

    /// Returns the batches of the step after `steps` steps, and the epochs that are finished after it.
    pub fn group(&mut self, steps: u64) -> (Vec<Batch>, f64) {
        let (epoch, step) = (steps / self.length.steps_per_epoch, steps % self.length.steps_per_epoch);
        let first = step as usize * self.accumulate;
        let mut batches = match self.open.take() {
            Some(open) if (open.epoch, open.next_step) == (epoch, step) => open.batches,
            _ => self.train.epoch_from(epoch, first),
        };
        let group: Vec<Batch> = batches.by_ref().take(self.accumulate).collect();
        self.open = Some(OpenEpoch { epoch, next_step: step + 1, batches });
        let fraction = (first + group.len()) as f64 / self.train.batches_per_epoch() as f64;
        (group, epoch as f64 + fraction)
    }
}
