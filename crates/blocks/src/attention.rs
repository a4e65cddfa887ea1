use tch::{TchError, Tensor};

use crate::kernel;
use crate::layout::{Group, Layout};
use crate::run::{Run, of};

/// Which positions a block's queries see of those before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All.
    All,
    /// Those in the model's window.
    Window,
}

/// How queries, keys and values are cut into heads, and what is done with their scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Heads of keys and values.
    pub(crate) kv: i64,
    /// Query heads for each of them. Query head `r * kv + g` belongs to the keys and values of head `g`: with this
    /// order the queries of one kv head are a view `[bins, len * repeat, kv, dim]`, so keys and values are not
    /// repeated. Projections are put in this order when they are loaded.
    pub(crate) repeat: i64,
    pub(crate) dim: i64,
    /// The factor of scores; `1 / sqrt(dim)` if there is none.
    pub(crate) scale: Option<f64>,
    /// `cap tanh(score / cap)` in the place of a score.
    pub(crate) cap: Option<f64>,
    pub(crate) reach: Reach,
}

impl Heads {
    /// The factor of scores.
    pub(crate) fn scale(self) -> f64 {
        self.scale.unwrap_or_else(|| (self.dim as f64).powf(-0.5))
    }

    /// Numbers of all query heads.
    pub(crate) fn q_size(self) -> i64 {
        self.kv * self.repeat * self.dim
    }

    /// Numbers of all heads of keys, or of values.
    pub(crate) fn kv_size(self) -> i64 {
        self.kv * self.dim
    }
}

/// What attention gave, and what its backward needs of it.
pub(crate) struct Attended {
    /// `[n, q_size]`, or `[rows, q_size]` in the caller's order of rows where only last tokens asked.
    pub(crate) out: Tensor,
    /// Of each part.
    pub(crate) parts: Vec<Outputs>,
}

/// The outputs of one part as the kernel made them.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// Those of its groups one after another, `[.., q_size]`.
    pub(crate) raw: Tensor,
    /// The logarithms of each group's softmax sums, `[bins, kv, queries]`.
    log_sums: Vec<Tensor>,
}

impl Outputs {
    /// With memory of its own.
    pub(crate) fn alone(self) -> Result<Self, TchError> {
        Ok(Self { raw: self.raw.f_detach_copy()?, ..self })
    }

    /// Numbers held.
    pub(crate) fn numel(&self) -> usize {
        self.raw.numel() + self.log_sums.iter().map(Tensor::numel).sum::<usize>()
    }
}

/// Attention of all slots: the prefix on itself, each row on the prefix and on its past. `q [n, q_size]`, `kv`
/// `[n, 2 kv_size]`; `kept` are the prefixes' keys and values of the parts whose prefix has no slots.
pub(crate) fn attend(
    q: &Tensor,
    kv: &Tensor,
    heads: Heads,
    run: &Run<'_>,
    kept: &[Option<&Tensor>],
) -> Result<Attended, TchError> {
    let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
    for ((&layout, &slots), kept) in run.layouts.iter().zip(&run.slots).zip(kept) {
        let keys = Keys::new(&of(kv, slots)?, heads, layout, *kept)?;
        let queries = of(q, slots)?.f_split_with_sizes(&layout.sizes, 0)?;
        let mut sums = Vec::with_capacity(queries.len());
        for (i, (group, queries)) in layout.groups.iter().zip(&queries).enumerate() {
            let (output, sum) = keys.attend(i, queries, group.len, group.mask.of(heads.reach))?;
            outputs.push(output);
            sums.push(sum);
        }
        log_sums.push(sums);
    }
    let out = concat(outputs)?;
    let parts = run.slots.iter().zip(log_sums);
    let parts = parts.map(|(&slots, log_sums)| Ok(Outputs { raw: of(&out, slots)?, log_sums }));
    Ok(Attended { parts: parts.collect::<Result<_, TchError>>()?, out })
}

