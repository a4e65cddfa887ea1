use proptest::prelude::*;
use sepal_core::{Ragged, Span, Want};
use tch::{Kind, Tensor};

use crate::model::{Outcome, Tiny, assert_close, forward, last_of_rows, models, outcome};

const LENGTHS: [usize; 8] = [5, 1, 70, 3, 12, 1, 66, 70];
const PREFIX: usize = 4;

fn some_rows() -> Ragged {
    Ragged::from_lengths(LENGTHS).expect("rows")
}

/// Prefix, text, deep prompts and the weights of the output positions that are wanted.
fn some_inputs(model: &Tiny, want: Want) -> (Tensor, Tensor, Tensor) {
    let (rows, size) = (some_rows(), model.config.hidden as i64);
    let deep = model.random(&[model.config.n_blocks as i64, PREFIX as i64, size], 2);
    let pull = model.random(&[want.positions(PREFIX, &rows) as i64, size], 3);
    (model.hidden(PREFIX, &rows, 1), deep, pull)
}

fn whole(model: &Tiny, want: Want) -> Outcome {
    let (hidden, deep, pull) = some_inputs(model, want);
    let stack = model.whole();
    outcome(&hidden, Some(&deep), &pull, |hidden, deep| {
        stack.forward(hidden, PREFIX, &some_rows(), deep, want).expect("a forward")
    })
}

#[test]
fn a_chain_of_stacks_is_one_stack() {
    for name in &models() {
        let model = Tiny::open(name);
        for want in [Want::All, Want::LastOfRows] {
            let (hidden, deep, pull) = some_inputs(&model, want);
            let n_blocks = model.config.n_blocks;
            let stacks: Vec<_> = (0..n_blocks).map(|block_idx| model.stack(block_idx, block_idx + 1)).collect();
            let chained = outcome(&hidden, Some(&deep), &pull, |hidden, deep| {
                let mut hidden = hidden.shallow_clone();
                for (block_idx, stack) in stacks.iter().enumerate() {
                    let deep = deep.map(|deep| deep.narrow(0, block_idx as i64, 1));
                    let want = if block_idx + 1 == n_blocks { want } else { Want::All };
                    hidden = stack.forward(&hidden, PREFIX, &some_rows(), deep.as_ref(), want).expect("a forward");
                }
                hidden
            });
            chained.assert_close(&whole(&model, want), &format!("{name}, {want:?}"));
        }
    }
}

#[test]
fn a_part_of_a_stack_is_the_stack_of_that_part() {
    for name in &models() {
        let model = Tiny::open(name);
        let (stack, part) = (model.whole(), Span::new(1, 2).expect("a span"));
        let (hidden, deep, _) = some_inputs(&model, Want::All);
        let deep = deep.narrow(0, 1, 1);
        for want in [Want::All, Want::LastOfRows] {
            let of_stack = stack.forward_part(part, &hidden, PREFIX, &some_rows(), Some(&deep), want);
            let alone = model.stack(1, 2).forward(&hidden, PREFIX, &some_rows(), Some(&deep), want);
            assert_eq!(of_stack.expect("a forward"), alone.expect("a forward"), "{name}, {want:?}");
        }
    }
}

#[test]
fn pooling_everything_is_wanting_the_last_tokens() {
    for name in &models() {
        let model = Tiny::open(name);
        let (hidden, deep, pull) = some_inputs(&model, Want::LastOfRows);
        let stack = model.whole();
        let pooled = outcome(&hidden, Some(&deep), &pull, |hidden, deep| {
            let all = stack.forward(hidden, PREFIX, &some_rows(), deep, Want::All).expect("a forward");
            last_of_rows(&all, PREFIX, &some_rows())
        });
        pooled.assert_close(&whole(&model, Want::LastOfRows), name);
    }
}

#[test]
fn deep_prompts_of_zero_change_nothing() {
    for name in &models() {
        let model = Tiny::open(name);
        let (hidden, deep, _) = some_inputs(&model, Want::All);
        let stack = model.whole();
        let without = forward(&stack, &hidden, PREFIX, &some_rows(), Want::All);
        let zeros = stack.forward(&hidden, PREFIX, &some_rows(), Some(&deep.zeros_like()), Want::All);
        assert_eq!(zeros.expect("a forward"), without, "{name}");
    }
}

