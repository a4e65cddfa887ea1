//! Forward and backward through consecutive blocks.

use sepal_core::{Ragged, Span, Want};
use tch::{Kind, TchError, Tensor};

use crate::block::{Block, Forwarded, Prefixes, Wanted};
use crate::layout::Layout;
use crate::masks::Scores;
use crate::rope::Rotaries;
use crate::run::{Run, Share, of};
use crate::tape::Tape;

/// One caller's batch.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `[prefix.slots() + n_tokens, hidden]`.
    pub hidden: &'a Tensor,
    /// What stands before each row.
    pub prefix: Prefix<'a>,
    /// The rows, behind the prefix.
    pub rows: &'a Ragged,
    /// Tensors put into the prefix. They have no effect on a kept prefix.
    pub injected: Injected<'a>,
}

/// Tensors that the blocks of a span put into a prefix that they compute.
#[derive(Debug, Clone, Copy, Default)]
pub struct Injected<'a> {
    /// `[blocks, prefix_len, hidden]`, added to the prefix before each block.
    pub deep_prompts: Option<&'a Tensor>,
    /// `[blocks, prefix_len, 2 * kv_size]`: the keys of all heads, turned to their positions, and then the values. They
    /// stand in the place of those that each block computes, so that the prefix's own hidden states reach no row.
    pub keys_values: Option<&'a Tensor>,
}

impl<'a> Injected<'a> {
    /// Deep prompts alone.
    pub fn deep(deep_prompts: Option<&'a Tensor>) -> Self {
        Self { deep_prompts, keys_values: None }
    }

    /// All tensors that are there.
    pub(crate) fn tensors(self) -> impl Iterator<Item = &'a Tensor> {
        self.deep_prompts.into_iter().chain(self.keys_values)
    }
}

/// The prefix that all rows of a batch share.
#[derive(Debug, Clone, Copy)]
pub enum Prefix<'a> {
    /// So many positions, which come first in the hidden states; there may be none.
    Computed(usize),
    /// Keys and values of an earlier run.
    Kept(&'a KeptPrefix),
}

impl Prefix<'_> {
    /// Positions.
    #[expect(clippy::len_without_is_empty, reason = "a number of positions, not a collection")]
    pub fn len(self) -> usize {
        match self {
            Prefix::Computed(len) => len,
            Prefix::Kept(kept) => kept.len,
        }
    }

    /// Positions that are in the hidden states.
    pub fn slots(self) -> usize {
        match self {
            Prefix::Computed(len) => len,
            Prefix::Kept(_) => 0,
        }
    }
}

/// Keys and values of a prefix in each block of a span. Under a causal mask they do not depend on what follows, so that
/// other batches with the same prefix and deep prompts need not compute them.
#[derive(Debug)]
pub struct KeptPrefix {
    pub(crate) span: Span,
    pub(crate) len: usize,
    /// Of each block, `[len, 2 kv_size]`.
    pub(crate) blocks: Vec<Tensor>,
}

impl KeptPrefix {
    /// The blocks.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Positions.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

/// What a run keeps beside its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// What the way back needs.
    Tape,
    /// The prefix's keys and values.
    Prefix,
}

/// What a run gave for one batch.
#[derive(Debug)]
pub struct Output {
    /// What was wanted, in the caller's order.
    pub hidden: Tensor,
    /// If it was to be kept.
    pub tape: Option<Tape>,
    /// If it was to be kept, and there is a prefix that was computed.
    pub prefix: Option<KeptPrefix>,
    /// The first block of the model whose hidden states are not all finite, if there is one.
    pub not_finite: Option<usize>,
}

/// Which gradient of a batch's hidden states is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGrad {
    /// `[prefix_len + n_tokens, hidden]`.
    All,
    /// `[prefix_len, hidden]`: the first block leaves out what only text needs.
    Prefix,
}

/// Which gradients a backward gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantGrads {
    /// Of the hidden states.
    pub input: InputGrad,
    /// Of what was injected, where there is any.
    pub injected: bool,
}

