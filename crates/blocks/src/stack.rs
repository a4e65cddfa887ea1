use std::fmt;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_core::{Family, ModelConfig, Ragged, Span, Want, WeightFormat};
use tch::{Device, Kind, TchError, Tensor};

use crate::block::Block;
use crate::families;
use crate::layout::Cost;
use crate::masks::{Alibi, Scores};
use crate::passes::{Batch, Blocks, Grads, Injected, InputGrad, Keep, Output, Prefix, WantGrads};
use crate::rope::Rotaries;
use crate::tape::Tape;
use crate::weights::{LoadError, Placement, Reader, Weights};

/// Consecutive frozen blocks of one model.
pub struct BlockStack {
    span: Span,
    config: ModelConfig,
    scores: Scores,
    /// Shared with the graphs of [`forward`](Self::forward), which go back through them.
    blocks: Arc<Mutex<Blocks>>,
}

/// A forward pass that did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The hidden states do not fit the prefix and the rows.
    #[error("run blocks on hidden states of shape {found:?} and kind {kind:?}: expected {expected:?} of float32")]
    Hidden {
        /// `[prefix_len + n_tokens, hidden]`
        expected: [usize; 2],
        /// The shape of what was given.
        found: Vec<i64>,
        /// Its number format.
        kind: Kind,
    },
    /// The deep prompts do not fit the span and the prefix.
    #[error("run blocks with deep prompts of shape {found:?} and kind {kind:?}: expected {expected:?} of float32")]
    DeepPrompts {
        /// `[blocks, prefix_len, hidden]`
        expected: [usize; 3],
        /// The shape of what was given.
        found: Vec<i64>,
        /// Its number format.
        kind: Kind,
    },
    /// Keys and values that are given for a prefix do not fit the span and the prefix.
    #[error("run blocks with keys and values of shape {found:?} and kind {kind:?}: expected {expected:?} of float32")]
    Given {
        /// `[blocks, prefix_len, 2 * kv_size]`
        expected: [usize; 3],
        /// The shape of what was given.
        found: Vec<i64>,
        /// Its number format.
        kind: Kind,
    },
    /// Keys and values of a prefix that do not fit the blocks.
    #[error("take keys or values of shape {found:?} and kind {kind:?} for a prefix: expected {expected:?} of float32")]
    KeysValues {
        /// `[n_kv_heads, prefix_len, head_dim]`
        expected: [i64; 3],
        /// The shape of what was given.
        found: Vec<i64>,
        /// Its number format.
        kind: Kind,
    },
    /// Blocks that the stack does not hold.
    #[error("run blocks {part}: this stack holds {span}")]
    Part {
        /// The blocks asked for.
        part: Span,
        /// The blocks held.
        span: Span,
    },
    /// A sequence is longer than the positions that the model has learned.
    #[error("run blocks on {length} positions, prompts included: the model has learned {learned}")]
    Positions {
        /// Of the longest row, with the prefix.
        length: usize,
        /// That the model has.
        learned: usize,
    },
    /// The gradient does not fit the output.
    #[error("run blocks backward from a gradient of shape {found:?}: the output had {expected:?}")]
    Gradient {
        /// The output's shape.
        expected: Vec<i64>,
        /// The gradient's.
        found: Vec<i64>,
    },
    /// Tapes of other blocks or outputs than the first one's.
    #[error("run blocks backward: the tapes are not of the same blocks and the same kind of output")]
    Mixed,
    /// libtorch refused, for example for want of memory.
    #[error("run blocks {span}")]
    Torch {
        /// The blocks.
        span: Span,
        /// What libtorch said.
        #[source]
        source: TchError,
    },
}

impl BlockStack {
    /// Reads the blocks of `span`, several at a time.
    ///
    /// # Errors
    /// [`LoadError`] if the model has no such blocks, is of an architecture that is not supported, or a tensor is
    /// missing, unreadable or of another shape.
    pub fn load(weights: &dyn Weights, span: Span) -> Result<Self, LoadError> {
        Self::load_as(weights, span, Placement::default())
    }

