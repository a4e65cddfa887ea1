use std::collections::HashMap;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use sepal_core::{DEEP_PROMPTS, DType, HostTensor, Ragged, Want};
use sepal_nn::Tunable;
use tch::{Kind, Tensor};

use crate::model::{Tiny, goldens, models, tiny_models};

pub(crate) struct Golden {
    pub(crate) floats: HashMap<String, Tensor>,
    pub(crate) integers: HashMap<String, Vec<i64>>,
}

impl Golden {
    fn open(name: &str) -> Self {
        Self::read(&format!("tiny-{name}.golden.safetensors"))
    }

    pub(crate) fn read(file: &str) -> Self {
        let bytes = std::fs::read(goldens().join(file)).expect("a golden");
        let (mut floats, mut integers) = (HashMap::new(), HashMap::new());
        for (name, view) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
            if view.dtype() == Dtype::I64 {
                let number = |eight: &[u8]| i64::from_le_bytes(eight.try_into().expect("eight bytes"));
                integers.insert(name, view.data().chunks_exact(8).map(number).collect());
            } else {
                let data = Bytes::copy_from_slice(view.data());
                let host = HostTensor::new(DType::F32, view.shape().to_vec(), data).expect("fp32");
                floats.insert(name, sepal_nn::from_host(&host).expect("a tensor"));
            }
        }
        Self { floats, integers }
    }

    pub(crate) fn trainable(&self, name: &str) -> Tensor {
        self.floats[name].copy().set_requires_grad(true)
    }

    pub(crate) fn rows(&self) -> Ragged {
        Ragged::from_offsets(self.integers["offsets"].iter().map(|&offset| offset as u32).collect()).expect("rows")
    }
}

/// Errors against a golden: absolute for logits and the loss, relative to their largest entry for gradients.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Errors {
    pub(crate) logits: f64,
    pub(crate) loss: f64,
    pub(crate) grads: f64,
}

impl Errors {
    pub(crate) fn max(self, other: Self) -> Self {
        let Self { logits, loss, grads } = other;
        Self { logits: self.logits.max(logits), loss: self.loss.max(loss), grads: self.grads.max(grads) }
    }
}

/// Measures the errors of a golden with its first `prefix_len` prompts.
fn measure(name: &str, mode: &str, prefix_len: usize) -> Errors {
    let (model, golden) = (Tiny::open(name), Golden::open(name));
    let (ends, stack, rows) = (model.ends(), model.full_stack(), golden.rows());
    let first =
        |tensor: Tensor, dim: i64| tensor.detach().narrow(dim, 0, prefix_len as i64).copy().set_requires_grad(true);
    let (prompts, score) = (first(golden.trainable("prompts"), 0), golden.trainable("score.weight"));
    let deep = (mode == "deep").then(|| first(golden.trainable("deep_prompts"), 1));

    let text = ends.embed(&Tensor::from_slice(&golden.integers["ids"])).expect("embedded");
    let hidden = Tensor::cat(&[ends.embed_prompts(&prompts).expect("embedded"), text], 0);
    let tunables: Vec<Tunable> = deep.iter().map(|deep| Tunable::new(DEEP_PROMPTS, deep.shallow_clone())).collect();
    let last = stack.forward(&hidden, prefix_len, &rows, &tunables, Want::LastOfRows).expect("a forward");
    let logits = ends.final_norm(&last).expect("normed").matmul(&score.tr());
    let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&golden.integers["labels"]));
    loss.backward();
    assert_eq!(logits.kind(), Kind::Float);

    let case = if prefix_len == PREFIX { mode.to_owned() } else { format!("p{prefix_len}.{mode}") };
    let expected = |name: &str| &golden.floats[&format!("{case}.{name}")];
    let trained = [("score.weight", Some(&score)), ("prompts", Some(&prompts)), ("deep_prompts", deep.as_ref())];
    let trained = trained.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)));
    let trained = trained.filter(|(name, _)| prefix_len > 0 || *name == "score.weight");
    let grads = trained.map(|(name, tensor)| {
        let expected = expected(&format!("grad.{name}"));
        largest_error(&tensor.grad(), expected) / f64::try_from(expected.abs().max()).expect("a number")
    });
    Errors {
        logits: largest_error(&logits, expected("logits")),
        loss: largest_error(&loss, expected("loss")),
        grads: grads.fold(0.0, f64::max),
    }
}

pub(crate) fn largest_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let off = f64::try_from((found - expected).abs().max()).expect("a number");
    assert!(off.is_finite());
    off
}

/// Number of prompts in the goldens.
const PREFIX: usize = 5;
/// Error below which a result counts as exact.
pub(crate) const EXACT: f64 = 1e-4;

/// Returns the largest errors of a model's goldens: no prompts, one and five of them, with and without deep prompts.
pub(crate) fn largest_errors(name: &str) -> Errors {
    let cases = [("ptune", 0), ("ptune", 1), ("ptune", PREFIX), ("deep", 1), ("deep", PREFIX)];
    cases.into_iter().map(|(mode, prefix_len)| measure(name, mode, prefix_len)).fold(Errors::default(), Errors::max)
}

#[test]
fn models_equal_transformers() {
    for name in &models() {
        let off = largest_errors(name);
        assert!(off.logits < EXACT && off.loss < EXACT && off.grads < EXACT, "{name} is off: {off:?}");
    }
}

/// An unread tensor (a bias, a norm, a layer) would be missing from the result.
#[test]
fn models_read_every_tensor() {
    // Heads of language models, and masks and frequencies that old files store among the weights.
    let others = ["lm_head.weight", "embed_out.weight", ".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq"];
    // Tensors of all experts, whose parts are read.
    let layers = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"];
    let ignored =
        [others.map(str::to_owned).to_vec(), layers.map(|layer| format!(".experts.{layer}")).to_vec()].concat();
    for (name, model) in tiny_models() {
        let _ = (model.full_stack(), model.ends());
        let unread = model.unread();
        let unread: Vec<_> =
            unread.iter().filter(|name| !ignored.iter().any(|ignored| name.ends_with(ignored.as_str()))).collect();
        assert!(unread.is_empty(), "{name}: unread tensors {unread:?}");
    }
}
