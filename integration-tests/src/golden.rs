//! Tiny models with reference outputs of PyTorch, served by this process.

use std::collections::HashMap;

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::Checkpoint;
use sepal_core::{DEEP_PROMPTS, PREFIX_KEYS_VALUES, Ragged, Span, TunableName, Want};
use sepal_nn::{Parameters, Tunable};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use sepal_swarm::Endpoint;
use tch::{Device, Kind, Reduction, Tensor};

/// Maximum difference of outputs.
pub const TOLERANCE: f64 = 1e-4;

/// Tiny model with the reference outputs of PyTorch.
pub struct Golden {
    pub checkpoint: Checkpoint,
    pub ends: Ends,
    pub rows: Ragged,
    pub ids: Tensor,
    /// Learning rate at which plain gradient descent with the default mode learns.
    pub lr: f64,
    /// Mode of [`trained`](Self::trained).
    mode: &'static str,
    /// Reduction of the losses of the rows.
    reduction: Reduction,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    /// Opens the numbers of prompts and deep prompts.
    pub fn open(name: &str) -> Self {
        Self::read(name, &format!("tiny-{name}.golden.safetensors"), "deep", Reduction::Mean)
    }

    /// Opens the numbers of adapters, of which the default are low-rank factors of all layers.
    pub fn with_adapters(name: &str) -> Self {
        Self::read(name, &format!("adapters/{name}.safetensors"), "lora", Reduction::Sum)
    }

    /// Opens the numbers of a training run of low-rank factors of queries and values.
    pub fn replay() -> Self {
        Self::read("llama-gqa", "adapters/replay.safetensors", "init", Reduction::Mean)
    }

    fn read(name: &str, file: &str, mode: &'static str, reduction: Reduction) -> Self {
        let folder = sepal_testkit::tiny::goldens();
        let checkpoint = Checkpoint::open(folder.join(format!("tiny-{name}"))).expect("a checkpoint");
        let ends = Ends::load(&checkpoint).expect("ends");
        let tensors = Tensor::read_safetensors(folder.join(file));
        let tensors: HashMap<String, Tensor> = tensors.expect("goldens").into_iter().collect();
        let offsets: Vec<i64> = Vec::try_from(&tensors["offsets"]).expect("integers");
        let rows = Ragged::from_offsets(offsets.iter().map(|&offset| offset as u32).collect()).expect("rows");
        let ids = tensors["ids"].shallow_clone();
        let lr = if reduction == Reduction::Sum { 0.005 } else { 0.05 };
        Self { checkpoint, ends, rows, ids, lr, mode, reduction, tensors }
    }

    /// Returns the trainable tensors of the default mode.
    pub fn trained(&self) -> Trained {
        Trained::new(self, self.mode)
    }

    /// Returns the loss of the rows.
    pub fn loss(&self, logits: &Tensor) -> Tensor {
        logits.cross_entropy_loss(&self.get("labels"), None::<Tensor>, self.reduction, -100, 0.0)
    }

    /// Names of the cases of adapters.
    pub fn cases(&self) -> Vec<String> {
        let case = |key: &String| Some(key.strip_suffix(".logits")?.to_owned());
        let mut cases: Vec<String> = self.tensors.keys().filter_map(case).collect();
        cases.sort();
        cases
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
        let (digest, hidden) = (self.checkpoint.digest().to_owned(), self.checkpoint.config().hidden);
        ModelExpectation { digest, n_blocks: self.n_blocks(), hidden, tunables: Vec::new() }
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

    /// Asserts that the gradients are those of PyTorch.
    pub fn assert_grads(&self, trained: &Trained) {
        for (name, grad) in trained.grads() {
            assert_grad(&name, &grad, &self.get(&format!("{}.grad.{name}", trained.mode)));
        }
    }

    /// Returns tunables of the model's last blocks, those of a case of adapters.
    fn adapters(&self, case: &str) -> Vec<Tunable> {
        let prefix = format!("{case}.");
        let names = self.tensors.keys().filter_map(|key| key.strip_prefix(&prefix));
        let mut names: Vec<&str> = names.filter(|name| TunableName::parse(name).is_some()).collect();
        names.sort_unstable();
        let tunable = |name: &str| {
            let leaf = self.leaf(&format!("{case}.{name}"));
            Tunable { first_block: self.n_blocks() - leaf.size()[0] as usize, ..Tunable::new(name, leaf) }
        };
        names.into_iter().map(tunable).collect()
    }

    pub fn connect(&self, servers: &[BlockServer], options: RemoteOptions) -> RemoteSequential {
        let endpoints: Vec<Endpoint> = servers.iter().map(|server| server.endpoint().clone()).collect();
        RemoteSequential::connect(endpoints, self.expectation(), options).expect("connected")
    }
}

/// Trainable tensors of the goldens.
pub struct Trained {
    pub score: Tensor,
    mode: String,
    prompts: Option<Tensor>,
    /// Tensors inside the blocks. Second low-rank factors exclude the scaling.
    leaves: Vec<Tunable>,
    scaling: f64,
}

impl Trained {
    /// Returns the tensors of `ptune`, of `deep`, or of a case of adapters.
    pub fn new(golden: &Golden, mode: &str) -> Self {
        let prompts = || Some(golden.leaf("prompts"));
        let (prompts, leaves) = match mode {
            "ptune" => (prompts(), Vec::new()),
            "deep" => (prompts(), vec![Tunable::new(DEEP_PROMPTS, golden.leaf(DEEP_PROMPTS))]),
            case => (None, golden.adapters(case)),
        };
        let scaling = ["scaling".to_owned(), format!("{mode}.scaling")].iter().find_map(|key| golden.tensors.get(key));
        let score = if mode == "init" { "init.score.weight" } else { "score.weight" };
        Self {
            score: golden.leaf(score),
            mode: mode.to_owned(),
            prompts,
            leaves,
            scaling: scaling.map_or(1.0, |scaling| scaling.double_value(&[])),
        }
    }