/// Attention of the last token of each row only: `q [rows, q_size]`, all in the caller's order of rows.
pub(crate) fn attend_pooled(
    q: &Tensor,
    kv: &Tensor,
    heads: Heads,
    run: &Run<'_>,
    kept: &[Option<&Tensor>],
) -> Result<Attended, TchError> {
    let (mut selected, mut parts) = (Vec::new(), Vec::new());
    for (at, (&layout, kept)) in run.layouts.iter().zip(kept).enumerate() {
        let keys = Keys::new(&of(kv, run.slots[at])?, heads, layout, *kept)?;
        let q = of(q, run.rows[at])?;
        let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
        for (i, asking) in layout.asking() {
            let queries = q.f_index_select(0, &asking.rows)?; // [bins * per_bin, q_size]
            let (output, sum) = keys.attend(i, &queries, asking.per_bin, asking.mask.of(heads.reach))?;
            outputs.push(output);
            log_sums.push(sum);
        }
        let raw = concat(outputs)?;
        if let Some(pooled) = &layout.pooled {
            selected.push(raw.f_index_select(0, &pooled.results)?);
        }
        parts.push(Outputs { raw, log_sums });
    }
    Ok(Attended { out: concat(selected)?, parts })
}

/// The way back of [`attend`] for one part: from the gradient of its outputs `[n, q_size]` into those of its queries
/// `grad_q [n, q_size]` and of keys and values `grad_kv [n, 2 kv_size]`, all of the part's slots.
pub(crate) fn attend_back(
    (q, kv, outputs): (&Tensor, &Tensor, &Outputs),
    grad: &Tensor,
    heads: Heads,
    layout: &Layout,
    (grad_q, grad_kv): (&Tensor, &Tensor),
) -> Result<(), TchError> {
    let keys = Keys::new(kv, heads, layout, None)?;
    let split = |tensor: &Tensor| tensor.f_split_with_sizes(&layout.sizes, 0);
    let (q, grad, raw, into_q) = (split(q)?, split(grad)?, split(&outputs.raw)?, split(grad_q)?);
    let into_kv = split(grad_kv)?;
    for (i, group) in layout.groups.iter().enumerate() {
        let given = Given { q: &q[i], output: &raw[i], log_sums: &outputs.log_sums[i], grad: &grad[i] };
        let (gq, gk, gv) = keys.back(i, given, group.len, group.mask.of(heads.reach))?;
        keys.cut(&into_q[i], group, group.len)?.f_copy_(&keys.cut(&gq, group, group.len)?)?;
        keys.add_grads(i, &gk, &gv, &into_kv)?;
    }
    Ok(())
}

/// The way back of [`attend_pooled`] for one part; `q`, `grad` and `grad_q` are `[rows, q_size]`, `grad_q` is zero.
pub(crate) fn attend_pooled_back(
    (q, kv, outputs): (&Tensor, &Tensor, &Outputs),
    grad: &Tensor,
    heads: Heads,
    layout: &Layout,
    (grad_q, grad_kv): (&mut Tensor, &Tensor),
) -> Result<(), TchError> {
    let Some(pooled) = &layout.pooled else { return Ok(()) };
    let keys = Keys::new(kv, heads, layout, None)?;
    // Queries that only fill up their bin have no gradient.
    let grad = outputs.raw.f_zeros_like()?.f_index_copy_(0, &pooled.results, grad)?;
    let sizes: Vec<i64> = pooled.groups.iter().map(|asking| asking.rows.size()[0]).collect();
    let (grad, raw) = (grad.f_split_with_sizes(&sizes, 0)?, outputs.raw.f_split_with_sizes(&sizes, 0)?);
    let into_kv = grad_kv.f_split_with_sizes(&layout.sizes, 0)?;
    if layout.prefix_slots > 0 {
        // Nothing asks from the prefix, which adds up what the rows send.
        let _ = into_kv[0].shallow_clone().f_zero_()?;
    }
    for (at, (i, asking)) in layout.asking().enumerate() {
        let q = q.f_index_select(0, &asking.rows)?;
        let given = Given { q: &q, output: &raw[at], log_sums: &outputs.log_sums[at], grad: &grad[at] };
        let (gq, gk, gv) = keys.back(i, given, asking.per_bin, asking.mask.of(heads.reach))?;
        let _ = grad_q.f_index_add_(0, &asking.rows, &gq.f_reshape([-1, heads.q_size()])?)?;
        keys.add_grads(i, &gk, &gv, &into_kv)?;
    }
    Ok(())
}

/// What one group's way back starts from.
struct Given<'a> {
    q: &'a Tensor,
    output: &'a Tensor,
    log_sums: &'a Tensor,
    grad: &'a Tensor,
}

/// Keys and values of one part's groups: each `[bins * len, 2 kv_size]`.
struct Keys<'a> {
    heads: Heads,
    layout: &'a Layout,
    of_groups: Vec<Tensor>,
    /// Of the prefix, `[prefix_len, 2 kv_size]`.
    prefix: Option<Tensor>,
}

