use sepal_autograd::fused::Rotate;
use tch::{Kind, TchError, Tensor};

use crate::adapters::{self, Site};
use crate::attention::grouped::{self, AttentionOutput};
use crate::attention::heads::Heads;
use crate::attention::packed_batch::PackedBatch;
use crate::exec::tape::SavedBlock;
use crate::layers::linear::Linear;
use crate::layers::mlp::Mlp;
use crate::layers::norm::{HeadNorms, Norm, SavedNorm, WeightedNorm};
use crate::layers::origin::SitePart;
use crate::segment::Segment;

/// Frozen block: attention and an MLP, each after a norm and added to its input. Families differ in the optional parts.
///
/// Forward and backward passes are written by hand, because a frozen block needs much less than libtorch's graph
/// computes and saves: linear layers save nothing, gates are recomputed, and gradients are added in place.
///
/// Hidden states between blocks, outputs of norms and their gradients are fp32. Products read and return numbers of the
/// kind [`compute`](Self::compute).
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) heads: Heads,
    pub(crate) norm: Norm,
    /// True if attention and MLP both read the block's input, instead of one after the other.
    pub(crate) is_parallel: bool,
    /// Factor of the outputs of attention and MLP before they are added; without effect on outputs that have a norm.
    pub(crate) residual_factor: Option<f64>,
    /// `[hidden, q_size]`, heads in the order of [`Heads`].
    pub(crate) q: Linear,
    /// `[hidden, 2 kv_size]`: all keys, all values.
    pub(crate) kv: Linear,
    pub(crate) head_norms: Option<HeadNorms>,
    /// Logits of a key without a value that all queries attend to, `[query heads]` in the order of [`Heads`], fp32.
    pub(crate) sinks: Option<Tensor>,
    pub(crate) output: Linear,
    /// Norm on attention's output.
    pub(crate) attention_norm: Option<WeightedNorm>,
    pub(crate) mlp: Mlp,
    /// Norm on the MLP's output.
    pub(crate) mlp_norm: Option<WeightedNorm>,
}

/// Inputs of a block beside its hidden states.
pub(crate) struct BlockInput<'a> {
    pub(crate) packed: &'a PackedBatch<'a>,
    /// Keys and values of the prefixes without slots.
    pub(crate) cached: &'a [Option<&'a Tensor>],
    pub(crate) adapters: adapters::Forward<'a>,
    /// True if only the last token of each row has an output.
    pub(crate) is_pooled: bool,
}

pub(crate) struct BlockOutput {
    /// `[n, hidden]`, or `[rows, hidden]` if pooled.
    pub(crate) hidden: Tensor,
    /// One entry per batch.
    pub(crate) saved: Vec<SavedBlock>,
    /// Keys, rotated to their positions, and values: `[n, 2 kv_size]`.
    pub(crate) kv: Tensor,
}

/// State of a block after attention. The queries are all positions, or the last of each row.
struct AttentionState {
    input: SavedNorm,
    /// The block's input at the queries in fp32.
    residual: Tensor,
    /// Its norm in the kind of the computation.
    normed: Tensor,
    q_norm: Option<SavedNorm>,
    k_norm: Option<SavedNorm>,
    attention: AttentionOutput,
}

