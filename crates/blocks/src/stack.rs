use std::fmt;
use std::num::NonZero;

use sepal_core::{Family, ModelConfig, Ragged, Span, Want};
use tch::{Kind, TchError, Tensor};

use crate::bloom::{BloomBlock, alibi_slopes};
use crate::layout::{Cost, Layout, Pooled};
use crate::llama::LlamaBlock;
use crate::masks::Scores;
use crate::rope::Rotary;
use crate::weights::{LoadError, Reader, Weights};

/// Consecutive frozen blocks of one model.
pub struct BlockStack {
    span: Span,
    config: ModelConfig,
    scores: Scores,
    blocks: Blocks,
}

enum Blocks {
    Llama { rotary: Rotary, blocks: Vec<LlamaBlock> },
    Bloom { blocks: Vec<BloomBlock> },
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
    /// Blocks that the stack does not hold.
    #[error("run blocks {part}: this stack holds {span}")]
    Part {
        /// The blocks asked for.
        part: Span,
        /// The blocks held.
        span: Span,
    },
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

/// What the stack asks of a family's block. Hidden states are in slots, see [`Layout`].
pub(crate) trait Block {
    /// What all blocks of a call share beside the layout.
    type Context;

    /// `[n, hidden]` to `[n, hidden]`.
    fn forward(&self, hidden: &Tensor, layout: &Layout, context: &Self::Context) -> Result<Tensor, TchError>;

    /// `[n, hidden]` to the last token of each row, `[rows, hidden]`, in the caller's order.
    fn forward_pooled(
        &self,
        hidden: &Tensor,
        layout: &Layout,
        pooled: &Pooled,
        context: &Self::Context,
    ) -> Result<Tensor, TchError>;
}

impl BlockStack {
    /// Reads the blocks of `span`, several at a time.
    ///
    /// # Errors
    /// [`LoadError`] if the model has no such blocks, is of an architecture that is not supported, or a tensor is
    /// missing, unreadable or of another shape.
    pub fn load(weights: &dyn Weights, span: Span) -> Result<Self, LoadError> {
        let config = weights.config().clone();
        if span.end() > config.n_blocks {
            return Err(LoadError::Span { span, n_blocks: config.n_blocks });
        }
        check(&config)?;
        let reader = |block_idx| Reader::new(weights, weights.block_prefix(block_idx));
        let (scores, blocks) = match config.family {
            Family::Llama => {
                let Some(rope) = &config.rope else { return Err(problem("a llama block needs rotary positions")) };
                let rotary = Rotary::new(rope, config.head_dim)?;
                let blocks = load_all(span, |block_idx| LlamaBlock::load(&reader(block_idx), &config))?;
                let scores = Scores { repeat: config.n_heads / config.n_kv_heads, slopes: Vec::new() };
                (scores, Blocks::Llama { rotary, blocks })
            }
            Family::Bloom => {
                let blocks = load_all(span, |block_idx| BloomBlock::load(&reader(block_idx), &config))?;
                (Scores { repeat: 1, slopes: alibi_slopes(config.n_heads) }, Blocks::Bloom { blocks })
            }
        };
        Ok(Self { span, config, scores, blocks })
    }

    /// The blocks.
    pub fn span(&self) -> Span {
        self.span
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
        if !self.span.covers(part) {
            return Err(ForwardError::Part { part, span: self.span });
        }
        let expected = [prefix_len + rows.n_tokens(), self.config.hidden];
        if !has_shape(hidden, &expected) {
            return Err(ForwardError::Hidden { expected, found: hidden.size(), kind: hidden.kind() });
        }
        if let Some(deep) = deep_prompts {
            let expected = [part.len(), prefix_len, self.config.hidden];
            if !has_shape(deep, &expected) {
                return Err(ForwardError::DeepPrompts { expected, found: deep.size(), kind: deep.kind() });
            }
        }
        let deep_prompts = deep_prompts.filter(|_| prefix_len > 0);
        self.run(part, hidden, prefix_len, rows, deep_prompts, want)
            .map_err(|source| ForwardError::Torch { span: part, source })
    }

    fn run(
        &self,
        part: Span,
        hidden: &Tensor,
        prefix_len: usize,
        rows: &Ragged,
        deep_prompts: Option<&Tensor>,
        want: Want,
    ) -> Result<Tensor, TchError> {
        let layout = Layout::new(prefix_len, rows, want, &self.scores)?;
        let deep_prompts = deep_prompts.map(|deep| deep.f_unbind(0)).transpose()?;
        let range = part.start() - self.span.start()..part.end() - self.span.start();
        match &self.blocks {
            Blocks::Llama { rotary, blocks } => {
                let rotations = rotary.rotations(&layout.positions)?;
                run(&blocks[range], hidden, &layout, deep_prompts.as_deref(), &rotations)
            }
            Blocks::Bloom { blocks } => run(&blocks[range], hidden, &layout, deep_prompts.as_deref(), &()),
        }
    }

