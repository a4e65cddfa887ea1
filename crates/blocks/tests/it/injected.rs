//! Injected keys and values of a prefix.

use sepal_blocks::{Batch, BlockStack, Injected, InputGrad, KeysValues, Prefix, SaveMode};
use sepal_core::{PREFIX_KEYS_VALUES, Ragged, Want};
use sepal_nn::Tunable;
use tch::{Device, Kind, Tensor};

use crate::model::{
    Tiny, assert_all_close, assert_close, forward, forward_backward, forward_batches, tensors, tiny_models,
};

const PREFIX_LEN: usize = 5;

fn rows() -> Ragged {
    Ragged::from_lengths([4, 1, 9]).expect("rows")
}

fn text(model: &Tiny) -> Tensor {
    let hidden = model.hidden(PREFIX_LEN, &rows(), 3);
    hidden.narrow(0, PREFIX_LEN as i64, rows().n_tokens() as i64)
}

/// Text after a prefix of zeros, whose values have no effect.
fn text_after_zeros(model: &Tiny) -> Tensor {
    let prefix = Tensor::zeros([PREFIX_LEN as i64, model.config.hidden as i64], (Kind::Float, Device::Cpu));
    Tensor::cat(&[prefix, text(model)], 0)
}

/// `[n_blocks, prefix_len, 2 * kv_size]`.
fn random(model: &Tiny, n_blocks: usize) -> Tensor {
    model.random(&[n_blocks, PREFIX_LEN, 2 * model.config.kv_size()].map(|size| size as i64), 11)
}

fn to_injected(blocks: &[KeysValues]) -> Tensor {
    let flat = |tensor: &Tensor| tensor.transpose(0, 1).flatten(1, 2);
    let blocks: Vec<Tensor> =
        blocks.iter().map(|block| Tensor::cat(&[flat(&block.keys), flat(&block.values)], 1)).collect();
    Tensor::stack(&blocks, 0)
}

fn tunable(keys_values: &Tensor) -> Tunable {
    Tunable::new(PREFIX_KEYS_VALUES, keys_values.shallow_clone())
}

fn forward_injected(stack: &BlockStack, hidden: &Tensor, keys_values: &Tensor, want: Want) -> Tensor {
    stack.forward(hidden, PREFIX_LEN, &rows(), &[tunable(keys_values)], want).expect("a forward")
}

#[test]
fn injected_keys_and_values_of_prompts_replace_them() {
    for (name, model) in tiny_models() {
        let (stack, rows) = (model.full_stack(), rows());
        let hidden = model.hidden(PREFIX_LEN, &rows, 3);
        let expected = forward(&stack, &hidden, PREFIX_LEN, &rows, Want::LastOfRows);
        let (prefix, injected) = (Prefix::Computed(PREFIX_LEN), &Injected::default());
        let batch = Batch { hidden: &hidden, prefix, rows: &rows, injected };
        let mut outputs = forward_batches(&stack, &[batch], Want::All, SaveMode::PrefixCache);
        let cache = outputs.remove(0).prefix_cache.expect("a prefix cache");
        let injected = to_injected(&stack.keys_and_values(&cache).expect("keys and values"));
        let found = forward_injected(&stack, &text_after_zeros(&model), &injected, Want::LastOfRows);
        assert_close(&found, &expected, 1e-5, name);
    }
}

/// The slope in the direction of the gradient is its norm, and the prefix's hidden states have no gradient.
#[test]
fn gradients_equal_finite_differences() {
    for (name, model) in tiny_models() {
        // Its experts' weights jump where a score crosses a threshold; its gradients are compared with transformers.
        if name == "phimoe" {
            continue;
        }
        // The full stack, and stacks whose prefix continues in later blocks.
        for (stack, want) in [
            (model.full_stack(), Want::LastOfRows),
            (model.stack(0, 2), Want::All),
            (model.stack(0, 1), Want::LastOfRows),
        ] {
            let injected = random(&model, stack.span().len()).set_requires_grad(true);
            let hidden = text_after_zeros(&model).set_requires_grad(true);
            let weighted_sum = |hidden: &Tensor, injected: &Tensor| {
                let output = forward_injected(&stack, hidden, injected, want);
                // Prompts have outputs of their own.
                let row_outputs = match want {
                    Want::All => output.narrow(0, PREFIX_LEN as i64, rows().n_tokens() as i64),
                    _ => output,
                };
                (&row_outputs * model.random(&row_outputs.size(), 5)).sum(Kind::Double)
            };
            weighted_sum(&hidden, &injected).backward();
            let grad = injected.grad();
            let prefix_grad = hidden.grad().narrow(0, 0, PREFIX_LEN as i64);
            assert_eq!(prefix_grad.abs().max().double_value(&[]), 0.0, "{name}: gradient of the prefix");
            let norm = grad.norm().double_value(&[]);
            assert!(norm > 1e-3, "{name}: {norm}");
            let step = 2e-3;
            let shifted = |sign: f64| {
                let shifted = injected.detach() + &grad * (sign * step / norm);
                weighted_sum(&hidden.detach(), &shifted).double_value(&[])
            };
            let slope = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
            let off = (slope - norm).abs();
            assert!(off <= 0.02 * norm.max(0.05), "{name}, {want:?}: {slope}, the gradient has norm {norm}");
        }
    }
}

#[test]
fn callers_with_and_without_injected_tensors_share_a_pass() {
    for name in ["llama-gqa", "bloom", "gemma3"] {
        let model = Tiny::open(name);
        let (stack, rows) = (model.full_stack(), rows());
        let injected = random(&model, model.config.n_blocks);
        let [with, without] = [text_after_zeros(&model), model.hidden(PREFIX_LEN, &rows, 8)];
        let keys_values = stack.inject(stack.span(), &[tunable(&injected)]).expect("keys and values that fit");
        let (prefix, none) = (Prefix::Computed(PREFIX_LEN), Injected::default());
        let batches = [
            Batch { hidden: &without, prefix, rows: &rows, injected: &none },
            Batch { hidden: &with, prefix, rows: &rows, injected: &keys_values },
        ];
        let run =
            |batches: &[Batch<'_>]| forward_backward(&model, &stack, batches, Want::LastOfRows, InputGrad::Prefix);
        let (hidden, grads) = run(&batches);
        for (i, batch) in batches.iter().enumerate() {
            let (expected, expected_grads) = run(&[*batch]);
            assert_close(&hidden[i], &expected[0], 1e-5, name);
            assert_close(&grads[i].input, &expected_grads[0].input, 2e-5, name);
            assert_eq!(grads[i].injected.len(), i, "{name}: gradients of injected tensors");
            assert_all_close(&tensors(&grads[i].injected), &tensors(&expected_grads[0].injected), 2e-5, name);
        }
        // The prefix cache holds the injected keys and values.
        let mut outputs = forward_batches(&stack, &batches[1..], Want::LastOfRows, SaveMode::PrefixCache);
        let cache = outputs.remove(0).prefix_cache.expect("a prefix cache");
        assert_eq!(to_injected(&stack.keys_and_values(&cache).expect("keys and values")), injected, "{name}");
        let short = text(&model);
        let batch = Batch { hidden: &short, prefix: Prefix::Cached(&cache), ..batches[1] };
        let found = forward_batches(&stack, &[batch], Want::LastOfRows, SaveMode::None).remove(0).hidden;
        assert_close(&found, &hidden[1], 1e-5, name);
    }
}
