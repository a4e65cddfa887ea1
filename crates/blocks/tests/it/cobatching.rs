//! Batches of several callers in one pass, prefix caches, and the size of tapes.

use sepal_blocks::{Batch, BatchGrads, GradOptions, InjectedTensors, InputGrad, Prefix, SaveMode};
use sepal_core::{Ragged, Span, Want};
use tch::Tensor;

use crate::model::{Tiny, assert_close, forward_backward, forward_batches, tiny_models};

struct Caller {
    prefix_len: usize,
    rows: Ragged,
    hidden: Tensor,
    deep_prompts: Option<Tensor>,
}

impl Caller {
    fn new(model: &Tiny, prefix_len: usize, lengths: &[usize], deep: bool, seed: u64) -> Self {
        let rows = Ragged::from_lengths(lengths.iter().copied()).expect("rows");
        let shape = [model.config.n_blocks as i64, prefix_len as i64, model.config.hidden as i64];
        let deep_prompts = deep.then(|| model.random(&shape, seed + 1));
        Self { prefix_len, hidden: model.hidden(prefix_len, &rows, seed), rows, deep_prompts }
    }

    fn batch(&self) -> Batch<'_> {
        let injected = InjectedTensors::deep_prompts(self.deep_prompts.as_ref());
        Batch { hidden: &self.hidden, prefix: Prefix::Computed(self.prefix_len), rows: &self.rows, injected }
    }

    fn text(&self) -> Tensor {
        self.hidden.narrow(0, self.prefix_len as i64, self.rows.n_tokens() as i64)
    }
}

fn callers(model: &Tiny) -> Vec<Caller> {
    vec![
        Caller::new(model, 4, &[5, 1, 70, 3], true, 1),
        Caller::new(model, 0, &[2, 9], false, 20),
        Caller::new(model, 2, &[66, 3, 3, 80, 1], true, 30),
        Caller::new(model, 4, &[7], false, 40),
    ]
}

#[test]
fn forward_backward_of_several_callers_equals_each_alone() {
    for (name, model) in tiny_models() {
        let (stack, callers) = (model.full_stack(), callers(&model));
        let batches: Vec<Batch<'_>> = callers.iter().map(Caller::batch).collect();
        for (want, input) in [
            (Want::All, InputGrad::All),
            (Want::LastOfRows, InputGrad::All),
            (Want::All, InputGrad::Prefix),
            (Want::LastOfRows, InputGrad::Prefix),
        ] {
            let (hidden, grads) = forward_backward(&model, &stack, &batches, want, input);
            for (i, batch) in batches.iter().enumerate() {
                let (expected, expected_grads) = forward_backward(&model, &stack, &[*batch], want, input);
                assert_close(&hidden[i], &expected[0], 1e-5, &format!("{name}, {want:?}: output {i}"));
                let (found, expected) = (&grads[i], &expected_grads[0]);
                assert_close(&found.input, &expected.input, 2e-5, &format!("{name}, {want:?}: input {i}"));
                match (&found.deep_prompts, &expected.deep_prompts) {
                    (Some(found), Some(expected)) => assert_close(found, expected, 2e-5, &format!("{name}: deep {i}")),
                    (found, expected) => assert_eq!((found.is_some(), expected.is_some()), (false, false)),
                }
            }
        }
    }
}

#[test]
fn prefix_gradient_is_part_of_the_full_gradient() {
    for (name, model) in tiny_models() {
        // A single block is both the first and the last.
        for stack in [model.full_stack(), model.stack(0, 1)] {
            let mut caller = Caller::new(&model, 3, &[4, 68, 2], true, 7);
            caller.deep_prompts = caller.deep_prompts.map(|deep| deep.narrow(0, 0, stack.span().len() as i64));
            for want in [Want::All, Want::LastOfRows] {
                let (_, full) = forward_backward(&model, &stack, &[caller.batch()], want, InputGrad::All);
                let (_, prefix) = forward_backward(&model, &stack, &[caller.batch()], want, InputGrad::Prefix);
                assert_close(&prefix[0].input, &full[0].input.narrow(0, 0, 3), 1e-5, name);
                let deep = |grads: &[BatchGrads]| grads[0].deep_prompts.as_ref().expect("deep prompts").shallow_clone();
                assert_close(&deep(&prefix), &deep(&full), 1e-5, name);
            }
        }
    }
}

