use proptest::prelude::*;
use sepal_blocks::BlockStack;
use sepal_core::{Ragged, Span, Want};
use sepal_nn::Tunable;
use tch::{Kind, Tensor};

use crate::model::{
    Outcome, Tiny, WANTS, assert_all_close, assert_close, forward, models, outcome, part_of_all, tiny_models,
};
use crate::tunables::{deep_prompts, ia3, lora};

const LENGTHS: [usize; 8] = [5, 1, 70, 3, 12, 1, 66, 70];
const PREFIX: usize = 4;

fn some_rows() -> Ragged {
    Ragged::from_lengths(LENGTHS).expect("rows")
}

/// Returns hidden states, deep prompts with adapters of all layers, and weights of the output.
fn some_inputs(model: &Tiny, want: Want) -> (Tensor, Vec<Tunable>, Tensor) {
    let rows = some_rows();
    let weights = model.random(&[want.positions(PREFIX, &rows) as i64, model.config.hidden as i64], 3);
    let adapters = lora(model, 4, |_| true, 4).into_iter().chain(ia3(model, 5));
    let tunables = [deep_prompts(model, PREFIX, 2)].into_iter().chain(adapters).collect();
    (model.hidden(PREFIX, &rows, 1), tunables, weights)
}

fn full_outcome(model: &Tiny, want: Want) -> Outcome {
    let (hidden, tunables, weights) = some_inputs(model, want);
    let stack = model.full_stack();
    outcome(&hidden, &tunables, &weights, |hidden, tunables| some_forward(&stack, hidden, tunables, want))
}

fn some_forward(stack: &BlockStack, hidden: &Tensor, tunables: &[Tunable], want: Want) -> Tensor {
    stack.forward(hidden, PREFIX, &some_rows(), tunables, want).expect("a forward")
}

#[test]
fn chain_of_stacks_equals_one_stack() {
    for (name, model) in tiny_models() {
        for want in WANTS {
            let (hidden, tunables, weights) = some_inputs(&model, want);
            let n_blocks = model.config.n_blocks;
            let stacks: Vec<_> = (0..n_blocks).map(|block_idx| model.stack(block_idx, block_idx + 1)).collect();
            let chained = outcome(&hidden, &tunables, &weights, |hidden, tunables| {
                let mut hidden = hidden.shallow_clone();
                for (block_idx, stack) in stacks.iter().enumerate() {
                    let want = if block_idx + 1 == n_blocks { want } else { Want::All };
                    hidden = some_forward(stack, &hidden, tunables, want);
                }
                hidden
            });
            chained.assert_close(&full_outcome(&model, want), &format!("{name}, {want:?}"));
        }
    }
}

#[test]
fn forward_of_a_span_equals_a_stack_of_that_span() {
    for (name, model) in tiny_models() {
        let (stack, span) = (model.full_stack(), Span::new(1, 2).expect("a span"));
        let (hidden, tunables, _) = some_inputs(&model, Want::All);
        for want in WANTS {
            let found = stack.forward_with(span, &hidden, PREFIX, &some_rows(), &tunables, want).expect("a forward");
            assert_eq!(found, some_forward(&model.stack(1, 2), &hidden, &tunables, want), "{name}, {want:?}");
        }
    }
}

#[test]
fn each_kind_of_output_equals_its_part_of_all_positions() {
    for (name, model) in tiny_models() {
        for want in WANTS {
            let (hidden, tunables, weights) = some_inputs(&model, want);
            let stack = model.full_stack();
            let part = outcome(&hidden, &tunables, &weights, |hidden, tunables| {
                part_of_all(&some_forward(&stack, hidden, tunables, Want::All), PREFIX, &some_rows(), want)
            });
            part.assert_close(&full_outcome(&model, want), &format!("{name}, {want:?}"));
        }
    }
}

#[test]
fn deep_prompts_and_factors_of_zero_have_no_effect() {
    for (name, model) in tiny_models() {
        let (hidden, mut tunables, _) = some_inputs(&model, Want::All);
        let stack = model.full_stack();
        let without = forward(&stack, &hidden, PREFIX, &some_rows(), Want::All);
        for Tunable { name, tensor, .. } in &mut tunables {
            *tensor = if name.starts_with("scale_") { tensor.ones_like() } else { tensor.zeros_like() };
        }
        // Scaled outputs are added to the residual after the layer, others within it.
        assert_close(&some_forward(&stack, &hidden, &tunables, Want::All), &without, 1e-5, name);
        tunables.retain(|tunable| !tunable.name.starts_with("scale_"));
        assert_eq!(some_forward(&stack, &hidden, &tunables, Want::All), without, "{name}");
    }
}

#[test]
fn forward_without_gradients_is_equal_and_leaves_inputs_unchanged() {
    for (name, model) in tiny_models() {
        for want in WANTS {
            let (hidden, tunables, _) = some_inputs(&model, want);
            let copies = |hidden: &Tensor, tunables: &[Tunable]| -> Vec<Tensor> {
                [hidden].into_iter().chain(tunables.iter().map(|tunable| &tunable.tensor)).map(Tensor::copy).collect()
            };
            let before = copies(&hidden, &tunables);
            let output = tch::no_grad(|| some_forward(&model.full_stack(), &hidden, &tunables, want));
            assert!(!output.requires_grad());
            assert_close(&output, &full_outcome(&model, want).output, 1e-6, name);
            assert_eq!(copies(&hidden, &tunables), before, "{name}");
        }
    }
}