    /// As [`load`](Self::load), kept as and where `placement` says. A stack on another device takes tensors from any,
    /// and gives those of [`run`](Self::run) and [`backward`](Self::backward) where it is.
    ///
    /// # Errors
    /// As there.
    pub fn load_as(weights: &dyn Weights, span: Span, placement: impl Into<Placement>) -> Result<Self, LoadError> {
        let placement = placement.into();
        let config = weights.config().clone();
        if span.end() > config.n_blocks {
            return Err(LoadError::Span { span, n_blocks: config.n_blocks });
        }
        check(&config)?;
        let model = Reader::new(weights, config.family.prefix(), placement);
        let positions = if span.start() == 0 { families::positions(&model, &config)? } else { None };
        let blocks = load_all(span, placement.format, |block_idx| {
            let reader = Reader::new(weights, config.family.block_prefix(block_idx), placement);
            families::block(&reader, &config, block_idx)
        })?;
        let rotaries = Rotaries::new(&config, placement.device)?;
        let blocks = Arc::new(Mutex::new(Blocks { first: span.start(), blocks, rotaries, positions }));
        Ok(Self { span, scores: scores(&config, placement.device), config, blocks })
    }

    /// The blocks.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Where the blocks are.
    pub(crate) fn device(&self) -> Device {
        self.scores.device
    }

    /// The shape of the model that the blocks are of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Runs the blocks on `hidden [prefix_len + n_tokens, hidden]`: the prefix that all rows share, then the rows as
    /// `rows` says. Text stands at positions `prefix_len..`. Before every block `l` of the span, the first included,
    /// `deep_prompts [span.len(), prefix_len, hidden]` are added to the prefix: `hidden[..prefix_len] += deep_prompts[l]`.
    /// Returns what is wanted of the last block, see [`Want`].
    ///
    /// Differentiable in `hidden` and `deep_prompts`; nothing is written to in place. Under `no_grad` nothing is kept.
    ///
    /// # Errors
    /// [`ForwardError`] if a shape does not fit, or libtorch fails. Numbers that are not finite are not looked for.
    pub fn forward(
        &self,
        hidden: &Tensor,
        prefix_len: usize,
        rows: &Ragged,
        deep_prompts: Option<&Tensor>,
        want: Want,
    ) -> Result<Tensor, ForwardError> {
        self.forward_part(self.span, hidden, prefix_len, rows, deep_prompts, want)
    }

    /// As [`forward`](Self::forward), through the blocks of `part` alone; `deep_prompts` are those of `part`.
    ///
    /// # Errors
    /// [`ForwardError::Part`] if the stack does not hold them; else as there.
    pub fn forward_part(
        &self,
        part: Span,
        hidden: &Tensor,
        prefix_len: usize,
        rows: &Ragged,
        deep_prompts: Option<&Tensor>,
        want: Want,
    ) -> Result<Tensor, ForwardError> {
        self.forward_injected(part, hidden, prefix_len, rows, Injected::deep(deep_prompts), want)
    }

    /// As [`forward_part`](Self::forward_part), with all that can be put into a prefix. Differentiable in each of it.
    ///
    /// # Errors
    /// As there.
    pub fn forward_injected(
        &self,
        part: Span,
        hidden: &Tensor,
        prefix_len: usize,
        rows: &Ragged,
        injected: Injected<'_>,
        want: Want,
    ) -> Result<Tensor, ForwardError> {
        let batch = Batch { hidden, prefix: Prefix::Computed(prefix_len), rows, injected };
        let inputs: Vec<&Tensor> = [hidden].into_iter().chain(injected.tensors()).collect();
        let is_tracked = sepal_nn::grad_is_enabled() && inputs.iter().any(|input| input.requires_grad());
        let keep = if is_tracked { Keep::Tape } else { Keep::Nothing };
        let Some(Output { hidden: output, tape, .. }) = self.run(part, &[batch], want, keep)?.pop() else {
            return Err(ForwardError::Mixed);
        };
        let failed = |source: TchError| ForwardError::Torch { span: part, source };
        let device = hidden.device();
        let output = output.f_to_device(device).map_err(failed)?;
        let Some(tape) = tape else { return Ok(output) };
        let blocks = Arc::clone(&self.blocks);
        let has = [true, injected.deep_prompts.is_some(), injected.keys_values.is_some()];
        let back = move |grad: &Tensor| {
            let wanted = WantGrads { input: InputGrad::All, injected: true };
            let grads = tch::no_grad(|| lock(&blocks).backward(vec![(tape, grad.shallow_clone())], wanted))?;
            let of_inputs = |Grads { input, deep_prompts, keys_values, .. }: Grads| {
                [Some(input), deep_prompts, keys_values].into_iter().zip(has).filter(|(_, has)| *has)
            };
            let grads = grads.into_iter().flat_map(of_inputs);
            Ok(grads
                .map(|(grad, _)| grad.map(|grad| grad.f_to_device(device)).transpose())
                .collect::<Result<_, TchError>>()?)
        };
        sepal_autograd::attach(&inputs, output, back).map_err(|error| failed(TchError::Torch(error.to_string())))
    }

