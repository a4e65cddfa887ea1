//! A kept prefix as tensors by head, and back: what leaves the blocks as a cache of keys and values for others.

use sepal_core::Span;
use tch::{Kind, TchError, Tensor};

use crate::passes::KeptPrefix;
use crate::stack::{BlockStack, ForwardError};

/// Keys and values of a prefix in one block, each `[n_kv_heads, prefix_len, head_dim]`; keys as attention takes them:
/// normed, and turned to their positions.
#[derive(Debug)]
pub struct KeysValues {
    /// The keys.
    pub keys: Tensor,
    /// The values.
    pub values: Tensor,
}

impl BlockStack {
    /// The keys and values of a prefix that these blocks kept, one for each block of its span.
    ///
    /// # Errors
    /// [`ForwardError::Part`] if the stack does not hold the blocks; [`ForwardError::Torch`].
    pub fn keys_and_values(&self, kept: &KeptPrefix) -> Result<Vec<KeysValues>, ForwardError> {
        let (span, len) = (self.held(kept.span())?, kept.len() as i64);
        let (heads, dim) = (self.config().n_kv_heads as i64, self.config().head_dim as i64);
        let cut = |kv: &Tensor| -> Result<KeysValues, TchError> {
            let kv = kv.f_view([len, 2, heads, dim])?;
            let of = |which| kv.f_select(1, which)?.f_transpose(0, 1)?.f_contiguous(); // [heads, len, dim]
            Ok(KeysValues { keys: of(0)?, values: of(1)? })
        };
        let blocks = kept.blocks.iter().map(cut).collect::<Result<_, _>>();
        blocks.map_err(|source| ForwardError::Torch { span, source })
    }

    /// The same the other way: a prefix for these blocks from the keys and values of each block of `span`.
    ///
    /// # Errors
    /// [`ForwardError::Part`] if the stack does not hold the blocks, or `blocks` are not as many;
    /// [`ForwardError::KeysValues`] if a tensor is not `[n_kv_heads, prefix_len, head_dim]` of float32, with as many
    /// positions as the first; [`ForwardError::Torch`].
    pub fn prefix_of(&self, span: Span, blocks: &[KeysValues]) -> Result<KeptPrefix, ForwardError> {
        let span = self.held(span)?;
        if blocks.len() != span.len() {
            return Err(ForwardError::Part { part: span, span: self.span() });
        }
        let (heads, dim) = (self.config().n_kv_heads as i64, self.config().head_dim as i64);
        let len = blocks.first().and_then(|block| block.keys.size().get(1).copied()).unwrap_or(0);
        let expected = [heads, len, dim];
        for tensor in blocks.iter().flat_map(|block| [&block.keys, &block.values]) {
            if tensor.size() != expected || tensor.kind() != Kind::Float || len == 0 {
                return Err(ForwardError::KeysValues { expected, found: tensor.size(), kind: tensor.kind() });
            }
        }
        let lay = |KeysValues { keys, values }: &KeysValues| -> Result<Tensor, TchError> {
            let kv = Tensor::f_stack(&[keys.f_transpose(0, 1)?, values.f_transpose(0, 1)?], 1)?; // [len, 2, heads, dim]
            kv.f_reshape([len, 2 * heads * dim])?.f_to_device(self.device())
        };
        let blocks = blocks.iter().map(lay).collect::<Result<_, _>>();
        let blocks = blocks.map_err(|source| ForwardError::Torch { span, source })?;
        Ok(KeptPrefix { span, len: len.unsigned_abs() as usize, blocks })
    }

    fn held(&self, part: Span) -> Result<Span, ForwardError> {
        if self.span().covers(part) { Ok(part) } else { Err(ForwardError::Part { part, span: self.span() }) }
    }
}
