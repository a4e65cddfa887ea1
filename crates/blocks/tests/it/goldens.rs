use std::collections::HashMap;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use sepal_core::{DType, HostTensor, Ragged, Want};
use tch::{Kind, Tensor};

use crate::model::{MODELS, Tiny, assert_close, goldens};

struct Golden {
    floats: HashMap<String, Tensor>,
    integers: HashMap<String, Vec<i64>>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let bytes = std::fs::read(goldens().join(format!("tiny-{name}.golden.safetensors"))).expect("a golden");
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

/// Logits within 1e-4, the loss, and gradients within 1e-4 of their largest entry.
fn check(name: &str, mode: &str) {
    let (model, golden) = (Tiny::open(name), Golden::open(name));
    let (ends, stack, rows) = (model.ends(), model.whole(), golden.rows());
    let (prompts, score) = (golden.trainable("prompts"), golden.trainable("score.weight"));
    let deep = (mode == "deep").then(|| golden.trainable("deep_prompts"));
    let prefix_len = prompts.size()[0] as usize;

    let text = ends.embed(&Tensor::from_slice(&golden.integers["ids"])).expect("embedded");
    let hidden = Tensor::cat(&[ends.embed_prompts(&prompts).expect("embedded"), text], 0);
    let last = stack.forward(&hidden, prefix_len, &rows, deep.as_ref(), Want::LastOfRows).expect("a forward");
    let logits = ends.final_norm(&last).expect("normed").matmul(&score.tr());
    let loss = logits.cross_entropy_for_logits(&Tensor::from_slice(&golden.integers["labels"]));
    loss.backward();

    let expected = |what: &str| &golden.floats[&format!("{mode}.{what}")];
    let off = f64::try_from((&logits - expected("logits")).abs().max()).expect("a number");
    assert!(off < 1e-4, "{name}, {mode}: logits are off by {off}");
    let off = f64::try_from((&loss - expected("loss")).abs()).expect("a number");
    assert!(off < 1e-4, "{name}, {mode}: the loss is off by {off}");
    let grad = |tensor: &Tensor, what: &str| {
        assert_close(&tensor.grad(), expected(&format!("grad.{what}")), 1e-4, &format!("{name}, {mode}, {what}"));
    };
    grad(&prompts, "prompts");
    grad(&score, "score.weight");
    if let Some(deep) = &deep {
        grad(deep, "deep_prompts");
    }
    assert_eq!(logits.kind(), Kind::Float);
}

#[test]
fn soft_prompts_equal_transformers() {
    for name in MODELS {
        check(name, "ptune");
    }
}

#[test]
fn deep_prompts_equal_transformers() {
    for name in MODELS {
        check(name, "deep");
    }
}
