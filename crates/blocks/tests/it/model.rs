//! Tiny golden models.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sepal_blocks::{
    Batch, BatchGrads, BatchOutput, BlockStack, BoxError, Ends, GradOptions, InputGrad, SaveMode, Weights,
};
use sepal_checkpoint::{Checkpoint, tensor_names};
use sepal_core::{Family, HostTensor, ModelConfig, PackedMatrix, Ragged, Span, Want};
use sepal_nn::Tunable;
use tch::{Kind, Tensor};

/// Returns the names of the tiny models: each family in each of its variants.
pub(crate) fn models() -> Vec<String> {
    let entries = std::fs::read_dir(goldens()).expect("the goldens").map(|entry| entry.expect("an entry").path());
    let folders = entries.filter(|path| path.join("config.json").is_file());
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_prefix("tiny-")?.to_owned());
    let mut names: Vec<String> = folders.filter_map(name).collect();
    names.sort();
    assert!(names.len() >= Family::ALL.len(), "models are missing among the goldens: {names:?}");
    names
}

/// Opens the tiny models one by one.
pub(crate) fn tiny_models() -> impl Iterator<Item = (&'static str, Tiny)> {
    models().into_iter().map(|name| {
        let name: &'static str = name.leak();
        (name, Tiny::open(name))
    })
}

pub(crate) fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens"))
}

/// Golden model; tests change its configuration and hide tensors.
pub(crate) struct Tiny {
    pub(crate) config: ModelConfig,
    /// Replacements for tensors of the checkpoint; `None` hides the tensor.
    pub(crate) changed: HashMap<String, Option<HostTensor>>,
    checkpoint: Checkpoint,
    /// Names of the tensors that were read.
    read: Mutex<HashSet<String>>,
}

impl Tiny {
    pub(crate) fn open(name: &str) -> Self {
        Self::read(&goldens().join(format!("tiny-{name}")))
    }

    pub(crate) fn read(path: &Path) -> Self {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        let config = checkpoint.config().clone();
        Self { config, changed: HashMap::new(), checkpoint, read: Mutex::default() }
    }

    /// Returns the names of the checkpoint's tensors that were not read.
    pub(crate) fn unread(&self) -> Vec<&str> {
        let (read, prefix) = (self.read.lock().expect("no panic"), tensor_names(self.config.family).prefix);
        let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
        let read: HashSet<String> = read.iter().map(|name| bare(name)).collect();
        self.checkpoint.names().filter(|name| !read.contains(&bare(name))).collect()
    }

    pub(crate) fn stack(&self, start: usize, end: usize) -> BlockStack {
        BlockStack::load(self, Span::new(start, end).expect("a span")).expect("a stack")
    }

    pub(crate) fn full_stack(&self) -> BlockStack {
        self.stack(0, self.config.n_blocks)
    }

    pub(crate) fn ends(&self) -> Ends {
        Ends::load(self).expect("the ends")
    }

    /// Returns numbers of about the size of hidden states, which depend on the seed only.
    pub(crate) fn random(&self, shape: &[i64], seed: u64) -> Tensor {
        sepal_nn::init::normal(shape, 0.5, &mut sepal_nn::init::rng(seed, "test")).expect("numbers")
    }

    /// Returns hidden states of a prefix and rows.
    pub(crate) fn hidden(&self, prefix_len: usize, rows: &Ragged, seed: u64) -> Tensor {
        self.random(&[(prefix_len + rows.n_tokens()) as i64, self.config.hidden as i64], seed)
    }
}

impl Weights for Tiny {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        self.read.lock().expect("no panic").insert(name.to_owned());
        match self.changed.get(name) {
            Some(changed) => changed.clone().ok_or_else(|| format!("no tensor `{name}`").into()),
            None => Ok(self.checkpoint.tensor(name)?),
        }
    }

    fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, BoxError> {
        if self.changed.contains_key(name) {
            return Ok(None);
        }
        self.read.lock().expect("no panic").insert(name.to_owned());
        Ok(self.checkpoint.packed(name)?)
    }

    fn has(&self, name: &str) -> bool {
        self.changed.get(name).map_or_else(|| self.checkpoint.has(name), Option::is_some)
    }
}

/// Output of a forward pass, and the gradients of its weighted sum.
pub(crate) struct Outcome {
    pub(crate) output: Tensor,
    pub(crate) grad_hidden: Tensor,
    /// Gradients of the tunables.
    pub(crate) grads: Vec<Tensor>,
}

