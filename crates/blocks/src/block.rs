use sepal_autograd::fused::Turn;
use tch::{TchError, Tensor};

use crate::attention::{Attended, Heads, attend, attend_pooled};
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::norm::{HeadNorms, Norm, Normed, WeightedNorm};
use crate::run::{Run, Share, of};
use crate::tape::Saved;

/// A frozen block: attention and an MLP, each behind a norm and added to what went in. Families differ in its parts.
///
/// Forward and backward (`back.rs`) are written out, because a frozen block needs much less than a graph would do:
/// linear layers keep nothing, gates are computed again, gradients are added where they belong, and what nobody asks
/// for is left out.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) heads: Heads,
    pub(crate) norm: Norm,
    /// Whether attention and MLP both read the input, instead of one after the other.
    pub(crate) is_parallel: bool,
    /// `[hidden, q_size]`, heads in the order of [`Heads`].
    pub(crate) q: Linear,
    /// `[hidden, 2 kv_size]`: all keys, all values.
    pub(crate) kv: Linear,
    pub(crate) head_norms: Option<HeadNorms>,
    pub(crate) output: Linear,
    /// On what attention adds.
    pub(crate) attention_norm: Option<WeightedNorm>,
    pub(crate) mlp: Mlp,
    /// On what the MLP adds.
    pub(crate) mlp_norm: Option<WeightedNorm>,
}

/// The part of a block's input whose gradient is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// Of the prefixes alone, one after another.
    Prefixes,
}

/// Keys and values that the parts supply for their prefixes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefixes<'a> {
    /// Keys and values of the prefixes without slots.
    pub(crate) kept: &'a [Option<&'a Tensor>],
    /// `[prefix_len, 2 kv_size]`, in the place of the keys and values that the block computes for the prefix's slots.
    pub(crate) given: &'a [Option<Tensor>],
}

/// What a block gave.
pub(crate) struct Forwarded {
    /// `[n, hidden]`, or `[rows, hidden]` if it pooled.
    pub(crate) hidden: Tensor,
    /// Of each part.
    pub(crate) saved: Vec<Saved>,
    /// Keys, turned to their positions, and values: `[n, 2 kv_size]`.
    pub(crate) kv: Tensor,
}

/// What a block has when attention is done, and the positions that ask: all, or the last of each row.
struct Asked {
    /// The block's input.
    hidden: Normed,
    /// The input of the positions that ask, and the same behind the norm.
    base: Tensor,
    x: Tensor,
    q: Tensor,
    q_normed: Option<Normed>,
    kv: Tensor,
    k_normed: Option<Normed>,
    attended: Attended,
}

impl Block {
    /// `hidden [n, hidden]` in slots to the same.
    pub(crate) fn forward(&self, hidden: Tensor, run: &Run<'_>, prefixes: Prefixes<'_>) -> Result<Forwarded, TchError> {
        let (x, stats) = self.norm.forward(&hidden)?;
        let (kv, k_normed) = self.keys_and_values(&x, run, prefixes.given)?;
        let mut q = self.q.forward(&x)?;
        let q_normed = self.norm_queries(&q)?;
        run.turn(&mut q, self.heads, Turn::Forward)?;
        let attended = attend(&q, &kv, self.heads, run, prefixes.kept)?;
        let base = hidden.shallow_clone();
        let hidden = Normed { input: hidden, stats };
        self.finish(run, &run.slots, Asked { hidden, base, x, q, q_normed, kv, k_normed, attended })
    }

    /// `hidden [n, hidden]` to the last token of each row, `[rows, hidden]`, in the caller's order: only they have
    /// queries and an MLP.
    pub(crate) fn forward_pooled(
        &self,
        hidden: Tensor,
        run: &Run<'_>,
        prefixes: Prefixes<'_>,
    ) -> Result<Forwarded, TchError> {
        let (x, stats) = self.norm.forward(&hidden)?;
        let (kv, k_normed) = self.keys_and_values(&x, run, prefixes.given)?;
        let pooled = run.pooled_slots()?;
        let x = x.f_index_select(0, &pooled)?;
        let mut q = self.q.forward(&x)?;
        let q_normed = self.norm_queries(&q)?;
        run.turn_pooled(&mut q, &pooled, self.heads, Turn::Forward)?;
        let attended = attend_pooled(&q, &kv, self.heads, run, prefixes.kept)?;
        let base = hidden.f_index_select(0, &pooled)?;
        let hidden = Normed { input: hidden, stats };
        self.finish(run, &run.rows, Asked { hidden, base, x, q, q_normed, kv, k_normed, attended })
    }