impl<'a> Keys<'a> {
    fn new(kv: &Tensor, heads: Heads, layout: &'a Layout, kept: Option<&Tensor>) -> Result<Self, TchError> {
        let of_groups = kv.f_split_with_sizes(&layout.sizes, 0)?;
        let computed = of_groups.first().filter(|_| layout.prefix_slots > 0);
        let prefix = kept.or(computed).map(Tensor::shallow_clone);
        Ok(Self { heads, layout, of_groups, prefix })
    }

    /// `queries [bins * len, q_size]` of group `i` to an output of the same shape, and the log-sums.
    fn attend(&self, i: usize, queries: &Tensor, len: i64, mask: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let group = &self.layout.groups[i];
        let queries = self.cut(queries, group, len)?.f_transpose(1, 2)?;
        let (output, log_sums) = kernel::forward(&queries, &self.of_group(i)?, mask, self.heads)?;
        let output = output.f_transpose(1, 2)?.f_reshape([group.bins * len, self.heads.q_size()])?;
        Ok((output, log_sums))
    }

    /// The gradients of queries `[bins, len * repeat, kv, dim]` and of keys and values `[bins, .., kv, dim]`.
    fn back(&self, i: usize, given: Given<'_>, len: i64, mask: &Tensor) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let group = &self.layout.groups[i];
        let by_head = |tensor: &Tensor| self.cut(tensor, group, len)?.f_transpose(1, 2);
        let (grad, queries, outputs) = (by_head(given.grad)?, by_head(given.q)?, by_head(given.output)?);
        let given = kernel::Given { grad: &grad, queries: &queries, outputs: &outputs, log_sums: given.log_sums };
        let (q, k, v) = kernel::backward(&given, &self.of_group(i)?, mask, self.heads)?;
        Ok((q.f_transpose(1, 2)?, k.f_transpose(1, 2)?, v.f_transpose(1, 2)?))
    }

    /// `[bins * len, q_size]` as `[bins, len * repeat, kv, dim]`.
    fn cut(&self, queries: &Tensor, group: &Group, len: i64) -> Result<Tensor, TchError> {
        let Heads { kv, repeat, dim, .. } = self.heads;
        queries.f_view([group.bins, len * repeat, kv, dim])
    }

    /// Keys and values `[bins, kv, prefix_len + len, dim]`, or without the prefix for the prefix itself.
    fn of_group(&self, i: usize) -> Result<[Tensor; 2], TchError> {
        let Heads { kv, dim, .. } = self.heads;
        let group = &self.layout.groups[i];
        let width = 2 * self.heads.kv_size();
        let own = self.of_groups[i].f_view([group.bins, group.len, width])?;
        let whole = match &self.prefix {
            Some(prefix) if group.after_prefix => {
                let prefix = prefix.f_unsqueeze(0)?.f_expand([group.bins, self.layout.prefix_len, width], false)?;
                Tensor::f_cat(&[prefix, own], 1)?
            }
            _ => own,
        };
        let whole = whole.f_view([group.bins, -1, 2, kv, dim])?;
        Ok([whole.f_select(2, 0)?.f_transpose(1, 2)?, whole.f_select(2, 1)?.f_transpose(1, 2)?])
    }

    /// Puts the gradients of group `i` where those of its slots belong and adds what falls to the prefix. The group of
    /// the prefix comes first.
    fn add_grads(&self, i: usize, keys: &Tensor, values: &Tensor, into: &[Tensor]) -> Result<(), TchError> {
        let Heads { kv, dim, .. } = self.heads;
        let group = &self.layout.groups[i];
        let before = keys.size()[1] - group.len;
        let own = into[i].f_view([group.bins, group.len, 2, kv, dim])?;
        for (which, grad) in [(0, keys), (1, values)] {
            own.f_select(2, which)?.f_copy_(&grad.f_narrow(1, before, group.len)?)?;
            if before > 0 {
                let prefix = into[0].f_view([before, 2, kv, dim])?.f_select(1, which)?;
                let _ = prefix.shallow_clone().f_add_(&grad.f_narrow(1, 0, before)?.f_sum_dim_intlist(
                    0,
                    false,
                    tch::Kind::Float,
                )?)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn concat(mut parts: Vec<Tensor>) -> Result<Tensor, TchError> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Tensor::f_cat(&parts, 0),
    }
}
