//! Estimates of the memory of calls, and calls whose callers leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sepal_blocks::{
    Batch, BatchOutput, Cancel, ForwardError, GradOptions, Injected, InputGrad, Passes, Prefix, SaveMode,
};
use sepal_core::{Ragged, Span, Want};

use crate::model::{Tiny, tiny_models};

fn rows(lengths: &[usize]) -> Ragged {
    Ragged::from_lengths(lengths.iter().copied()).expect("rows")
}

#[test]
fn call_memory_covers_tapes_and_grows_with_positions_and_blocks() {
    for (name, model) in tiny_models() {
        let stack = model.full_stack();
        let (memory, all, first) = (stack.call_memory(), stack.span(), Span::new(0, 1).expect("a span"));
        let bytes = |span: Span, lengths: &[usize], passes| memory.bytes(span, 4, &rows(lengths), passes);
        let lengths = [5, 1, 70, 3];
        let [forward, tape, backward] =
            [Passes::Forward, Passes::Tape, Passes::Backward].map(|passes| bytes(all, &lengths, passes));
        let saved = stack.tape_bytes(all, 4, &rows(&lengths), Want::All) as u64;
        assert!(forward < tape && tape < backward, "{name}: {forward}, {tape}, {backward}");
        assert!(saved <= tape, "{name}: a tape of {saved} bytes in {tape}");
        assert!(bytes(first, &lengths, Passes::Tape) < tape, "{name}: one block is less than all");
        assert!(bytes(all, &[5, 1, 71, 3], Passes::Forward) > forward, "{name}: one more position");
        let outside = Span::new(model.config.n_blocks, model.config.n_blocks + 1).expect("a span");
        assert_eq!(bytes(outside, &lengths, Passes::Backward), 0, "{name}");
    }
}

#[test]
fn batches_up_to_the_largest_number_of_positions_fit() {
    for (name, model) in tiny_models() {
        let stack = model.full_stack();
        let memory = stack.call_memory();
        let bytes = |prefix_len: usize, lengths: &[usize]| {
            memory.bytes(stack.span(), prefix_len, &rows(lengths), Passes::Backward)
        };
        let limit = bytes(0, &[300]);
        let positions = memory.max_positions(limit, 16_384);
        assert!((1..=300).contains(&positions), "{name}: {positions} positions");
        assert!(bytes(0, &[positions]) <= limit && bytes(positions / 2, &vec![1; positions / 2]) <= limit, "{name}");
        assert_eq!((memory.max_positions(u64::MAX, 7), memory.max_positions(0, 7)), (7, 0), "{name}");
    }
}

#[test]
fn pass_without_callers_ends_before_its_first_block() {
    let model = Tiny::open("llama-gqa");
    let stack = model.full_stack();
    let (rows, injected) = (rows(&[3, 2]), Injected::default());
    let hidden = model.hidden(0, &rows, 1);
    let batch = Batch { hidden: &hidden, prefix: Prefix::Computed(0), rows: &rows, injected: &injected };
    let callers = [Arc::<AtomicBool>::default(), Arc::default()];
    let forward = || stack.forward_until(stack.span(), &[batch], Want::All, SaveMode::Tape, Cancel::new(&callers));
    callers[0].store(true, Ordering::Relaxed);
    let output = forward().expect("one caller is left").pop();
    let BatchOutput { hidden, tape, .. } = output.expect("an output");
    callers[1].store(true, Ordering::Relaxed);
    assert!(matches!(forward(), Err(ForwardError::Cancelled { .. })));
    let options = GradOptions { input: InputGrad::All, injected: false };
    let tapes = vec![(tape.expect("a tape"), hidden)];
    let error = stack.backward_until(tapes, options, Cancel::new(&callers)).expect_err("no caller is left");
    assert!(matches!(error, ForwardError::Cancelled { .. }), "{error}");
}
