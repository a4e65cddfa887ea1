use proptest::prelude::*;
use sepal_blocks::InjectedTensors;
use sepal_core::{Ragged, Span, Want};
use tch::{Kind, Tensor};

use crate::model::{Outcome, Tiny, assert_close, forward, last_of_rows, models, outcome, tiny_models};

const LENGTHS: [usize; 8] = [5, 1, 70, 3, 12, 1, 66, 70];
const PREFIX: usize = 4;

fn some_rows() -> Ragged {
    Ragged::from_lengths(LENGTHS).expect("rows")
}

/// Returns hidden states, deep prompts and weights of the output.
fn some_inputs(model: &Tiny, want: Want) -> (Tensor, Tensor, Tensor) {
    let (rows, size) = (some_rows(), model.config.hidden as i64);
    let deep = model.random(&[model.config.n_blocks as i64, PREFIX as i64, size], 2);
    let weights = model.random(&[want.positions(PREFIX, &rows) as i64, size], 3);
    (model.hidden(PREFIX, &rows, 1), deep, weights)
}

fn full_outcome(model: &Tiny, want: Want) -> Outcome {
    let (hidden, deep, weights) = some_inputs(model, want);
    let stack = model.full_stack();
    outcome(&hidden, Some(&deep), &weights, |hidden, deep| {
        stack.forward(hidden, PREFIX, &some_rows(), deep, want).expect("a forward")
    })
}

