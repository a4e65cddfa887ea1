//! Blocks of a server in stacks on several devices, which run one after another.

use std::sync::Arc;

use sepal_blocks::{
    Batch, BatchGrads, BlockStack, CallMemory, Cancel, ForwardError, GradOptions, Injected, InputGrad, LoadError,
    Passes, Placement, Prefix, PrefixCache, SaveMode, Tape, Weights,
};
use sepal_core::{ModelConfig, Ragged, Span, Want};
use sepal_nn::Tunable;
use tch::{TchError, Tensor};

/// Consecutive blocks in stacks that follow each other, for example one on each device. A call runs through the stacks in
/// order, so that one device computes at a time; hidden states and gradients move between them in fp32. The numbers are
/// those of one stack.
#[derive(Debug)]
pub struct DeviceStacks {
    span: Span,
    config: ModelConfig,
    /// In the order of the blocks.
    stacks: Vec<BlockStack>,
}

impl From<BlockStack> for DeviceStacks {
    fn from(stack: BlockStack) -> Self {
        Self { span: stack.span(), config: stack.config().clone(), stacks: vec![stack] }
    }
}

impl DeviceStacks {
    /// Reads the blocks of `span`, an even share of them for each placement, see [`even_shares`]. Placements beyond the
    /// number of blocks have none.
    ///
    /// # Errors
    /// [`LoadError`] as for one stack, see [`BlockStack::load`].
    pub fn load(weights: &dyn Weights, span: Span, placements: &[Placement]) -> Result<Self, LoadError> {
        let shares = even_shares(span, placements.len());
        let default = std::iter::repeat_n(Placement::default(), usize::from(placements.is_empty()));
        let placements = placements.iter().copied().chain(default);
        let load = |(placement, share): (Placement, Span)| BlockStack::load_with(weights, share, placement);
        let stacks = placements.zip(shares).map(load).collect::<Result<Vec<BlockStack>, LoadError>>()?;
        Ok(Self { span, config: weights.config().clone(), stacks })
    }

