//! Peak memory of attention on one long row. The only test of its process, because the peak is the process's.
#![cfg(target_os = "linux")]

use sepal_blocks::{Batch, BlockStack, BoxError, GradOptions, Injected, InputGrad, Passes, Prefix, SaveMode, Weights};
use sepal_core::{Family, HostTensor, ModelConfig, Ragged, Span, Want, Window};
use tch::{Kind, Tensor};

const MB: usize = 1 << 20;
const PREFIX_LEN: usize = 16;
const ROW_LEN: usize = 8192;
const HIDDEN: usize = 64;
const HEAD_DIM: usize = 32;

/// One Llama block, narrow outside of attention.
struct OneBlock(ModelConfig);

impl OneBlock {
    fn new(n_heads: usize, n_kv_heads: usize) -> Self {
        let plain = ModelConfig::plain(Family::Llama, 1, HIDDEN, n_heads, HIDDEN, 32);
        let rope = plain.rope.map(|rope| sepal_core::Rope { dim: HEAD_DIM, ..rope });
        Self(ModelConfig { n_kv_heads, head_dim: HEAD_DIM, rope, ..plain })
    }
}

impl Weights for OneBlock {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn has(&self, _: &str) -> bool {
        false
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        let (q_size, kv_size) = (self.0.n_heads * HEAD_DIM, self.0.n_kv_heads * HEAD_DIM);
        let shape = match name.rsplit('.').nth(1) {
            Some("q_proj") => vec![q_size, HIDDEN],
            Some("k_proj" | "v_proj") => vec![kv_size, HIDDEN],
            Some("o_proj") => vec![HIDDEN, q_size],
            Some("gate_proj" | "up_proj" | "down_proj") => vec![HIDDEN, HIDDEN],
            _ => vec![HIDDEN],
        };
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|i: usize| 0.1 * (i as f32).sin()).collect();
        Ok(HostTensor::from_f32(shape, &numbers)?)
    }
}

/// Peak of the process's resident memory since it was reset, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status of the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
    line.trim_end_matches("kB").trim().parse::<usize>().expect("a number of kilobytes") * 1024
}

/// Returns the result of `run` and the memory by which the process grew at most meanwhile, in bytes.
fn growth<T>(run: impl FnOnce() -> T) -> (T, usize) {
    std::fs::write("/proc/self/clear_refs", "5").expect("a peak that can be reset to the current size");
    let before = peak();
    let result = run();
    (result, peak().saturating_sub(before))
}

/// Trains one row. Returns the peaks of the forward pass without its tape, and of the backward pass without the gradients
/// of attention's inputs and outputs.
fn train(model: &OneBlock, stack: &BlockStack, row_len: usize) -> [usize; 2] {
    let rows = Ragged::from_lengths([row_len]).expect("a row");
    let n = PREFIX_LEN + row_len;
    let hidden = Tensor::randn([n as i64, HIDDEN as i64], (Kind::Float, tch::Device::Cpu));
    let injected = Injected::default();
    let batch = Batch { hidden: &hidden, prefix: Prefix::Computed(PREFIX_LEN), rows: &rows, injected: &injected };
    let (mut outputs, forward) =
        growth(|| stack.forward_batches(stack.span(), &[batch], Want::All, SaveMode::Tape).expect("a forward pass"));
    let output = outputs.pop().expect("an output");
    let tape = output.tape.expect("a tape");
    let tape_bytes = tape.bytes();
    let options = GradOptions { input: InputGrad::All, injected: false };
    let (grads, backward) =
        growth(|| stack.backward_batches(vec![(tape, output.hidden)], options).expect("a backward pass"));
    let memory = stack.call_memory();
    let estimate = |passes: Passes| memory.bytes(stack.span(), PREFIX_LEN, &rows, passes);
    assert!(forward as u64 <= estimate(Passes::Tape), "{forward} bytes of {}", estimate(Passes::Tape));
    let with_tape = (tape_bytes + backward) as u64;
    assert!(with_tape <= estimate(Passes::Backward), "{with_tape} bytes of {}", estimate(Passes::Backward));
    assert!(f64::try_from(grads[0].input.sum(Kind::Float)).expect("a number").is_finite());
    let widths = 2 * (model.0.n_heads + model.0.n_kv_heads) * HEAD_DIM;
    let grad_bytes = n * widths * size_of::<f32>();
    [forward.saturating_sub(tape_bytes), backward.saturating_sub(grad_bytes)]
}

fn assert_small(model: &OneBlock, label: &str) {
    let stack = BlockStack::load(model, Span::new(0, 1).expect("a span")).expect("a stack");
    // Threads and caches exist before the measurement.
    train(model, &stack, 600);
    let peaks = train(model, &stack, ROW_LEN);
    println!("{label}: {:?} MB in the forward and the backward pass", peaks.map(|peak| peak / MB));
    assert!(peaks.iter().all(|&peak| peak < 200 * MB), "{label}: {:?} MB", peaks.map(|peak| peak / MB));
}

/// A mask of the row would have 270 MB for each query head of a key head.
#[test]
fn long_row_trains_with_less_than_200_mb_for_attention() {
    assert_small(&OneBlock::new(32, 8), "plain attention");

    let mut windowed = OneBlock::new(32, 8);
    windowed.0.scores.window = Some(Window { size: 500, blocks: vec![true], rope: None });
    assert_small(&windowed, "a window");

    let mut alibi = OneBlock::new(4, 4);
    alibi.0.rope = None;
    alibi.0.scores.alibi = true;
    assert_small(&alibi, "ALiBi");

    let mut capped = OneBlock::new(4, 2);
    capped.0.scores.cap = Some(30.0);
    assert_small(&capped, "a cap");
}
