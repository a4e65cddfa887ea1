//! One training step through all blocks of a model of SmolLM2-135M's shape (random weights): ragged rows with one
//! shared prefix, against rows padded to 64 with the prefix computed per row; and how much of it is matrix products. A number as argument takes that many
//! blocks instead of 30.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sepal_blocks::{BlockStack, BoxError, Weights};
use sepal_core::{Family, HostTensor, ModelConfig, Ragged, Rope, RopeScaling, Span, Want};
use sepal_nn::init;
use tch::{Kind, Tensor};

const PREFIX: usize = 16;
const PADDED: usize = 64;
const ROUNDS: usize = 4;
/// Lengths as sentences have them: 32 rows from 3 to 40 tokens, mean 13.
const LENGTHS: [usize; 32] =
    [12, 7, 3, 26, 8, 19, 13, 5, 40, 11, 7, 21, 3, 16, 12, 31, 8, 3, 23, 10, 12, 7, 26, 5, 18, 12, 3, 25, 11, 6, 16, 7];

struct Random(ModelConfig);

impl Weights for Random {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn has(&self, _: &str) -> bool {
        false
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        format!("model.layers.{block_idx}.")
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        let ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, .. } = self.0;
        let shape = match name.rsplit('.').nth(1) {
            Some("q_proj") => vec![n_heads * head_dim, hidden],
            Some("k_proj" | "v_proj") => vec![n_kv_heads * head_dim, hidden],
            Some("o_proj") => vec![hidden, n_heads * head_dim],
            Some("gate_proj" | "up_proj") => vec![ffn, hidden],
            Some("down_proj") => vec![hidden, ffn],
            _ => return Ok(HostTensor::from_f32(vec![hidden], &vec![1.0; hidden])?),
        };
        let shape: Vec<i64> = shape.into_iter().map(|dim| dim as i64).collect();
        Ok(sepal_nn::to_host(&init::normal(&shape, 0.03, &mut init::rng(1, name))?, sepal_core::DType::F32)?)
    }
}

fn smollm2() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        n_blocks: 30,
        hidden: 576,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocab_size: 49152,
        norm_eps: 1e-5,
        initializer_range: 0.04,
        rope: Some(Rope { theta: 100_000.0, scaling: RopeScaling::Default }),
        max_positions: Some(8192),
    }
}

fn random(shape: &[usize]) -> Tensor {
    let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
    init::normal(&shape, 0.5, &mut init::rng(2, "hidden")).expect("numbers")
}

fn trainable(shape: &[usize]) -> Tensor {
    random(shape).set_requires_grad(true)
}

/// The two halves of a step.
#[derive(Clone, Copy)]
struct Step {
    forward: Duration,
    backward: Duration,
    /// Bytes that the process grew by in the forward; telling in the first round only.
    kept: usize,
}

fn timed(forward: impl Fn() -> Tensor) -> Step {
    let resident = resident();
    let start = Instant::now();
    let output = forward();
    let forward = start.elapsed();
    let kept = self::resident().saturating_sub(resident);
    let start = Instant::now();
    output.sum(Kind::Float).backward();
    Step { forward, backward: start.elapsed(), kept }
}

/// Bytes of memory that the process holds; 0 where the system does not say.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|pages| pages.split(' ').nth(1)?.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}

/// Rows as they are, one prefix for all.
fn ragged_step(config: &ModelConfig, stack: &BlockStack) -> Step {
    let rows = Ragged::from_lengths(LENGTHS).expect("rows");
    let prompts = trainable(&[PREFIX, config.hidden]);
    let deep = trainable(&[config.n_blocks, PREFIX, config.hidden]);
    let text = random(&[rows.n_tokens(), config.hidden]);
    timed(|| {
        let hidden = Tensor::cat(&[&prompts, &text], 0);
        stack.forward(&hidden, PREFIX, &rows, Some(&deep), Want::LastOfRows).expect("a forward")
    })
}

