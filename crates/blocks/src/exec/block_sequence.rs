use sepal_core::{Span, Want};
use tch::{Device, Kind, TchError, Tensor};

use crate::adapters::{self, AdapterBackward, BlockAdapters, Site};
use crate::attention::layout::Layout;
use crate::attention::masks::MaskConfig;
use crate::attention::packed_batch::PackedBatch;
use crate::exec::batch::{Batch, BatchGrads, BatchOutput, GradOptions, InputGrad, Prefix, PrefixCache, SaveMode};
use crate::exec::block::{Block, BlockInput, BlockOutput};
use crate::exec::block_backward::BackwardInput;
use crate::exec::cancel::Cancel;
use crate::exec::non_finite::Extremes;
use crate::exec::tape::{SavedBlock, Tape};
use crate::layers::rope::Rotaries;

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
    /// Kind of the inputs and outputs of products.
    pub(crate) fn compute(&self) -> Kind {
        self.blocks.first().map_or(Kind::Float, Block::compute)
    }

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
        cancel: Cancel<'_>,
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
        let mut extremes = Extremes::new(batches.len());
        for (i, block) in blocks.iter().enumerate() {
            cancel.check()?;
            let cached: Vec<Option<&Tensor>> = batches.iter().map(|batch| cached_block(batch, i)).collect();
            let adapters = BlockAdapters::new(batches.iter().map(|batch| batch.injected.block(i)));
            let is_pooled = want == Want::LastOfRows && i + 1 == blocks.len();
            let adapters = adapters::Forward::new(adapters);
            let input = BlockInput { packed: &packed, cached: &cached, adapters, is_pooled };
            let output = block.forward(hidden, input)?;
            hidden = save(output, save_mode, block.compute(), &packed, &mut results)?;
            extremes.add(&hidden, packed.queries(is_pooled), span.start() + i)?;
        }
        let non_finite = extremes.first_non_finite()?;
        let segments = packed.queries(want == Want::LastOfRows).iter();
        let outputs = segments.zip(&layouts);
        let outputs = outputs.map(|(segment, layout)| layout.select_output(&segment.narrow(&hidden)?, want));
        let outputs: Vec<Tensor> = outputs.collect::<Result<_, _>>()?;
        drop(packed);
        let results = outputs.into_iter().zip(layouts).zip(results).zip(non_finite).zip(batches);
        let outputs = results.map(|((((hidden, layout), results), non_finite_block), batch)| {
            let len = batch.prefix.len();
            let injected = Box::new(batch.injected.share());
            let tape =
                (save_mode == SaveMode::Tape).then(|| Tape { span, want, layout, injected, blocks: results.saved });
            BatchOutput {
                hidden,
                tape,
                prefix_cache: (!results.prefix.is_empty()).then(|| PrefixCache { span, len, blocks: results.prefix }),
                non_finite_block,
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
            // A copy, because adapters of the prefix change it in place.
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
        cancel: Cancel<'_>,
    ) -> Result<Vec<BatchGrads>, TchError> {
        let (mut tapes, grads): (Vec<Tape>, Vec<Tensor>) = tapes.into_iter().unzip();
        let Some(first) = tapes.first() else { return Ok(Vec::new()) };
        let (span, want) = (first.span, first.want);
        let mut saved: Vec<_> = tapes.iter_mut().map(|tape| std::mem::take(&mut tape.blocks)).collect();
        let packed = PackedBatch::new(tapes.iter().map(|tape| &tape.layout).collect(), &self.rotaries)?;
        let slots = tapes
            .iter()
            .zip(&grads)
            .map(|(tape, grad)| tape.layout.output_grad(&grad.f_to_device(tape.layout.device())?, want));
        // A copy, because gradients are added in place.
        let mut grad = Tensor::f_cat(&slots.collect::<Result<Vec<_>, _>>()?, 0)?;
        // Gradients of each batch by block and by the index of their tunable.
        let by_block = || (0..span.len()).map(|_| Vec::new()).collect();
        let mut injected: Vec<Vec<Vec<(usize, Tensor)>>> = tapes.iter().map(|_| by_block()).collect();
        let mut extremes = Extremes::new(tapes.len());
        let first = first_with_grads(&tapes, &packed, options);
        for (i, block) in self.get(span).iter().enumerate().skip(first).rev() {
            cancel.check()?;
            let saved: Vec<_> = saved.iter_mut().filter_map(Vec::pop).collect();
            let input_grad = if i == first { options.input } else { InputGrad::All };
            let adapters = BlockAdapters::new(tapes.iter().map(|tape| tape.injected.block(i)));
            let of_batches = saved.iter().map(|saved| &saved.adapters).collect();
            let mut adapters = AdapterBackward::new(adapters, of_batches, options.injected);
            let input = BackwardInput { saved: &saved, grad, packed: &packed, adapters: &mut adapters, input_grad };
            let is_pooled = want == Want::LastOfRows && i + 1 == span.len();
            grad = if is_pooled { block.backward_pooled(input)? } else { block.backward(input)? };
            let segments = if input_grad == InputGrad::Prefix { &packed.prefixes } else { &packed.slots };
            extremes.add(&grad, segments, span.start() + i)?;
            let prefixes = if input_grad == InputGrad::Prefix { &packed.prefixes } else { &packed.prefix_slots };
            adapters.run(Site::Prefix, prefixes, &grad, |_| Ok(None))?;
            for (injected, grads) in injected.iter_mut().zip(adapters.into_grads()) {
                injected[i] = grads;
            }
        }
        let results = tapes.iter().zip(injected).zip(extremes.first_non_finite()?).enumerate();
        let results = results.map(|(i, ((tape, injected), non_finite_block))| {
            let input = match options.input {
                InputGrad::All => tape.layout.to_caller_order(&packed.slots[i].narrow(&grad)?)?,
                InputGrad::Prefix => packed.prefixes[i].narrow(&grad)?,
            };
            let injected = match options.injected {
                true => tape.injected.stack_grads(injected, grad.device())?,
                false => Vec::new(),
            };
            Ok(BatchGrads { input, injected, non_finite_block })
        });
        results.collect()
    }
}

/// Results of a forward pass for one batch, block by block.
#[derive(Default)]
struct ForwardResults {
    saved: Vec<SavedBlock>,
    prefix: Vec<Tensor>,
}

/// Index in the span of the first block whose backward pass has a result. Without a gradient of the input it is the first
/// with an adapter.
fn first_with_grads(tapes: &[Tape], packed: &PackedBatch<'_>, options: GradOptions) -> usize {
    let has_input_grad = options.input == InputGrad::All || packed.prefix_slots.iter().any(|prefix| prefix.len > 0);
    let n_blocks = tapes.first().map_or(0, |tape| tape.span.len());
    match (has_input_grad, options.injected) {
        (true, _) => 0,
        (false, true) => tapes.iter().filter_map(|tape| tape.injected.first()).min().unwrap_or(n_blocks),
        (false, false) => n_blocks,
    }
}

/// Moves the tensors that `save_mode` selects to `results` and returns the hidden states.
fn save(
    output: BlockOutput,
    save_mode: SaveMode,
    compute: Kind,
    packed: &PackedBatch<'_>,
    results: &mut [ForwardResults],
) -> Result<Tensor, TchError> {
    let BlockOutput { hidden, saved, kv } = output;
    match save_mode {
        SaveMode::None => {}
        SaveMode::Tape => {
            let is_shared = results.len() > 1;
            for (results, saved) in results.iter_mut().zip(saved) {
                results.saved.push(saved.into_tape(compute, is_shared)?);
            }
        }
        SaveMode::PrefixCache => {
            for (results, prefix) in results.iter_mut().zip(&packed.prefix_slots).filter(|(_, prefix)| prefix.len > 0) {
                results.prefix.push(prefix.narrow(&kv)?.f_detach_copy()?);
            }
        }
    }
    Ok(hidden)
}

/// Keys and values of a cached prefix in block `i`.
fn cached_block<'a>(batch: &Batch<'a>, i: usize) -> Option<&'a Tensor> {
    match batch.prefix {
        Prefix::Cached(cache) => cache.blocks.get(i),
        Prefix::Computed(_) => None,
    }
}
