use sepal_autograd::fused::{self, Turn};
use tch::{TchError, Tensor};

use crate::attention::{Attended, Heads, attend, attend_back, attend_pooled, attend_pooled_back};
use crate::linear::Linear;
use crate::norm::{Norm, Stats};
use crate::run::{Run, Share, of};
use crate::tape::Saved;

/// A frozen block: norm, attention, norm, MLP, each pair added to what went in. Families differ in its parts.
///
/// Forward and backward are written out, because a frozen block needs much less than a graph would do: linear layers
/// keep nothing, gates are computed again, gradients are added where they belong, and what nobody asks for is left out.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) heads: Heads,
    pub(crate) norm: Norm,
    pub(crate) activation: Activation,
    /// `[hidden, q_size]`, heads in the order of [`Heads`].
    pub(crate) q: Linear,
    /// `[hidden, 2 kv_size]`: all keys, all values.
    pub(crate) kv: Linear,
    pub(crate) output: Linear,
    /// `[hidden, inner]`, or `[hidden, 2 inner]` with the gate first.
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// What stands between the layers of the MLP.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Activation {
    /// `silu(gate) up` (arXiv 2002.05202).
    SwiGlu,
    /// GELU by its approximation with tanh (arXiv 1606.08415).
    GeluTanh,
}

/// The part of a block's input whose gradient is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// Of the prefixes alone, one after another.
    Prefixes,
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

impl Block {
    /// `hidden [n, hidden]` in slots to the same. `kept` are the keys and values of prefixes without slots.
    pub(crate) fn forward(
        &self,
        hidden: Tensor,
        run: &Run<'_>,
        kept: &[Option<&Tensor>],
    ) -> Result<Forwarded, TchError> {
        let (x, stats) = self.norm.forward(&hidden)?;
        let mut q = self.q.forward(&x)?;
        let kv = self.kv.forward(&x)?;
        run.turn(&mut q, self.heads.dim, Turn::Forward)?;
        run.turn(&mut self.keys(&kv)?, self.heads.dim, Turn::Forward)?;
        let attended = attend(&q, &kv, self.heads, run, kept)?;
        let middle = self.output.add_to(&hidden, &attended.out)?;
        self.finish(run, &run.slots, Before { hidden, stats, q, kv, attended, middle })
    }

    /// `hidden [n, hidden]` to the last token of each row, `[rows, hidden]`, in the caller's order: only they have
    /// queries and an MLP.
    pub(crate) fn forward_pooled(
        &self,
        hidden: Tensor,
        run: &Run<'_>,
        kept: &[Option<&Tensor>],
    ) -> Result<Forwarded, TchError> {
        let (x, stats) = self.norm.forward(&hidden)?;
        let kv = self.kv.forward(&x)?;
        run.turn(&mut self.keys(&kv)?, self.heads.dim, Turn::Forward)?;
        let pooled = run.pooled_slots()?;
        let mut q = self.q.forward(&x.f_index_select(0, &pooled)?)?;
        run.turn_pooled(&mut q, &pooled, self.heads.dim, Turn::Forward)?;
        let attended = attend_pooled(&q, &kv, self.heads, run, kept)?;
        let middle = self.output.add_to(&hidden.f_index_select(0, &pooled)?, &attended.out)?;
        self.finish(run, &run.rows, Before { hidden, stats, q, kv, attended, middle })
    }

    /// The MLP, and what is saved of each part; `asking` are the parts' shares of queries and MLP.
    fn finish(&self, run: &Run<'_>, asking: &[Share], before: Before) -> Result<Forwarded, TchError> {
        let Before { hidden, stats, q, kv, attended, middle } = before;
        let (y, middle_stats) = self.norm.forward(&middle)?;
        let inner = self.up.forward(&y)?;
        let result = self.down.add_to(&middle, &self.activation.forward(&inner)?)?;
        let mut saved = Vec::with_capacity(run.layouts.len());
        for ((outputs, &slots), &asking) in attended.parts.into_iter().zip(&run.slots).zip(asking) {
            saved.push(Saved {
                input: of(&hidden, slots)?,
                input_stats: stats.of(slots)?,
                q: of(&q, asking)?,
                kv: of(&kv, slots)?,
                outputs,
                middle: of(&middle, asking)?,
                middle_stats: middle_stats.of(asking)?,
                inner: of(&inner, asking)?,
            });
        }
        Ok(Forwarded { hidden: result, saved, kv })
    }

    /// The way back of [`forward`](Self::forward): from the gradient of the output, which is used up, to that of the
    /// input, `[n, hidden]` or `[all prefixes, hidden]`.
    pub(crate) fn backward(
        &self,
        saved: &[Saved],
        mut grad: Tensor,
        run: &Run<'_>,
        wanted: Wanted,
    ) -> Result<Tensor, TchError> {
        self.mlp_back(saved, &mut grad, &run.slots)?;
        let of_output = self.output.backward(&grad)?; // [n, q_size]
        let (mut grad_q, grad_kv) = (of_output.f_empty_like()?, self.empty_kv(&grad, run)?);
        for ((&layout, saved), &slots) in run.layouts.iter().zip(saved).zip(&run.slots) {
            let into = (&of(&grad_q, slots)?, &of(&grad_kv, slots)?);
            attend_back(saved.attention(), &of(&of_output, slots)?, self.heads, layout, into)?;
        }
        run.turn(&mut grad_q, self.heads.dim, Turn::Back)?;
        run.turn(&mut self.keys(&grad_kv)?, self.heads.dim, Turn::Back)?;
        match wanted {
            Wanted::All => {
                let of_norm = self.kv.add_backward(self.q.backward(&grad_q)?, &grad_kv)?;
                self.input_back(saved, grad, &of_norm, &run.slots)
            }
            Wanted::Prefixes => {
                let [q, kv, grad] = [run.prefixes_of(&grad_q)?, run.prefixes_of(&grad_kv)?, run.prefixes_of(&grad)?];
                let of_norm = self.kv.add_backward(self.q.backward(&q)?, &kv)?;
                self.input_back(saved, grad, &of_norm, &run.prefixes)
            }
        }
    }

