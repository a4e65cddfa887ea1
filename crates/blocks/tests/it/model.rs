//! The tiny golden models.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sepal_blocks::{BlockStack, BoxError, Ends, Weights};
use sepal_checkpoint::Checkpoint;
use sepal_core::{Family, HostTensor, ModelConfig, Ragged, Span, Want};
use tch::{Kind, Tensor};

/// The names of the tiny models: each family in each of its forms.
pub(crate) fn models() -> Vec<String> {
    let entries = std::fs::read_dir(goldens()).expect("the goldens").map(|entry| entry.expect("an entry").path());
    let folders = entries.filter(|path| path.join("config.json").is_file());
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_prefix("tiny-")?.to_owned());
    let mut names: Vec<String> = folders.filter_map(name).collect();
    names.sort();
    assert!(names.len() >= Family::ALL.len(), "models are missing among the goldens: {names:?}");
    names
}

pub(crate) fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens"))
}

/// A golden model; tests may change its configuration and hide tensors.
pub(crate) struct Tiny {
    pub(crate) config: ModelConfig,
    /// Tensors in the place of the checkpoint's, or nothing.
    pub(crate) changed: HashMap<String, Option<HostTensor>>,
    checkpoint: Checkpoint,
    /// The names of tensors that were asked for.
    asked: Mutex<HashSet<String>>,
}

impl Tiny {
    pub(crate) fn open(name: &str) -> Self {
        Self::read(&goldens().join(format!("tiny-{name}")))
    }

    pub(crate) fn read(path: &Path) -> Self {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        let config = checkpoint.config().clone();
        Self { config, changed: HashMap::new(), checkpoint, asked: Mutex::default() }
    }

    /// The tensors of the checkpoint that nobody has asked for.
    pub(crate) fn unread(&self) -> Vec<&str> {
        let (asked, prefix) = (self.asked.lock().expect("no panic"), self.config.family.prefix());
        let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
        let asked: HashSet<String> = asked.iter().map(|name| bare(name)).collect();
        self.checkpoint.names().filter(|name| !asked.contains(&bare(name))).collect()
    }

    pub(crate) fn stack(&self, start: usize, end: usize) -> BlockStack {
        BlockStack::load(self, Span::new(start, end).expect("a span")).expect("a stack")
    }

    pub(crate) fn whole(&self) -> BlockStack {
        self.stack(0, self.config.n_blocks)
    }

    pub(crate) fn ends(&self) -> Ends {
        Ends::load(self).expect("the ends")
    }

    /// Numbers of about the size of hidden states, always the same for a seed.
    pub(crate) fn random(&self, shape: &[i64], seed: u64) -> Tensor {
        sepal_nn::init::normal(shape, 0.5, &mut sepal_nn::init::rng(seed, "test")).expect("numbers")
    }

    /// A prefix and rows.
    pub(crate) fn hidden(&self, prefix_len: usize, rows: &Ragged, seed: u64) -> Tensor {
        self.random(&[(prefix_len + rows.n_tokens()) as i64, self.config.hidden as i64], seed)
    }
}

impl Weights for Tiny {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        self.asked.lock().expect("no panic").insert(name.to_owned());
        match self.changed.get(name) {
            Some(changed) => changed.clone().ok_or_else(|| format!("no tensor `{name}`").into()),
            None => Ok(self.checkpoint.tensor(name)?),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.changed.get(name).map_or_else(|| self.checkpoint.has(name), Option::is_some)
    }
}

/// One forward and the gradients, as host numbers, of a sum over the output with fixed weights.
pub(crate) struct Outcome {
    pub(crate) output: Tensor,
    pub(crate) grad_hidden: Tensor,
    pub(crate) grad_deep: Option<Tensor>,
}

/// Runs `forward` on leaves and goes back from its output weighted by `pull`.
pub(crate) fn outcome(
    hidden: &Tensor,
    deep: Option<&Tensor>,
    pull: &Tensor,
    forward: impl Fn(&Tensor, Option<&Tensor>) -> Tensor,
) -> Outcome {
    let hidden = hidden.detach().copy().set_requires_grad(true);
    let deep = deep.map(|deep| deep.detach().copy().set_requires_grad(true));
    let output = forward(&hidden, deep.as_ref());
    (&output * pull).sum(Kind::Float).backward();
    Outcome { output: output.detach(), grad_hidden: hidden.grad(), grad_deep: deep.map(|deep| deep.grad()) }
}

impl Outcome {
    pub(crate) fn assert_close(&self, other: &Outcome, what: &str) {
        assert_close(&self.output, &other.output, 1e-5, &format!("{what}: output"));
        assert_close(&self.grad_hidden, &other.grad_hidden, 1e-5, &format!("{what}: gradient of hidden states"));
        match (&self.grad_deep, &other.grad_deep) {
            (Some(one), Some(two)) => assert_close(one, two, 1e-5, &format!("{what}: gradient of deep prompts")),
            (one, two) => assert_eq!(one.is_some(), two.is_some(), "{what}: gradient of deep prompts"),
        }
    }
}

/// Within `tolerance` of the largest entry of `expected`, or of 1 if that is less.
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    if expected.numel() == 0 {
        return;
    }
    let largest = f64::try_from(expected.abs().max()).expect("a number");
    let off = f64::try_from((found - expected).abs().max()).expect("a number");
    assert!(off.is_finite() && off <= tolerance * largest, "{what}: off by {off}, the largest entry is {largest}");
}

/// The last token of each row of `output [prefix_len + n_tokens, hidden]`.
pub(crate) fn last_of_rows(output: &Tensor, prefix_len: usize, rows: &Ragged) -> Tensor {
    let last: Vec<i64> = (0..rows.len()).map(|row| (prefix_len + rows.range(row).end - 1) as i64).collect();
    output.index_select(0, &Tensor::from_slice(&last))
}

/// The stack on hidden states, without deep prompts.
pub(crate) fn forward(stack: &BlockStack, hidden: &Tensor, prefix_len: usize, rows: &Ragged, want: Want) -> Tensor {
    stack.forward(hidden, prefix_len, rows, None, want).expect("a forward")
}
