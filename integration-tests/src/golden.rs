//! Tiny models with reference outputs of PyTorch, served by this process.

use std::collections::HashMap;

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::Checkpoint;
use sepal_core::{Ragged, Span};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use sepal_swarm::Endpoint;
use tch::{Reduction, Tensor};

/// Maximum difference of outputs.
pub const TOLERANCE: f64 = 1e-4;

/// Tiny model with the reference outputs of PyTorch.
pub struct Golden {
    pub checkpoint: Checkpoint,
    pub ends: Ends,
    pub rows: Ragged,
    pub ids: Tensor,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let folder = sepal_testkit::tiny::goldens();
        let checkpoint = Checkpoint::open(folder.join(format!("tiny-{name}"))).expect("a checkpoint");
        let ends = Ends::load(&checkpoint).expect("ends");
        let tensors = Tensor::read_safetensors(folder.join(format!("tiny-{name}.golden.safetensors")));
        let tensors: HashMap<String, Tensor> = tensors.expect("goldens").into_iter().collect();
        let offsets: Vec<i64> = Vec::try_from(&tensors["offsets"]).expect("integers");
        let rows = Ragged::from_offsets(offsets.iter().map(|&offset| offset as u32).collect()).expect("rows");
        let ids = tensors["ids"].shallow_clone();
        Self { checkpoint, ends, rows, ids, tensors }
    }

    pub fn get(&self, key: &str) -> Tensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("no `{key}` in the goldens")).shallow_clone()
    }

    pub fn leaf(&self, key: &str) -> Tensor {
        self.get(key).copy().set_requires_grad(true)
    }

    pub fn n_blocks(&self) -> usize {
        self.checkpoint.config().n_blocks
    }

    pub fn expectation(&self) -> ModelExpectation {
        let hidden = self.checkpoint.config().hidden;
        ModelExpectation { digest: self.checkpoint.digest().to_owned(), n_blocks: self.n_blocks(), hidden }
    }

    pub fn serve(&self, blocks: &str) -> BlockServer {
        self.serve_with_budget(blocks, 1 << 30)
    }

    pub fn serve_with_budget(&self, blocks: &str, tape_budget_bytes: u64) -> BlockServer {
        let (stack, identity, options) = self.server_parts(blocks, tape_budget_bytes);
        BlockServer::embedded(stack, identity, options).expect("a server")
    }

    /// Starts a server with its own port.
    pub fn serve_listening(&self, blocks: &str, tape_budget_bytes: u64) -> BlockServer {
        let (stack, identity, options) = self.server_parts(blocks, tape_budget_bytes);
        let options = ServerOptions { threads: Some(1), ..options };
        BlockServer::listen(stack, identity, options, "127.0.0.1:0".parse().expect("an address")).expect("a server")
    }

    fn server_parts(&self, blocks: &str, tape_budget_bytes: u64) -> (BlockStack, ModelIdentity, ServerOptions) {
        let stack = BlockStack::load(&self.checkpoint, span(blocks)).expect("blocks");
        let limits = Limits { tape_budget_bytes, ..Limits::default() };
        (stack, ModelIdentity::from_checkpoint(&self.checkpoint), ServerOptions { limits, ..ServerOptions::default() })
    }

    /// Returns the rows `order` as a batch.
    pub fn batch(&self, order: &[usize]) -> (Tensor, Ragged) {
        let part = |&row: &usize| {
            let range = self.rows.range(row);
            self.ids.narrow(0, range.start as i64, range.len() as i64)
        };
        (Tensor::cat(&order.iter().map(part).collect::<Vec<_>>(), 0), self.rows.select(order))
    }

    /// Returns the range of all blocks.
    pub fn all_blocks(&self) -> String {
        format!("0:{}", self.n_blocks())
    }

    /// Asserts that the gradients of deep prompt tuning are those of PyTorch.
    pub fn assert_deep_grads(&self, trained: &Trained) {
        for (name, grad) in trained.grads() {
            assert_grad(name, &grad, &self.get(&format!("deep.grad.{name}")));
        }
    }

    pub fn connect(&self, servers: &[BlockServer], options: RemoteOptions) -> RemoteSequential {
        let endpoints: Vec<Endpoint> = servers.iter().map(|server| server.endpoint().clone()).collect();
        RemoteSequential::connect(endpoints, self.expectation(), options).expect("connected")
    }
}

/// Trainable tensors of the goldens.
pub struct Trained {
    pub prompts: Tensor,
    pub deep_prompts: Option<Tensor>,
    pub score: Tensor,
}

impl Trained {
    pub fn new(golden: &Golden, deep: bool) -> Self {
        Self {
            prompts: golden.leaf("prompts"),
            deep_prompts: deep.then(|| golden.leaf("deep_prompts")),
            score: golden.leaf("score.weight"),
        }
    }

    /// Computes the logits `[rows, labels]` of the rows through the servers.
    pub fn logits(&self, golden: &Golden, remote: &RemoteSequential, ids: &Tensor, rows: &Ragged) -> Tensor {
        let tunables = self.deep_prompts.iter().map(|deep| ("deep_prompts".to_owned(), deep.shallow_clone())).collect();
        let tuned = remote.tune(tunables).expect("tuned");
        let prefix = golden.ends.embed_prompts(&self.prompts).expect("a prefix");
        let tokens = golden.ends.embed(ids).expect("tokens");
        let pooled = tuned.forward(Some(&prefix), &tokens, rows).expect("a forward");
        golden.ends.final_norm(&pooled).expect("a norm").linear(&self.score, None::<Tensor>)
    }

    /// Computes the logits of the rows of the goldens through the servers.
    pub fn golden_logits(&self, golden: &Golden, remote: &RemoteSequential) -> Tensor {
        self.logits(golden, remote, &golden.ids, &golden.rows)
    }

    /// Returns the tensors after one step of plain gradient descent.
    pub fn step(&self, lr: f64) -> Self {
        let moved = |tensor: &Tensor| (tensor.detach() - tensor.grad() * lr).set_requires_grad(true);
        Self {
            prompts: moved(&self.prompts),
            deep_prompts: self.deep_prompts.as_ref().map(moved),
            score: moved(&self.score),
        }
    }

    pub fn grads(&self) -> Vec<(&'static str, Tensor)> {
        let deep = self.deep_prompts.as_ref().map(|deep| ("deep_prompts", deep.grad()));
        [("prompts", self.prompts.grad()), ("score.weight", self.score.grad())].into_iter().chain(deep).collect()
    }
}

pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::Mean, -100, 0.0)
}

pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes agree");
    (a - b).abs().max().double_value(&[])
}

/// Asserts that the difference of gradients is small relative to the largest entry.
pub fn assert_grad(what: &str, found: &Tensor, expected: &Tensor) {
    let scale = expected.abs().max().double_value(&[]);
    let far = distance(found, expected) / scale;
    assert!(far <= TOLERANCE, "{what}: the gradient is off by {far:.2e} of its largest entry");
}

pub fn span(text: &str) -> Span {
    text.parse().expect("a span")
}
