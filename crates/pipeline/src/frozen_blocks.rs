//! The frozen parts of a model for programs with a training loop of their own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sepal_assets::Assets;
use sepal_blocks::Ends;
use sepal_config::Spec;
use sepal_core::ModelConfig;
use sepal_model::Blocks;
use sepal_prepare::Fetcher;
use sepal_tokenize::Tokenizer;

use crate::connect::{SwarmHandle, connect};
use crate::error::RunError;
use crate::frozen_model::FrozenModel;
use crate::progress::Observer;
use crate::run::set_threads;

/// Frozen blocks of a pipeline's model, wherever its swarm places them, with the model's ends and tokenizer.
pub struct FrozenBlocks {
    /// All blocks.
    pub blocks: Box<dyn Blocks>,
    /// Embeddings and final norm.
    pub ends: Ends,
    /// Tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Shape of the model.
    pub config: ModelConfig,
    /// Keeps the servers in use. Dropped after the blocks.
    _servers: SwarmHandle,
}

impl FrozenBlocks {
    /// Fetches the model of `spec` and loads its blocks or connects to their servers. Only `model`, `swarm` and the formats and
    /// threads of `train` are used.
    ///
    /// # Errors
    /// [`RunError::Model`] or [`RunError::Assemble`] if a part is not available.
    pub fn open(spec: &Spec, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Self, RunError> {
        set_threads(spec);
        let assets = Assets::from_env();
        let frozen = FrozenModel::fetch(spec, &mut Fetcher { assets: &assets, observer: &mut *observer, stop })?;
        let ends = frozen.load_ends()?;
        let (servers, blocks) = connect(spec, &frozen.checkpoint, Vec::new(), &frozen.servers, observer)?;
        let config = frozen.checkpoint.config().clone();
        Ok(Self { blocks, ends, tokenizer: frozen.tokenizer, config, _servers: servers })
    }
}

impl std::fmt::Debug for FrozenBlocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenBlocks").field("blocks", &self.blocks.description()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use sepal_blocks::BlockStack;
    use sepal_checkpoint::Checkpoint;
    use sepal_config::Layers;
    use sepal_core::{Ragged, Span, Want};
    use sepal_plugin::{Head, Registry, Tuning, standard};
    use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
    use tch::Tensor;

    use super::*;
    use crate::progress::Silent;

    fn open(swarm: &str, folder: &std::path::Path) -> FrozenBlocks {
        let model = sepal_testkit::tiny::model(folder, "llama-gqa");
        let text = format!(
            "name: blocks\n\
             model: {{ source: {} }}\n\
             swarm: {{ use: {swarm} }}\n\
             task: {{ use: sequence-classification, with: {{ labels: [a, b] }} }}\n\
             tuning: {{ use: ptune, with: {{ pre_seq_len: 1 }} }}\n\
             data: {{ train: none.csv, validation: none.csv, text: text, label: label }}\n\
             optimizer: {{ use: adamw, with: {{ lr: 1.0e-3 }} }}\n\
             schedule: {{ use: constant }}\n",
            model.display()
        );
        let mut registry = Registry::new();
        standard::register(&mut registry).expect("registered");
        registry.register::<Head, sepal_sequence_classification::SequenceClassification>().expect("registered");
        registry.register::<Tuning, sepal_ptune::Ptune>().expect("registered");
        let spec = Layers::text("blocks", text).load(registry.catalog()).expect("a pipeline").spec;
        FrozenBlocks::open(&spec, &mut Silent, &AtomicBool::new(false)).expect("opened")
    }

    /// Returns the output of the blocks for a text of four tokens.
    fn output(frozen: &FrozenBlocks) -> Vec<f32> {
        let ids = frozen.tokenizer.encode("the film was funny", None, 8).expect("encoded").ids;
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let tokens = frozen.ends.embed(&Tensor::from_slice(&ids)).expect("embedded");
        let rows = Ragged::from_lengths([ids.len()]).expect("a row");
        let session = frozen.blocks.tune(Vec::new()).expect("a session");
        let output = session.forward(None, &tokens, &rows, Want::Tokens).expect("computed");
        assert_eq!(output.size(), [4, frozen.config.hidden as i64]);
        Vec::<f32>::try_from(output.reshape([-1])).expect("numbers")
    }

    #[test]
    fn frozen_blocks_are_equal_in_this_process_and_behind_the_protocol() {
        let folder = tempfile::tempdir().expect("a folder");
        let outputs = ["none", "embedded"].map(|swarm| output(&open(swarm, folder.path())));
        let difference = outputs[0].iter().zip(&outputs[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= 1e-5, "{difference}");
    }

    #[test]
    fn calls_to_the_only_server_are_checked_with_own_blocks() {
        let [folder, served] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let checkpoint = Checkpoint::open(sepal_testkit::tiny::model(served.path(), "llama-gqa")).expect("a model");
        let span = Span::new(0, checkpoint.config().n_blocks).expect("blocks");
        let stack = BlockStack::load(&checkpoint, span).expect("blocks");
        let identity = ModelIdentity::from_checkpoint(&checkpoint);
        let addr = "127.0.0.1:0".parse().expect("an address");
        let server = BlockServer::listen(stack, identity, ServerOptions::default(), addr).expect("a server");
        let endpoint = server.endpoint();
        let swarm = format!("static, with: {{ servers: ['{endpoint}'], verify: 1.0, verify_locally: true }}");
        let frozen = open(&swarm, folder.path());
        output(&frozen);
        let usage = frozen.blocks.server_usage();
        assert_eq!((usage[0].calls, usage[0].checks, usage[0].differences), (1, 1, 0));
    }
}
