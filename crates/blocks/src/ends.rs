use sepal_checkpoint::{EMBEDDING_BYTES, tensor_names};
use sepal_nn::{RowSource, RowsError};
use tch::{Kind, TchError, Tensor};

use crate::embedding::EmbeddingTable;
use crate::families::{self, EndNorm};
use crate::layers::norm::NormWeights;
use crate::weights::{LoadError, Placement, Reader, Weights};

/// Frozen ends of a model, which run at the client: the embeddings before the first block and the norm after the last.
#[derive(Debug)]
pub struct Ends {
    hidden: i64,
    vocab_size: i64,
    norm_eps: f64,
    embedding: EmbeddingTable,
    embedding_norm: Option<NormWeights>,
    embedding_factor: Option<f64>,
    final_norm: NormWeights,
}

/// Failure of the embeddings or of the final norm.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum EndsError {
    /// Ids that are not a vector of int64.
    #[error("embed ids of shape {shape:?} and kind {kind:?}: expected [n] of int64")]
    Ids { shape: Vec<i64>, kind: Kind },
    /// Token outside of the vocabulary.
    #[error("embed token {id}: the vocabulary has {vocab_size}")]
    Vocabulary { id: i64, vocab_size: i64 },
    /// Tensor that does not have the shape of hidden states of this model.
    #[error("take a tensor of shape {shape:?} as hidden states of size {hidden}")]
    Hidden { shape: Vec<i64>, hidden: i64 },
    /// Embeddings that cannot be read, for example because their file is gone.
    #[error("read embeddings of tokens")]
    Rows(#[from] RowsError),
    /// Error of libtorch.
    #[error("run the ends of the model")]
    Torch(#[from] TchError),
}

impl Ends {
    /// Reads the final norm and, if they take at most 64 MiB in fp32, the embeddings. Larger embeddings are read row by row
    /// when tokens need them, if `weights` can be [shared](Weights::share).
    ///
    /// # Errors
    /// [`LoadError`] if a tensor is missing, unreadable or of another shape.
    pub fn load(weights: &dyn Weights) -> Result<Self, LoadError> {
        Self::load_within(weights, EMBEDDING_BYTES)
    }

    /// Same as [`load`](Self::load), with another limit of the memory for embeddings. Results do not depend on it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_within(weights: &dyn Weights, embedding_bytes: usize) -> Result<Self, LoadError> {
        tch::no_grad(|| {
            let config = weights.config();
            let names = &families::spec(config.family).ends;
            let reader = Reader::new(weights, tensor_names(config.family).prefix, Placement::default());
            let factor = names.scales_embedding.then(|| (config.hidden as f64).sqrt());
            let name = format!("{}.weight", names.embedding);
            let embedding = EmbeddingTable::load(weights, &reader, &name, factor, embedding_bytes)?;
            let layer_norm = |name| reader.layer_norm(name, config.hidden);
            let final_norm = match names.kind {
                EndNorm::Rms => reader.rms(names.final_norm, config.hidden)?,
                EndNorm::RmsFromOne => reader.rms_from_one(names.final_norm, config.hidden)?,
                EndNorm::Layer => layer_norm(names.final_norm)?,
                EndNorm::LayerWithoutBias => {
                    let NormWeights { scale, .. } = reader.rms(names.final_norm, config.hidden)?;
                    NormWeights { shift: Some(scale.f_zeros_like()?), scale }
                }
            };
            Ok(Self {
                hidden: config.hidden as i64,
                vocab_size: config.vocab_size as i64,
                norm_eps: config.norm_eps,
                embedding,
                embedding_factor: config.factors.embedding,
                embedding_norm: names.embedding_norm.map(layer_norm).transpose()?,
                final_norm,
            })
        })
    }

    /// Returns the embeddings of the tokens `ids [n]`, int64: `[n, hidden]`. The first block adds learned positions.
    ///
    /// # Errors
    /// [`EndsError::Ids`] if `ids` is not a vector of int64, [`EndsError::Vocabulary`] for a token outside of the
    /// vocabulary, [`EndsError::Rows`] if embeddings cannot be read.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor, EndsError> {
        if ids.dim() != 1 || ids.kind() != Kind::Int64 {
            return Err(EndsError::Ids { shape: ids.size(), kind: ids.kind() });
        }
        let numbers = Vec::<i64>::try_from(ids)?;
        if let Some(&id) = numbers.iter().find(|id| !(0..self.vocab_size).contains(id)) {
            return Err(EndsError::Vocabulary { id, vocab_size: self.vocab_size });
        }
        self.normalized(self.embedding.embed(ids, &numbers)?)
    }

    /// Returns the input of the first block for the soft prompts `prompts [pre_seq_len, hidden]`, of the same shape and
    /// differentiable. BLOOM's LayerNorm of embeddings and Granite's factor apply to them, too.
    ///
    /// # Errors
    /// [`EndsError::Hidden`] if `prompts` has another shape.
    pub fn embed_prompts(&self, prompts: &Tensor) -> Result<Tensor, EndsError> {
        match prompts.size()[..] {
            [_, hidden] if hidden == self.hidden => self.normalized(prompts.shallow_clone()),
            _ => Err(EndsError::Hidden { shape: prompts.size(), hidden: self.hidden }),
        }
    }

    /// Applies the norm after the last block to hidden states `[.., hidden]`. Differentiable.
    ///
    /// # Errors
    /// [`EndsError::Hidden`] if the last dimension differs from the hidden size.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor, EndsError> {
        if hidden.size().last() != Some(&self.hidden) {
            return Err(EndsError::Hidden { shape: hidden.size(), hidden: self.hidden });
        }
        Ok(self.norm(&self.final_norm, hidden)?)
    }

    /// Embeddings of the vocabulary, `[vocab_size, hidden]`, with the family's scale unless it applies to prompts, too.
    pub fn embeddings(&self) -> &dyn RowSource {
        &self.embedding
    }

    /// Applies the norm and the factor of embeddings, which prompts have, too.
    fn normalized(&self, embedded: Tensor) -> Result<Tensor, EndsError> {
        let embedded = match &self.embedding_norm {
            Some(norm) => self.norm(norm, &embedded)?,
            None => embedded,
        };
        Ok(match self.embedding_factor {
            Some(factor) => embedded.f_mul_scalar(factor)?,
            None => embedded,
        })
    }

    /// Applies an RMSNorm, or a LayerNorm if there is a shift.
    fn norm(&self, NormWeights { scale, shift }: &NormWeights, x: &Tensor) -> Result<Tensor, TchError> {
        match shift {
            None => x.f_rms_norm(self.hidden, Some(scale), self.norm_eps),
            Some(shift) => x.f_layer_norm(self.hidden, Some(scale), Some(shift), self.norm_eps, false),
        }
    }
}