#[test]
fn chain_of_stacks_equals_one_stack() {
    for (name, model) in tiny_models() {
        for want in [Want::All, Want::LastOfRows] {
            let (hidden, deep, weights) = some_inputs(&model, want);
            let n_blocks = model.config.n_blocks;
            let stacks: Vec<_> = (0..n_blocks).map(|block_idx| model.stack(block_idx, block_idx + 1)).collect();
            let chained = outcome(&hidden, Some(&deep), &weights, |hidden, deep| {
                let mut hidden = hidden.shallow_clone();
                for (block_idx, stack) in stacks.iter().enumerate() {
                    let deep = deep.map(|deep| deep.narrow(0, block_idx as i64, 1));
                    let want = if block_idx + 1 == n_blocks { want } else { Want::All };
                    hidden = stack.forward(&hidden, PREFIX, &some_rows(), deep.as_ref(), want).expect("a forward");
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
        let (hidden, deep, _) = some_inputs(&model, Want::All);
        let deep = deep.narrow(0, 1, 1);
        for want in [Want::All, Want::LastOfRows] {
            let injected = InjectedTensors::deep_prompts(Some(&deep));
            let found = stack.forward_with(span, &hidden, PREFIX, &some_rows(), injected, want);
            let expected = model.stack(1, 2).forward(&hidden, PREFIX, &some_rows(), Some(&deep), want);
            assert_eq!(found.expect("a forward"), expected.expect("a forward"), "{name}, {want:?}");
        }
    }
}

#[test]
fn last_of_rows_equals_pooled_output_of_all_positions() {
    for (name, model) in tiny_models() {
        let (hidden, deep, weights) = some_inputs(&model, Want::LastOfRows);
        let stack = model.full_stack();
        let pooled = outcome(&hidden, Some(&deep), &weights, |hidden, deep| {
            let all = stack.forward(hidden, PREFIX, &some_rows(), deep, Want::All).expect("a forward");
            last_of_rows(&all, PREFIX, &some_rows())
        });
        pooled.assert_close(&full_outcome(&model, Want::LastOfRows), name);
    }
}

#[test]
fn deep_prompts_of_zero_have_no_effect() {
    for (name, model) in tiny_models() {
        let (hidden, deep, _) = some_inputs(&model, Want::All);
        let stack = model.full_stack();
        let without = forward(&stack, &hidden, PREFIX, &some_rows(), Want::All);
        let zeros = stack.forward(&hidden, PREFIX, &some_rows(), Some(&deep.zeros_like()), Want::All);
        assert_eq!(zeros.expect("a forward"), without, "{name}");
    }
}

#[test]
fn forward_without_gradients_is_equal_and_leaves_inputs_unchanged() {
    for (name, model) in tiny_models() {
        for want in [Want::All, Want::LastOfRows] {
            let (hidden, deep, _) = some_inputs(&model, want);
            let (hidden_before, deep_before) = (hidden.copy(), deep.copy());
            let stack = model.full_stack();
            let output = tch::no_grad(|| stack.forward(&hidden, PREFIX, &some_rows(), Some(&deep), want));
            let output = output.expect("a forward");
            assert!(!output.requires_grad());
            assert_close(&output, &full_outcome(&model, want).output, 1e-6, name);
            assert_eq!((hidden, deep), (hidden_before, deep_before), "{name}");
        }
    }
}

/// Checks that a batch gives each row the result of the row alone, and the prefix the sum of the gradients.
fn check_single_rows(model: &Tiny, prefix_len: usize, lengths: &[usize], want: Want, seed: u64) {
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
    let batch = outcome(&hidden, None, &weights, |hidden, _| forward(&stack, hidden, prefix_len, &rows, want));
    let mut grad_prefix = Tensor::zeros([prefix, size], (Kind::Float, tch::Device::Cpu));
    for (row, &length) in lengths.iter().enumerate() {
        let (start, length) = (prefix + rows.range(row).start as i64, length as i64);
        let part = |full: &Tensor| Tensor::cat(&[full.narrow(0, 0, prefix), full.narrow(0, start, length)], 0);
        let (weights, batch_output) = match want {
            Want::All => (part(&weights), part(&batch.output)),
            Want::LastOfRows => (weights.narrow(0, row as i64, 1), batch.output.narrow(0, row as i64, 1)),
        };
        let one_row = Ragged::from_lengths([length as usize]).expect("a row");
        let single =
            outcome(&part(&hidden), None, &weights, |hidden, _| forward(&stack, hidden, prefix_len, &one_row, want));
        assert_close(&single.output, &batch_output, 1e-5, "output of a row alone");
        let text = single.grad_hidden.narrow(0, prefix, length);
        let largest = f64::try_from(batch.grad_hidden.abs().max()).expect("a number");
        let off = f64::try_from((text - batch.grad_hidden.narrow(0, start, length)).abs().max()).expect("a number");
        assert!(off <= 1e-5 * largest, "gradient of a row alone is off by {off}");
        grad_prefix += single.grad_hidden.narrow(0, 0, prefix);
    }
    if prefix > 0 {
        assert_close(&batch.grad_hidden.narrow(0, 0, prefix), &grad_prefix, 1e-5, "gradient of the prefix");
    }
}

#[test]
fn batch_equals_its_rows_one_by_one() {
    for (_, model) in tiny_models() {
        for want in [Want::All, Want::LastOfRows] {
            check_single_rows(&model, PREFIX, &LENGTHS, want, 5);
            check_single_rows(&model, 0, &LENGTHS, want, 6);
        }
    }
}

/// oneDNN computes most layers of the batch, but none of a single row.
#[test]
fn large_batch_equals_its_rows() {
    let lengths: Vec<usize> = (0..200).map(|row| 150 + row % 7).collect();
    for name in ["llama-gqa", "bloom", "gpt2", "phi3"] {
        let model = Tiny::open(name);
        check_single_rows(&model, PREFIX, &lengths, Want::All, 7);
        check_single_rows(&model, PREFIX, &lengths, Want::LastOfRows, 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_any_lengths_are_independent(
        model in 0..models().len(),
        prefix_len in 0_usize..9,
        lengths in prop::collection::vec(prop_oneof![1_usize..20, 60_usize..70], 1..9),
        pooled: bool,
        seed in 0_u64..1000,
    ) {
        let want = if pooled { Want::LastOfRows } else { Want::All };
        check_single_rows(&Tiny::open(&models()[model]), prefix_len, &lengths, want, seed);
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
