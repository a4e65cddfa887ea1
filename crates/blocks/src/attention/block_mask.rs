//! Masks of blocks of queries, built from the positions of tokens when a block is computed.

use tch::{Kind, TchError, Tensor};

use crate::attention::layout::Layout;
use crate::attention::masks::MaskConfig;
use crate::attention::queries::QueryBlock;
use crate::segment::Segment;

/// Queries and keys of a group of bins.
#[derive(Debug)]
pub(crate) struct GroupTokens {
    queries: Tokens,
    /// Keys of the prefix, then of the bins.
    keys: Tokens,
}

/// Tokens of bins.
#[derive(Debug)]
struct Tokens {
    /// Positions in their sequences, `[bins, n]`, fp32.
    positions: Tensor,
    /// Rows, by the slot of their first token, and -1 for the prefix: `[bins, n]`, i64. None in bins of one row.
    rows: Option<Tensor>,
}

impl GroupTokens {
    /// Tokens of group `i`; the queries are all tokens, or those in the slots `queries [bins * per_bin]`.
    pub(crate) fn new(layout: &Layout, i: usize, queries: Option<&Tensor>) -> Result<Self, TchError> {
        let group = &layout.groups[i];
        let (bins, device) = (group.bins, layout.device());
        let prefix_len = if group.after_prefix { layout.prefix_len } else { 0 };
        let start: i64 = layout.sizes[..i].iter().sum();
        let n_slots = bins * group.len;
        let positions = layout.positions.f_narrow(0, start, n_slots)?;
        let rows = match group.has_single_rows {
            true => None,
            false => {
                Some(Tensor::f_arange(n_slots, (Kind::Int64, device))?.f_sub(&positions)?.f_add_scalar(prefix_len)?)
            }
        };
        let slots = queries.map(|queries| queries.f_sub_scalar(start)).transpose()?;
        let of_queries = |tokens: &Tensor| match &slots {
            Some(slots) => tokens.f_index_select(0, slots)?.f_view([bins, -1]),
            None => tokens.f_view([bins, -1]),
        };
        let of_keys = |prefix: Tensor, tokens: &Tensor| {
            let prefix = prefix.f_unsqueeze(0)?.f_expand([bins, prefix_len], false)?;
            Tensor::f_cat(&[prefix, tokens.f_view([bins, -1])?], 1)
        };
        let fp32 = |positions: Tensor| positions.f_to_kind(Kind::Float);
        let prefix_positions = Tensor::f_arange(prefix_len, (Kind::Int64, device))?;
        let no_rows = Tensor::f_full([prefix_len], -1_i64, (Kind::Int64, device))?;
        Ok(Self {
            queries: Tokens {
                positions: fp32(of_queries(&positions)?)?,
                rows: rows.as_ref().map(of_queries).transpose()?,
            },
            keys: Tokens {
                positions: fp32(of_keys(prefix_positions, &positions)?)?,
                rows: rows.as_ref().map(|rows| of_keys(no_rows, rows)).transpose()?,
            },
        })
    }

    /// True if each bin is one row, so that its keys lie in the order of their positions.
    pub(crate) fn are_single_rows(&self) -> bool {
        self.keys.rows.is_none()
    }

    /// Number of keys of each bin.
    pub(crate) fn n_keys(&self) -> i64 {
        self.keys.positions.size()[1]
    }

    /// Returns the mask of a block in fp32, `[bins, kv or 1, queries * repeat, keys]`. `window` hides keys at that distance
    /// and beyond.
    pub(crate) fn mask(
        &self,
        block: &QueryBlock,
        config: &MaskConfig,
        window: Option<usize>,
    ) -> Result<Tensor, TchError> {
        let queries = self.queries.select(block.bins, block.queries, -1)?; // [bins, n, 1]
        let keys = self.keys.select(block.bins, block.keys, 1)?; // [bins, 1, n]
        let distances = queries.positions.f_sub(&keys.positions)?;
        let mut hidden = distances.f_lt(0.0)?;
        if let Some(window) = window {
            hidden = hidden.f_logical_or_(&distances.f_ge(window as f64)?)?;
        }
        if let (Some(rows), Some(other)) = (&queries.rows, &keys.rows) {
            let are_others = rows.f_ne_tensor(other)?.f_logical_and_(&other.f_ge(0_i64)?)?;
            hidden = hidden.f_logical_or_(&are_others)?;
        }
        let hidden = hidden.f_unsqueeze(1)?;
        let mut bias = match &config.alibi {
            Some(alibi) => alibi.biases(block.kv, &queries.positions, &keys.positions)?,
            None => Tensor::f_zeros(hidden.size(), (Kind::Float, hidden.device()))?,
        };
        repeat_queries(&bias.f_masked_fill_(&hidden, f64::NEG_INFINITY)?, config.repeat)
    }
}

impl Tokens {
    /// Some tokens of some bins, with another dimension of size 1.
    fn select(&self, bins: Segment, tokens: Segment, new_dim: i64) -> Result<Self, TchError> {
        let select = |tensor: &Tensor| tokens.narrow_dim(&bins.narrow(tensor)?, 1)?.f_unsqueeze(new_dim);
        Ok(Self { positions: select(&self.positions)?, rows: self.rows.as_ref().map(select).transpose()? })
    }
}

/// Repeats each query of a mask `[bins, heads, queries, keys]`.
fn repeat_queries(mask: &Tensor, repeat: usize) -> Result<Tensor, TchError> {
    let (bins, heads, queries, keys) = mask.size4()?;
    let repeat = repeat as i64;
    if repeat == 1 {
        return Ok(mask.shallow_clone());
    }
    let mask = mask.f_unsqueeze(3)?.f_expand([bins, heads, queries, repeat, keys], false)?;
    mask.f_reshape([bins, heads, queries * repeat, keys])
}
