use sepal_core::{Span, Want};
use tch::{Device, Kind, TchError, Tensor};

use crate::attention::layout::Layout;
use crate::attention::masks::MaskConfig;
use crate::attention::packed_batch::PackedBatch;
use crate::exec::batch::{Batch, BatchGrads, BatchOutput, GradOptions, InputGrad, Prefix, PrefixCache, SaveMode};
use crate::exec::block::{Block, BlockOutput, PrefixKeysValues};
use crate::exec::block_backward::BackwardInput;
use crate::exec::tape::{SavedBlock, Tape};
use crate::layers::rope::Rotaries;
use crate::segment::Segment;

/// Consecutive blocks of a model.
#[derive(Debug)]
pub(crate) struct BlockSequence {
    /// Index of the first block in the model.
    pub(crate) first_block: usize,
    pub(crate) blocks: Vec<Block>,
    pub(crate) rotaries: Rotaries,
    /// Learned positions `[max_positions, hidden]` of a sequence that starts with the model's first block.
    pub(crate) positions: Option<Tensor>,
}

impl BlockSequence {
    pub(crate) fn get(&self, span: Span) -> &[Block] {
        &self.blocks[span.start() - self.first_block..span.end() - self.first_block]
    }

    pub(crate) fn forward(
        &self,
        span: Span,
        batches: &[Batch<'_>],
        want: Want,
        save_mode: SaveMode,
        config: &MaskConfig,
    ) -> Result<Vec<BatchOutput>, TchError> {
        let layout = |batch: &Batch<'_>| {
            let is_cached = matches!(batch.prefix, Prefix::Cached(_));
            Layout::new(batch.prefix.len(), is_cached, batch.rows, want, config)
        };
        let layouts: Vec<Layout> = batches.iter().map(layout).collect::<Result<_, _>>()?;
        let packed = PackedBatch::new(layouts.iter().collect(), &self.rotaries)?;
        let mut hidden = self.input(span, batches, &packed, config.device)?;
        let blocks = self.get(span);
        let mut results: Vec<ForwardResults> = batches.iter().map(|_| ForwardResults::default()).collect();
        for (i, block) in blocks.iter().enumerate() {
            add_deep_prompts(&hidden, batches, &packed, i)?;
            let cached: Vec<Option<&Tensor>> = batches.iter().map(|batch| cached_block(batch, i)).collect();
            let injected = injected_keys_values(batches, i)?;
            let prefixes = PrefixKeysValues { cached: &cached, injected: &injected };
            let is_pooled = want == Want::LastOfRows && i + 1 == blocks.len();
            let output = block.forward(hidden, &packed, prefixes, is_pooled)?;
            hidden = save(output, save_mode, &packed, &mut results)?;
            let marks = results.iter_mut().map(|results| &mut results.non_finite_block);
            mark_non_finite(&hidden, packed.queries(is_pooled), span.start() + i, marks)?;
        }
        let outputs = packed.queries(want == Want::LastOfRows).iter().zip(&layouts).map(|(segment, layout)| {
            let output = segment.narrow(&hidden)?;
            if want == Want::All { layout.to_caller_order(&output) } else { Ok(output) }
        });
        let outputs: Vec<Tensor> = outputs.collect::<Result<_, _>>()?;
        drop(packed);
        let results = outputs.into_iter().zip(layouts).zip(results).zip(batches);
        let outputs = results.map(|(((hidden, layout), results), batch)| {
            let len = batch.prefix.len();
            let has_deep_prompts = batch.injected.deep_prompts.is_some();
            let has_keys_values = batch.injected.keys_values.is_some() && batch.prefix.slots() > 0;
            let tape = Tape { span, want, layout, has_deep_prompts, has_keys_values, blocks: results.saved };
            BatchOutput {
                hidden,
                tape: (save_mode == SaveMode::Tape).then_some(tape),
                prefix_cache: (!results.prefix.is_empty()).then(|| PrefixCache { span, len, blocks: results.prefix }),
                non_finite_block: results.non_finite_block,
            }
        });
        Ok(outputs.collect())
    }

