use sepal_checkpoint::Checkpoint;
use sepal_core::WeightFormat;

use crate::adapter::{Adapter, AdapterError};

/// Error of an adapter that does not fit a model.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ModelMismatch {
    /// The adapter was trained on another model.
    #[error("use the adapter: it was trained on the model {trained}, and this one is {found}")]
    Digest {
        /// Digest of the model that it was trained on.
        trained: String,
        found: String,
    },
    /// A shape does not fit.
    #[error("compare the adapter with the model")]
    Shape(#[from] AdapterError),
}

/// Error if the adapter was trained on another model. Returns the format of the blocks in training if it was rounded.
pub(crate) fn check_model(adapter: &Adapter, checkpoint: &Checkpoint) -> Result<Option<WeightFormat>, ModelMismatch> {
    adapter.check_model(checkpoint.config())?;
    let (trained, found) = (&adapter.facts.model_digest, checkpoint.digest());
    let is_in = |format: &WeightFormat| &format.digest(found) == trained;
    match WeightFormat::ALL.into_iter().find(is_in) {
        Some(WeightFormat::F32) => Ok(None),
        Some(rounded) => Ok(Some(rounded)),
        None if trained.is_empty() => Ok(None),
        None => Err(ModelMismatch::Digest { trained: trained.clone(), found: found.to_owned() }),
    }
}
