use std::fmt;

use sepal_checkpoint::Checkpoint;
use sepal_core::{ComputeFormat, ModelDigest, WeightFormat};

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

/// Formats of the blocks in training that round, at least one. Displayed as the end of "the blocks were ..".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rounding {
    weights: Option<WeightFormat>,
    compute: Option<ComputeFormat>,
}

impl Rounding {
    fn new(digest: ModelDigest<'_>) -> Option<Self> {
        let weights = Some(digest.weights).filter(|format| !matches!(format, WeightFormat::Auto | WeightFormat::F32));
        let compute = Some(digest.compute).filter(|format| *format != ComputeFormat::F32);
        (weights.is_some() || compute.is_some()).then_some(Self { weights, compute })
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.weights, self.compute) {
            (Some(weights), Some(compute)) => write!(f, "loaded as {weights} and computed in {compute}"),
            (Some(weights), None) => write!(f, "loaded as {weights}"),
            (None, Some(compute)) => write!(f, "computed in {compute}"),
            (None, None) => f.write_str("not rounded"),
        }
    }
}

/// Error if the adapter was trained on another model. Returns the rounding of the blocks in training.
pub(crate) fn check_model(adapter: &Adapter, checkpoint: &Checkpoint) -> Result<Option<Rounding>, ModelMismatch> {
    adapter.check_model(checkpoint.config())?;
    let (trained, found) = (&adapter.facts.model_digest, checkpoint.digest());
    match parse_of(trained, found) {
        Some(digest) => Ok(Rounding::new(digest)),
        None if trained.is_empty() => Ok(None),
        None => Err(ModelMismatch::Digest { trained: trained.clone(), found: found.to_owned() }),
    }
}

/// The digest `trained`, if it is that of the checkpoint `found` in any formats.
pub(crate) fn parse_of<'a>(trained: &'a str, found: &str) -> Option<ModelDigest<'a>> {
    ModelDigest::parse(trained).filter(|digest| digest.checkpoint == found)
}
