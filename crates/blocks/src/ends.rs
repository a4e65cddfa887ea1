use sepal_checkpoint::tensor_names;
use tch::{Kind, TchError, Tensor};

use crate::families::{self, EndNorm};
use crate::layers::norm::NormWeights;
use crate::weights::{LoadError, Placement, Reader, Weights};

/// The frozen ends of a model, which stay with the user: the embeddings before the first block and the norm after
/// the last.
#[derive(Debug)]
pub struct Ends {
    hidden: i64,
    vocab_size: i64,
    norm_eps: f64,
    /// `[vocab_size, hidden]`
    embedding: Tensor,
    embedding_norm: Option<Norm>,
    final_norm: Norm,
}

/// What the ends could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndsError {
    /// The ids are no vector of integers.
    #[error("embed ids of shape {shape:?} and kind {kind:?}: expected [n] of int64")]
    Ids {
        /// Their shape.
        shape: Vec<i64>,
        /// Their number format.
        kind: Kind,
    },
    /// A token that the vocabulary does not have.
    #[error("embed token {id}: the vocabulary has {vocab_size}")]
    Vocabulary {
        /// The token.
        id: i64,
        /// The size of the vocabulary.
        vocab_size: i64,
    },
    /// The numbers are not hidden states of this model.
    #[error("take a tensor of shape {shape:?} as hidden states of size {hidden}")]
    Hidden {
        /// Its shape.
        shape: Vec<i64>,
        /// The size of a hidden state.
        hidden: i64,
    },
    /// libtorch refused.
    #[error("run the ends of the model")]
    Torch(#[from] TchError),
}

#[derive(Debug)]
enum Norm {
    Rms(NormWeights),
    Layer(NormWeights),
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
            let norm = |name| reader.layer_norm(name, config.hidden).map(Norm::Layer);
            let final_norm = match names.kind {
                EndNorm::Rms => Norm::Rms(reader.rms(names.final_norm, config.hidden)?),
                EndNorm::RmsFromOne => Norm::Rms(reader.rms_from_one(names.final_norm, config.hidden)?),
                EndNorm::Layer => norm(names.final_norm)?,
            };
            Ok(Self {
                hidden: config.hidden as i64,
                vocab_size: config.vocab_size as i64,
                norm_eps: config.norm_eps,
                embedding,
                embedding_norm: names.embedding_norm.map(norm).transpose()?,
                final_norm,
            })
        })
    }

    /// What the first block takes for the tokens `ids [n]`, int64: `[n, hidden]`. Learned positions are not in it: the
    /// first block adds them.
    ///
    /// # Errors
    /// [`EndsError`] if `ids` is something else or holds a token outside of the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor, EndsError> {
        if ids.dim() != 1 || ids.kind() != Kind::Int64 {
            return Err(EndsError::Ids { shape: ids.size(), kind: ids.kind() });
        }
        let numbers = Vec::<i64>::try_from(ids)?;
        if let Some(&id) = numbers.iter().find(|id| !(0..self.vocab_size).contains(id)) {
            return Err(EndsError::Vocabulary { id, vocab_size: self.vocab_size });
        }
        self.after_embedding(self.embedding.f_index_select(0, ids)?)
    }

    /// What the first block takes for the soft prompts `prompts [pre_seq_len, hidden]`, of the same shape and
    /// differentiable. BLOOM's embedding LayerNorm applies to them as to every embedding.
    ///
    /// # Errors
    /// [`EndsError::Hidden`] if `prompts` has another shape.
    pub fn embed_prompts(&self, prompts: &Tensor) -> Result<Tensor, EndsError> {
        match prompts.size()[..] {
            [_, hidden] if hidden == self.hidden => self.after_embedding(prompts.shallow_clone()),
            _ => Err(EndsError::Hidden { shape: prompts.size(), hidden: self.hidden }),
        }
    }

    /// The norm after the last block, of hidden states `[.., hidden]`: the same shape, differentiable.
    ///
    /// # Errors
    /// [`EndsError::Hidden`] if the last dimension is another.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor, EndsError> {
        if hidden.size().last() != Some(&self.hidden) {
            return Err(EndsError::Hidden { shape: hidden.size(), hidden: self.hidden });
        }
        Ok(self.final_norm.forward(hidden, self.hidden, self.norm_eps)?)
    }

    /// The vocabulary's embeddings, `[vocab_size, hidden]`, scaled where the family scales them; what soft prompts are
    /// sampled from.
    pub fn embedding_matrix(&self) -> &Tensor {
        &self.embedding
    }

    fn after_embedding(&self, embedded: Tensor) -> Result<Tensor, EndsError> {
        match &self.embedding_norm {
            Some(norm) => Ok(norm.forward(&embedded, self.hidden, self.norm_eps)?),
            None => Ok(embedded),
        }
    }
}

impl Norm {
    fn forward(&self, x: &Tensor, hidden: i64, eps: f64) -> Result<Tensor, TchError> {
        match self {
            Norm::Rms(weights) => x.f_rms_norm(hidden, Some(&weights.scale), eps),
            Norm::Layer(weights) => x.f_layer_norm(hidden, Some(&weights.scale), weights.shift.as_ref(), eps, false),
        }
    }
}