/// The gradients of one batch.
#[derive(Debug)]
pub struct Grads {
    /// As wanted.
    pub input: Tensor,
    /// `[blocks, prefix_len, hidden]`, if wanted and if the forward had them.
    pub deep_prompts: Option<Tensor>,
    /// `[blocks, prefix_len, 2 * kv_size]`, if wanted and if the forward had them.
    pub keys_values: Option<Tensor>,
    /// The last block of the model whose gradients are not all finite, if there is one: the first on the way back.
    pub not_finite: Option<usize>,
}

/// Consecutive blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Where in the model they begin.
    pub(crate) first: usize,
    pub(crate) blocks: Vec<Block>,
    pub(crate) rotaries: Rotaries,
    /// Learned positions `[max_positions, hidden]`, where the first block is here and the family has such.
    pub(crate) positions: Option<Tensor>,
}

impl Blocks {
    pub(crate) fn of(&self, span: Span) -> &[Block] {
        &self.blocks[span.start() - self.first..span.end() - self.first]
    }

    pub(crate) fn forward(
        &self,
        span: Span,
        batches: &[Batch<'_>],
        want: Want,
        keep: Keep,
        scores: &Scores,
    ) -> Result<Vec<Output>, TchError> {
        let layout = |batch: &Batch<'_>| {
            let kept = matches!(batch.prefix, Prefix::Kept(_));
            Layout::new(batch.prefix.len(), kept, batch.rows, want, scores)
        };
        let layouts: Vec<Layout> = batches.iter().map(layout).collect::<Result<_, _>>()?;
        let run = Run::new(&layouts.iter().collect::<Vec<_>>(), &self.rotaries)?;
        let entered = layouts.iter().zip(batches);
        let entered = entered.map(|(layout, batch)| layout.enter(&batch.hidden.f_to_device(scores.device)?));
        let mut hidden = match &entered.collect::<Result<Vec<_>, _>>()?[..] {
            // The caller's own numbers are not written to.
            [only] if only.data_ptr() == batches[0].hidden.data_ptr() => only.f_detach_copy()?,
            [only] => only.shallow_clone(),
            all => Tensor::f_cat(all, 0)?,
        };
        if let Some(positions) = self.positions.as_ref().filter(|_| span.start() == 0) {
            add_positions(&hidden, positions, &run)?;
        }
        let blocks = self.of(span);
        let mut kept: Vec<Kept> = batches.iter().map(|_| Kept::default()).collect();
        for (i, block) in blocks.iter().enumerate() {
            add_deep_prompts(&hidden, batches, &run, i)?;
            let prefixes: Vec<Option<&Tensor>> = batches
                .iter()
                .map(|batch| match batch.prefix {
                    Prefix::Kept(kept) => kept.blocks.get(i),
                    Prefix::Computed(_) => None,
                })
                .collect();
            let given = given_keys_values(batches, i)?;
            let prefixes = Prefixes { kept: &prefixes, given: &given };
            let pools = want == Want::LastOfRows && i + 1 == blocks.len();
            let done = if pools {
                block.forward_pooled(hidden, &run, prefixes)?
            } else {
                block.forward(hidden, &run, prefixes)?
            };
            hidden = keep_of(done, keep, &run, &mut kept)?;
            let shares = if pools { &run.rows } else { &run.slots };
            let marks = kept.iter_mut().map(|kept| &mut kept.not_finite);
            mark_not_finite(&hidden, shares, span.start() + i, marks)?;
        }
        let shares = if want == Want::LastOfRows { run.rows.clone() } else { run.slots.clone() };
        let outputs = shares.iter().zip(&layouts).map(|(&share, layout)| {
            let output = of(&hidden, share)?;
            if want == Want::All { layout.leave(&output) } else { Ok(output) }
        });
        let outputs: Vec<Tensor> = outputs.collect::<Result<_, _>>()?;
        drop(run);
        let finished = outputs.into_iter().zip(layouts).zip(kept).zip(batches);
        Ok(finished
            .map(|(((hidden, layout), kept), batch)| kept.output(hidden, layout, batch, span, want, keep))
            .collect())
    }

