use sepal_checkpoint::tensor_names;
use tch::{Kind, TchError, Tensor};

use crate::families::{self, EndNorm};
use crate::layers::norm::NormWeights;
use crate::weights::{LoadError, Placement, Reader, Weights};

/// Frozen ends of a model, which run at the client: the embeddings before the first block and the norm after the last.
#[derive(Debug)]
pub struct Ends {
    hidden: i64,
    vocab_size: i64,
    norm_eps: f64,
    /// `[vocab_size, hidden]`
    embedding: Tensor,
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
    /// Error of libtorch.
    #[error("run the ends of the model")]
    Torch(#[from] TchError),
}

impl Ends {
    /// Reads the embeddings and the final norm.
    ///
    /// # Errors
    /// [`LoadError`] if a tensor is missing, unreadable or of another shape.
    pub fn load(weights: &dyn Weights) -> Result<Self, LoadError> {
        tch::no_grad(|| {
            let config = weights.config();
            let names = &families::spec(config.family).ends;
            let reader = Reader::new(weights, tensor_names(config.family).prefix, Placement::default());
            let mut embedding =
                reader.tensor(&format!("{}.weight", names.embedding), &[config.vocab_size, config.hidden])?;
            if names.scales_embedding {
                embedding = embedding.f_mul_scalar_((config.hidden as f64).sqrt())?;
            }
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
    /// vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor, EndsError> {
        if ids.dim() != 1 || ids.kind() != Kind::Int64 {
            return Err(EndsError::Ids { shape: ids.size(), kind: ids.kind() });
        }
        let numbers = Vec::<i64>::try_from(ids)?;
        if let Some(&id) = numbers.iter().find(|id| !(0..self.vocab_size).contains(id)) {
            return Err(EndsError::Vocabulary { id, vocab_size: self.vocab_size });
        }
        self.normalized(self.embedding.f_index_select(0, ids)?)
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
    pub fn embedding_matrix(&self) -> &Tensor {
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
