//! One training step on 32 sentences through all blocks of a model of SmolLM2-135M's shape (random weights), three
//! ways in one run, taken in turns:
//!
//! - `direct`: ragged rows with one shared prefix, the blocks called in this process;
//! - `embedded`: the same through the embedded server, as `just run` does it;
//! - `padded`: rows padded to 64 tokens with the prefix computed for each row, in this process, as PEFT does it.
//!
//! Prints a table and writes it to `docs/bench.json`. `--rounds N` measures longer.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use sepal_blocks::{BlockStack, BoxError, Weights};
use sepal_core::{Family, HostTensor, ModelConfig, Ragged, Rope, RopeScaling, Span, Want};
use sepal_nn::init;
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
use tch::{Kind, Tensor};

const PREFIX: usize = 16;
const PADDED: usize = 64;
/// Lengths as sentences have them: 32 rows from 3 to 40 tokens, mean 13.
const LENGTHS: [usize; 32] =
    [12, 7, 3, 26, 8, 19, 13, 5, 40, 11, 7, 21, 3, 16, 12, 31, 8, 3, 23, 10, 12, 7, 26, 5, 18, 12, 3, 25, 11, 6, 16, 7];

/// Weights of this shape, drawn at random; the same for the same name.
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
            Some("q_proj") => [n_heads * head_dim, hidden],
            Some("k_proj" | "v_proj") => [n_kv_heads * head_dim, hidden],
            Some("o_proj") => [hidden, n_heads * head_dim],
            Some("gate_proj" | "up_proj") => [ffn, hidden],
            Some("down_proj") => [hidden, ffn],
            _ => return Ok(HostTensor::from_f32(vec![hidden], &vec![1.0; hidden])?),
        };
        let numbers = init::normal(&shape.map(|dim| dim as i64), 0.03, &mut init::rng(1, name))?;
        Ok(sepal_nn::to_host(&numbers, sepal_core::DType::F32)?)
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

/// What a step starts from.
struct Inputs {
    rows: Ragged,
    prompts: Tensor,      // [prefix_len, hidden]
    deep_prompts: Tensor, // [n_blocks, prefix_len, hidden]
    text: Tensor,         // [n_tokens, hidden]
    padded: Tensor,       // [rows, padded, hidden]
}

impl Inputs {
    fn new(config: &ModelConfig) -> Self {
        let rows = Ragged::from_lengths(LENGTHS).expect("rows");
        let random = |shape: &[usize]| {
            let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
            init::normal(&shape, 0.5, &mut init::rng(2, "inputs")).expect("numbers")
        };
        Self {
            prompts: random(&[PREFIX, config.hidden]).set_requires_grad(true),
            deep_prompts: random(&[config.n_blocks, PREFIX, config.hidden]).set_requires_grad(true),
            text: random(&[rows.n_tokens(), config.hidden]),
            padded: random(&[LENGTHS.len(), PADDED, config.hidden]),
            rows,
        }
    }

    /// Forward and backward.
    fn time(&self, forward: impl Fn() -> Tensor) -> Duration {
        let start = Instant::now();
        forward().sum(Kind::Float).backward();
        start.elapsed()
    }

    fn direct(&self, stack: &BlockStack) -> Duration {
        self.time(|| {
            let hidden = Tensor::cat(&[&self.prompts, &self.text], 0);
            stack.forward(&hidden, PREFIX, &self.rows, Some(&self.deep_prompts), Want::LastOfRows).expect("a forward")
        })
    }

    fn embedded(&self, remote: &RemoteSequential) -> Duration {
        self.time(|| {
            let tunables = vec![("deep_prompts".to_owned(), self.deep_prompts.shallow_clone())];
            let tuned = remote.tune(tunables).expect("tuned");
            tuned.forward(Some(&self.prompts), &self.text, &self.rows).expect("a forward")
        })
    }

    fn padded(&self, config: &ModelConfig, stack: &BlockStack) -> Duration {
        let (n_rows, seq, hidden) = (LENGTHS.len() as i64, (PREFIX + PADDED) as i64, config.hidden as i64);
        let rows = Ragged::from_lengths([seq as usize; LENGTHS.len()]).expect("rows");
        let last: Vec<i64> =
            LENGTHS.iter().enumerate().map(|(i, len)| i as i64 * seq + (PREFIX + len - 1) as i64).collect();
        self.time(|| {
            let prompts = self.prompts.unsqueeze(0).expand([n_rows, PREFIX as i64, hidden], false);
            let mut states = Tensor::cat(&[&prompts, &self.padded], 1); // [rows, prefix_len + padded, hidden]
            for (block_idx, deep) in self.deep_prompts.unbind(0).into_iter().enumerate() {
                let added = deep.constant_pad_nd([0, 0, 0, PADDED as i64]);
                let flat = (states + added).view([n_rows * seq, hidden]);
                let block = Span::new(block_idx, block_idx + 1).expect("a span");
                let flat = stack.forward_part(block, &flat, 0, &rows, None, Want::All).expect("a forward");
                states = flat.view([n_rows, seq, hidden]);
            }
            states.view([n_rows * seq, hidden]).index_select(0, &Tensor::from_slice(&last))
        })
    }
}

