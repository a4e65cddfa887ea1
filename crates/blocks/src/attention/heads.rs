/// Earlier positions that the queries of a block attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionRange {
    Full,
    /// Positions within the model's window.
    Windowed,
}

/// Layout of queries, keys and values in heads, and the rule for attention scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Heads of keys and values.
    pub(crate) kv: i64,
    /// Query heads for each of them. Query head `r * kv + g` belongs to the keys and values of head `g`: with this
    /// order the queries of one kv head are a view `[bins, len * repeat, kv, dim]`, so keys and values are not
    /// repeated. Projections are put in this order when they are loaded.
    pub(crate) repeat: i64,
    pub(crate) dim: i64,
    /// Factor of scores, by default `1 / sqrt(dim)`.
    pub(crate) scale: Option<f64>,
    /// Replaces each score by `cap tanh(score / cap)`.
    pub(crate) cap: Option<f64>,
    pub(crate) range: AttentionRange,
    /// False if queries and keys have no rotary embedding in this block.
    pub(crate) is_rotated: bool,
    /// True if the rotary embedding pairs the numbers `2 i` and `2 i + 1` of a head, false for `i` and `i + dim / 2`.
    pub(crate) has_adjacent_pairs: bool,
}

impl Heads {
    pub(crate) fn scale(self) -> f64 {
        self.scale.unwrap_or_else(|| (self.dim as f64).powf(-0.5))
    }

    pub(crate) fn n_query(self) -> i64 {
        self.kv * self.repeat
    }

    /// Width of all query heads.
    pub(crate) fn q_size(self) -> i64 {
        self.n_query() * self.dim
    }

    /// Width of all heads of keys, or of values.
    pub(crate) fn kv_size(self) -> i64 {
        self.kv * self.dim
    }
}