    pub(crate) fn backward(&self, tapes: Vec<(Tape, Tensor)>, want: WantGrads) -> Result<Vec<Grads>, TchError> {
        let (mut tapes, grads): (Vec<Tape>, Vec<Tensor>) = tapes.into_iter().unzip();
        let Some(first) = tapes.first() else { return Ok(Vec::new()) };
        let (span, output) = (first.span, first.want);
        let mut saved: Vec<_> = tapes.iter_mut().map(|tape| std::mem::take(&mut tape.blocks)).collect();
        let layouts: Vec<&Layout> = tapes.iter().map(|tape| &tape.layout).collect();
        let run = Run::new(&layouts, &self.rotaries)?;
        let entered = layouts.iter().zip(&grads).map(|(layout, grad)| {
            let grad = grad.f_to_device(layout.device())?;
            match output {
                Want::All => layout.enter(&grad),
                Want::LastOfRows => Ok(grad),
            }
        });
        // A copy: gradients are added to in place.
        let mut grad = Tensor::f_cat(&entered.collect::<Result<Vec<_>, _>>()?, 0)?;
        let mut deep: Vec<Vec<Tensor>> = tapes.iter().map(|_| Vec::new()).collect();
        let mut keys_values: Vec<Vec<Tensor>> = tapes.iter().map(|_| Vec::new()).collect();
        let is_given: Vec<bool> = tapes.iter().map(|tape| tape.has_keys_values).collect();
        let mut not_finite: Vec<Option<usize>> = vec![None; tapes.len()];
        for (i, block) in self.of(span).iter().enumerate().rev() {
            let kept: Vec<_> = saved.iter_mut().filter_map(Vec::pop).collect();
            let wanted = if i == 0 && want.input == InputGrad::Prefix { Wanted::Prefixes } else { Wanted::All };
            let pooled = output == Want::LastOfRows && i + 1 == span.len();
            let back = if pooled {
                block.backward_pooled(&kept, grad, (&run, &is_given), wanted)?
            } else {
                block.backward(&kept, grad, (&run, &is_given), wanted)?
            };
            grad = back.input;
            for (keys_values, of_block) in keys_values.iter_mut().zip(back.given) {
                keys_values.extend(of_block.filter(|_| want.injected));
            }
            let shares = if wanted == Wanted::Prefixes { &run.prefixes } else { &run.slots };
            mark_not_finite(&grad, shares, span.start() + i, not_finite.iter_mut())?;
            for ((tape, deep), (share, prefix)) in tapes.iter().zip(&mut deep).zip(shares.iter().zip(&run.prefixes)) {
                if tape.has_deep_prompts && want.injected {
                    deep.push(grad.f_narrow(0, share.first, prefix.n)?.f_detach_copy()?);
                }
            }
        }
        let parts = tapes.iter().zip(deep.into_iter().zip(keys_values)).enumerate();
        parts
            .map(|(at, (tape, (deep, keys_values)))| {
                let input = match want.input {
                    InputGrad::All => tape.layout.leave(&of(&grad, run.slots[at])?)?,
                    InputGrad::Prefix => of(&grad, run.prefixes[at])?,
                };
                let [deep_prompts, keys_values] = [stacked(deep)?, stacked(keys_values)?];
                Ok(Grads { input, deep_prompts, keys_values, not_finite: not_finite[at] })
            })
            .collect()
    }
}

/// What is kept of one batch.
#[derive(Default)]
struct Kept {
    saved: Vec<crate::tape::Saved>,
    prefix: Vec<Tensor>,
    not_finite: Option<usize>,
}