/// The matrix products of the linear layers of a ragged step, forward and backward, and nothing else.
fn products(config: &ModelConfig, n: usize) -> Duration {
    let q = config.n_heads * config.head_dim;
    let qkv = q + 2 * config.n_kv_heads * config.head_dim;
    let (hidden, ffn) = (config.hidden, config.ffn);
    let shapes = [(hidden, qkv), (q, hidden), (hidden, ffn), (hidden, ffn), (ffn, hidden)];
    let ones =
        |rows: usize, columns: usize| Tensor::ones([rows as i64, columns as i64], (Kind::Float, tch::Device::Cpu));
    let layers: Vec<_> = shapes.into_iter().map(|(i, o)| (ones(i, o), ones(n, i), ones(n, o))).collect();
    let start = Instant::now();
    tch::no_grad(|| {
        for _ in 0..config.n_blocks {
            for (weight, x, grad) in &layers {
                drop(black_box(x.mm(weight)));
                drop(black_box(grad.mm(&weight.tr())));
            }
        }
    });
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn rounds() -> usize {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|arg| arg == "--rounds").and_then(|at| args.get(at + 1));
    given.and_then(|rounds| rounds.parse().ok()).unwrap_or(7)
}

fn main() {
    let config = smollm2();
    let inputs = Inputs::new(&config);
    let whole = Span::new(0, config.n_blocks).expect("a span");
    let load = || BlockStack::load(&Random(config.clone()), whole).expect("a stack");
    let stack = load();
    let identity = ModelIdentity {
        digest: "random".to_owned(),
        family: config.family.name().to_owned(),
        n_blocks: config.n_blocks,
        hidden: config.hidden,
        weights: "random".to_owned(),
    };
    let server = BlockServer::embedded(load(), identity, ServerOptions::default()).expect("a server");
    let expected = ModelExpectation { digest: "random".to_owned(), n_blocks: config.n_blocks, hidden: config.hidden };
    let remote = RemoteSequential::connect(vec![server.endpoint().clone()], expected, RemoteOptions::default())
        .expect("connected");

    let n = PREFIX + inputs.rows.n_tokens();
    let (mut direct, mut embedded, mut padded, mut bare) = (vec![], vec![], vec![], vec![]);
    // The first round warms up and is not counted.
    for round in 0..=rounds() {
        let times =
            [inputs.direct(&stack), inputs.embedded(&remote), inputs.padded(&config, &stack), products(&config, n)];
        if round > 0 {
            for (list, time) in [&mut direct, &mut embedded, &mut padded, &mut bare].into_iter().zip(times) {
                list.push(time);
            }
        }
    }
    report(n, median(direct), median(embedded), median(padded), median(bare));
}

fn report(n: usize, direct: f64, embedded: f64, padded: f64, bare: f64) {
    let positions = LENGTHS.len() * (PREFIX + PADDED);
    let tokens: usize = LENGTHS.iter().sum();
    println!(
        "32 sentences of {tokens} tokens in all, P = {PREFIX}, deep prompts, SmolLM2-135M's shape, fp32; medians\n"
    );
    println!("{:<34}{:>10}{:>10}{:>12}", "", "positions", "step", "tokens/s");
    for (name, positions, seconds) in [
        ("direct: ragged, in process", n, direct),
        ("embedded: ragged, embedded server", n, embedded),
        ("padded to 64, prefix per row", positions, padded),
        ("matrix products of direct, bare", n, bare),
    ] {
        println!("{name:<34}{positions:>10}{seconds:>8.3} s{:>12.0}", tokens as f64 / seconds);
    }
    println!("\npadded / embedded   {:.2} (at least 5)", padded / embedded);
    println!("embedded / direct   {:.3} (at most 1.05)", embedded / direct);
    println!("products / direct   {:.2}", bare / direct);
    let json = serde_json::json!({
        "workload": { "rows": LENGTHS.len(), "tokens": tokens, "pre_seq_len": PREFIX, "padded_to": PADDED },
        "seconds": { "direct": direct, "embedded": embedded, "padded": padded, "products": bare },
        "ratios": {
            "padded_over_embedded": padded / embedded,
            "embedded_over_direct": embedded / direct,
            "products_over_direct": bare / direct,
        },
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench.json");
    let text = serde_json::to_string_pretty(&json).expect("numbers") + "\n";
    std::fs::write(path, text).expect("docs/ can be written");
}
