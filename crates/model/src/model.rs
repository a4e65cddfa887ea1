use sepal_blocks::{Ends, EndsError};
use sepal_core::{DType, Ragged, Span};
use sepal_nn::Parameters;
use sepal_plugin::{Hidden, Logits, Phase, TaskHead, TuningMode};
use sepal_remote::RemoteError;
use tch::{TchError, Tensor};

use crate::blocks::{Blocks, BlocksError, BlocksSession};
use crate::error::ForwardError;
use crate::non_finite::{NonFiniteOrigin, is_finite, non_finite_rows};
use crate::rounding::{round, round_forward};

/// A frozen model with everything that trains.
pub struct Model {
    /// Embeddings and final norm.
    pub ends: Ends,
    /// All blocks.
    pub blocks: Box<dyn Blocks>,
    /// Tuning mode: soft prompts and the tunables of the blocks.
    pub tuning: Box<dyn TuningMode>,
    /// Task head.
    pub head: Box<dyn TaskHead>,
    /// Parameters of tuning mode and head.
    pub params: Parameters,
    /// Span of all blocks.
    pub span: Span,
    /// Number format of the inputs of the blocks and of the head; values are rounded to it and computed with in fp32.
    pub precision: DType,
}

impl Model {
    /// Returns the tunables of the blocks with a new graph, one for each backward pass.
    ///
    /// # Errors
    /// [`ForwardError::Tuning`] if the tuning mode fails.
    pub fn tunables(&self) -> Result<Vec<(String, Tensor)>, ForwardError> {
        let named = self.tuning.tunables(self.span).map_err(ForwardError::Tuning)?;
        Ok(named.into_iter().map(|named| (named.name, named.tensor)).collect())
    }

    /// Starts a session of the blocks with the current tunables.
    ///
    /// # Errors
    /// [`ForwardError`] if the tuning mode or the blocks fail.
    pub fn tune(&self) -> Result<Box<dyn BlocksSession + '_>, ForwardError> {
        Ok(self.blocks.tune(self.tunables()?)?)
    }

    /// Returns the logits of a batch: `[rows, n_labels]`.
    ///
    /// # Errors
    /// [`ForwardError`]; in [`Phase::Evaluate`] also [`ForwardError::NonFiniteLogits`], with rows by their index in the batch.
    pub fn forward(
        &self,
        session: &dyn BlocksSession,
        ids: &[i64],
        rows: &Ragged,
        phase: Phase,
    ) -> Result<Logits, ForwardError> {
        let tokens = self.round(self.ends.embed(&Tensor::from_slice(ids)))?; // [n_tokens, hidden]
        let prompts = self.tuning.prefix().map_err(ForwardError::Tuning)?;
        let prefix = prompts.map(|prompts| self.embed_prompts(&prompts)).transpose()?;
        let pooled = match session.forward(prefix.as_ref(), &tokens, rows) {
            Err(error) if phase == Phase::Evaluate => return Err(self.explain(error, &tokens, rows.len())),
            pooled => pooled?, // [rows, hidden]
        };
        let hidden = Hidden { pooled: self.round(self.ends.final_norm(&pooled))? };
        let logits = self.head.forward(&hidden, phase).map_err(ForwardError::Head)?;
        if phase == Phase::Evaluate {
            let rows = non_finite_rows(&logits.values)?;
            if !rows.is_empty() {
                let origin = self.origin(&tokens, &pooled, &hidden.pooled)?;
                return Err(ForwardError::NonFiniteLogits { split: "given", rows, origin, source: None });
            }
        }
        Ok(logits)
    }

    /// Origin of non-finite logits. `tokens` are `[n_tokens, hidden]`; `pooled`, after the last block, and `normed`, after
    /// the final norm, are `[rows, hidden]`.
    fn origin(&self, tokens: &Tensor, pooled: &Tensor, normed: &Tensor) -> Result<NonFiniteOrigin, TchError> {
        if let Some(origin) = self.origin_before_blocks(tokens)? {
            return Ok(origin);
        }
        Ok(match (is_finite(pooled)?, is_finite(normed)?) {
            (false, _) => NonFiniteOrigin::Blocks { description: self.blocks.description() },
            (true, false) => NonFiniteOrigin::Norm,
            (true, true) => NonFiniteOrigin::Head,
        })
    }

    fn origin_before_blocks(&self, tokens: &Tensor) -> Result<Option<NonFiniteOrigin>, TchError> {
        // Embeddings first: prompts may have been initialised from them.
        if !is_finite(tokens)? {
            return Ok(Some(NonFiniteOrigin::Embeddings));
        }
        for (name, tensor) in self.params.iter() {
            if !is_finite(tensor)? {
                return Ok(Some(NonFiniteOrigin::Parameters { name: name.to_owned() }));
            }
        }
        Ok(None)
    }

    /// Adds the origin to the error of blocks that received or returned non-finite values, for a prediction of `n_rows` rows.
    /// The client ends a batch at the first such value, so that all rows of the batch are affected.
    fn explain(&self, error: BlocksError, tokens: &Tensor, n_rows: usize) -> ForwardError {
        match error {
            BlocksError::Remote(source @ (RemoteError::NonFinite { .. } | RemoteError::NonFiniteInput { .. })) => {
                let origin = self.origin_before_blocks(tokens).ok().flatten().unwrap_or(NonFiniteOrigin::Servers);
                let rows = (0..n_rows).collect();
                ForwardError::NonFiniteLogits { split: "given", rows, origin, source: Some(Box::new(source)) }
            }
            other => other.into(),
        }
    }

    fn embed_prompts(&self, prompts: &Tensor) -> Result<Tensor, ForwardError> {
        let embedded = self.ends.embed_prompts(prompts).map_err(ForwardError::Ends)?;
        Ok(round_forward(&embedded, self.precision)?)
    }

    fn round(&self, tensor: Result<Tensor, EndsError>) -> Result<Tensor, ForwardError> {
        Ok(round(tensor.map_err(ForwardError::Ends)?, self.precision)?)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("blocks", &self.blocks.description())
            .field("params", &self.params)
            .field("precision", &self.precision)
            .finish_non_exhaustive()
    }
}