impl Kept {
    fn output(self, hidden: Tensor, layout: Layout, batch: &Batch<'_>, span: Span, want: Want, keep: Keep) -> Output {
        let has_deep_prompts = batch.injected.deep_prompts.is_some();
        let has_keys_values = batch.injected.keys_values.is_some() && batch.prefix.slots() > 0;
        let prefix =
            (!self.prefix.is_empty()).then(|| KeptPrefix { span, len: batch.prefix.len(), blocks: self.prefix });
        let blocks = self.saved;
        let tape = (keep == Keep::Tape).then(|| Tape { span, want, layout, has_deep_prompts, has_keys_values, blocks });
        Output { hidden, tape, prefix, not_finite: self.not_finite }
    }
}

/// Marks the parts whose numbers are not finite for the first time with `block_idx`. One look at the sum of all does
/// where they are.
fn mark_not_finite<'a>(
    numbers: &Tensor,
    shares: &[Share],
    block_idx: usize,
    marks: impl Iterator<Item = &'a mut Option<usize>>,
) -> Result<(), TchError> {
    if f64::try_from(numbers.f_sum(Kind::Float)?)?.is_finite() {
        return Ok(());
    }
    for (mark, &share) in marks.zip(shares).filter(|(mark, _)| mark.is_none()) {
        let are_finite = bool::try_from(of(numbers, share)?.f_isfinite()?.f_all()?)?;
        *mark = (!are_finite).then_some(block_idx);
    }
    Ok(())
}

/// Takes from a block what is kept, and gives back its hidden states.
fn keep_of(done: Forwarded, keep: Keep, run: &Run<'_>, kept: &mut [Kept]) -> Result<Tensor, TchError> {
    let Forwarded { hidden, saved, kv } = done;
    match keep {
        Keep::Nothing => {}
        Keep::Tape => {
            let is_shared = kept.len() > 1;
            for (kept, saved) in kept.iter_mut().zip(saved) {
                kept.saved.push(if is_shared { saved.alone()? } else { saved });
            }
        }
        Keep::Prefix => {
            for ((kept, slots), prefix) in kept.iter_mut().zip(&run.slots).zip(&run.prefixes) {
                if prefix.n > 0 {
                    kept.prefix.push(kv.f_narrow(0, slots.first, prefix.n)?.f_detach_copy()?);
                }
            }
        }
    }
    Ok(hidden)
}

/// Adds learned positions to hidden states in slots, in place.
fn add_positions(hidden: &Tensor, positions: &Tensor, run: &Run<'_>) -> Result<(), TchError> {
    for (layout, &slots) in run.layouts.iter().zip(&run.slots) {
        let _ = of(hidden, slots)?.f_add_(&positions.f_index_select(0, &layout.positions)?)?;
    }
    Ok(())
}

/// Adds block `i`'s deep prompts to the prefixes, in place: nobody else holds these hidden states.
fn add_deep_prompts(hidden: &Tensor, batches: &[Batch<'_>], run: &Run<'_>, i: usize) -> Result<(), TchError> {
    for ((batch, slots), prefix) in batches.iter().zip(&run.slots).zip(&run.prefixes) {
        if let Some(deep) = batch.injected.deep_prompts
            && prefix.n > 0
        {
            let _ = hidden
                .f_narrow(0, slots.first, prefix.n)?
                .f_add_(&deep.f_select(0, i as i64)?.f_to_device(hidden.device())?)?;
        }
    }
    Ok(())
}

/// The keys and values that block `i` is given for the prefix of each batch that computes one.
fn given_keys_values(batches: &[Batch<'_>], i: usize) -> Result<Vec<Option<Tensor>>, TchError> {
    let given = |batch: &Batch<'_>| {
        let given = batch.injected.keys_values.filter(|_| batch.prefix.slots() > 0);
        given.map(|given| given.f_select(0, i as i64)).transpose()
    };
    batches.iter().map(given).collect()
}

/// Stacks tensors gathered from the last block to the first, in the order of the blocks; nothing if there are none.
fn stacked(mut from_the_last: Vec<Tensor>) -> Result<Option<Tensor>, TchError> {
    from_the_last.reverse();
    if from_the_last.is_empty() { Ok(None) } else { Tensor::f_stack(&from_the_last, 0).map(Some) }
}