    /// The way back of [`forward_pooled`](Self::forward_pooled), from `[rows, hidden]`.
    pub(crate) fn backward_pooled(
        &self,
        saved: &[Saved],
        mut grad: Tensor,
        run: &Run<'_>,
        wanted: Wanted,
    ) -> Result<Tensor, TchError> {
        self.mlp_back(saved, &mut grad, &run.rows)?;
        let of_output = self.output.backward(&grad)?; // [rows, q_size]
        let (mut grad_q, grad_kv) = (of_output.f_zeros_like()?, self.empty_kv(&grad, run)?);
        let shares = run.slots.iter().zip(&run.rows);
        for ((&layout, saved), (&slots, &rows)) in run.layouts.iter().zip(saved).zip(shares) {
            let into = (&mut of(&grad_q, rows)?, &of(&grad_kv, slots)?);
            attend_pooled_back(saved.attention(), &of(&of_output, rows)?, self.heads, layout, into)?;
        }
        let pooled = run.pooled_slots()?;
        run.turn_pooled(&mut grad_q, &pooled, self.heads.dim, Turn::Back)?;
        run.turn(&mut self.keys(&grad_kv)?, self.heads.dim, Turn::Back)?;
        if wanted == Wanted::Prefixes {
            // No query stands in a prefix.
            let of_norm = self.kv.backward(&run.prefixes_of(&grad_kv)?)?;
            return self.input_back(saved, of_norm.f_zeros_like()?, &of_norm, &run.prefixes);
        }
        let of_norm = self.kv.backward(&grad_kv)?.f_index_add_(0, &pooled, &self.q.backward(&grad_q)?)?;
        let sum = of_norm.f_zeros_like()?.f_index_add_(0, &pooled, &grad)?;
        self.input_back(saved, sum, &of_norm, &run.slots)
    }

    /// Back through the MLP: `grad` of its output becomes that of its input.
    fn mlp_back(&self, saved: &[Saved], grad: &mut Tensor, shares: &[Share]) -> Result<(), TchError> {
        let of_down = self.down.backward(grad)?;
        let of_up = of_down.f_new_empty([of_down.size()[0], self.up.outputs()], (of_down.kind(), of_down.device()))?;
        for (saved, &share) in saved.iter().zip(shares) {
            self.activation.backward(&mut of(&of_up, share)?, &of(&of_down, share)?, &saved.inner)?;
        }
        let of_norm = self.up.backward(&of_up)?;
        for (saved, &share) in saved.iter().zip(shares) {
            let sum = &mut of(grad, share)?;
            self.norm.add_grad(sum, &of(&of_norm, share)?, &saved.middle, &saved.middle_stats)?;
        }
        Ok(())
    }

    /// Back through the first norm: adds to `grad` what comes through it, for the first positions of each part.
    fn input_back(
        &self,
        saved: &[Saved],
        grad: Tensor,
        of_norm: &Tensor,
        shares: &[Share],
    ) -> Result<Tensor, TchError> {
        for (saved, &share) in saved.iter().zip(shares) {
            let (input, stats) = (of(&saved.input, share.at_start())?, saved.input_stats.of(share.at_start())?);
            self.norm.add_grad(&mut of(&grad, share)?, &of(of_norm, share)?, &input, &stats)?;
        }
        Ok(grad)
    }

    fn keys(&self, kv: &Tensor) -> Result<Tensor, TchError> {
        kv.f_narrow(1, 0, self.heads.kv_size())
    }

    fn empty_kv(&self, like: &Tensor, run: &Run<'_>) -> Result<Tensor, TchError> {
        like.f_new_empty([run.n, 2 * self.heads.kv_size()], (like.kind(), like.device()))
    }
}

/// What a block has when its MLP begins.
struct Before {
    hidden: Tensor,
    stats: Stats,
    q: Tensor,
    kv: Tensor,
    attended: Attended,
    middle: Tensor,
}

impl Activation {
    fn forward(self, inner: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Activation::SwiGlu => fused::silu_mul(inner),
            Activation::GeluTanh => inner.f_gelu("tanh"),
        }
    }

    /// Writes the gradient of `inner` into `out`.
    fn backward(self, out: &mut Tensor, grad: &Tensor, inner: &Tensor) -> Result<(), TchError> {
        match self {
            Activation::SwiGlu => fused::silu_mul_grad(out, grad, inner),
            Activation::GeluTanh => inner.f_gelu_backward_grad_input(out, grad, "tanh").map(drop),
        }
    }
}