    /// Span of the blocks.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory of the weights of linear layers on all devices, in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.stacks.iter().map(BlockStack::weight_bytes).sum()
    }

    /// Size of a tape for the blocks `span`, in bytes, as [`BlockStack::tape_bytes`]; 0 if a block is missing.
    pub fn tape_bytes(&self, span: Span, prefix_len: usize, rows: &Ragged, want: Want) -> usize {
        let parts = self.parts(span).unwrap_or_default();
        let bytes = parts.iter().map(|(stack, part)| {
            let want = if part.end() == span.end() { want } else { Want::All };
            stack.tape_bytes(*part, prefix_len, rows, want)
        });
        bytes.sum()
    }

    /// Estimate of the memory of calls on all devices.
    pub(crate) fn call_memory(&self) -> StackCallMemory {
        StackCallMemory(self.stacks.iter().map(BlockStack::call_memory).collect())
    }

    /// Stacks with blocks of `span`, each with these blocks.
    fn parts(&self, span: Span) -> Result<Vec<(&BlockStack, Span)>, ForwardError> {
        if !self.span.covers(span) {
            return Err(ForwardError::Span { requested: span, held: self.span });
        }
        let parts = self.stacks.iter().filter_map(|stack| Some((stack, common(stack.span(), span)?)));
        Ok(parts.collect())
    }

    /// Converts tunables for the blocks of `span`, as [`BlockStack::inject`].
    pub(crate) fn inject(&self, span: Span, tunables: &[Tunable]) -> Result<StackInjections, ForwardError> {
        let parts = self.parts(span)?;
        let names = tunables.iter().map(|tunable| tunable.name.clone()).collect();
        if let [(stack, part)] = parts[..] {
            let parts = vec![PartInjections { is_empty: tunables.is_empty(), injected: stack.inject(part, tunables)? }];
            return Ok(StackInjections { names, parts });
        }
        let inject = |(stack, part): (&BlockStack, Span)| {
            let tunables = sliced(tunables, part)?;
            Ok(PartInjections { is_empty: tunables.is_empty(), injected: stack.inject(part, &tunables)? })
        };
        let parts = parts.into_iter().map(inject).collect::<Result<Vec<PartInjections>, ForwardError>>()?;
        Ok(StackInjections { names, parts })
    }

    /// Checks the shapes of a batch, as [`BlockStack::check_batch`].
    pub(crate) fn check_batch(&self, span: Span, batch: &StackBatch<'_>) -> Result<(), ForwardError> {
        let parts = self.parts(span)?;
        // Hidden states have the same shape before each block.
        let mut parts = parts.iter().enumerate();
        parts.try_for_each(|(index, (stack, part))| stack.check_batch(*part, &batch.part(index, batch.hidden)))
    }

    /// Runs the blocks of `span` on batches of several callers at once, as [`BlockStack::forward_until`].
    pub(crate) fn forward_until(
        &self,
        span: Span,
        batches: &[StackBatch<'_>],
        want: Want,
        save_mode: SaveMode,
        cancel: Cancel<'_>,
    ) -> Result<Vec<StackOutput>, ForwardError> {
        let parts = self.parts(span)?;
        let mut outputs: Vec<ForwardState> = batches.iter().map(ForwardState::new).collect();
        for (index, (stack, part)) in parts.iter().enumerate() {
            let want = if index + 1 == parts.len() { want } else { Want::All };
            let inputs = batches.iter().zip(&outputs).map(|(batch, output)| batch.part(index, &output.hidden));
            let inputs = inputs.collect::<Vec<Batch<'_>>>();
            let results = stack.forward_until(*part, &inputs, want, save_mode, cancel)?;
            for (output, result) in outputs.iter_mut().zip(results) {
                output.hidden = result.hidden;
                output.tapes.extend(result.tape);
                output.caches.extend(result.prefix_cache);
                output.non_finite_block = output.non_finite_block.or(result.non_finite_block);
            }
        }
        Ok(outputs.into_iter().zip(batches).map(|(output, batch)| output.finish(span, batch)).collect())
    }

    /// Runs the backward passes of tapes together, as [`BlockStack::backward_until`].
    pub(crate) fn backward_until(
        &self,
        tapes: Vec<(StackTape, Tensor)>,
        options: GradOptions,
        cancel: Cancel<'_>,
    ) -> Result<Vec<BatchGrads>, ForwardError> {
        let Some((first, _)) = tapes.first() else { return Ok(Vec::new()) };
        let span = first.span;
        let parts = self.parts(span)?;
        if tapes.iter().any(|(tape, _)| tape.span != span || tape.parts.len() != parts.len()) {
            return Err(ForwardError::MixedTapes);
        }
        let (mut tapes, grads): (Vec<StackTape>, Vec<Tensor>) = tapes.into_iter().unzip();
        let mut results: Vec<BackwardState> = grads.into_iter().map(BackwardState::new).collect();
        for (index, (stack, _)) in parts.iter().enumerate().rev() {
            let continues = tapes.iter().any(|tape| tape.has_grads_before(index, options));
            let input = if continues { InputGrad::All } else { options.input };
            let inputs = tapes.iter_mut().zip(&results);
            let inputs = inputs.filter_map(|(tape, result)| Some((tape.parts.pop()?, result.input.shallow_clone())));
            let grads = stack.backward_until(inputs.collect(), GradOptions { input, ..options }, cancel)?;
            for (result, grads) in results.iter_mut().zip(grads) {
                result.input = grads.input;
                result.injected.push(grads.injected);
                result.non_finite_block = result.non_finite_block.or(grads.non_finite_block);
            }
            if !continues {
                break;
            }
        }
        let finish = |(tape, result): (StackTape, BackwardState)| result.finish(&tape.names);
        let finished = tapes.into_iter().zip(results).map(finish).collect::<Result<Vec<BatchGrads>, TchError>>();
        finished.map_err(|source| ForwardError::Torch { span, source })
    }
}

/// Estimate of the memory of calls, see [`CallMemory`]. Each device has the temporary tensors of its blocks, so the
/// estimates are added.
#[derive(Debug, Clone, Default)]
pub(crate) struct StackCallMemory(Vec<CallMemory>);

impl StackCallMemory {
    /// Bytes of a call.
    pub(crate) fn bytes(&self, span: Span, prefix_len: usize, rows: &Ragged, passes: Passes) -> u64 {
        let bytes = self.0.iter().map(|memory| memory.bytes(span, prefix_len, rows, passes));
        bytes.fold(0, u64::saturating_add)
    }

    /// Largest number of positions, at most `limit`, of any batch whose passes take at most `bytes`.
    pub(crate) fn max_positions(&self, bytes: u64, limit: usize) -> usize {
        let share = bytes / self.0.len().max(1) as u64;
        self.0.iter().map(|memory| memory.max_positions(share, limit)).min().unwrap_or(limit)
    }
}

/// Divides `span` into `n` shares, or one for each block if it has fewer. Their sizes differ by at most one.
pub fn even_shares(span: Span, n: usize) -> Vec<Span> {
    let n = n.clamp(1, span.len());
    let bound = |index: usize| span.start() + index * span.len() / n;
    (0..n).filter_map(|index| Span::new(bound(index), bound(index + 1)).ok()).collect()
}

/// Blocks of both spans.
fn common(a: Span, b: Span) -> Option<Span> {
    Span::new(a.start().max(b.start()), a.end().min(b.end())).ok()
}

