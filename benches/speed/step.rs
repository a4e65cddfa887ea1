//! A training step, forward and backward, in three ways.
//!
//! - `direct`: ragged rows with one shared prefix, in this process;
//! - `remote`: the same through embedded or separate servers;
//! - `padded`: padded rows with the prefix computed for each row, in this process, as in PEFT.

use sepal_blocks::BlockStack;
use sepal_core::{ComputeFormat, DEEP_PROMPTS, ModelConfig, Ragged, Span, Want};
use sepal_nn::{Tunable, init};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
use sepal_swarm::Endpoint;
use tch::{Kind, Tensor};

use crate::model::Random;

/// Typical lengths of sentences: 32 rows from 3 to 40 tokens, mean 13.
pub(crate) const LENGTHS: [usize; 32] =
    [12, 7, 3, 26, 8, 19, 13, 5, 40, 11, 7, 21, 3, 16, 12, 31, 8, 3, 23, 10, 12, 7, 26, 5, 18, 12, 3, 25, 11, 6, 16, 7];
const PADDED: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) lengths: Vec<usize>,
    pub(crate) padded_to: usize,
    pub(crate) prefix_len: usize,
    pub(crate) is_deep: bool,
}

impl Workload {
    /// Sentences with 16 deep prompts.
    pub(crate) fn sentences(n_rows: usize) -> Self {
        let lengths = LENGTHS.into_iter().cycle().take(n_rows).collect();
        Self { lengths, padded_to: PADDED, prefix_len: 16, is_deep: true }
    }

    /// Rows of one length, so that nothing is padded.
    pub(crate) fn full(n_rows: usize, len: usize) -> Self {
        Self { lengths: vec![len; n_rows], padded_to: len, ..Self::sentences(0) }
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Number of positions that linear layers compute for ragged rows.
    pub(crate) fn positions(&self) -> usize {
        self.prefix_len + self.n_tokens()
    }
}

pub(crate) struct Inputs {
    work: Workload,
    rows: Ragged,
    prompts: Tensor,              // [prefix_len, hidden]
    deep_prompts: Option<Tensor>, // [n_blocks, prefix_len, hidden]
    text: Tensor,                 // [n_tokens, hidden]
    padded: Tensor,               // [rows, padded_to, hidden]
}

impl Inputs {
    pub(crate) fn new(config: &ModelConfig, work: &Workload) -> Self {
        let rows = Ragged::from_lengths(work.lengths.iter().copied()).expect("rows");
        let random = |shape: &[usize]| {
            let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
            init::normal(&shape, 0.5, &mut init::rng(2, "inputs")).expect("numbers")
        };
        let deep = || random(&[config.n_blocks, work.prefix_len, config.hidden]).set_requires_grad(true);
        Self {
            prompts: random(&[work.prefix_len, config.hidden]).set_requires_grad(true),
            deep_prompts: work.is_deep.then(deep),
            text: random(&[rows.n_tokens(), config.hidden]),
            padded: random(&[rows.len(), work.padded_to, config.hidden]),
            work: work.clone(),
            rows,
        }
    }

    pub(crate) fn direct(&self, stack: &BlockStack) {
        self.direct_part(stack, stack.span());
    }

    pub(crate) fn direct_part(&self, stack: &BlockStack, part: Span) {
        let hidden = Tensor::cat(&[&self.prompts, &self.text], 0);
        let tunables = self.tunables(part);
        let prefix_len = self.work.prefix_len;
        let last = stack.forward_with(part, &hidden, prefix_len, &self.rows, &tunables, Want::LastOfRows);
        backward(&last.expect("a forward"));
    }

    /// Deep prompts of the blocks `part`.
    fn tunables(&self, part: Span) -> Vec<Tunable> {
        let tunable = |deep: &Tensor| {
            let deep = deep.narrow(0, part.start() as i64, part.len() as i64);
            Tunable { first_block: part.start(), ..Tunable::new(DEEP_PROMPTS, deep) }
        };
        self.deep_prompts.iter().map(tunable).collect()
    }

    pub(crate) fn remote(&self, remote: &RemoteSequential) {
        self.remote_on(remote, &self.text);
    }

    /// Runs with other hidden states for the text.
    pub(crate) fn remote_on(&self, remote: &RemoteSequential, text: &Tensor) {
        let deep = self.deep_prompts.iter().map(|deep| Tunable::new(DEEP_PROMPTS, deep.shallow_clone()));
        let tuned = remote.tune(deep.collect()).expect("tuned");
        let last = tuned.forward(Some(&self.prompts), text, &self.rows, Want::LastOfRows);
        backward(&last.expect("a forward"));
    }

    pub(crate) fn padded(&self, stack: &BlockStack) {
        let (n_rows, seq) = (self.rows.len() as i64, (self.work.prefix_len + self.work.padded_to) as i64);
        let hidden = stack.config().hidden as i64;
        let rows = Ragged::from_lengths(vec![seq as usize; self.rows.len()]).expect("rows");
        let prompts = self.prompts.unsqueeze(0).expand([n_rows, -1, hidden], false);
        let mut states = Tensor::cat(&[&prompts, &self.padded], 1); // [rows, prefix_len + padded_to, hidden]
        let deep = self.deep_prompts.as_ref().map(|deep| deep.unbind(0));
        for block_idx in stack.span().blocks() {
            let entered = match &deep {
                Some(deep) => states + deep[block_idx].constant_pad_nd([0, 0, 0, self.work.padded_to as i64]),
                None => states,
            };
            let block = Span::new(block_idx, block_idx + 1).expect("a span");
            let flat = entered.view([n_rows * seq, hidden]);
            let flat = stack.forward_with(block, &flat, 0, &rows, &[], Want::All).expect("a forward");
            states = flat.view([n_rows, seq, hidden]);
        }
        let ends =
            self.work.lengths.iter().zip(0..).map(|(len, row)| row * seq + (self.work.prefix_len + len - 1) as i64);
        let last = Tensor::from_slice(&ends.collect::<Vec<i64>>());
        backward(&states.view([n_rows * seq, hidden]).index_select(0, &last));
    }
}

fn backward(last: &Tensor) {
    last.sum(Kind::Float).backward();
}

pub(crate) fn connect(servers: Vec<Endpoint>, digest: &str, config: &ModelConfig) -> RemoteSequential {
    let (digest, n_blocks, hidden) = (digest.to_owned(), config.n_blocks, config.hidden);
    let expected = ModelExpectation { digest, n_blocks, hidden, tunables: Vec::new() };
    RemoteSequential::connect(servers, expected, RemoteOptions::default()).expect("connected")
}

pub(crate) fn moved(remote: &RemoteSequential) -> u64 {
    remote.traffic().up() + remote.traffic().down()
}

pub(crate) struct Embedded {
    pub(crate) remote: RemoteSequential,
    _server: BlockServer,
}

impl Embedded {
    pub(crate) fn new(random: &Random, config: &ModelConfig) -> Self {
        let server = BlockServer::embedded(random.all_blocks(), identity(config), ServerOptions::default());
        let server = server.expect("a server");
        let remote = connect(vec![server.endpoint().clone()], "random", config);
        Self { remote, _server: server }
    }
}

pub(crate) fn identity(config: &ModelConfig) -> ModelIdentity {
    ModelIdentity {
        digest: "random".to_owned(),
        family: config.family.name().to_owned(),
        n_blocks: config.n_blocks,
        hidden: config.hidden,
        weights: "random".to_owned(),
        compute: ComputeFormat::F32,
    }
}
