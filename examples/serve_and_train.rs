//! A block server and a trainer in one process, without a pipeline file.
//!
//! `serve_and_train MODEL` serves the blocks of a Hugging Face folder, trains deep prompts and a head through them, and prints
//! the evaluations.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::{Checkpoint, linear_sites};
use sepal_config::spec::{EvaluateEvery, EvaluateSpec, KeptAdapter, TrainSpec};
use sepal_core::{DType, LabelKind, Span, WindowPool};
use sepal_data::{LabelSet, Loader, LoaderConfig, Table, TableSpec, TokenSpec, TokenTable};
use sepal_deep_ptune::DeepPtune;
use sepal_model::Model;
use sepal_nn::Parameters;
use sepal_plugin::{
    Head, HeadContext, Opt, OptContext, Registry, Sched, SchedContext, Tuning, TuningContext, standard,
};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_sequence_classification::SequenceClassification;
use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
use sepal_train::{Event, Observer, Silent, Trainer, TrainerContext, TrainerInputs, TrainerOptions};
use serde_json::json;

const REVIEWS: &str =
    "text,label\nwarm and funny,positive\ndull and flat,negative\nvery clever,positive\na boring film,negative\n";

/// Prints evaluations.
struct Printer;

impl Observer for Printer {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Evaluated { record, .. } = event {
            println!("after step {}: loss {:.4}, accuracy {:.2}", record.step, record.loss, record.metrics["accuracy"]);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let checkpoint = Checkpoint::open(std::env::args().nth(1).ok_or("name the folder of a model")?)?;
    let span = Span::new(0, checkpoint.config().n_blocks)?;

    // The server, as `sepal serve` runs it on another machine.
    let stack = BlockStack::load(&checkpoint, span)?;
    let identity = ModelIdentity::from_checkpoint(&checkpoint);
    let server = BlockServer::embedded(stack, identity, ServerOptions::default())?;

    // The client: embeddings, norm, prompts and head at home, blocks on the server.
    let mut model = build_model(&checkpoint, &server)?;
    let rows = load_rows(&checkpoint)?;
    let registry = registry()?;
    let total_steps = 40;
    let mut trainer = Trainer::new(
        TrainerInputs {
            model: &mut model,
            optimizer: registry.build::<Opt>("adamw", json!({ "lr": 0.02 }), &mut OptContext {})?,
            schedule: registry.build::<Sched>("linear", json!({}), &mut SchedContext { total_steps })?,
            train: &rows,
            validation: Some(&rows),
            options: TrainerOptions {
                train: TrainSpec { max_steps: Some(total_steps as u64), ..TrainSpec::default() },
                scaler: None,
                evaluate: EvaluateSpec { every: EvaluateEvery::Steps(20), ..EvaluateSpec::default() },
                default_metric: None,
                adapter: KeptAdapter::Best,
                class_rows: Vec::new(),
                started: Instant::now(),
                pause: None,
            },
        },
        String::new(),
    );
    trainer.run(&mut TrainerContext {
        recorder: &mut Silent,
        observer: &mut Printer,
        checkpoints: None,
        stop: &AtomicBool::new(false),
    })?;
    let outcome = trainer.into_outcome();
    println!("{} steps, best: {:?}", outcome.progress.steps, outcome.progress.best);
    Ok(())
}

fn registry() -> Result<Registry, Box<dyn Error>> {
    let mut registry = Registry::new();
    standard::register(&mut registry)?;
    registry.register::<Head, SequenceClassification>()?.register::<Tuning, DeepPtune>()?;
    Ok(registry)
}

fn build_model(checkpoint: &Checkpoint, server: &BlockServer) -> Result<Model, Box<dyn Error>> {
    let (config, registry, mut params) = (checkpoint.config(), registry()?, Parameters::new());
    let ends = Ends::load(checkpoint)?;
    let labels = json!({ "labels": ["negative", "positive"] });
    let mut context = HeadContext {
        params: &mut params,
        hidden: config.hidden,
        embeddings: ends.embeddings(),
        tokenize: &|_| Ok(Vec::new()),
        lm_rows: &|_| Err("the head starts at random".into()),
        is_restored: false,
        seed: 42,
    };
    let head = registry.build::<Head>("sequence-classification", labels, &mut context)?;
    let mut context = TuningContext {
        params: &mut params,
        n_blocks: config.n_blocks,
        hidden: config.hidden,
        kv_size: config.kv_size(),
        sites: &linear_sites(config),
        initializer_range: config.initializer_range,
        embeddings: ends.embeddings(),
        tokenize: &|_| Ok(Vec::new()),
        labels: head.label_names(),
        is_restored: false,
        seed: 42,
    };
    let tuning = registry.build::<Tuning>("deep-ptune", json!({ "pre_seq_len": 8 }), &mut context)?;
    let (digest, n_blocks, hidden) = (checkpoint.digest().to_owned(), config.n_blocks, config.hidden);
    let expected = ModelExpectation { digest, n_blocks, hidden, tunables: Vec::new() };
    let blocks = RemoteSequential::connect(vec![server.endpoint().clone()], expected, RemoteOptions::default())?;
    let blocks = Box::new(blocks);
    let (precision, window_pool) = (DType::F32, WindowPool::Mean);
    Ok(Model { ends, blocks, tuning, head, params, precision, calibration: None, window_pool })
}

fn load_rows(checkpoint: &Checkpoint) -> Result<Loader, Box<dyn Error>> {
    let mut file = tempfile::Builder::new().suffix(".csv").tempfile()?;
    file.write_all(REVIEWS.as_bytes())?;
    let table = Table::read(&TableSpec::new(file.path(), "text").with_label("label"))?;
    let labels = LabelSet::new(&["negative".to_owned(), "positive".to_owned()])?.labels_as(&table, LabelKind::Class)?;
    let tokens = TokenTable::build(&table, &checkpoint.tokenizer()?, &TokenSpec::new(32))?;
    Ok(Loader::new(Arc::new(tokens), Some(labels), LoaderConfig::default())?)
}