/// The parts of tunables for the blocks of `span`, without copies.
fn sliced(tunables: &[Tunable], span: Span) -> Result<Vec<Tunable>, ForwardError> {
    let slice = |tunable: &Tunable| {
        let n_blocks = tunable.tensor.size().first().map_or(0, |&blocks| usize::try_from(blocks).unwrap_or(0));
        let blocks = Span::new(tunable.first_block, tunable.first_block + n_blocks).ok()?;
        let part = common(blocks, span)?;
        let tensor = tunable.tensor.f_narrow(0, (part.start() - blocks.start()) as i64, part.len() as i64);
        Some(tensor.map(|tensor| Tunable { name: tunable.name.clone(), first_block: part.start(), tensor }))
    };
    let slices = tunables.iter().filter_map(slice).collect::<Result<Vec<Tunable>, TchError>>();
    slices.map_err(|source| ForwardError::Torch { span, source })
}

/// Tunables of a span, converted for each stack with blocks of it.
#[derive(Debug)]
pub(crate) struct StackInjections {
    /// Names of the tunables, in the order of the caller.
    names: Arc<[String]>,
    parts: Vec<PartInjections>,
}

#[derive(Debug)]
struct PartInjections {
    /// True if no tunable is for these blocks.
    is_empty: bool,
    injected: Injected,
}

impl StackInjections {
    /// Returns an injection with the same memory.
    pub(crate) fn share(&self) -> Self {
        let share = |part: &PartInjections| PartInjections { is_empty: part.is_empty, injected: part.injected.share() };
        Self { names: Arc::clone(&self.names), parts: self.parts.iter().map(share).collect() }
    }
}

/// Batch of one caller, as [`Batch`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct StackBatch<'a> {
    pub(crate) hidden: &'a Tensor,
    pub(crate) prefix: StackPrefix<'a>,
    pub(crate) rows: &'a Ragged,
    pub(crate) injected: &'a StackInjections,
}

/// Prefix that all rows of a batch share, as [`Prefix`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum StackPrefix<'a> {
    Computed(usize),
    Cached(&'a StackPrefixCache),
}

impl StackBatch<'_> {
    /// The batch for the stack `index` of its span, with the hidden states before that stack.
    fn part<'b>(&'b self, index: usize, hidden: &'b Tensor) -> Batch<'b> {
        let prefix = match self.prefix {
            StackPrefix::Computed(len) => Prefix::Computed(len),
            StackPrefix::Cached(cache) => Prefix::Cached(&cache.0[index]),
        };
        Batch { hidden, prefix, rows: self.rows, injected: &self.injected.parts[index].injected }
    }

    /// Number of positions of the prefix that are part of the hidden states.
    fn prefix_slots(&self) -> usize {
        match self.prefix {
            StackPrefix::Computed(len) => len,
            StackPrefix::Cached(_) => 0,
        }
    }
}

/// Keys and values of a prefix, for each stack of a span.
#[derive(Debug)]
pub(crate) struct StackPrefixCache(Vec<PrefixCache>);

impl StackPrefixCache {
    /// Number of positions.
    pub(crate) fn prefix_len(&self) -> usize {
        self.0.first().map_or(0, PrefixCache::len)
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(PrefixCache::bytes).sum()
    }

    /// Returns a cache with the same memory.
    pub(crate) fn share(&self) -> Self {
        Self(self.0.iter().map(PrefixCache::share).collect())
    }
}

/// Tapes of one forward pass, for each stack of its span.
#[derive(Debug)]
pub(crate) struct StackTape {
    span: Span,
    parts: Vec<Tape>,
    /// Names of the tunables, in the order of the caller.
    names: Arc<[String]>,
    /// True for each part with tunables.
    has_tunables: Vec<bool>,
    prefix_slots: usize,
}

impl StackTape {
    /// Shape of the output and of its gradient, `[positions, hidden]`.
    pub(crate) fn output_shape(&self) -> [usize; 2] {
        self.parts.last().map_or([0, 0], Tape::output_shape)
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Tape::bytes).sum()
    }

    /// True if the backward pass of parts before the part `index` has a result.
    fn has_grads_before(&self, index: usize, options: GradOptions) -> bool {
        let has_tunables = options.injected && self.has_tunables[..index].contains(&true);
        index > 0 && (options.input == InputGrad::All || self.prefix_slots > 0 || has_tunables)
    }
}

/// Output of a forward pass, as `BatchOutput`.
#[derive(Debug)]
pub(crate) struct StackOutput {
    pub(crate) hidden: Tensor,
    pub(crate) tape: Option<StackTape>,
    pub(crate) prefix_cache: Option<StackPrefixCache>,
    pub(crate) non_finite_block: Option<usize>,
}

/// Forward pass of one batch through the first stacks.
struct ForwardState {
    hidden: Tensor,
    tapes: Vec<Tape>,
    caches: Vec<PrefixCache>,
    non_finite_block: Option<usize>,
}