impl Block {
    /// Computes all positions, `[n, hidden]` in slots, from `hidden` of the same shape; if `is_pooled`, the last token of
    /// each row, `[rows, hidden]` in the caller's order. Then no other position has queries or an MLP.
    pub(crate) fn forward(&self, hidden: Tensor, input: BlockInput<'_>) -> Result<BlockOutput, TchError> {
        let BlockInput { packed, cached, mut adapters, is_pooled } = input;
        let pooled = is_pooled.then(|| packed.pooled_slots()).transpose()?;
        let select = |x: &Tensor| match &pooled {
            None => Ok(x.shallow_clone()),
            Some(pooled) => x.f_index_select(0, pooled),
        };
        adapters.apply(Site::Prefix, &packed.prefix_slots, None, &hidden)?;
        let (normed, stats) = self.norm.forward(&hidden)?;
        let normed = normed.f_to_kind(self.compute())?;
        let (kv, k_norm) = self.keys_and_values(&normed, packed, &mut adapters)?;
        let normed = select(&normed)?;
        let queries = packed.queries(is_pooled);
        let mut q = self.q.forward(&normed)?;
        adapters.apply(Site::Queries, queries, Some(&normed), &q)?;
        let q_norm = self.head_norms.as_ref().map(|norms| norms.q.forward_parts(&q)).transpose()?;
        packed.rotate(&mut q, pooled.as_ref(), self.heads, Rotate::Forward)?;
        let forward = if is_pooled { grouped::forward_pooled } else { grouped::forward };
        let attention = forward(&q, &kv, self.heads, self.sinks.as_ref(), packed, cached)?;
        let residual = select(&hidden)?;
        let input = SavedNorm::new(hidden, stats);
        let state = AttentionState { input, residual, normed, q_norm, k_norm, attention };
        let (hidden, mut saved) = self.finish(packed, queries, state, &mut adapters)?;
        for (saved, adapters) in saved.iter_mut().zip(adapters.into_saved()) {
            saved.adapters = adapters;
        }
        Ok(BlockOutput { hidden, saved, kv })
    }

    /// Returns the keys of `x [n, hidden]`, normalized and rotated, and its values.
    fn keys_and_values(
        &self,
        x: &Tensor,
        packed: &PackedBatch<'_>,
        adapters: &mut adapters::Forward<'_>,
    ) -> Result<(Tensor, Option<SavedNorm>), TchError> {
        let kv = self.kv.forward(x)?;
        adapters.apply(Site::KeysValues, &packed.slots, Some(x), &kv)?;
        let keys = self.keys(&kv)?;
        let k_norm = self.head_norms.as_ref().map(|norms| norms.k.forward_parts(&keys)).transpose()?;
        packed.rotate(&mut self.keys(&kv)?, None, self.heads, Rotate::Forward)?;
        adapters.apply(Site::PrefixKeysValues, &packed.prefix_slots, None, &kv)?;
        Ok((kv, k_norm))
    }

    /// Computes the output layer and the MLP; `queries` are the segments of the batches' queries.
    fn finish(
        &self,
        packed: &PackedBatch<'_>,
        queries: &[Segment],
        state: AttentionState,
        adapters: &mut adapters::Forward<'_>,
    ) -> Result<(Tensor, Vec<SavedBlock>), TchError> {
        let AttentionState { input, residual, normed, q_norm, k_norm, attention } = state;
        let is_plain = self.attention_norm.is_none() && self.residual_factor.is_none();
        let is_summed = is_plain && adapters.are_additive(Site::AttentionOutput);
        let y = self.output.forward_to(is_summed.then_some(&residual), &attention.output)?;
        adapters.apply(Site::AttentionOutput, queries, Some(&attention.output), &y)?;
        let (middle, attention_norm) = match &self.attention_norm {
            None if is_summed => (y, None),
            None => (residual.f_add(&self.scaled(y)?)?, None),
            Some(norm) => {
                let (y, saved) = norm.forward(y)?;
                (residual.f_add(&y)?, Some(saved))
            }
        };
        let (y, stats) = match self.is_parallel {
            true => (normed, None),
            false => self.norm.forward(&middle).map(|(y, stats)| (y, Some(stats)))?,
        };
        let (hidden, mlps, mlp_norm) = match &self.mlp_norm {
            None if self.residual_factor.is_some() => {
                let (output, mlps) = self.mlp.forward(&y, None, queries, adapters)?;
                (middle.f_add(&self.scaled(output)?)?, mlps, None)
            }
            None => {
                let (hidden, mlps) = self.mlp.forward(&y, Some(&middle), queries, adapters)?;
                (hidden, mlps, None)
            }
            Some(norm) => {
                let (output, mlps) = self.mlp.forward(&y, None, queries, adapters)?;
                let (y, saved) = norm.forward(output)?;
                (middle.f_add(&y)?, mlps, Some(saved))
            }
        };
        let middle = stats.map(|stats| SavedNorm::new(middle, stats));
        let narrow = |norm: &Option<SavedNorm>, segment| norm.as_ref().map(|norm| norm.narrow(segment)).transpose();
        let [q_norms, k_norms] = self.head_norms.as_ref().map_or([1, 1], |norms| norms.per_position(self.heads));
        let mut saved = Vec::with_capacity(packed.layouts.len());
        let segments = packed.slots.iter().zip(queries);
        for ((attention, mlp), (&slots, &queries)) in attention.saved.into_iter().zip(mlps).zip(segments) {
            saved.push(SavedBlock {
                input: input.narrow(slots)?,
                q_norm: narrow(&q_norm, queries.scaled(q_norms))?,
                k_norm: narrow(&k_norm, slots.scaled(k_norms))?,
                attention,
                attention_norm: narrow(&attention_norm, queries)?,
                middle: narrow(&middle, queries)?,
                mlp,
                mlp_norm: narrow(&mlp_norm, queries)?,
                adapters: Vec::new(),
            });
        }
        Ok((hidden, saved))
    }