#[test]
fn prefix_cache_gives_the_output_of_a_computed_prefix() {
    for (name, model) in tiny_models() {
        let (stack, callers) = (model.full_stack(), callers(&model));
        for want in [Want::All, Want::LastOfRows] {
            let batches: Vec<Batch<'_>> = callers.iter().map(Caller::batch).collect();
            let outputs = forward_batches(&stack, &batches, want, SaveMode::PrefixCache);
            let texts: Vec<Tensor> = callers.iter().map(Caller::text).collect();
            let cached = callers.iter().zip(&texts).zip(&outputs);
            let short = cached.map(|((caller, text), output)| match &output.prefix_cache {
                Some(cache) => Batch { hidden: text, prefix: Prefix::Cached(cache), ..caller.batch() },
                None => caller.batch(),
            });
            let short: Vec<Batch<'_>> = short.collect();
            assert_eq!(outputs.iter().filter(|output| output.prefix_cache.is_some()).count(), 3, "one has no prefix");
            let shortened = forward_batches(&stack, &short, want, SaveMode::None);
            for ((output, short), caller) in outputs.iter().zip(shortened).zip(&callers) {
                let expected = match want {
                    Want::All => output.hidden.narrow(0, caller.prefix_len as i64, caller.rows.n_tokens() as i64),
                    Want::LastOfRows => output.hidden.shallow_clone(),
                };
                assert_close(&short.hidden, &expected, 1e-5, name);
            }
        }
    }
}

#[test]
fn tape_bytes_predicts_the_size_of_a_tape() {
    for (name, model) in tiny_models() {
        let stack = model.full_stack();
        for caller in callers(&model) {
            for want in [Want::All, Want::LastOfRows] {
                let mut outputs = forward_batches(&stack, &[caller.batch()], want, SaveMode::Tape);
                let tape = outputs.pop().and_then(|output| output.tape).expect("a tape");
                let predicted = stack.tape_bytes(stack.span(), caller.prefix_len, &caller.rows, want) as f64;
                let ratio = tape.bytes() as f64 / predicted;
                // The prediction excludes positions, and the masks and outputs of last tokens.
                assert!((1.0..1.1).contains(&ratio), "{name}, {want:?}: {ratio}");
            }
        }
    }
}

#[test]
fn tapes_and_prefix_caches_of_other_blocks_fail() {
    let model = Tiny::open("llama-gqa");
    let (stack, first) = (model.full_stack(), Span::new(0, 1).expect("a span"));
    let caller = Caller::new(&model, 2, &[3], false, 3);
    let mut outputs =
        stack.forward_batches(first, &[caller.batch()], Want::All, SaveMode::PrefixCache).expect("a forward");
    let cache = outputs.pop().and_then(|output| output.prefix_cache).expect("a prefix");
    let text = caller.text();
    let short = Batch { hidden: &text, prefix: Prefix::Cached(&cache), ..caller.batch() };
    let error = stack.forward_batches(stack.span(), &[short], Want::All, SaveMode::None).expect_err("of other blocks");
    assert!(error.to_string().contains("0:1"), "{error}");

    let tape = |span: Span| {
        let mut outputs = stack.forward_batches(span, &[caller.batch()], Want::All, SaveMode::Tape).expect("a forward");
        let output = outputs.pop().expect("an output");
        (output.tape.expect("a tape"), output.hidden)
    };
    let want = GradOptions { input: InputGrad::All, injected: false };
    assert!(stack.backward_batches(vec![tape(first), tape(stack.span())], want).is_err());
    let (tape, hidden) = tape(first);
    let error = stack.backward_batches(vec![(tape, hidden.narrow(0, 0, 2))], want).expect_err("too short");
    assert!(error.to_string().contains("gradient"), "{error}");
}
