use std::collections::HashMap;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use sepal_core::{DType, HostTensor, Ragged, Want};
use tch::{Kind, Tensor};

use crate::model::{Tiny, assert_close, goldens, models};

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

/// With the first `prefix_len` prompts: logits within 1e-4, the loss, and gradients within 1e-4 of their largest entry.
fn check(name: &str, mode: &str, prefix_len: usize) {
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

    let case = if prefix_len == PREFIX { mode.to_owned() } else { format!("p{prefix_len}.{mode}") };
    let expected = |what: &str| &golden.floats[&format!("{case}.{what}")];
    let off = f64::try_from((&logits - expected("logits")).abs().max()).expect("a number");
    assert!(off < 1e-4, "{name}, {case}: logits are off by {off}");
    let off = f64::try_from((&loss - expected("loss")).abs()).expect("a number");
    assert!(off < 1e-4, "{name}, {case}: the loss is off by {off}");
    let grad = |tensor: &Tensor, what: &str| {
        assert_close(&tensor.grad(), expected(&format!("grad.{what}")), 1e-4, &format!("{name}, {case}, {what}"));
    };
    grad(&score, "score.weight");
    if prefix_len > 0 {
        grad(&prompts, "prompts");
    }
    if let Some(deep) = &deep {
        grad(deep, "deep_prompts");
    }
    assert_eq!(logits.kind(), Kind::Float);
}

/// Prompts of the goldens.
const PREFIX: usize = 5;

#[test]
fn soft_prompts_equal_transformers() {
    for name in &models() {
        [0, 1, PREFIX].into_iter().for_each(|prefix_len| check(name, "ptune", prefix_len));
    }
}

#[test]
fn deep_prompts_equal_transformers() {
    for name in &models() {
        [1, PREFIX].into_iter().for_each(|prefix_len| check(name, "deep", prefix_len));
    }
}