/// Rows padded to one length, each with its own copy of the prefix; the same blocks one after another.
fn padded_step(config: &ModelConfig, blocks: &[BlockStack]) -> Step {
    let (n_rows, seq, hidden) = (LENGTHS.len() as i64, (PREFIX + PADDED) as i64, config.hidden as i64);
    let rows = Ragged::from_lengths([seq as usize; LENGTHS.len()]).expect("rows");
    let prompts = trainable(&[PREFIX, config.hidden]);
    let deep = trainable(&[config.n_blocks, PREFIX, config.hidden]);
    let text = random(&[LENGTHS.len(), PADDED, config.hidden]);
    let last: Vec<i64> =
        LENGTHS.iter().enumerate().map(|(i, len)| i as i64 * seq + (PREFIX + len - 1) as i64).collect();
    timed(|| {
        let prompts = prompts.unsqueeze(0).expand([n_rows, PREFIX as i64, hidden], false);
        let mut states = Tensor::cat(&[&prompts, &text], 1); // [rows, prefix_len + padded, hidden]
        for (block, deep) in blocks.iter().zip(deep.unbind(0)) {
            let added = deep.constant_pad_nd([0, 0, 0, PADDED as i64]);
            let flat = (states + added).view([n_rows * seq, hidden]);
            states = block.forward(&flat, 0, &rows, None, Want::All).expect("a forward").view([n_rows, seq, hidden]);
        }
        states.view([n_rows * seq, hidden]).index_select(0, &Tensor::from_slice(&last))
    })
}

/// The matrix products of linear layers in such a step, forward and backward, and nothing else; without those of the
/// last block, which runs almost only on the last tokens.
fn products(config: &ModelConfig, n: usize) -> Duration {
    let q = config.n_heads * config.head_dim;
    let qkv = q + 2 * config.n_kv_heads * config.head_dim;
    let layers = [(config.hidden, qkv), (q, config.hidden), (config.hidden, config.ffn), (config.hidden, config.ffn)];
    let layers = layers.into_iter().chain([(config.ffn, config.hidden)]);
    let layers: Vec<_> = layers.map(|(i, o)| (random(&[i, o]), random(&[n, i]), random(&[n, o]))).collect();
    let start = Instant::now();
    tch::no_grad(|| {
        for _ in 1..config.n_blocks {
            for (weight, x, grad) in &layers {
                drop(black_box(x.mm(weight)));
                drop(black_box(grad.mm(&weight.tr())));
            }
        }
    });
    start.elapsed()
}

fn least(best: &mut Option<Step>, step: Step) {
    let best = best.get_or_insert(step);
    best.forward = best.forward.min(step.forward);
    best.backward = best.backward.min(step.backward);
}

fn main() {
    let mut config = smollm2();
    if let Some(n_blocks) = std::env::args().find_map(|argument| argument.parse().ok()) {
        config.n_blocks = n_blocks;
    }
    let n = PREFIX + LENGTHS.iter().sum::<usize>();
    let span = Span::new(0, config.n_blocks).expect("a span");
    let weights = Random(config.clone());
    let stack = BlockStack::load(&weights, span).expect("a stack");
    let one = |block_idx| BlockStack::load(&weights, Span::new(block_idx, block_idx + 1).expect("a span"));
    let blocks: Vec<_> = span.blocks().map(|block_idx| one(block_idx).expect("a block")).collect();

    // In turns, so that what else the machine does falls on all alike.
    let (mut ragged, mut padded, mut alone) = (None, None, Duration::MAX);
    for _ in 0..ROUNDS {
        for _ in 0..ROUNDS {
            least(&mut ragged, ragged_step(&config, &stack));
            alone = alone.min(products(&config, n));
        }
        least(&mut padded, padded_step(&config, &blocks));
    }
    let (Some(ragged), Some(padded)) = (ragged, padded) else { return };

    let total = |step: &Step| (step.forward + step.backward).as_secs_f64();
    let print = |name: &str, positions: usize, step: &Step| {
        let (forward, backward) = (step.forward.as_secs_f64(), step.backward.as_secs_f64());
        println!(
            "{name}: {positions} positions, forward {forward:.3} s, backward {backward:.3} s, step {:.3} s",
            total(step)
        );
    };
    print("ragged, shared prefix", n, &ragged);
    print("padded, prefix per row", LENGTHS.len() * (PREFIX + PADDED), &padded);
    let estimate = stack.tape_bytes(span, PREFIX, &Ragged::from_lengths(LENGTHS).expect("rows"), Want::LastOfRows);
    println!("kept for the backward: {} MB estimated, {} MB seen", estimate >> 20, ragged.kept >> 20);
    println!("ratio: {:.2}", total(&padded) / total(&ragged));
    println!(
        "products alone: {:.3} s, {:.0} % of the ragged step",
        alone.as_secs_f64(),
        100.0 * alone.as_secs_f64() / total(&ragged)
    );
}