/// Checks that a batch gives each row the result of the row alone, and the prefix and the tunables the sums of the
/// gradients.
fn check_single_rows(model: &Tiny, prefix_len: usize, lengths: &[usize], tunables: &[Tunable], want: Want, seed: u64) {
    let rows = Ragged::from_lengths(lengths.iter().copied()).expect("rows");
    let hidden = model.hidden(prefix_len, &rows, seed);
    let stack = model.full_stack();
    let size = model.config.hidden as i64;
    let weights = model.random(&[want.positions(prefix_len, &rows) as i64, size], seed + 1);
    // Without the prefix's own outputs, which would count once for the batch and once for each row.
    let prefix = prefix_len as i64;
    if want == Want::All {
        let _ = weights.narrow(0, 0, prefix).zero_();
    }
    let run = |hidden: &Tensor, weights: &Tensor, rows: &Ragged| {
        outcome(hidden, tunables, weights, |hidden, tunables| {
            stack.forward(hidden, prefix_len, rows, tunables, want).expect("a forward")
        })
    };
    // Products of adapters add roundings.
    let tolerance = if tunables.is_empty() { 1e-5 } else { 5e-5 };
    let batch = run(&hidden, &weights, &rows);
    let mut grads: Vec<Tensor> = batch.grads.iter().map(Tensor::zeros_like).collect();
    let mut grad_prefix = Tensor::zeros([prefix, size], (Kind::Float, tch::Device::Cpu));
    for (row, &length) in lengths.iter().enumerate() {
        let (start, length) = (prefix + rows.range(row).start as i64, length as i64);
        let part = |full: &Tensor| Tensor::cat(&[full.narrow(0, 0, prefix), full.narrow(0, start, length)], 0);
        let output_part = |full: &Tensor| match want {
            Want::All => part(full),
            Want::Tokens => full.narrow(0, start - prefix, length),
            Want::LastOfRows | Want::MeanOfRows => full.narrow(0, row as i64, 1),
        };
        let (weights, batch_output) = (output_part(&weights), output_part(&batch.output));
        let one_row = Ragged::from_lengths([length as usize]).expect("a row");
        let single = run(&part(&hidden), &weights, &one_row);
        assert_close(&single.output, &batch_output, tolerance, "output of a row alone");
        let text = single.grad_hidden.narrow(0, prefix, length);
        let largest = f64::try_from(batch.grad_hidden.abs().max()).expect("a number");
        let off = f64::try_from((text - batch.grad_hidden.narrow(0, start, length)).abs().max()).expect("a number");
        assert!(off <= tolerance * largest, "gradient of a row alone is off by {off}");
        grad_prefix += single.grad_hidden.narrow(0, 0, prefix);
        grads.iter_mut().zip(&single.grads).for_each(|(sum, grad)| *sum += grad);
    }
    assert_all_close(&batch.grads, &grads, 1e-4, "gradients of tunables");
    if prefix > 0 {
        assert_close(&batch.grad_hidden.narrow(0, 0, prefix), &grad_prefix, tolerance, "gradient of the prefix");
    }
}

#[test]
fn batch_equals_its_rows_one_by_one() {
    for (_, model) in tiny_models() {
        for want in WANTS {
            check_single_rows(&model, PREFIX, &LENGTHS, &[], want, 5);
            check_single_rows(&model, 0, &LENGTHS, &[], want, 6);
        }
    }
}

#[test]
fn batch_with_a_prefix_and_adapters_equals_its_rows_one_by_one() {
    for (name, model) in tiny_models() {
        println!("{name}");
        for want in [Want::LastOfRows, Want::MeanOfRows] {
            let (_, tunables, _) = some_inputs(&model, want);
            check_single_rows(&model, PREFIX, &LENGTHS, &tunables, want, 9);
        }
        let (_, tunables, _) = some_inputs(&model, Want::Tokens);
        check_single_rows(&model, 0, &LENGTHS, &tunables[1..], Want::Tokens, 10);
    }
}

/// oneDNN computes most layers of the batch, but none of a single row.
#[test]
fn large_batch_equals_its_rows() {
    let lengths: Vec<usize> = (0..200).map(|row| 150 + row % 7).collect();
    for name in ["llama-gqa", "bloom", "gpt2", "phi3"] {
        let model = Tiny::open(name);
        check_single_rows(&model, PREFIX, &lengths, &[], Want::All, 7);
        check_single_rows(&model, PREFIX, &lengths, &[], Want::LastOfRows, 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_any_lengths_are_independent(
        model in 0..models().len(),
        prefix_len in 0_usize..9,
        lengths in prop::collection::vec(prop_oneof![1_usize..20, 60_usize..70], 1..9),
        want in prop::sample::select(&WANTS),
        seed in 0_u64..1000,
    ) {
        check_single_rows(&Tiny::open(&models()[model]), prefix_len, &lengths, &[], want, seed);
    }

    #[test]
    fn order_of_rows_has_no_effect(
        model in 0..models().len(),
        order in Just((0..LENGTHS.len()).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let model = Tiny::open(&models()[model]);
        let (rows, stack) = (some_rows(), model.full_stack());
        let hidden = model.hidden(PREFIX, &rows, 1);
        let expected = forward(&stack, &hidden, PREFIX, &rows, Want::LastOfRows);
        let mut parts = vec![hidden.narrow(0, 0, PREFIX as i64)];
        parts.extend(order.iter().map(|&row| {
            hidden.narrow(0, (PREFIX + rows.range(row).start) as i64, rows.row_len(row) as i64)
        }));
        let shuffled = forward(&stack, &Tensor::cat(&parts, 0), PREFIX, &rows.select(&order), Want::LastOfRows);
        let order: Vec<i64> = order.iter().map(|&row| row as i64).collect();
        assert_close(&shuffled, &expected.index_select(0, &Tensor::from_slice(&order)), 1e-5, "shuffled rows");
    }
}
