use std::collections::HashMap;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use sepal_core::{DType, HostTensor, Ragged, Want};
use tch::{Kind, Tensor};

use crate::model::{Tiny, goldens, models};

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

    fn trainable(&self, name: &str) -> Tensor {
        self.floats[name].copy().set_requires_grad(true)
    }

    fn rows(&self) -> Ragged {
        Ragged::from_offsets(self.integers["offsets"].iter().map(|&offset| offset as u32).collect()).expect("rows")
    }
}

/// How far from a golden: logits and the loss in absolute numbers, gradients relative to their largest entry.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Off {
    pub(crate) logits: f64,
    pub(crate) loss: f64,
    pub(crate) grads: f64,
}

impl Off {
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            logits: self.logits.max(other.logits),
            loss: self.loss.max(other.loss),
            grads: self.grads.max(other.grads),
        }
    }
}

/// Measures a golden with its first `prefix_len` prompts.
fn measure(name: &str, mode: &str, prefix_len: usize) -> Off {
    let (model, golden) = (Tiny::open(name), Golden::open(name));
    let (ends, stack, rows) = (model.ends(), model.whole(), golden.rows());
    let first =
        |tensor: Tensor, dim: i64| tensor.detach().narrow(dim, 0, prefix_len as i64).copy().set_requires_grad(true);
    let (prompts, score) = (first(golden.trainable("prompts"), 0), golden.trainable("score.weight"));
    let deep = (mode == "deep").then(|| first(golden.trainable("deep_prompts"), 1));

    let text = ends.embed(&Tensor::from_slice(&golden.integers["ids"])).expect("embedded");
    let hidden = Tensor::cat(&[ends.embed_prompts(&prompts).expect("embedded"), text], 0);
    let last = stack.forward(&hidden, prefix_len, &rows, deep.as_ref(), Want::LastOfRows).expect("a forward");
    let logits = ends.final_norm(&last).expect("normed").matmul(&score.tr());
    let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&golden.integers["labels"]));
    loss.backward();
    assert_eq!(logits.kind(), Kind::Float);

    let case = if prefix_len == PREFIX { mode.to_owned() } else { format!("p{prefix_len}.{mode}") };
    let expected = |what: &str| &golden.floats[&format!("{case}.{what}")];
    let trained = [("score.weight", Some(&score)), ("prompts", Some(&prompts)), ("deep_prompts", deep.as_ref())];
    let trained = trained.into_iter().filter_map(|(what, tensor)| Some((what, tensor?)));
    let trained = trained.filter(|(what, _)| prefix_len > 0 || *what == "score.weight");
    let grads = trained.map(|(what, tensor)| {
        let expected = expected(&format!("grad.{what}"));
        far(&tensor.grad(), expected) / f64::try_from(expected.abs().max()).expect("a number")
    });
    Off {
        logits: far(&logits, expected("logits")),
        loss: far(&loss, expected("loss")),
        grads: grads.fold(0.0, f64::max),
    }
}

fn far(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let off = f64::try_from((found - expected).abs().max()).expect("a number");
    assert!(off.is_finite());
    off
}

/// Prompts of the goldens.
const PREFIX: usize = 5;
/// What counts as exact.
pub(crate) const EXACT: f64 = 1e-4;

/// The worst of a model's goldens: no prompts, one and five of them, with deep ones and without.
pub(crate) fn worst(name: &str) -> Off {
    let cases = [("ptune", 0), ("ptune", 1), ("ptune", PREFIX), ("deep", 1), ("deep", PREFIX)];
    cases.into_iter().map(|(mode, prefix_len)| measure(name, mode, prefix_len)).fold(Off::default(), Off::or)
}

#[test]
fn every_model_equals_transformers() {
    for name in &models() {
        let off = worst(name);
        assert!(off.logits < EXACT && off.loss < EXACT && off.grads < EXACT, "{name} is off: {off:?}");
    }
}

/// A tensor that nobody reads is missing from the result: a bias, a norm, a layer.
#[test]
fn every_tensor_is_read() {
    // Heads of language models; masks and frequencies, which files of old have among the weights.
    let others = ["lm_head.weight", "embed_out.weight", ".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq"];
    for name in &models() {
        let model = Tiny::open(name);
        let _ = (model.whole(), model.ends());
        let unread = model.unread();
        let left: Vec<_> = unread.iter().filter(|name| !others.iter().any(|other| name.ends_with(other))).collect();
        assert!(left.is_empty(), "{name}: no block and no end reads {left:?}");
    }
}