/// Runs `forward` on leaves, and the backward pass of its output weighted by `weights`.
pub(crate) fn outcome(
    hidden: &Tensor,
    tunables: &[Tunable],
    weights: &Tensor,
    forward: impl Fn(&Tensor, &[Tunable]) -> Tensor,
) -> Outcome {
    let leaf = |tensor: &Tensor| tensor.detach().copy().set_requires_grad(true);
    let hidden = leaf(hidden);
    let tunables: Vec<Tunable> =
        tunables.iter().map(|tunable| Tunable { tensor: leaf(&tunable.tensor), ..tunable.shallow_clone() }).collect();
    let output = forward(&hidden, &tunables);
    (&output * weights).sum(Kind::Float).backward();
    let grads = tunables.iter().map(|tunable| tunable.tensor.grad()).collect();
    Outcome { output: output.detach(), grad_hidden: hidden.grad(), grads }
}

impl Outcome {
    pub(crate) fn assert_close(&self, expected: &Outcome, label: &str) {
        assert_close(&self.output, &expected.output, 1e-5, &format!("{label}: output"));
        assert_close(&self.grad_hidden, &expected.grad_hidden, 1e-5, &format!("{label}: gradient of hidden states"));
        assert_all_close(&self.grads, &expected.grads, 1e-5, &format!("{label}: gradients of tunables"));
    }
}

/// Asserts differences as [`assert_close`], tensor by tensor.
pub(crate) fn assert_all_close(found: &[Tensor], expected: &[Tensor], tolerance: f64, label: &str) {
    assert_eq!(found.len(), expected.len(), "{label}: number");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_close(found, expected, tolerance, &format!("{label}, {i}"));
    }
}

/// Asserts a difference within `tolerance` of the largest entry of `expected`.
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, label: &str) {
    assert_eq!(found.size(), expected.size(), "{label}: shape");
    if expected.numel() == 0 {
        return;
    }
    let largest = f64::try_from(expected.abs().max()).expect("a number");
    let off = f64::try_from((found - expected).abs().max()).expect("a number");
    assert!(off.is_finite() && off <= tolerance * largest, "{label}: off by {off}, the largest entry is {largest}");
}

/// Returns the last token of each row of `output [prefix_len + n_tokens, hidden]`.
pub(crate) fn last_of_rows(output: &Tensor, prefix_len: usize, rows: &Ragged) -> Tensor {
    let last: Vec<i64> = (0..rows.len()).map(|row| (prefix_len + rows.range(row).end - 1) as i64).collect();
    output.index_select(0, &Tensor::from_slice(&last))
}

/// All kinds of output.
pub(crate) const WANTS: [Want; 4] = [Want::All, Want::LastOfRows, Want::Tokens, Want::MeanOfRows];

/// Returns the part that `want` asks for of `output [prefix_len + n_tokens, hidden]`.
pub(crate) fn part_of_all(output: &Tensor, prefix_len: usize, rows: &Ragged, want: Want) -> Tensor {
    let tokens = output.narrow(0, prefix_len as i64, rows.n_tokens() as i64);
    let mean = |row: usize| {
        let row_tokens = tokens.narrow(0, rows.range(row).start as i64, rows.row_len(row) as i64);
        row_tokens.mean_dim([0_i64].as_slice(), false, Kind::Float)
    };
    match want {
        Want::All => output.shallow_clone(),
        Want::LastOfRows => last_of_rows(output, prefix_len, rows),
        Want::Tokens => tokens,
        Want::MeanOfRows => Tensor::stack(&(0..rows.len()).map(mean).collect::<Vec<_>>(), 0),
    }
}

/// Runs all blocks of the stack without tunables.
pub(crate) fn forward(stack: &BlockStack, hidden: &Tensor, prefix_len: usize, rows: &Ragged, want: Want) -> Tensor {
    stack.forward(hidden, prefix_len, rows, &[], want).expect("a forward")
}

/// Tensors of tunables.
pub(crate) fn tensors(tunables: &[Tunable]) -> Vec<Tensor> {
    tunables.iter().map(|tunable| tunable.tensor.shallow_clone()).collect()
}

/// Runs all blocks of the stack on batches together.
pub(crate) fn forward_batches(
    stack: &BlockStack,
    batches: &[Batch<'_>],
    want: Want,
    save_mode: SaveMode,
) -> Vec<BatchOutput> {
    stack.forward_batches(stack.span(), batches, want, save_mode).expect("a forward")
}

/// Returns outputs and gradients, from output gradients that depend on the shape of the output only.
pub(crate) fn forward_backward(
    model: &Tiny,
    stack: &BlockStack,
    batches: &[Batch<'_>],
    want: Want,
    input: InputGrad,
) -> (Vec<Tensor>, Vec<BatchGrads>) {
    let outputs = forward_batches(stack, batches, want, SaveMode::Tape).into_iter().map(|output| {
        let weights = model.random(&output.hidden.size(), output.hidden.size()[0] as u64);
        (output.hidden, (output.tape.expect("a tape"), weights))
    });
    let (hidden, tapes) = outputs.unzip();
    (hidden, stack.backward_batches(tapes, GradOptions { input, injected: true }).expect("gradients"))
}