impl ForwardState {
    fn new(batch: &StackBatch<'_>) -> Self {
        let hidden = batch.hidden.shallow_clone();
        Self { hidden, tapes: Vec::new(), caches: Vec::new(), non_finite_block: None }
    }

    fn finish(self, span: Span, batch: &StackBatch<'_>) -> StackOutput {
        let Self { hidden, tapes: parts, caches, non_finite_block } = self;
        let StackInjections { names, parts: injections } = batch.injected;
        let has_tunables = injections.iter().map(|part| !part.is_empty).collect();
        let prefix_slots = batch.prefix_slots();
        let names = Arc::clone(names);
        let tape = (!parts.is_empty()).then(|| StackTape { span, parts, names, has_tunables, prefix_slots });
        let prefix_cache = (!caches.is_empty()).then(|| StackPrefixCache(caches));
        StackOutput { hidden, tape, prefix_cache, non_finite_block }
    }
}

/// Backward pass of one batch through the last stacks.
struct BackwardState {
    /// Gradient of the hidden states before these stacks.
    input: Tensor,
    /// Gradients of tunables, those of the last stack first.
    injected: Vec<Vec<Tunable>>,
    non_finite_block: Option<usize>,
}

impl BackwardState {
    fn new(grad: Tensor) -> Self {
        Self { input: grad, injected: Vec::new(), non_finite_block: None }
    }

    fn finish(self, names: &[String]) -> Result<BatchGrads, TchError> {
        let Self { input, mut injected, non_finite_block } = self;
        let injected = match injected.len() {
            1 => injected.pop().unwrap_or_default(),
            _ => joined(names, &injected.into_iter().rev().flatten().collect::<Vec<Tunable>>())?,
        };
        Ok(BatchGrads { input, injected, non_finite_block })
    }
}

/// Joins parts of tunables, which are in the order of the blocks. Returns the tunables in the order of `names`.
fn joined(names: &[String], parts: &[Tunable]) -> Result<Vec<Tunable>, TchError> {
    let join = |name: &String| {
        let mut parts = parts.iter().filter(|part| &part.name == name);
        let Tunable { first_block, tensor, .. } = parts.next()?;
        let others = parts.map(|part| part.tensor.f_to_device(tensor.device()));
        let tensors =
            std::iter::once(Ok(tensor.shallow_clone())).chain(others).collect::<Result<Vec<Tensor>, TchError>>();
        let tensor = tensors.and_then(|tensors| match &tensors[..] {
            [only] => Ok(only.shallow_clone()),
            several => Tensor::f_cat(several, 0),
        });
        Some(tensor.map(|tensor| Tunable { name: name.clone(), first_block: *first_block, tensor }))
    };
    names.iter().filter_map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        text.parse().expect("a span")
    }

    #[test]
    fn shares_are_even_and_never_empty() {
        let shares = |text: &str, n| even_shares(span(text), n).iter().map(Span::to_string).collect::<Vec<_>>();
        assert_eq!(shares("2:10", 2), ["2:6", "6:10"]);
        assert_eq!(shares("0:7", 3), ["0:2", "2:4", "4:7"]);
        assert_eq!(shares("5:7", 4), ["5:6", "6:7"]);
        assert_eq!(shares("5:7", 0), ["5:7"]);
    }

    #[test]
    fn parts_of_tunables_join_to_the_tunables() {
        let tunable = |name: &str, first_block: usize, blocks: i64| {
            let tensor = (Tensor::arange(blocks * 3, (tch::Kind::Float, tch::Device::Cpu)) + 1.0).view([blocks, 3]);
            Tunable { name: name.to_owned(), first_block, tensor }
        };
        let tunables = [tunable("b", 4, 2), tunable("a", 2, 6), tunable("c", 6, 1)];
        let parts =
            [sliced(&tunables, span("2:5")), sliced(&tunables, span("5:8"))].map(|part| part.expect("narrowed"));
        let described = |part: &[Tunable]| {
            let described = part.iter().map(|part| (part.name.clone(), part.first_block, part.tensor.size()[0]));
            described.collect::<Vec<_>>()
        };
        let named = |name: &str, first_block: usize, blocks: i64| (name.to_owned(), first_block, blocks);
        assert_eq!(described(&parts[0]), [named("b", 4, 1), named("a", 2, 3)]);
        assert_eq!(described(&parts[1]), [named("b", 5, 1), named("a", 5, 3), named("c", 6, 1)]);
        let names = tunables.iter().map(|tunable| tunable.name.clone()).collect::<Vec<_>>();
        let joined = joined(&names, &parts.into_iter().flatten().collect::<Vec<_>>()).expect("joined");
        assert_eq!(described(&joined), described(&tunables));
        for (joined, tunable) in joined.iter().zip(&tunables) {
            assert_eq!(joined.tensor, tunable.tensor, "{}", tunable.name);
        }
    }
}
