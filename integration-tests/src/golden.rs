//! Goldens through servers in this process.

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::Checkpoint;
use sepal_core::{Ragged, Span};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use sepal_swarm::Endpoint;
use tch::{Kind, Reduction, Tensor};

/// Outputs must agree this well.
pub const TOLERANCE: f64 = 1e-4;

/// A tiny model with what PyTorch says of it.
pub struct Golden {
    pub checkpoint: Checkpoint,
    pub ends: Ends,
    pub rows: Ragged,
    pub ids: Tensor,
    tensors: Vec<(String, Tensor)>,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let folder = sepal_testkit::tiny::goldens();
        let checkpoint = Checkpoint::open(folder.join(format!("tiny-{name}"))).expect("a checkpoint");
        let ends = Ends::load(&checkpoint).expect("ends");
        let bytes = std::fs::read(folder.join(format!("tiny-{name}.golden.safetensors"))).expect("goldens");
        let tensors = tensors(&bytes);
        let find = |key: &str| tensors.iter().find(|(name, _)| name == key).expect("in the goldens").1.shallow_clone();
        let offsets: Vec<i64> = Vec::try_from(find("offsets")).expect("integers");
        let rows = Ragged::from_offsets(offsets.iter().map(|&offset| offset as u32).collect()).expect("rows");
        let ids = find("ids");
        Self { checkpoint, ends, rows, ids, tensors }
    }

    pub fn get(&self, key: &str) -> Tensor {
        let found = self.tensors.iter().find(|(name, _)| name == key);
        found.unwrap_or_else(|| panic!("no `{key}` in the goldens")).1.shallow_clone()
    }

    /// A trainable copy.
    pub fn leaf(&self, key: &str) -> Tensor {
        self.get(key).copy().set_requires_grad(true)
    }

    pub fn n_blocks(&self) -> usize {
        self.checkpoint.config().n_blocks
    }

    pub fn expectation(&self) -> ModelExpectation {
        let config = self.checkpoint.config();
        ModelExpectation {
            digest: self.checkpoint.digest().to_owned(),
            n_blocks: config.n_blocks,
            hidden: config.hidden,
        }
    }

    /// A server in this process.
    pub fn serve(&self, span: Span, tape_budget_bytes: u64) -> BlockServer {
        let stack = BlockStack::load(&self.checkpoint, span).expect("blocks");
        let limits = Limits { tape_budget_bytes, ..Limits::default() };
        let options = ServerOptions { limits, ..ServerOptions::default() };
        BlockServer::embedded(stack, ModelIdentity::from_checkpoint(&self.checkpoint), options).expect("a server")
    }

    /// A server with a port of its own.
    pub fn serve_listening(&self, span: Span, tape_budget_bytes: u64) -> BlockServer {
        let stack = BlockStack::load(&self.checkpoint, span).expect("blocks");
        let limits = Limits { tape_budget_bytes, ..Limits::default() };
        let options = ServerOptions { limits, threads: Some(1), ..ServerOptions::default() };
        let addr = "127.0.0.1:0".parse().expect("an address");
        BlockServer::listen(stack, ModelIdentity::from_checkpoint(&self.checkpoint), options, addr).expect("a server")
    }

    pub fn connect(&self, servers: &[BlockServer], options: RemoteOptions) -> RemoteSequential {
        let endpoints: Vec<Endpoint> = servers.iter().map(|server| server.endpoint().clone()).collect();
        RemoteSequential::connect(endpoints, self.expectation(), options).expect("connected")
    }
}

fn tensors(bytes: &[u8]) -> Vec<(String, Tensor)> {
    let file = safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape: Vec<i64> = view.shape().iter().map(|&dim| dim as i64).collect();
        let kind = match view.dtype() {
            safetensors::Dtype::F32 => Kind::Float,
            safetensors::Dtype::I64 => Kind::Int64,
            other => panic!("unexpected {other:?}"),
        };
        (name, Tensor::from_data_size(view.data(), &shape, kind))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// What trains in the goldens, and what comes of it.
pub struct Trained {
    pub prompts: Tensor,
    pub deep_prompts: Option<Tensor>,
    pub score: Tensor,
}

impl Trained {
    pub fn of(golden: &Golden, deep: bool) -> Self {
        Self {
            prompts: golden.leaf("prompts"),
            deep_prompts: deep.then(|| golden.leaf("deep_prompts")),
            score: golden.leaf("score.weight"),
        }
    }

    /// Logits `[rows, labels]` of the rows through the servers.
    pub fn logits(&self, golden: &Golden, remote: &RemoteSequential, ids: &Tensor, rows: &Ragged) -> Tensor {
        let tunables = self.deep_prompts.iter().map(|deep| ("deep_prompts".to_owned(), deep.shallow_clone())).collect();
        let tuned = remote.tune(tunables).expect("tuned");
        let prefix = golden.ends.embed_prompts(&self.prompts).expect("a prefix");
        let tokens = golden.ends.embed(ids).expect("tokens");
        let pooled = tuned.forward(Some(&prefix), &tokens, rows).expect("a forward");
        golden.ends.final_norm(&pooled).expect("a norm").linear(&self.score, None::<Tensor>)
    }

    /// As it is after one step of plain gradient descent.
    pub fn step(&self, lr: f64) -> Self {
        let moved = |tensor: &Tensor| (tensor.detach() - tensor.grad() * lr).set_requires_grad(true);
        Self {
            prompts: moved(&self.prompts),
            deep_prompts: self.deep_prompts.as_ref().map(moved),
            score: moved(&self.score),
        }
    }

    /// Names and gradients.
    pub fn grads(&self) -> Vec<(&'static str, Tensor)> {
        let deep = self.deep_prompts.as_ref().map(|deep| ("deep_prompts", deep.grad()));
        [("prompts", self.prompts.grad()), ("score.weight", self.score.grad())].into_iter().chain(deep).collect()
    }
}

pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::Mean, -100, 0.0)
}

/// The largest difference.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes agree");
    (a - b).abs().max().double_value(&[])
}

/// Gradients agree to a part of their largest entry.
pub fn assert_grad(what: &str, found: &Tensor, expected: &Tensor) {
    let scale = expected.abs().max().double_value(&[]);
    let far = distance(found, expected) / scale;
    assert!(far <= TOLERANCE, "{what}: the gradient is off by {far:.2e} of its largest entry");
}

pub fn span(text: &str) -> Span {
    text.parse().expect("a span")
}