    /// Hidden states of all batches in slots, with learned positions; never the memory of a caller.
    fn input(
        &self,
        span: Span,
        batches: &[Batch<'_>],
        packed: &PackedBatch<'_>,
        device: Device,
    ) -> Result<Tensor, TchError> {
        let slots = packed.layouts.iter().zip(batches);
        let slots = slots.map(|(layout, batch)| layout.to_slots(&batch.hidden.f_to_device(device)?));
        let hidden = match &slots.collect::<Result<Vec<_>, _>>()?[..] {
            // A copy, because deep prompts are added in place.
            [only] if only.data_ptr() == batches[0].hidden.data_ptr() => only.f_detach_copy()?,
            [only] => only.shallow_clone(),
            all => Tensor::f_cat(all, 0)?,
        };
        if let Some(table) = self.positions.as_ref().filter(|_| span.start() == 0) {
            for (layout, slots) in packed.layouts.iter().zip(&packed.slots) {
                let _ = slots.narrow(&hidden)?.f_add_(&table.f_index_select(0, &layout.positions)?)?;
            }
        }
        Ok(hidden)
    }

    pub(crate) fn backward(
        &self,
        tapes: Vec<(Tape, Tensor)>,
        options: GradOptions,
    ) -> Result<Vec<BatchGrads>, TchError> {
        let (mut tapes, grads): (Vec<Tape>, Vec<Tensor>) = tapes.into_iter().unzip();
        let Some(first) = tapes.first() else { return Ok(Vec::new()) };
        let (span, want) = (first.span, first.want);
        let mut saved: Vec<_> = tapes.iter_mut().map(|tape| std::mem::take(&mut tape.blocks)).collect();
        let packed = PackedBatch::new(tapes.iter().map(|tape| &tape.layout).collect(), &self.rotaries)?;
        let slots = tapes.iter().zip(&grads).map(|(tape, grad)| {
            let grad = grad.f_to_device(tape.layout.device())?;
            if want == Want::All { tape.layout.to_slots(&grad) } else { Ok(grad) }
        });
        // A copy, because gradients are added in place.
        let mut grad = Tensor::f_cat(&slots.collect::<Result<Vec<_>, _>>()?, 0)?;
        let mut results: Vec<BackwardResults> = tapes.iter().map(|_| BackwardResults::default()).collect();
        let has_injected: Vec<bool> = tapes.iter().map(|tape| tape.has_keys_values).collect();
        for (i, block) in self.get(span).iter().enumerate().rev() {
            let saved: Vec<_> = saved.iter_mut().filter_map(Vec::pop).collect();
            let input_grad = if i == 0 { options.input } else { InputGrad::All };
            let input = BackwardInput { saved: &saved, grad, packed: &packed, has_injected: &has_injected, input_grad };
            let is_pooled = want == Want::LastOfRows && i + 1 == span.len();
            let grads = if is_pooled { block.backward_pooled(input)? } else { block.backward(input)? };
            grad = grads.input;
            for (results, injected) in results.iter_mut().zip(grads.injected) {
                results.keys_values.extend(injected.filter(|_| options.injected));
            }
            let segments = if input_grad == InputGrad::Prefix { &packed.prefixes } else { &packed.slots };
            let marks = results.iter_mut().map(|results| &mut results.non_finite_block);
            mark_non_finite(&grad, segments, span.start() + i, marks)?;
            let prefixes = segments.iter().zip(&packed.prefixes);
            for ((tape, results), (segment, prefix)) in tapes.iter().zip(&mut results).zip(prefixes) {
                if tape.has_deep_prompts && options.injected {
                    results.deep_prompts.push(grad.f_narrow(0, segment.start, prefix.len)?.f_detach_copy()?);
                }
            }
        }
        let results = tapes.iter().zip(results).enumerate().map(|(i, (tape, results))| {
            let input = match options.input {
                InputGrad::All => tape.layout.to_caller_order(&packed.slots[i].narrow(&grad)?)?,
                InputGrad::Prefix => packed.prefixes[i].narrow(&grad)?,
            };
            let [deep_prompts, keys_values] =
                [stack_reversed(results.deep_prompts)?, stack_reversed(results.keys_values)?];
            Ok(BatchGrads { input, deep_prompts, keys_values, non_finite_block: results.non_finite_block })
        });
        results.collect()
    }
}

/// Results of a forward pass for one batch, block by block.
#[derive(Default)]
struct ForwardResults {
    saved: Vec<SavedBlock>,
    prefix: Vec<Tensor>,
    non_finite_block: Option<usize>,
}

/// Results of a backward pass for one batch, from the last block to the first.
#[derive(Default)]
struct BackwardResults {
    deep_prompts: Vec<Tensor>,
    keys_values: Vec<Tensor>,
    non_finite_block: Option<usize>,
}

/// Sets the marks of batches with the first non-finite numbers to `block_idx`. The sum of all numbers is finite if all are,
/// so that batches are only checked one by one after a failure.
fn mark_non_finite<'a>(
    numbers: &Tensor,
    segments: &[Segment],
    block_idx: usize,
    marks: impl Iterator<Item = &'a mut Option<usize>>,
) -> Result<(), TchError> {
    if f64::try_from(numbers.f_sum(Kind::Float)?)?.is_finite() {
        return Ok(());
    }
    for (mark, segment) in marks.zip(segments).filter(|(mark, _)| mark.is_none()) {
        let are_finite = bool::try_from(segment.narrow(numbers)?.f_isfinite()?.f_all()?)?;
        *mark = (!are_finite).then_some(block_idx);
    }
    Ok(())
}