    /// Runs the blocks of `part` on the batches of several callers at once, none of which sees another's: linear layers
    /// see all of them together. Outputs are in the order of the batches. libtorch's autograd has no part in it: what
    /// [`backward`](Self::backward) needs is in the tapes, if they are asked for.
    ///
    /// # Errors
    /// As [`forward_part`](Self::forward_part), for the first batch that does not fit.
    pub fn run(&self, part: Span, batches: &[Batch<'_>], want: Want, keep: Keep) -> Result<Vec<Output>, ForwardError> {
        if !self.span.covers(part) {
            return Err(ForwardError::Part { part, span: self.span });
        }
        batches.iter().try_for_each(|batch| self.check(part, batch))?;
        let run = || lock(&self.blocks).forward(part, batches, want, keep, &self.scores);
        tch::no_grad(run).map_err(|source| ForwardError::Torch { span: part, source })
    }

    /// Runs tapes of the same blocks and kind of output backward together, each from the gradient of its output. Grads
    /// are in the order of the tapes; tapes are used up.
    ///
    /// # Errors
    /// [`ForwardError::Mixed`] and [`ForwardError::Gradient`] if they do not fit; [`ForwardError::Torch`].
    pub fn backward(&self, tapes: Vec<(Tape, Tensor)>, want: WantGrads) -> Result<Vec<Grads>, ForwardError> {
        let Some((first, _)) = tapes.first() else { return Ok(Vec::new()) };
        let (span, wanted) = (first.span, first.want);
        if tapes.iter().any(|(tape, _)| (tape.span, tape.want) != (span, wanted)) || !self.span.covers(span) {
            return Err(ForwardError::Mixed);
        }
        for (tape, grad) in &tapes {
            let expected = vec![tape.layout.outputs(), self.config.hidden as i64];
            if grad.size() != expected {
                return Err(ForwardError::Gradient { expected, found: grad.size() });
            }
        }
        let run = || lock(&self.blocks).backward(tapes, want);
        tch::no_grad(run).map_err(|source| ForwardError::Torch { span, source })
    }

    fn check(&self, part: Span, batch: &Batch<'_>) -> Result<(), ForwardError> {
        let (hidden, prefix_len) = (batch.hidden, batch.prefix.len());
        let expected = [batch.prefix.slots() + batch.rows.n_tokens(), self.config.hidden];
        if !has_shape(hidden, &expected) {
            return Err(ForwardError::Hidden { expected, found: hidden.size(), kind: hidden.kind() });
        }
        if let Prefix::Kept(kept) = batch.prefix
            && kept.span() != part
        {
            return Err(ForwardError::Part { part, span: kept.span() });
        }
        let learned = lock(&self.blocks).positions.as_ref().filter(|_| part.start() == 0).map(|table| table.size()[0]);
        let length = prefix_len + batch.rows.lengths().max().unwrap_or(0);
        if let Some(learned) = learned.and_then(|learned| usize::try_from(learned).ok())
            && length > learned
        {
            return Err(ForwardError::Positions { length, learned });
        }
        let Injected { deep_prompts, keys_values } = batch.injected;
        let of_width = |width| [part.len(), prefix_len, width];
        let expected = of_width(self.config.hidden);
        if let Some(deep) = deep_prompts.filter(|deep| !has_shape(deep, &expected)) {
            return Err(ForwardError::DeepPrompts { expected, found: deep.size(), kind: deep.kind() });
        }
        let expected = of_width(2 * self.config.kv_size());
        match keys_values.filter(|given| !has_shape(given, &expected)) {
            Some(given) => Err(ForwardError::Given { expected, found: given.size(), kind: given.kind() }),
            None => Ok(()),
        }
    }

    /// How many bytes a [`Tape`] holds for the blocks `part`, which the stack holds.
    ///
    /// With `n = prefix_len + n_tokens`, `Q` and `K` the sizes of all query heads and of all key heads, a block of a
    /// Llama keeps, in fp32, `n (2 hidden + 2 Q + 2 K + 2 ffn + n_heads + 2)`: the input of each norm, the turned
    /// queries, keys and values, attention's output and its log-sums, gate and up, one scale for each norm. The
    /// activation and the product with the gate are computed again, and so are the keys and values that stand before
    /// each bin of rows. Without a gate it is `ffn`, a LayerNorm has two numbers, a parallel block has no second norm's
    /// input, and further norms (of heads, of what is added) keep what goes into them. Of a mixture of experts the chosen
    /// ones count.
    ///
    /// The last block keeps queries, outputs and MLP for the wanted positions only. Masks come once per call.
    pub fn tape_bytes(&self, part: Span, prefix_len: usize, rows: &Ragged, want: Want) -> usize {
        let n = prefix_len + rows.n_tokens();
        let asking = want.positions(prefix_len, rows);
        let blocks = lock(&self.blocks);
        let hidden = self.config.hidden;
        let last = part.len() - 1;
        let of_blocks = blocks.of(part).iter().enumerate();
        let floats: usize = of_blocks.map(|(i, block)| block.kept(hidden, n, if i == last { asking } else { n })).sum();
        let heads = self.scores.alibi.as_ref().map_or(1, Alibi::heads);
        let masks = self.scores.repeat * heads * Cost::new(prefix_len, rows, self.scores.window).mask_scores;
        (floats + masks) * size_of::<f32>()
    }

    /// Memory of the weights of linear layers, in bytes.
    pub fn weight_bytes(&self) -> usize {
        lock(&self.blocks).blocks.iter().map(Block::bytes).sum()
    }
}

fn scores(config: &ModelConfig, device: Device) -> Scores {
    let alibi = config.scores.alibi.then(|| match config.family {
        Family::Falcon => Alibi::rounded(config.n_heads, config.head_dim),
        _ => Alibi::new(config.n_heads),
    });
    let window = config.scores.window.as_ref().map(|window| window.size);
    Scores { repeat: config.n_heads / config.n_kv_heads, alibi, window, device }
}

impl fmt::Debug for BlockStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockStack({} of {})", self.span, self.config.family.name())
    }
}

