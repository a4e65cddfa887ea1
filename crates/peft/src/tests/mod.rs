mod exported;
mod foreign;
mod imported;
mod with_peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sepal_blocks::{BlockStack, Ends, InjectedTensors};
use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, NamedHostTensor, Ragged, Span, Want};
use sepal_nn::init::{normal, rng};
use sepal_nn::{share_from_host, to_host};
use tch::Tensor;

use crate::adapter::{Adapter, TrainedPrefix};
use crate::{ExportError, ExportOptions, Exported, Form, Import, ImportError, ImportOptions, Verify, export};

const PREFIX_LEN: usize = 5;

fn tiny(name: &str) -> (PathBuf, Checkpoint) {
    let path = sepal_testkit::tiny::goldens().join(format!("tiny-{name}"));
    let checkpoint = Checkpoint::open(&path).expect("a golden");
    (path, checkpoint)
}

/// Random tensors of an adapter for two labels, and its metadata.
struct Random {
    tensors: Vec<NamedHostTensor>,
    metadata: BTreeMap<String, String>,
}

impl Random {
    fn new(checkpoint: &Checkpoint, deep: bool) -> Self {
        Self::of_len(PREFIX_LEN, checkpoint, deep)
    }

    fn of_len(prefix_len: usize, checkpoint: &Checkpoint, deep: bool) -> Self {
        let config = checkpoint.config();
        let (hidden, prefix_len) = (config.hidden as i64, prefix_len as i64);
        let mut tensors = vec![named("prompts", &[prefix_len, hidden])];
        if deep {
            tensors.push(named("deep_prompts", &[config.n_blocks as i64, prefix_len, hidden]));
        }
        tensors.push(named("score.weight", &[2, hidden]));
        let metadata = [
            ("model_digest", checkpoint.digest()),
            ("task", "sequence-classification"),
            ("tuning", if deep { "deep-ptune" } else { "ptune" }),
            ("labels", "bad\n\"good\""),
        ];
        let metadata = metadata.map(|(key, text)| (key.to_owned(), text.to_owned()));
        Self { tensors, metadata: metadata.into() }
    }

    fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("adapter.safetensors");
        sepal_nn::file::write(&path, &self.tensors, &self.metadata).expect("written");
        path
    }
}

fn named(name: &str, shape: &[i64]) -> NamedHostTensor {
    let numbers = normal(shape, 0.5, &mut rng(7, name)).expect("numbers");
    NamedHostTensor { name: name.to_owned(), tensor: to_host(&numbers, DType::F32).expect("on the host") }
}

/// Exports to `folder/out` and verifies the logits.
fn try_export(folder: &Path, checkpoint: &Checkpoint, adapter: &Path, form: Form) -> Result<Exported, ExportError> {
    let options = ExportOptions {
        base_model: "owner/name".to_owned(),
        form,
        verify: Verify::Samples,
        ..ExportOptions::default()
    };
    export(&options, checkpoint, adapter, &folder.join("out"))
}

/// Imports without a run. Returns the adapter and the notices.
fn import(
    options: &ImportOptions,
    checkpoint: Option<&Checkpoint>,
    folder: &Path,
    out: &Path,
) -> Result<(PathBuf, Vec<String>), ImportError> {
    let import = Import::open(options, checkpoint, folder, out)?;
    let notices = import.notices().to_vec();
    Ok((import.finish(None)?, notices))
}

/// Computes logits `[rows, n_labels]` with the adapter's prompts, as in training.
fn logits(checkpoint: &Checkpoint, adapter: &Path, rows: &[Vec<i64>]) -> Vec<f64> {
    let adapter = Adapter::read(adapter).expect("an adapter");
    let ends = Ends::load(checkpoint).expect("loads");
    let all = Span::new(0, checkpoint.config().n_blocks).expect("blocks");
    let blocks = BlockStack::load(checkpoint, all).expect("loads");
    let lengths = Ragged::from_lengths(rows.iter().map(Vec::len)).expect("rows");
    let tensor = |host| share_from_host(host).expect("a tensor");
    let tokens = ends.embed(&Tensor::from_slice(&rows.concat())).expect("embedded");
    let (prompts, deep, keys_values) = match &adapter.prefix {
        TrainedPrefix::Prompts { prompts, deep_prompts } => (tensor(prompts), deep_prompts.as_ref().map(tensor), None),
        TrainedPrefix::KeysValues(given) => {
            let places = [adapter.prefix_len(), checkpoint.config().hidden].map(|size| size as i64);
            (Tensor::zeros(places, (tch::Kind::Float, tch::Device::Cpu)), None, Some(tensor(given)))
        }
    };
    let prefix = ends.embed_prompts(&prompts).expect("embedded");
    let hidden = Tensor::cat(&[prefix, tokens], 0);
    let injected = InjectedTensors { deep_prompts: deep.as_ref(), keys_values: keys_values.as_ref() };
    let pooled = blocks.forward_with(all, &hidden, adapter.prefix_len(), &lengths, injected, Want::LastOfRows);
    let pooled = ends.final_norm(&pooled.expect("computed")).expect("normed");
    let logits = pooled.linear(&tensor(&adapter.score), None::<Tensor>);
    Vec::try_from(logits.flatten(0, -1).to_kind(tch::Kind::Double)).expect("numbers")
}
