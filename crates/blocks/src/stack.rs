use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_core::{ModelConfig, Ragged, Span, Want};
use sepal_nn::Tunable;
use tch::{Device, Kind, TchError, Tensor};

use crate::adapters::{self, Injected, TunableError};
use crate::attention::masks::MaskConfig;
use crate::exec::batch::{Batch, BatchGrads, BatchOutput, GradOptions, InputGrad, Prefix, SaveMode};
use crate::exec::block::Block;
use crate::exec::block_sequence::BlockSequence;
use crate::exec::call_memory::CallMemory;
use crate::exec::cancel::Cancel;
use crate::exec::tape::Tape;
use crate::families;
use crate::loading::load_blocks;
use crate::weights::{LoadError, Placement, Weights};

/// Consecutive frozen blocks of one model.
pub struct BlockStack {
    span: Span,
    config: ModelConfig,
    mask_config: MaskConfig,
    /// Shared with the graphs of [`forward`](Self::forward), whose backward passes use them.
    blocks: Arc<Mutex<BlockSequence>>,
}

/// Failure of a forward or backward pass.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ForwardError {
    /// Tensor that does not fit the blocks, the prefix and the rows.
    #[error("run blocks with {name} of shape {found:?} and kind {kind:?}: expected {expected:?} of float32")]
    Shape { name: &'static str, expected: Vec<usize>, found: Vec<i64>, kind: Kind },
    /// Blocks outside of the stack or of the prefix cache, whose span is `held`.
    #[error("run blocks {requested}: only {held} are held")]
    Span { requested: Span, held: Span },
    /// Sequence longer than the model's learned positions; `length` is that of the longest row, with the prefix.
    #[error("run blocks on {length} positions, prompts included: the model has learned {learned}")]
    Positions { length: usize, learned: usize },
    /// Tunable that does not fit the blocks.
    #[error(transparent)]
    Tunable(#[from] TunableError),
    /// Prefix of another length than the tunables for it.
    #[error("run blocks on a prefix of {found} positions: the tunables are for {expected}")]
    PrefixLen { expected: usize, found: usize },
    /// Gradient that does not fit the output.
    #[error("run blocks backward from a gradient of shape {found:?}: the output had {expected:?}")]
    Gradient { expected: Vec<i64>, found: Vec<i64> },
    /// Tapes of different blocks or kinds of output.
    #[error("run blocks backward: the tapes are not of the same blocks and the same kind of output")]
    MixedTapes,
    /// Pass that ended between two blocks, because all of its callers have left.
    #[error("run blocks {span}: all callers have left")]
    Cancelled { span: Span },
    /// Error of libtorch, for example for lack of memory.
    #[error("run blocks {span}")]
    Torch { span: Span, source: TchError },
}

impl BlockStack {
    /// Reads the blocks of `span`, several at a time.
    ///
    /// # Errors
    /// [`LoadError`] if the model has no such blocks or an unsupported architecture, or if a tensor is missing,
    /// unreadable or of another shape.
    pub fn load(weights: &dyn Weights, span: Span) -> Result<Self, LoadError> {
        Self::load_with(weights, span, Placement::default())
    }

    /// As [`load`](Self::load), in the formats and on the device of `placement`. Hidden states, tunables and gradients are
    /// fp32 in every format. A stack on another device accepts tensors of any device, and
    /// [`forward_batches`](Self::forward_batches) and [`backward_batches`](Self::backward_batches) return tensors on its own
    /// device.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(weights: &dyn Weights, span: Span, placement: impl Into<Placement>) -> Result<Self, LoadError> {
        let placement = placement.into();
        let blocks = Arc::new(Mutex::new(load_blocks(weights, span, placement)?));
        let config = weights.config().clone();
        let rounds_alibi = families::spec(config.family).rounds_alibi;
        let mask_config = MaskConfig::new(&config, rounds_alibi, placement.device);
        Ok(Self { span, mask_config, config, blocks })
    }

    /// Span of the blocks.
    pub fn span(&self) -> Span {
        self.span
    }

    pub(crate) fn device(&self) -> Device {
        self.mask_config.device
    }

    /// Kind of the inputs and outputs of products, of tapes and of prefix caches.
    pub(crate) fn compute(&self) -> Kind {
        lock(&self.blocks).compute()
    }

    /// Configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Converts tunables for the blocks of `span`, once for any number of batches. Tunables of other blocks have no effect
    /// here.
    ///
    /// # Errors
    /// [`ForwardError::Tunable`] if a name, a shape or the blocks of a tunable do not fit; [`ForwardError::Span`] if the
    /// stack lacks a block.
    pub fn inject(&self, span: Span, tunables: &[Tunable]) -> Result<Injected, ForwardError> {
        if !self.span.covers(span) {
            return Err(ForwardError::Span { requested: span, held: self.span });
        }
        if tunables.is_empty() {
            return Ok(Injected::default());
        }
        Injected::new(&self.config, span, lock(&self.blocks).get(span), tunables, self.device())
    }

    /// Checks names, blocks and shapes of tunables, without converting them.
    ///
    /// # Errors
    /// [`ForwardError::Tunable`] for the first that does not fit.
    pub fn check_tunables(&self, tunables: &[Tunable]) -> Result<(), ForwardError> {
        Ok(adapters::check(&self.config, tunables)?)
    }

    /// Runs the blocks on `hidden [prefix_len + n_tokens, hidden]`: the prefix that all rows share, then the rows. Text
    /// starts at position `prefix_len`. `tunables` are injected into the blocks, by the names of
    /// [`TunableName`](sepal_core::TunableName). Returns the positions of the last block that `want` selects, see [`Want`].
    ///
    /// Differentiable in `hidden` and in each tunable, which are not modified. Nothing is saved under `no_grad`.
    ///
    /// # Errors
    /// [`ForwardError`] if a shape does not fit, or if libtorch fails. Non-finite numbers are no error.
    pub fn forward(
        &self,
        hidden: &Tensor,
        prefix_len: usize,
        rows: &Ragged,
        tunables: &[Tunable],
        want: Want,
    ) -> Result<Tensor, ForwardError> {
        self.forward_with(self.span, hidden, prefix_len, rows, tunables, want)
    }

    /// As [`forward`](Self::forward), for the blocks of `span` only. Tunables of other blocks have a gradient of zero there.
    ///
    /// # Errors
    /// [`ForwardError::Span`] if the stack lacks a block; otherwise as [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        span: Span,
        hidden: &Tensor,
        prefix_len: usize,
        rows: &Ragged,
        tunables: &[Tunable],
        want: Want,
    ) -> Result<Tensor, ForwardError> {
        let injected = self.inject(span, tunables)?;
        let batch = Batch { hidden, prefix: Prefix::Computed(prefix_len), rows, injected: &injected };
        let inputs: Vec<&Tensor> = [hidden].into_iter().chain(tunables.iter().map(|tunable| &tunable.tensor)).collect();
        let is_tracked = sepal_nn::grad_is_enabled() && inputs.iter().any(|input| input.requires_grad());
        let save_mode = if is_tracked { SaveMode::Tape } else { SaveMode::None };
        let output = self.forward_batches(span, &[batch], want, save_mode)?.pop();
        let BatchOutput { hidden: output, tape, .. } = output.ok_or(ForwardError::MixedTapes)?;
        let torch_error = |source: TchError| ForwardError::Torch { span, source };
        let device = hidden.device();
        let output = output.f_to_device(device).map_err(torch_error)?;
        let Some(tape) = tape else { return Ok(output) };
        let blocks = Arc::clone(&self.blocks);
        let backward = move |grad: &Tensor| {
            let options = GradOptions { input: InputGrad::All, injected: true };
            let grads = tch::no_grad(|| {
                lock(&blocks).backward(vec![(tape, grad.shallow_clone())], options, Cancel::default())
            })?;
            let input_grads = |BatchGrads { input, injected, .. }: BatchGrads| {
                [input].into_iter().chain(injected.into_iter().map(|grad| grad.tensor))
            };
            let grads = grads.into_iter().flat_map(input_grads);
            Ok(grads.map(|grad| grad.f_to_device(device).map(Some)).collect::<Result<_, TchError>>()?)
        };
        sepal_autograd::attach(&inputs, output, backward)
            .map_err(|error| torch_error(TchError::Torch(error.to_string())))
    }

    /// Runs the blocks of `span` on independent batches of several callers at once: linear layers process all of them
    /// together. Returns the outputs in the order of the batches. libtorch's autograd is not involved;
    /// [`backward_batches`](Self::backward_batches) takes the tapes.
    ///
    /// # Errors
    /// As [`forward_with`](Self::forward_with), for the first batch that does not fit.
    pub fn forward_batches(
        &self,
        span: Span,
        batches: &[Batch<'_>],
        want: Want,
        save_mode: SaveMode,
    ) -> Result<Vec<BatchOutput>, ForwardError> {
        self.forward_until(span, batches, want, save_mode, Cancel::default())
    }

    /// As [`forward_batches`](Self::forward_batches), until `cancel` is set.
    ///
    /// # Errors
    /// As [`forward_batches`](Self::forward_batches), and [`ForwardError::Cancelled`].
    pub fn forward_until(
        &self,
        span: Span,
        batches: &[Batch<'_>],
        want: Want,
        save_mode: SaveMode,
        cancel: Cancel<'_>,
    ) -> Result<Vec<BatchOutput>, ForwardError> {
        if !self.span.covers(span) {
            return Err(ForwardError::Span { requested: span, held: self.span });
        }
        batches.iter().try_for_each(|batch| self.check_batch(span, batch))?;
        let forward = || lock(&self.blocks).forward(span, batches, want, save_mode, &self.mask_config, cancel);
        tch::no_grad(forward).map_err(|source| pass_error(span, source, cancel))
    }

    /// Runs the backward passes of tapes together, each given the gradient of its output. The tapes must have the same
    /// blocks and kind of output. Returns the gradients in the order of the tapes.
    ///
    /// # Errors
    /// [`ForwardError::MixedTapes`] if the tapes differ, [`ForwardError::Gradient`] if a gradient does not fit its tape,
    /// [`ForwardError::Torch`] if libtorch fails.
    pub fn backward_batches(
        &self,
        tapes: Vec<(Tape, Tensor)>,
        options: GradOptions,
    ) -> Result<Vec<BatchGrads>, ForwardError> {
        self.backward_until(tapes, options, Cancel::default())
    }

    /// As [`backward_batches`](Self::backward_batches), until `cancel` is set.
    ///
    /// # Errors
    /// As [`backward_batches`](Self::backward_batches), and [`ForwardError::Cancelled`].
    pub fn backward_until(
        &self,
        tapes: Vec<(Tape, Tensor)>,
        options: GradOptions,
        cancel: Cancel<'_>,
    ) -> Result<Vec<BatchGrads>, ForwardError> {
        let Some((first, _)) = tapes.first() else { return Ok(Vec::new()) };
        let (span, want) = (first.span, first.want);
        if tapes.iter().any(|(tape, _)| (tape.span, tape.want) != (span, want)) || !self.span.covers(span) {
            return Err(ForwardError::MixedTapes);
        }
        for (tape, grad) in &tapes {
            let expected = vec![tape.layout.n_outputs(tape.want), self.config.hidden as i64];
            if grad.size() != expected {
                return Err(ForwardError::Gradient { expected, found: grad.size() });
            }
        }
        let backward = || lock(&self.blocks).backward(tapes, options, cancel);
        tch::no_grad(backward).map_err(|source| pass_error(span, source, cancel))
    }

    /// Checks the shapes of a batch, as [`forward_batches`](Self::forward_batches) does for all of them at once: one that
    /// fails there fails the others.
    ///
    /// # Errors
    /// [`ForwardError`] if the batch does not fit the blocks of `span`.
    pub fn check_batch(&self, span: Span, batch: &Batch<'_>) -> Result<(), ForwardError> {
        let (prefix_len, hidden) = (batch.prefix.len(), self.config.hidden);
        check_shape("hidden states", batch.hidden, &[batch.prefix.slots() + batch.rows.n_tokens(), hidden])?;
        if let Prefix::Cached(cache) = batch.prefix
            && cache.span() != span
        {
            return Err(ForwardError::Span { requested: span, held: cache.span() });
        }
        let learned = lock(&self.blocks).positions.as_ref().filter(|_| span.start() == 0).map(|table| table.size()[0]);
        let length = prefix_len + batch.rows.lengths().max().unwrap_or(0);
        if let Some(learned) = learned.and_then(|learned| usize::try_from(learned).ok())
            && length > learned
        {
            return Err(ForwardError::Positions { length, learned });
        }
        if let Some(injected) = batch.injected.span().filter(|injected| *injected != span) {
            return Err(ForwardError::Span { requested: span, held: injected });
        }
        match (batch.injected.prefix_len(), batch.prefix) {
            // Without a prefix, they would have no effect and no gradient. A cached prefix includes theirs.
            (Some(expected), Prefix::Computed(found)) if expected != found => {
                Err(ForwardError::PrefixLen { expected, found })
            }
            _ => Ok(()),
        }
    }

    /// Size of a [`Tape`] for the blocks `span` of the stack, in bytes.
    ///
    /// With `n = prefix_len + n_tokens`, `Q` and `K` the sizes of all query heads and of all key heads, a block of a
    /// Llama saves `n (2 hidden + 2 Q + 2 K + 2 ffn)` numbers in the format of the computation: the input of each norm,
    /// rotated queries, keys and values, attention's output, gate and up. It saves `n (n_heads + 2)` numbers in fp32:
    /// attention's log-sums and one scale for each norm. The activation, its product with the gate, and the keys and values
    /// before each bin of rows are recomputed. An MLP without a gate saves `ffn`, a LayerNorm two statistics, a parallel
    /// block no input of a second norm; further norms (of heads, of outputs) save their inputs. A mixture of experts saves
    /// the chosen ones.
    ///
    /// With [`Want::LastOfRows`] the last block saves queries, outputs and MLP for these positions only. Masks of short rows
    /// are saved once per call; longer rows have none. Adapters of layers save more: `rank` fp32 numbers for each position and
    /// low-rank addition, for example.
    pub fn tape_bytes(&self, span: Span, prefix_len: usize, rows: &Ragged, want: Want) -> usize {
        let n = prefix_len + rows.n_tokens();
        let is_pooled = want == Want::LastOfRows;
        let n_queries = |i| if is_pooled && i + 1 == span.len() { rows.len() } else { n };
        let blocks = lock(&self.blocks);
        let saved = blocks.get(span).iter().enumerate();
        let saved: usize = saved.map(|(i, block)| block.saved_bytes(self.config.hidden, n, n_queries(i))).sum();
        saved + self.mask_config.saved_masks_numel(prefix_len, rows) * size_of::<f32>()
    }

    /// Estimate of the memory of calls.
    pub fn call_memory(&self) -> CallMemory {
        let (blocks, config) = (lock(&self.blocks), &self.config);
        CallMemory::new(self.span.start(), &blocks.blocks, config.hidden, config.n_heads, &self.mask_config)
    }

    /// Memory of the weights of linear layers, in bytes.
    pub fn weight_bytes(&self) -> usize {
        lock(&self.blocks).blocks.iter().map(Block::bytes).sum()
    }
}

impl fmt::Debug for BlockStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockStack({} of {})", self.span, self.config.family.name())
    }
}

fn pass_error(span: Span, source: TchError, cancel: Cancel<'_>) -> ForwardError {
    if cancel.is_set() { ForwardError::Cancelled { span } } else { ForwardError::Torch { span, source } }
}

/// Ignores poisoning: a panic leaves frozen weights unchanged.
fn lock(blocks: &Mutex<BlockSequence>) -> MutexGuard<'_, BlockSequence> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that a tensor is fp32 and has the shape `expected`.
pub(crate) fn check_shape(name: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<(), ForwardError> {
    let found = tensor.size();
    let is_equal = |(&dim, &expected): (&i64, &usize)| usize::try_from(dim) == Ok(expected);
    if tensor.kind() == Kind::Float && found.len() == expected.len() && found.iter().zip(expected).all(is_equal) {
        return Ok(());
    }
    Err(ForwardError::Shape { name, expected: expected.to_vec(), found, kind: tensor.kind() })
}