    pub fn prompts(&self) -> &Tensor {
        self.prompts.as_ref().expect("prompts")
    }

    /// Returns the tunables as the blocks take them.
    pub fn tunables(&self) -> Vec<Tunable> {
        let mut tunables: Vec<Tunable> = self.leaves.iter().map(Tunable::shallow_clone).collect();
        for tunable in tunables.iter_mut().filter(|tunable| tunable.name.starts_with("lora_B:")) {
            tunable.tensor = &tunable.tensor * self.scaling;
        }
        tunables
    }

    /// Size of the tunables in bytes, as fp32.
    pub fn tunable_bytes(&self) -> u64 {
        self.leaves.iter().map(|leaf| leaf.tensor.numel() as u64 * 4).sum()
    }

    /// Returns the prefix before each row: the prompts, or a placeholder for injected keys and values.
    pub fn prefix(&self, golden: &Golden) -> Option<Tensor> {
        if let Some(prompts) = &self.prompts {
            return Some(golden.ends.embed_prompts(prompts).expect("a prefix"));
        }
        let keys_values = self.leaves.iter().find(|leaf| leaf.name == PREFIX_KEYS_VALUES)?;
        let size = [keys_values.tensor.size()[1], golden.checkpoint.config().hidden as i64];
        Some(Tensor::zeros(size, (Kind::Float, Device::Cpu)))
    }

    /// Computes the logits `[rows, labels]` of the rows through the servers.
    pub fn logits(&self, golden: &Golden, remote: &RemoteSequential, ids: &Tensor, rows: &Ragged) -> Tensor {
        let tuned = remote.tune(self.tunables()).expect("tuned");
        let tokens = golden.ends.embed(ids).expect("tokens");
        let pooled = tuned.forward(self.prefix(golden).as_ref(), &tokens, rows, Want::LastOfRows).expect("a forward");
        golden.ends.final_norm(&pooled).expect("a norm").linear(&self.score, None::<Tensor>)
    }

    /// Computes the logits of the rows of the goldens through the servers.
    pub fn golden_logits(&self, golden: &Golden, remote: &RemoteSequential) -> Tensor {
        self.logits(golden, remote, &golden.ids, &golden.rows)
    }

    /// Computes the logits of the rows of the goldens with blocks in this process.
    pub fn local_logits(&self, golden: &Golden, stack: &BlockStack) -> Tensor {
        let (prefix, tokens) = (self.prefix(golden), golden.ends.embed(&golden.ids).expect("tokens"));
        let prefix_len = prefix.as_ref().map_or(0, |prefix| prefix.size()[0] as usize);
        let hidden = Tensor::cat(&prefix.into_iter().chain([tokens]).collect::<Vec<_>>(), 0);
        let pooled = stack.forward(&hidden, prefix_len, &golden.rows, &self.tunables(), Want::LastOfRows);
        let normed = golden.ends.final_norm(&pooled.expect("a forward")).expect("a norm");
        normed.linear(&self.score, None::<Tensor>)
    }

    /// Returns the tensors after one step of plain gradient descent.
    pub fn step(&self, lr: f64) -> Self {
        let moved = |tensor: &Tensor| (tensor.detach() - tensor.grad() * lr).set_requires_grad(true);
        let leaf = |leaf: &Tunable| Tunable { tensor: moved(&leaf.tensor), ..leaf.shallow_clone() };
        Self {
            score: moved(&self.score),
            mode: self.mode.clone(),
            prompts: self.prompts.as_ref().map(moved),
            leaves: self.leaves.iter().map(leaf).collect(),
            scaling: self.scaling,
        }
    }

    /// Returns the trainable tensors by their names in the goldens.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let prompts = self.prompts.iter().map(|prompts| ("prompts".to_owned(), prompts));
        let score = [("score.weight".to_owned(), &self.score)];
        prompts.chain(score).chain(self.leaves.iter().map(|leaf| (leaf.name.clone(), &leaf.tensor))).collect()
    }

    /// Returns the same trainable tensors with the values and graphs of `params`.
    pub fn with_parameters(&self, params: &Parameters) -> Self {
        let find = |name: &str| params.get(name).expect("a parameter of this name").shallow_clone();
        let leaf = |leaf: &Tunable| Tunable { tensor: find(&leaf.name), ..leaf.shallow_clone() };
        Self {
            score: find("score.weight"),
            mode: self.mode.clone(),
            prompts: self.prompts.as_ref().map(|_| find("prompts")),
            leaves: self.leaves.iter().map(leaf).collect(),
            scaling: self.scaling,
        }
    }

    pub fn grads(&self) -> Vec<(String, Tensor)> {
        self.parameters().into_iter().map(|(name, tensor)| (name, tensor.grad())).collect()
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