/// A panic elsewhere leaves frozen weights as they were.
fn lock(blocks: &Mutex<Blocks>) -> MutexGuard<'_, Blocks> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks that are loaded at a time where they are rounded, because each is there in fp32 meanwhile.
const ROUNDED_AT_A_TIME: usize = 2;

/// Loads the blocks of the span on as many threads as there are cores, in order.
fn load_all(
    span: Span,
    format: WeightFormat,
    load: impl Fn(usize) -> Result<Block, LoadError> + Sync,
) -> Result<Vec<Block>, LoadError> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let most = if format == WeightFormat::F32 { cores } else { cores.min(ROUNDED_AT_A_TIME) };
    let threads = most.min(span.len());
    let blocks: Vec<usize> = span.blocks().collect();
    let load_part = |part: &[usize]| {
        // Grad mode is a matter of the thread.
        tch::no_grad(|| part.iter().map(|&block_idx| load(block_idx)).collect::<Result<Vec<Block>, LoadError>>())
    };
    std::thread::scope(|scope| {
        let parts = blocks.chunks(span.len().div_ceil(threads));
        let running: Vec<_> = parts.map(|part| scope.spawn(|| load_part(part))).collect();
        let mut loaded = Vec::with_capacity(span.len());
        for thread in running {
            match thread.join() {
                Ok(part) => loaded.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(loaded)
    })
}

fn check(config: &ModelConfig) -> Result<(), LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = config;
    if [hidden, n_heads, n_kv_heads, head_dim, ffn].contains(&0) {
        return Err(problem("a size is zero"));
    }
    if n_heads % n_kv_heads != 0 {
        return Err(problem(&format!("{n_heads} query heads do not share {n_kv_heads} heads of keys evenly")));
    }
    if config.scores.alibi && n_heads != n_kv_heads {
        return Err(problem(&format!(
            "ALiBi has a slope for each head of keys: {n_heads} query heads share {n_kv_heads} of them"
        )));
    }
    let fused_by_head = matches!(config.family, Family::Bloom | Family::Gpt2 | Family::GptNeox | Family::Opt);
    if fused_by_head && (n_heads != n_kv_heads || n_heads * head_dim != hidden) {
        return Err(problem(&format!(
            "{n_heads} heads of {head_dim}, {n_kv_heads} of keys, do not make up a hidden size of {hidden}"
        )));
    }
    match &config.rope {
        None if !config.scores.alibi && !matches!(config.family, Family::Gpt2 | Family::Opt) => {
            Err(problem(&format!("a {} block needs rotary positions", config.family.name())))
        }
        Some(rope) if rope.dim % 2 != 0 || rope.dim > head_dim => {
            Err(problem(&format!("{} numbers of a head of {head_dim} do not turn in pairs", rope.dim)))
        }
        _ => Ok(()),
    }
}

fn problem(problem: &str) -> LoadError {
    LoadError::Config { problem: problem.to_owned() }
}

fn has_shape(tensor: &Tensor, expected: &[usize]) -> bool {
    let shape = tensor.size();
    tensor.kind() == Kind::Float
        && shape.len() == expected.len()
        && shape.iter().zip(expected).all(|(&dim, &expected)| usize::try_from(dim) == Ok(expected))
}
