//! Keys and values that are given for a prefix.

use sepal_blocks::{Batch, BlockStack, Injected, InputGrad, Keep, KeysValues, Prefix, WantGrads};
use sepal_core::{Ragged, Want};
use tch::{Device, Kind, Tensor};

use crate::model::{Tiny, assert_close, models};

const PREFIX_LEN: usize = 5;

fn rows() -> Ragged {
    Ragged::from_lengths([4, 1, 9]).expect("rows")
}

fn text(model: &Tiny) -> Tensor {
    let hidden = model.hidden(PREFIX_LEN, &rows(), 3);
    hidden.narrow(0, PREFIX_LEN as i64, rows().n_tokens() as i64)
}

/// The text behind places that hold nothing.
fn behind_places(model: &Tiny) -> Tensor {
    let places = Tensor::zeros([PREFIX_LEN as i64, model.config.hidden as i64], (Kind::Float, Device::Cpu));
    Tensor::cat(&[places, text(model)], 0)
}

/// `[n_blocks, prefix_len, 2 * kv_size]`.
fn random(model: &Tiny, n_blocks: usize) -> Tensor {
    model.random(&[n_blocks, PREFIX_LEN, 2 * model.config.kv_size()].map(|size| size as i64), 11)
}

fn laid_out(blocks: &[KeysValues]) -> Tensor {
    let flat = |tensor: &Tensor| tensor.transpose(0, 1).flatten(1, 2);
    let blocks: Vec<Tensor> =
        blocks.iter().map(|block| Tensor::cat(&[flat(&block.keys), flat(&block.values)], 1)).collect();
    Tensor::stack(&blocks, 0)
}

fn forward(stack: &BlockStack, hidden: &Tensor, given: &Tensor, want: Want) -> Tensor {
    let injected = Injected { deep_prompts: None, keys_values: Some(given) };
    stack.forward_injected(stack.span(), hidden, PREFIX_LEN, &rows(), injected, want).expect("a forward")
}

#[test]
fn keys_and_values_of_prompts_stand_for_them() {
    for name in &models() {
        let model = Tiny::open(name);
        let (stack, rows) = (model.whole(), rows());
        let hidden = model.hidden(PREFIX_LEN, &rows, 3);
        let expected = stack.forward(&hidden, PREFIX_LEN, &rows, None, Want::LastOfRows).expect("a forward");
        let batch =
            Batch { hidden: &hidden, prefix: Prefix::Computed(PREFIX_LEN), rows: &rows, injected: Injected::default() };
        let kept = stack.run(stack.span(), &[batch], Want::All, Keep::Prefix).expect("a run").remove(0).prefix;
        let given = laid_out(&stack.keys_and_values(&kept.expect("kept")).expect("cut"));
        let found = forward(&stack, &behind_places(&model), &given, Want::LastOfRows);
        assert_close(&found, &expected, 1e-5, name);
    }
}

/// In the direction of the gradient the output grows as the gradient says, and what stands in the places changes nothing.
#[test]
fn gradients_are_those_of_differences() {
    for name in &models() {
        let model = Tiny::open(name);
        // The whole, and blocks whose prefix goes on to others.
        for (stack, want) in
            [(model.whole(), Want::LastOfRows), (model.stack(0, 2), Want::All), (model.stack(0, 1), Want::LastOfRows)]
        {
            let given = random(&model, stack.span().len()).set_requires_grad(true);
            let hidden = behind_places(&model).set_requires_grad(true);
            let pulled = |hidden: &Tensor, given: &Tensor| {
                let output = forward(&stack, hidden, given, want);
                let of_rows = match want {
                    Want::All => output.narrow(0, PREFIX_LEN as i64, rows().n_tokens() as i64),
                    Want::LastOfRows => output,
                };
                (&of_rows * model.random(&of_rows.size(), 5)).sum(Kind::Double)
            };
            pulled(&hidden, &given).backward();
            let grad = given.grad();
            let places = hidden.grad().narrow(0, 0, PREFIX_LEN as i64);
            assert_eq!(places.abs().max().double_value(&[]), 0.0, "{name}: places have no gradient");
            let norm = grad.norm().double_value(&[]);
            assert!(norm > 1e-3, "{name}: {norm}");
            let step = 2e-3;
            let moved = |sign: f64| {
                let moved = given.detach() + &grad * (sign * step / norm);
                pulled(&hidden.detach(), &moved).double_value(&[])
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!(
                (slope - norm).abs() <= 0.02 * norm.max(0.05),
                "{name}, {want:?}: {slope}, the gradient says {norm}"
            );
        }
    }
}

#[test]
fn callers_with_and_without_go_together() {
    for name in ["llama-gqa", "bloom", "gemma3"] {
        let model = Tiny::open(name);
        let (stack, rows) = (model.whole(), rows());
        let given = random(&model, model.config.n_blocks);
        let [with, without] = [behind_places(&model), model.hidden(PREFIX_LEN, &rows, 8)];
        let batch = |hidden, keys_values| Batch {
            hidden,
            prefix: Prefix::Computed(PREFIX_LEN),
            rows: &rows,
            injected: Injected { deep_prompts: None, keys_values },
        };
        let batches = [batch(&without, None), batch(&with, Some(&given))];
        let run = |batches: &[Batch<'_>]| {
            let outputs = stack.run(stack.span(), batches, Want::LastOfRows, Keep::Tape).expect("a run");
            let pull = model.random(&[rows.len() as i64, model.config.hidden as i64], 4);
            let (hidden, tapes): (Vec<_>, Vec<_>) = outputs
                .into_iter()
                .map(|output| (output.hidden, (output.tape.expect("a tape"), pull.shallow_clone())))
                .unzip();
            let want = WantGrads { input: InputGrad::Prefix, injected: true };
            (hidden, stack.backward(tapes, want).expect("gradients"))
        };
        let (hidden, grads) = run(&batches);
        assert!(grads[0].keys_values.is_none());
        for (i, batch) in batches.iter().enumerate() {
            let (alone, alone_grads) = run(&[*batch]);
            assert_close(&hidden[i], &alone[0], 1e-5, name);
            assert_close(&grads[i].input, &alone_grads[0].input, 2e-5, name);
            assert_eq!(grads[i].keys_values.is_some(), i == 1, "{name}: gradients of given keys and values");
            assert_eq!(alone_grads[0].keys_values.is_some(), i == 1, "{name}: gradients of given keys and values");
            if let (Some(found), Some(alone)) = (&grads[i].keys_values, &alone_grads[0].keys_values) {
                assert_close(found, alone, 2e-5, name);
            }
        }
        // A prefix that is kept is the given one.
        let kept =
            stack.run(stack.span(), &batches[1..], Want::LastOfRows, Keep::Prefix).expect("a run").remove(0).prefix;
        let kept = kept.expect("kept");
        assert_eq!(laid_out(&stack.keys_and_values(&kept).expect("cut")), given, "{name}");
        let short = text(&model);
        let behind = Batch { hidden: &short, prefix: Prefix::Kept(&kept), ..batches[1] };
        let found =
            stack.run(stack.span(), &[behind], Want::LastOfRows, Keep::Nothing).expect("a run").remove(0).hidden;
        assert_close(&found, &hidden[1], 1e-5, name);
    }
}