    /// Keys, normed and turned, and values of `x [n, hidden]`; those of prefixes as they are given.
    fn keys_and_values(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        given: &[Option<Tensor>],
    ) -> Result<(Tensor, Option<Normed>), TchError> {
        let kv = self.kv.forward(x)?;
        let keys = self.keys(&kv)?;
        let normed = self.head_norms.as_ref().map(|norms| norms.forward(&norms.k, &keys)).transpose()?;
        run.turn(&mut self.keys(&kv)?, self.heads, Turn::Forward)?;
        for (prefix, given) in run.prefix_shares().zip(given) {
            if let Some(given) = given {
                of(&kv, prefix)?.f_copy_(given)?;
            }
        }
        Ok((kv, normed))
    }

    fn norm_queries(&self, q: &Tensor) -> Result<Option<Normed>, TchError> {
        self.head_norms.as_ref().map(|norms| norms.forward(&norms.q, q)).transpose()
    }

    /// Attention's output, the MLP, and what is saved of each part; `asking` are the parts' shares of those that ask.
    fn finish(&self, run: &Run<'_>, asking: &[Share], asked: Asked) -> Result<Forwarded, TchError> {
        let Asked { hidden, base, x, q, q_normed, kv, k_normed, attended } = asked;
        let (middle, attention_normed) = match &self.attention_norm {
            None => (self.output.add_to(&base, &attended.out)?, None),
            Some(norm) => {
                let (y, normed) = norm.forward(self.output.forward(&attended.out)?)?;
                (base.f_add(&y)?, Some(normed))
            }
        };
        let (y, stats) = match self.is_parallel {
            true => (x, None),
            false => self.norm.forward(&middle).map(|(y, stats)| (y, Some(stats)))?,
        };
        let (result, inner, mlp_normed) = match &self.mlp_norm {
            None => self.mlp.forward(&y, Some(&middle), asking).map(|(result, inner)| (result, inner, None))?,
            Some(norm) => {
                let (output, inner) = self.mlp.forward(&y, None, asking)?;
                let (y, normed) = norm.forward(output)?;
                (middle.f_add(&y)?, inner, Some(normed))
            }
        };
        let middle = stats.map(|stats| Normed { input: middle, stats });
        let part = |normed: &Option<Normed>, share| normed.as_ref().map(|normed| normed.of(share)).transpose();
        let (q_heads, k_heads) = (self.heads.kv * self.heads.repeat, self.heads.kv);
        let mut saved = Vec::with_capacity(run.layouts.len());
        let shares = run.slots.iter().zip(asking);
        for ((outputs, inner), (&slots, &asking)) in attended.parts.into_iter().zip(inner).zip(shares) {
            saved.push(Saved {
                input: hidden.of(slots)?,
                q: of(&q, asking)?,
                q_normed: part(&q_normed, asking.times(q_heads))?,
                kv: of(&kv, slots)?,
                k_normed: part(&k_normed, slots.times(k_heads))?,
                outputs,
                attention_normed: part(&attention_normed, asking)?,
                middle: part(&middle, asking)?,
                inner,
                mlp_normed: part(&mlp_normed, asking)?,
            });
        }
        Ok(Forwarded { hidden: result, saved, kv })
    }

    /// Of `kv [n, 2 kv_size]` those of the keys.
    pub(crate) fn keys(&self, kv: &Tensor) -> Result<Tensor, TchError> {
        kv.f_narrow(1, 0, self.heads.kv_size())
    }

    /// Numbers of fp32 that a tape keeps for `n` positions of which `asking` have queries, masks excepted.
    pub(crate) fn kept(&self, hidden: usize, n: usize, asking: usize) -> usize {
        let size = |numbers: i64| usize::try_from(numbers).unwrap_or(0);
        let (q, kv) = (size(self.heads.q_size()), size(self.heads.kv_size()));
        let q_heads = size(self.heads.kv * self.heads.repeat);
        let mut of_all = hidden + self.norm.stats() + 2 * kv;
        let mut of_asking = 2 * q + q_heads + self.mlp.kept();
        if !self.is_parallel {
            of_asking += hidden + self.norm.stats();
        }
        if self.head_norms.is_some() {
            of_all += kv + size(self.heads.kv);
            of_asking += q + q_heads;
        }
        let after = [&self.attention_norm, &self.mlp_norm].into_iter().flatten();
        of_asking += after.map(|after| hidden + after.norm.stats()).sum::<usize>();
        n * of_all + asking * of_asking
    }

    /// Memory of its weights, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.q.bytes() + self.kv.bytes() + self.output.bytes() + self.mlp.bytes()
    }
}
