use sepal_blocks::{Ends, EndsError};
use sepal_core::{DType, Ragged, RowForm, TokenBatch, Want, WindowPool};
use sepal_nn::{Parameters, Tunable};
use sepal_plugin::{HiddenView, Logits, Phase, TaskHead, TuningMode};
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
    /// Number format of the inputs of the blocks and of the head; values are rounded to it and computed with in fp32.
    pub precision: DType,
    /// Texts without content, as the head names them; their logits calibrate predictions.
    pub calibration: Option<TokenBatch>,
    /// Joining of the logits of a text's windows, for rows of texts that are several sequences.
    pub window_pool: WindowPool,
}

impl Model {
    /// Returns the tunables of the blocks with a new graph, one for each backward pass.
    ///
    /// # Errors
    /// [`ForwardError::Tuning`] if the tuning mode fails.
    pub fn tunables(&self) -> Result<Vec<Tunable>, ForwardError> {
        self.tuning.tunables().map_err(ForwardError::Tuning)
    }

    /// Starts a session of the blocks with the current tunables.
    ///
    /// # Errors
    /// [`ForwardError`] if the tuning mode or the blocks fail.
    pub fn tune(&self) -> Result<Box<dyn BlocksSession + '_>, ForwardError> {
        Ok(self.blocks.tune(self.tunables()?)?)
    }

    /// Starts a session for predictions with the current parameters: the head is calibrated with the logits of its
    /// [calibration texts](TaskHead::calibration_texts), if it has any.
    ///
    /// # Errors
    /// [`ForwardError`] if the tuning mode, the blocks or the head fail.
    pub fn tune_for_predictions(&self) -> Result<Box<dyn BlocksSession + '_>, ForwardError> {
        let session = self.tune()?;
        if let Some(batch) = &self.calibration {
            let logits = self.forward(&*session, batch, Phase::Evaluate)?;
            self.head.calibrate(&logits).map_err(ForwardError::Head)?;
        }
        Ok(session)
    }

    /// Returns the logits of a batch: `[rows, n_labels]`, or those of the items of its rows. The logits of the windows of a text
    /// are joined to its own.
    ///
    /// # Errors
    /// [`ForwardError`]; in [`Phase::Evaluate`] also [`ForwardError::NonFiniteLogits`], with rows by their index in the batch.
    pub fn forward(
        &self,
        session: &dyn BlocksSession,
        batch: &TokenBatch,
        phase: Phase,
    ) -> Result<Logits, ForwardError> {
        let want = self.head.wants();
        if want == Want::All {
            return Err(ForwardError::Want);
        }
        let tokens = self.round(self.ends.embed(&Tensor::from_slice(&batch.ids)))?; // [n_tokens, hidden]
        let prompts = self.tuning.prefix().map_err(ForwardError::Tuning)?;
        let prefix = prompts.map(|prompts| self.embed_prompts(&prompts)).transpose()?;
        let last = match session.forward(prefix.as_ref(), &tokens, &batch.sequences, want) {
            Err(error) if phase == Phase::Evaluate => return Err(self.explain(error, &tokens, batch.n_rows())),
            last => last?, // [positions, hidden]
        };
        let normed = self.round(self.ends.final_norm(&last))?;
        let hidden = HiddenView::new(normed.shallow_clone(), want, batch).map_err(ForwardError::Head)?;
        let logits = self.head.forward(&hidden, phase).map_err(ForwardError::Head)?;
        let windows = self.windows(batch);
        if phase == Phase::Evaluate {
            self.check_finite(
                &Activations { tokens: &tokens, last: &last, normed: &normed, logits: &logits },
                windows,
            )?;
        }
        match windows {
            Some(windows) => logits.pooled(windows, self.window_pool).map_err(ForwardError::Head),
            None => Ok(logits),
        }
    }

    /// Windows of each row, if its text is divided.
    fn windows<'b>(&self, batch: &'b TokenBatch) -> Option<&'b Ragged> {
        batch.groups.as_ref().filter(|_| self.head.task().row_form() == RowForm::Text)
    }

    /// Returns an error if a logit is NaN or infinite, with rows by their index in the batch.
    fn check_finite(&self, activations: &Activations<'_>, windows: Option<&Ragged>) -> Result<(), ForwardError> {
        let mut rows = activations.logits.task_rows(non_finite_rows(&activations.logits.values)?);
        if let Some(windows) = windows {
            rows = (0..windows.len()).filter(|&row| windows.range(row).any(|window| rows.contains(&window))).collect();
        }
        if rows.is_empty() {
            return Ok(());
        }
        let origin = self.origin(activations)?;
        Err(ForwardError::NonFiniteLogits { split: "given", rows, origin, source: None })
    }

    fn origin(&self, activations: &Activations<'_>) -> Result<NonFiniteOrigin, TchError> {
        if let Some(origin) = self.origin_before_blocks(activations.tokens)? {
            return Ok(origin);
        }
        Ok(match (is_finite(activations.last)?, is_finite(activations.normed)?) {
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

/// Intermediate results of a forward pass.
struct Activations<'a> {
    /// `[n_tokens, hidden]`
    tokens: &'a Tensor,
    /// After the last block: `[positions, hidden]`.
    last: &'a Tensor,
    /// After the final norm: `[positions, hidden]`.
    normed: &'a Tensor,
    logits: &'a Logits,
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
