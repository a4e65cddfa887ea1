use tch::{TchError, Tensor};

use crate::layout::{Group, Layout, Pooled};

/// How queries, keys and values are cut into heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Heads of keys and values.
    pub(crate) kv: i64,
    /// Query heads for each of them. Query head `r * kv + g` belongs to the keys and values of head `g`: with this
    /// order the queries of one kv head are a view `[bins, len * repeat, kv, dim]`, so keys and values are not
    /// repeated. Projections are put in this order when they are loaded.
    pub(crate) repeat: i64,
    pub(crate) dim: i64,
}

impl Heads {
    /// Numbers of all query heads.
    pub(crate) fn q_size(self) -> i64 {
        self.kv * self.repeat * self.dim
    }

    /// Numbers of all heads of keys, or of values.
    pub(crate) fn kv_size(self) -> i64 {
        self.kv * self.dim
    }
}

/// Attention of slots: the prefix on itself, each row on the prefix and on its past. `q [n, q_size]`, `k` and `v`
/// `[n, kv_size]`, to `[n, q_size]`.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, layout: &Layout) -> Result<Tensor, TchError> {
    let queries = q.f_split_with_sizes(&layout.sizes, 0)?;
    let keys = KeysAndValues::new(k, v, heads, layout)?;
    let mut outputs = Vec::with_capacity(queries.len());
    for (i, (group, queries)) in layout.groups.iter().zip(&queries).enumerate() {
        outputs.push(keys.attend(i, group, queries, group.len, &group.mask)?);
    }
    concat(outputs)
}

/// Attention of the last token of each row only: `q [rows, q_size]` to `[rows, q_size]`, all in the caller's order
/// of rows.
pub(crate) fn attend_pooled(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    layout: &Layout,
    pooled: &Pooled,
) -> Result<Tensor, TchError> {
    let keys = KeysAndValues::new(k, v, heads, layout)?;
    let mut outputs = Vec::with_capacity(pooled.groups.len());
    let groups = layout.groups.iter().enumerate().filter(|(_, group)| group.after_prefix);
    for ((i, group), asking) in groups.zip(&pooled.groups) {
        let queries = q.f_index_select(0, &asking.rows)?; // [bins * per_bin, q_size]
        outputs.push(keys.attend(i, group, &queries, asking.per_bin, &asking.mask)?);
    }
    concat(outputs)?.f_index_select(0, &pooled.results)
}

/// Keys and values of the groups: each `[bins * len, kv_size]`.
struct KeysAndValues {
    heads: Heads,
    prefix_len: i64,
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl KeysAndValues {
    fn new(k: &Tensor, v: &Tensor, heads: Heads, layout: &Layout) -> Result<Self, TchError> {
        Ok(Self {
            heads,
            prefix_len: layout.prefix_len,
            keys: k.f_split_with_sizes(&layout.sizes, 0)?,
            values: v.f_split_with_sizes(&layout.sizes, 0)?,
        })
    }

    /// `queries [bins * len, q_size]` of group `i` to an output of the same shape.
    fn attend(&self, i: usize, group: &Group, queries: &Tensor, len: i64, mask: &Tensor) -> Result<Tensor, TchError> {
        let Heads { kv, repeat, dim } = self.heads;
        let queries = queries.f_view([group.bins, len * repeat, kv, dim])?.f_transpose(1, 2)?;
        let keys = self.of_group(&self.keys, i, group)?;
        let values = self.of_group(&self.values, i, group)?;
        Tensor::f_scaled_dot_product_attention(&queries, &keys, &values, Some(mask), 0.0, false, None, false)?
            .f_transpose(1, 2)?
            .f_reshape([group.bins * len, repeat * kv * dim])
    }

    /// `[bins, kv, prefix_len + len, dim]`, or without the prefix for the prefix itself.
    fn of_group(&self, parts: &[Tensor], i: usize, group: &Group) -> Result<Tensor, TchError> {
        let Heads { kv, dim, .. } = self.heads;
        let own = parts[i].f_view([group.bins, group.len, kv, dim])?;
        let whole = if group.after_prefix && self.prefix_len > 0 {
            let prefix = parts[0].f_view([1, self.prefix_len, kv, dim])?;
            Tensor::f_cat(&[prefix.f_expand([group.bins, self.prefix_len, kv, dim], false)?, own], 1)?
        } else {
            own
        };
        whole.f_transpose(1, 2)
    }
}

fn concat(mut parts: Vec<Tensor>) -> Result<Tensor, TchError> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Tensor::f_cat(&parts, 0),
    }
}