/// Moves the tensors that `save_mode` selects to `results` and returns the hidden states.
fn save(
    output: BlockOutput,
    save_mode: SaveMode,
    packed: &PackedBatch<'_>,
    results: &mut [ForwardResults],
) -> Result<Tensor, TchError> {
    let BlockOutput { hidden, saved, kv } = output;
    match save_mode {
        SaveMode::None => {}
        SaveMode::Tape => {
            let is_shared = results.len() > 1;
            for (results, saved) in results.iter_mut().zip(saved) {
                results.saved.push(if is_shared { saved.into_owned()? } else { saved });
            }
        }
        SaveMode::PrefixCache => {
            for (results, prefix) in results.iter_mut().zip(packed.prefix_slots()).filter(|(_, prefix)| prefix.len > 0)
            {
                results.prefix.push(prefix.narrow(&kv)?.f_detach_copy()?);
            }
        }
    }
    Ok(hidden)
}

/// Adds the deep prompts of block `i` to the prefixes, in place: the hidden states have no other owner.
fn add_deep_prompts(
    hidden: &Tensor,
    batches: &[Batch<'_>],
    packed: &PackedBatch<'_>,
    i: usize,
) -> Result<(), TchError> {
    for (batch, prefix) in batches.iter().zip(packed.prefix_slots()).filter(|(_, prefix)| prefix.len > 0) {
        if let Some(deep) = batch.injected.deep_prompts {
            let deep = deep.f_select(0, i as i64)?.f_to_device(hidden.device())?;
            let _ = prefix.narrow(hidden)?.f_add_(&deep)?;
        }
    }
    Ok(())
}

/// Keys and values of a cached prefix in block `i`.
fn cached_block<'a>(batch: &Batch<'a>, i: usize) -> Option<&'a Tensor> {
    match batch.prefix {
        Prefix::Cached(cache) => cache.blocks.get(i),
        Prefix::Computed(_) => None,
    }
}

/// Injected keys and values of block `i`, for each batch with a computed prefix.
fn injected_keys_values(batches: &[Batch<'_>], i: usize) -> Result<Vec<Option<Tensor>>, TchError> {
    let injected = |batch: &Batch<'_>| {
        let injected = batch.injected.keys_values.filter(|_| batch.prefix.slots() > 0);
        injected.map(|injected| injected.f_select(0, i as i64)).transpose()
    };
    batches.iter().map(injected).collect()
}

/// Stacks tensors that were collected from the last block to the first; none if there are none.
fn stack_reversed(mut tensors: Vec<Tensor>) -> Result<Option<Tensor>, TchError> {
    tensors.reverse();
    if tensors.is_empty() { Ok(None) } else { Tensor::f_stack(&tensors, 0).map(Some) }
}
