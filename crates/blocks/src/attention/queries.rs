use tch::{Kind, TchError, Tensor};

use crate::attention::heads::Heads;
use crate::attention::sdpa::AttentionPart;
use crate::segment::Segment;

/// Shape of the queries of a group of bins, and of their results: rows of `n = bins * per_bin` queries.
///
/// All functions accept matrices `[n, q_size]` and `[n, query heads]`; `x` stands for `dim` or 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryShape {
    pub(crate) bins: i64,
    pub(crate) per_bin: i64,
    pub(crate) heads: Heads,
}

/// Part of a group's queries with the keys of one kernel call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryBlock {
    pub(crate) bins: Segment,
    /// Heads of keys and values.
    pub(crate) kv: Segment,
    /// Queries of each bin.
    pub(crate) queries: Segment,
    /// Keys of each bin, those of the prefix first.
    pub(crate) keys: Segment,
}

/// Some of the query heads of one bin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadBlock {
    pub(crate) bin: i64,
    /// Heads of keys and values.
    pub(crate) kv: Segment,
    /// Query heads of each.
    pub(crate) repeat: Segment,
}

impl QueryShape {
    /// All queries in one bin.
    pub(crate) fn joined(self) -> Self {
        Self { bins: 1, per_bin: self.bins * self.per_bin, ..self }
    }

    /// View `[bins, kv, per_bin * repeat, x]`.
    pub(crate) fn by_head(self, matrix: &Tensor) -> Result<Tensor, TchError> {
        matrix.f_view([self.bins, self.per_bin * self.heads.repeat, self.heads.kv, -1])?.f_transpose(1, 2)
    }

    /// Matrices of results of the shape that [`by_head`](Self::by_head) has.
    pub(crate) fn flatten(self, part: &AttentionPart) -> Result<AttentionPart, TchError> {
        let n = self.bins * self.per_bin;
        let flatten = |tensor: &Tensor, width: i64| tensor.f_transpose(1, 2)?.f_reshape([n, width]);
        let outputs = flatten(&part.outputs, self.heads.q_size())?;
        Ok(AttentionPart { outputs, log_sums: flatten(&part.log_sums, self.heads.n_query())? })
    }

    /// Matrices for results, not initialized.
    pub(crate) fn empty_results(self, queries: &Tensor) -> Result<AttentionPart, TchError> {
        let (n, device) = (self.bins * self.per_bin, queries.device());
        let outputs = Tensor::f_empty([n, self.heads.q_size()], (queries.kind(), device))?;
        Ok(AttentionPart { outputs, log_sums: Tensor::f_empty([n, self.heads.n_query()], (Kind::Float, device))? })
    }

    /// View `[repeat, kv, per_bin, x]` of some heads.
    pub(crate) fn heads_of_bin(self, matrix: &Tensor, block: HeadBlock) -> Result<Tensor, TchError> {
        let bin = self.split(matrix)?.f_select(0, block.bin)?;
        block.kv.narrow_dim(&block.repeat.narrow_dim(&bin, 1)?, 2)?.f_permute([1, 2, 0, 3])
    }

    /// `[bins, kv, queries * repeat, x]` of a block, a view if its strides allow one.
    pub(crate) fn block(self, matrix: &Tensor, block: &QueryBlock) -> Result<Tensor, TchError> {
        let shape = [block.bins.len, block.kv.len, block.queries.len * self.heads.repeat, -1];
        self.view_of_block(matrix, block)?.f_permute([0, 3, 1, 2, 4])?.f_reshape(shape)
    }

    /// Writes a tensor of the shape that [`block`](Self::block) has into the matrix.
    pub(crate) fn write_block(self, matrix: &Tensor, block: &QueryBlock, tensor: &Tensor) -> Result<(), TchError> {
        let tensor = tensor.f_reshape([block.bins.len, block.kv.len, block.queries.len, self.heads.repeat, -1])?;
        self.view_of_block(matrix, block)?.f_copy_(&tensor.f_permute([0, 2, 3, 1, 4])?)
    }

    /// View `[bins, queries, repeat, kv, x]`.
    fn view_of_block(self, matrix: &Tensor, block: &QueryBlock) -> Result<Tensor, TchError> {
        let queries = block.queries.narrow_dim(&block.bins.narrow(&self.split(matrix)?)?, 1)?;
        block.kv.narrow_dim(&queries, 3)
    }

    /// View `[bins, per_bin, repeat, kv, x]`.
    fn split(self, matrix: &Tensor) -> Result<Tensor, TchError> {
        matrix.f_view([self.bins, self.per_bin, self.heads.repeat, self.heads.kv, -1])
    }
}