#[test]
fn without_gradients_the_numbers_are_the_same_and_nothing_is_written_to() {
    for name in &models() {
        let model = Tiny::open(name);
        for want in [Want::All, Want::LastOfRows] {
            let (hidden, deep, _) = some_inputs(&model, want);
            let (hidden_before, deep_before) = (hidden.copy(), deep.copy());
            let stack = model.whole();
            let output = tch::no_grad(|| stack.forward(&hidden, PREFIX, &some_rows(), Some(&deep), want));
            let output = output.expect("a forward");
            assert!(!output.requires_grad());
            assert_close(&output, &whole(&model, want).output, 1e-6, name);
            assert_eq!((hidden, deep), (hidden_before, deep_before), "{name}");
        }
    }
}

/// What a batch gives for each of its rows is what the row gives alone; the prefix's gradient is the sum.
fn check_rows_alone(model: &Tiny, prefix_len: usize, lengths: &[usize], want: Want, seed: u64) {
    let rows = Ragged::from_lengths(lengths.iter().copied()).expect("rows");
    let hidden = model.hidden(prefix_len, &rows, seed);
    let stack = model.whole();
    let size = model.config.hidden as i64;
    let pull = model.random(&[want.positions(prefix_len, &rows) as i64, size], seed + 1);
    // The prefix's own outputs would count once for the batch and once for each row.
    let pull = match want {
        Want::All => Tensor::cat(
            &[
                pull.narrow(0, 0, prefix_len as i64).zeros_like(),
                pull.narrow(0, prefix_len as i64, rows.n_tokens() as i64),
            ],
            0,
        ),
        Want::LastOfRows => pull,
    };
    let batch = outcome(&hidden, None, &pull, |hidden, _| forward(&stack, hidden, prefix_len, &rows, want));

    let prefix = prefix_len as i64;
    let mut grad_prefix = Tensor::zeros([prefix, size], (Kind::Float, tch::Device::Cpu));
    for (row, &length) in lengths.iter().enumerate() {
        let (start, length) = (prefix + rows.range(row).start as i64, length as i64);
        let part = |of: &Tensor| Tensor::cat(&[of.narrow(0, 0, prefix), of.narrow(0, start, length)], 0);
        let (pull, batch_output) = match want {
            Want::All => (part(&pull), part(&batch.output)),
            Want::LastOfRows => (pull.narrow(0, row as i64, 1), batch.output.narrow(0, row as i64, 1)),
        };
        let one_row = Ragged::from_lengths([length as usize]).expect("a row");
        let alone =
            outcome(&part(&hidden), None, &pull, |hidden, _| forward(&stack, hidden, prefix_len, &one_row, want));
        assert_close(&alone.output, &batch_output, 1e-5, "output of a row alone");
        let text = alone.grad_hidden.narrow(0, prefix, length);
        let largest = f64::try_from(batch.grad_hidden.abs().max()).expect("a number");
        let off = f64::try_from((text - batch.grad_hidden.narrow(0, start, length)).abs().max()).expect("a number");
        assert!(off <= 1e-5 * largest, "gradient of a row alone is off by {off}");
        grad_prefix += alone.grad_hidden.narrow(0, 0, prefix);
    }
    if prefix > 0 {
        assert_close(&batch.grad_hidden.narrow(0, 0, prefix), &grad_prefix, 1e-5, "gradient of the prefix");
    }
}

#[test]
fn a_batch_gives_what_its_rows_give_one_by_one() {
    for name in &models() {
        let model = Tiny::open(name);
        for want in [Want::All, Want::LastOfRows] {
            check_rows_alone(&model, PREFIX, &LENGTHS, want, 5);
            check_rows_alone(&model, 0, &LENGTHS, want, 6);
        }
    }
}

/// Most layers of the batch go to oneDNN, none of a row alone.
#[test]
fn a_large_batch_gives_what_its_rows_give() {
    let lengths: Vec<usize> = (0..200).map(|row| 150 + row % 7).collect();
    for name in ["llama-gqa", "bloom", "gpt2", "phi3"] {
        let model = Tiny::open(name);
        check_rows_alone(&model, PREFIX, &lengths, Want::All, 7);
        check_rows_alone(&model, PREFIX, &lengths, Want::LastOfRows, 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_any_lengths_stand_alone(
        model in 0..models().len(),
        prefix_len in 0_usize..9,
        lengths in prop::collection::vec(prop_oneof![1_usize..20, 60_usize..70], 1..9),
        pooled: bool,
        seed in 0_u64..1000,
    ) {
        let want = if pooled { Want::LastOfRows } else { Want::All };
        check_rows_alone(&Tiny::open(&models()[model]), prefix_len, &lengths, want, seed);
    }

    #[test]
    fn the_order_of_rows_does_not_matter(
        model in 0..models().len(),
        order in Just((0..LENGTHS.len()).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let model = Tiny::open(&models()[model]);
        let (rows, stack) = (some_rows(), model.whole());
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
