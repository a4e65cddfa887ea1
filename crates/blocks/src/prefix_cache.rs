use sepal_core::Span;
use tch::{Kind, TchError, Tensor};

use crate::exec::batch::PrefixCache;
use crate::stack::{BlockStack, ForwardError, check_shape};

/// Keys and values of a prefix in one block in fp32, each `[n_kv_heads, prefix_len, head_dim]`. The keys are normalized and
/// rotated to their positions.
#[derive(Debug)]
pub struct KeysValues {
    /// Keys by head.
    pub keys: Tensor,
    /// Values by head.
    pub values: Tensor,
}

impl BlockStack {
    /// Returns the keys and values of a prefix cache of these blocks, one entry for each block of its span.
    ///
    /// # Errors
    /// [`ForwardError::Span`] if the stack lacks a block, [`ForwardError::Torch`] if libtorch fails.
    pub fn keys_and_values(&self, cache: &PrefixCache) -> Result<Vec<KeysValues>, ForwardError> {
        let (span, len) = (self.checked(cache.span())?, cache.len() as i64);
        let (heads, dim) = (self.config().n_kv_heads as i64, self.config().head_dim as i64);
        let by_head = |kv: &Tensor| -> Result<KeysValues, TchError> {
            let kv = kv.f_view([len, 2, heads, dim])?;
            let select = |i| kv.f_select(1, i)?.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous(); // [heads, len, dim]
            Ok(KeysValues { keys: select(0)?, values: select(1)? })
        };
        let blocks = cache.blocks.iter().map(by_head).collect::<Result<_, _>>();
        blocks.map_err(|source| ForwardError::Torch { span, source })
    }

    /// Inverse of [`keys_and_values`](Self::keys_and_values): a prefix cache from the keys and values of each block of
    /// `span`.
    ///
    /// # Errors
    /// [`ForwardError::Span`] if the stack lacks a block, or if there are not as many `blocks`;
    /// [`ForwardError::Shape`] if a tensor is not `[n_kv_heads, prefix_len, head_dim]` of float32, with as many
    /// positions as the first; [`ForwardError::Torch`] if libtorch fails.
    pub fn prefix_cache_from(&self, span: Span, blocks: &[KeysValues]) -> Result<PrefixCache, ForwardError> {
        let span = self.checked(span)?;
        if blocks.len() != span.len() {
            return Err(ForwardError::Span { requested: span, held: self.span() });
        }
        let (heads, dim) = (self.config().n_kv_heads as i64, self.config().head_dim as i64);
        let len =
            blocks.first().and_then(|block| block.keys.size().get(1).copied()).unwrap_or(0).unsigned_abs() as usize;
        // A cache has at least one position.
        let expected = [self.config().n_kv_heads, len.max(1), self.config().head_dim];
        for KeysValues { keys, values } in blocks {
            check_shape("keys of a prefix", keys, &expected)?;
            check_shape("values of a prefix", values, &expected)?;
        }
        let compute = self.compute();
        let by_position = |KeysValues { keys, values }: &KeysValues| -> Result<Tensor, TchError> {
            let kv = Tensor::f_stack(&[keys.f_transpose(0, 1)?, values.f_transpose(0, 1)?], 1)?; // [len, 2, heads, dim]
            kv.f_reshape([len as i64, 2 * heads * dim])?.f_to_device(self.device())?.f_to_kind(compute)
        };
        let blocks = blocks.iter().map(by_position).collect::<Result<_, _>>();
        let blocks = blocks.map_err(|source| ForwardError::Torch { span, source })?;
        Ok(PrefixCache { span, len, blocks })
    }

    fn checked(&self, requested: Span) -> Result<Span, ForwardError> {
        let held = self.span();
        if held.covers(requested) { Ok(requested) } else { Err(ForwardError::Span { requested, held }) }
    }
}
