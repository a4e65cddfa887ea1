use sepal_blocks::{Ends, EndsError};
use sepal_core::{Ragged, Span};
use sepal_nn::Parameters;
use sepal_plugin::{Hidden, Logits, Phase, TaskHead, TuningMode};
use tch::Tensor;

use crate::blocks::{Blocks, Tuned};
use crate::error::RunError;
use crate::finite::Trace;
use crate::precision::{rounded, rounded_forward};
use crate::spec::Precision;

/// What trains, with the frozen model around it: ends in this process, blocks wherever they run.
pub(crate) struct Model {
    pub(crate) ends: Ends,
    pub(crate) blocks: Blocks,
    pub(crate) tuning: Box<dyn TuningMode>,
    pub(crate) head: Box<dyn TaskHead>,
    pub(crate) params: Parameters,
    /// All blocks.
    pub(crate) whole: Span,
    /// Of what goes to the blocks and comes to the head.
    pub(crate) precision: Precision,
}

impl Model {
    /// What is slipped into the blocks, from a graph of its own: one for each backward.
    pub(crate) fn tunables(&self) -> Result<Vec<(String, Tensor)>, RunError> {
        let named = self.tuning.tunables(self.whole).map_err(RunError::Tuning)?;
        Ok(named.into_iter().map(|named| (named.name, named.tensor)).collect())
    }

    /// The logits of a batch: `[rows, n_labels]`.
    ///
    /// # Errors
    /// [`RunError`]; where only predictions are wanted, also [`RunError::NonFiniteLogits`], with places in the batch for rows.
    pub(crate) fn forward(
        &self,
        tuned: &Tuned<'_>,
        ids: &[i64],
        rows: &Ragged,
        phase: Phase,
    ) -> Result<Logits, RunError> {
        let tokens = self.rounded(self.ends.embed(&Tensor::from_slice(ids)))?; // [n_tokens, hidden]
        let prompts = self.tuning.prefix().map_err(RunError::Tuning)?;
        let prefix = prompts.map(|prompts| self.prefix(&prompts)).transpose()?;
        let pooled = match tuned.forward(prefix.as_ref(), &tokens, rows) {
            Err(error) if phase == Phase::Evaluate => return Err(self.blocks_failed(error, &tokens, rows.len())),
            pooled => pooled?, // [rows, hidden]
        };
        let hidden = Hidden { pooled: self.rounded(self.ends.final_norm(&pooled))? };
        let logits = self.head.forward(&hidden, phase).map_err(RunError::Head)?;
        if phase == Phase::Evaluate {
            let (normed, logits) = (&hidden.pooled, &logits.values);
            self.check_finite(&Trace { tokens: &tokens, pooled: &pooled, normed, logits })?;
        }
        Ok(logits)
    }

    fn prefix(&self, prompts: &Tensor) -> Result<Tensor, RunError> {
        let embedded = self.ends.embed_prompts(prompts).map_err(ends)?;
        rounded_forward(&embedded, self.precision).map_err(RunError::Torch)
    }

    fn rounded(&self, tensor: Result<Tensor, EndsError>) -> Result<Tensor, RunError> {
        rounded(tensor.map_err(ends)?, self.precision).map_err(RunError::Torch)
    }
}

fn ends(error: EndsError) -> RunError {
    RunError::Ends(error.into())
}