    /// Applies the factor of residuals to an output, in fp32.
    fn scaled(&self, output: Tensor) -> Result<Tensor, TchError> {
        match self.residual_factor {
            Some(factor) => output.f_to_kind(Kind::Float)?.f_mul_scalar_(factor),
            None => Ok(output),
        }
    }

    /// Kind of the inputs and outputs of products.
    pub(crate) fn compute(&self) -> Kind {
        self.q.compute()
    }

    /// The keys of `kv [n, 2 kv_size]`, a view.
    pub(crate) fn keys(&self, kv: &Tensor) -> Result<Tensor, TchError> {
        kv.f_narrow(1, 0, self.heads.kv_size())
    }

    /// Parts of layers that come from the checkpoint's layer `name`, each with the site of its outputs.
    pub(crate) fn parts_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (Site, &'a Linear, &'a SitePart)> {
        let layers = [
            (Site::Queries, Some(&self.q)),
            (Site::KeysValues, Some(&self.kv)),
            (Site::AttentionOutput, Some(&self.output)),
            (Site::MlpInput, self.mlp.dense().map(|dense| &dense.up)),
            (Site::MlpOutput, self.mlp.dense().map(|dense| &dense.down)),
        ];
        let layers = layers.into_iter().filter_map(|(site, layer)| Some((site, layer?)));
        let parts = layers.flat_map(|(site, layer)| layer.parts().iter().map(move |part| (site, layer, part)));
        parts.filter(move |(_, _, part)| part.name == name)
    }

    /// Bytes that a tape saves for `n` positions with `n_queries` queries, masks excluded.
    pub(crate) fn saved_bytes(&self, hidden: usize, n: usize, n_queries: usize) -> usize {
        let size = |numbers: i64| usize::try_from(numbers).unwrap_or(0);
        let (number, statistic) = (self.compute().elt_size_in_bytes(), size_of::<f32>());
        let (q, kv) = (size(self.heads.q_size()), size(self.heads.kv_size()));
        let norm_bytes = |norm: Norm| hidden * number + norm.stats_per_row() * statistic;
        let mut per_position = norm_bytes(self.norm) + 2 * kv * number;
        let log_sums = size(self.heads.n_query()) * statistic;
        let mut per_query = 2 * q * number + log_sums + self.mlp.saved_per_position();
        if !self.is_parallel {
            per_query += norm_bytes(self.norm);
        }
        if let Some(norms) = &self.head_norms {
            let [q_norms, k_norms] = norms.per_position(self.heads).map(size);
            per_position += kv * number + k_norms * statistic;
            per_query += q * number + q_norms * statistic;
        }
        let output_norms = [&self.attention_norm, &self.mlp_norm].into_iter().flatten();
        per_query += output_norms.map(|output| norm_bytes(output.norm)).sum::<usize>();
        n * per_position + n_queries * per_query
    }

    /// Memory of the linear layers' weights, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.q.bytes() + self.kv.bytes() + self.output.bytes() + self.mlp.bytes()
    }
}