    /// About how many bytes autograd keeps between a forward and its backward, for the activations of the
    /// blocks `part`.
    ///
    /// Frozen linear layers keep nothing of their input. With `n = prefix_len + n_tokens`, `Q` and `K` the sizes of
    /// all query heads and all key heads, and `p = bins * prefix_len` for the prefix's keys and values that stand
    /// before each bin of rows, a block keeps, in fp32:
    ///
    /// - llama: `n (2 hidden + Q + K + Q + n_heads + 3 ffn + 2) + (n + p) 2 K`: the input of each norm, the rotated
    ///   queries, the layer output that the values are a view of, attention's output and its log-sums, gate, SiLU of
    ///   gate, up; keys and values.
    /// - bloom: `n (2 hidden + 3 Q + Q + n_heads + ffn + 4) + (n + p) 2 K`: the input of each norm, the fused layer's
    ///   output that queries are a view of, attention's output and its log-sums, GELU's input; keys and values.
    ///
    /// The last block keeps queries, outputs and MLP for the wanted positions only. Masks come once per call.
    pub fn tape_bytes(&self, part: Span, prefix_len: usize, rows: &Ragged, want: Want) -> usize {
        let ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = self.config;
        let n = prefix_len + rows.n_tokens();
        let (q, kv) = (n_heads * head_dim, n_kv_heads * head_dim);
        let cost = Cost::new(prefix_len, rows);
        let keys = (n + cost.bins * prefix_len) * 2 * kv;
        let (everywhere, where_wanted) = match self.config.family {
            Family::Llama => (hidden + 1, hidden + 2 * q + n_heads + 3 * ffn + 1),
            Family::Bloom => (hidden + 2, hidden + 4 * q + n_heads + ffn + 2),
        };
        let block = |wanted: usize| n * everywhere + wanted * where_wanted + keys;
        let masks = self.scores.repeat * self.scores.slopes.len().max(1) * cost.mask_scores;
        let floats = (part.len() - 1) * block(n) + block(want.positions(prefix_len, rows)) + masks;
        floats * size_of::<f32>()
    }
}

impl fmt::Debug for BlockStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockStack({} of {})", self.span, self.config.family.name())
    }
}

/// Runs the blocks in slots; the last one pools if the layout does.
fn run<B: Block>(
    blocks: &[B],
    hidden: &Tensor,
    layout: &Layout,
    deep_prompts: Option<&[Tensor]>,
    context: &B::Context,
) -> Result<Tensor, TchError> {
    let mut hidden = layout.enter(hidden)?;
    for (i, block) in blocks.iter().enumerate() {
        if let Some(deep) = deep_prompts {
            // index_add and not a sum of two parts: its backward copies nothing.
            hidden = hidden.f_index_add(0, &layout.prefix_slots, &deep[i])?;
        }
        match &layout.pooled {
            Some(pooled) if i + 1 == blocks.len() => return block.forward_pooled(&hidden, layout, pooled, context),
            _ => hidden = block.forward(&hidden, layout, context)?,
        }
    }
    layout.leave(&hidden)
}

/// Loads the blocks of the span on as many threads as there are cores, in order.
fn load_all<B: Send>(span: Span, load: impl Fn(usize) -> Result<B, LoadError> + Sync) -> Result<Vec<B>, LoadError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(span.len());
    let blocks: Vec<usize> = span.blocks().collect();
    let load_part = |part: &[usize]| {
        // Grad mode is a matter of the thread.
        tch::no_grad(|| part.iter().map(|&block_idx| load(block_idx)).collect::<Result<Vec<B>, LoadError>>())
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
    match config.family {
        Family::Llama if n_heads % n_kv_heads != 0 => {
            Err(problem(&format!("{n_heads} query heads do not share {n_kv_heads} heads of keys evenly")))
        }
        Family::Llama if head_dim % 2 != 0 => Err(problem(&format!("a head of {head_dim} has no pairs to rotate"))),
        Family::Bloom if n_heads != n_kv_heads || n_heads * head_dim != hidden => Err(problem(&format!(
            "{n_heads} heads of {head_dim}, {n_kv_heads} of keys, do not make up a hidden size of {hidden}"
        ))),
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
