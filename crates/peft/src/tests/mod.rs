mod exported;
mod foreign;
mod imported;
mod layers;
mod merged;
mod with_peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::{Checkpoint, linear_sites};
use sepal_core::{DType, LinearSite, NamedHostTensor, Ragged, SiteRole, Span, Want};
use sepal_nn::init::{normal, rng};
use sepal_nn::{share_from_host, to_host};
use serde_json::json;
use tch::Tensor;

use crate::adapter::Adapter;
use crate::block_inputs::BlockInputs;
use crate::{
    ExportError, ExportOptions, Exported, Form, Import, ImportError, ImportOptions, UsedPlugin, Verify, export,
};

/// Names of the head in files of PEFT.
const HEAD: &str = "base_model.score.weight";
const HEAD_BESIDE_LAYERS: &str = "base_model.model.score.weight";

const PREFIX_LEN: usize = 5;

/// Rank of low-rank factors, which are larger in none of the tiny models' layers, and alpha.
const RANK: usize = 3;
const ALPHA: f64 = 5.0;

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
        Self::with_head(checkpoint, if deep { "deep-ptune" } else { "ptune" }, tensors)
    }

    /// Low-rank factors of the last `blocks` blocks, for sites that are chosen.
    fn lora(checkpoint: &Checkpoint, blocks: usize, is_chosen: impl Fn(&LinearSite) -> bool) -> Self {
        let (blocks, rank) = (blocks as i64, RANK as i64);
        let factors = |site: &LinearSite| {
            let LinearSite { name, outputs, inputs, .. } = site;
            [
                with_std(0.2, &format!("lora_A:{name}"), &[blocks, rank, *inputs as i64]),
                with_std(0.2, &format!("lora_B:{name}"), &[blocks, *outputs as i64, rank]),
            ]
        };
        let sites = linear_sites(checkpoint.config());
        let tensors = sites.iter().filter(|site| is_chosen(site)).flat_map(factors);
        Self::with_head(checkpoint, "lora", tensors.collect())
    }

    /// Factors of all outputs, and of the inputs of the MLP's last layer.
    fn ia3(checkpoint: &Checkpoint) -> Self {
        let n_blocks = checkpoint.config().n_blocks as i64;
        let factors = |site: &LinearSite| match site.role {
            SiteRole::MlpOutput => named(&format!("scale_input:{}", site.name), &[n_blocks, site.inputs as i64]),
            _ => named(&format!("scale_output:{}", site.name), &[n_blocks, site.outputs as i64]),
        };
        let sites = linear_sites(checkpoint.config());
        Self::with_head(checkpoint, "ia3", sites.iter().map(factors).collect())
    }

    fn with_head(checkpoint: &Checkpoint, tuning: &str, mut tensors: Vec<NamedHostTensor>) -> Self {
        tensors.push(named("score.weight", &[2, checkpoint.config().hidden as i64]));
        let metadata = [
            ("model_digest", checkpoint.digest()),
            ("task", "sequence-classification"),
            ("tuning", tuning),
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

/// Options of a run with the factors of [`Random::lora`].
fn lora_options(rslora: bool) -> UsedPlugin {
    let options = json!({ "r": RANK, "alpha": ALPHA, "rslora": rslora });
    UsedPlugin { name: "lora".to_owned(), with: options.as_object().expect("an object").clone() }
}

fn lora_factor(rslora: bool) -> f64 {
    ALPHA / if rslora { (RANK as f64).sqrt() } else { RANK as f64 }
}

fn named(name: &str, shape: &[i64]) -> NamedHostTensor {
    with_std(0.5, name, shape)
}

fn with_std(std: f64, name: &str, shape: &[i64]) -> NamedHostTensor {
    let numbers = normal(shape, std, &mut rng(7, name)).expect("numbers");
    NamedHostTensor { name: name.to_owned(), tensor: to_host(&numbers, DType::F32).expect("on the host") }
}

/// Exports to `folder/out` and verifies the logits.
fn try_export(folder: &Path, checkpoint: &Checkpoint, adapter: &Path, form: Form) -> Result<Exported, ExportError> {
    let options = ExportOptions {
        base_model: "owner/name".to_owned(),
        form: Some(form),
        verify: Verify::Samples,
        tuning: vec![lora_options(false)],
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

/// Returns the factor of the low-rank additions of imported modes, or 1.
fn imported_factor(modes: &[UsedPlugin]) -> f64 {
    let Some(lora) = modes.iter().find(|mode| mode.name == "lora") else { return 1.0 };
    let [rank, alpha] = ["r", "alpha"].map(|key| lora.with[key].as_f64().expect("a number"));
    if lora.with["rslora"] == json!(true) { alpha / rank.sqrt() } else { alpha / rank }
}

/// Computes logits `[rows, n_labels]` with the adapter, as in training. `factor` is that of low-rank additions.
fn logits(checkpoint: &Checkpoint, adapter: &Path, factor: f64, rows: &[Vec<i64>]) -> Vec<f64> {
    let adapter = Adapter::read(adapter).expect("an adapter");
    let ends = Ends::load(checkpoint).expect("loads");
    let inputs = BlockInputs::new(&adapter, factor, &ends, checkpoint.config()).expect("inputs");
    logits_of(checkpoint, &ends, &inputs, &share_from_host(&adapter.score).expect("a tensor"), rows)
}

fn logits_of(
    checkpoint: &Checkpoint,
    ends: &Ends,
    inputs: &BlockInputs,
    score: &Tensor,
    rows: &[Vec<i64>],
) -> Vec<f64> {
    let all = Span::new(0, checkpoint.config().n_blocks).expect("blocks");
    let blocks = BlockStack::load(checkpoint, all).expect("loads");
    let lengths = Ragged::from_lengths(rows.iter().map(Vec::len)).expect("rows");
    let tokens = ends.embed(&Tensor::from_slice(&rows.concat())).expect("embedded");
    let hidden = Tensor::cat(&[inputs.prefix.shallow_clone(), tokens], 0);
    let pooled = blocks.forward_with(all, &hidden, inputs.prefix_len(), &lengths, &inputs.tunables, Want::LastOfRows);
    let pooled = ends.final_norm(&pooled.expect("computed")).expect("normed");
    let logits = pooled.linear(score, None::<Tensor>);
    Vec::try_from(logits.flatten(0, -1).to_kind(tch::Kind::Double)).expect("numbers")
}

/// Returns the largest difference of two lists of logits.
fn difference(one: &[f64], other: &[f64]) -> f64 {
    assert_eq!(one.len(), other.len());
    let off = one.iter().zip(other).map(|(one, other)| (one - other).abs());
    off.fold(0.0, |largest: f64, off| if off.is_nan() { off } else { largest.max(off) })
}
