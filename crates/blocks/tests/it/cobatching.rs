//! Batches of several callers in one pass, prefix caches, and the size of tapes.

use sepal_blocks::{Batch, BlockStack, GradOptions, Injected, InputGrad, Prefix, SaveMode};
use sepal_core::{Ragged, Span, Want};
use sepal_nn::Tunable;
use tch::Tensor;

use crate::model::{
    Tiny, WANTS, assert_all_close, assert_close, forward_backward, forward_batches, tensors, tiny_models,
};
use crate::tunables::{deep_prompts, ia3, is_query_or_value, lora};

struct Caller {
    prefix_len: usize,
    rows: Ragged,
    hidden: Tensor,
    tunables: Vec<Tunable>,
    injected: Injected,
}

impl Caller {
    /// Returns a caller of all blocks of `stack`.
    fn new(
        model: &Tiny,
        stack: &BlockStack,
        prefix_len: usize,
        lengths: &[usize],
        tunables: Vec<Tunable>,
        seed: u64,
    ) -> Self {
        let rows = Ragged::from_lengths(lengths.iter().copied()).expect("rows");
        let injected = stack.inject(stack.span(), &tunables).expect("tunables that fit");
        Self { prefix_len, hidden: model.hidden(prefix_len, &rows, seed), rows, tunables, injected }
    }

    fn batch(&self) -> Batch<'_> {
        let Self { prefix_len, rows, hidden, injected, .. } = self;
        Batch { hidden, prefix: Prefix::Computed(*prefix_len), rows, injected }
    }

    fn text(&self) -> Tensor {
        self.hidden.narrow(0, self.prefix_len as i64, self.rows.n_tokens() as i64)
    }
}

/// Returns callers with deep prompts, with none, with adapters of some and of all layers, and with both kinds.
fn callers(model: &Tiny, stack: &BlockStack) -> Vec<Caller> {
    let caller =
        |prefix_len, lengths: &[usize], tunables, seed| Caller::new(model, stack, prefix_len, lengths, tunables, seed);
    let mut prompts_and_adapters = lora(model, 3, |_| true, 6);
    prompts_and_adapters.push(deep_prompts(model, 3, 61));
    vec![
        caller(4, &[5, 1, 70, 3], vec![deep_prompts(model, 4, 2)], 1),
        caller(0, &[2, 9], Vec::new(), 20),
        caller(2, &[66, 3, 3, 80, 1], vec![deep_prompts(model, 2, 31)], 30),
        caller(4, &[7], Vec::new(), 40),
        caller(0, &[6, 2, 68], lora(model, 4, is_query_or_value, 5), 50),
        caller(3, &[8, 67], prompts_and_adapters, 60),
        caller(2, &[1, 5, 12], ia3(model, 7), 70),
    ]
}

#[test]
fn forward_backward_of_several_callers_equals_each_alone() {
    for (name, model) in tiny_models() {
        let stack = model.full_stack();
        let callers = callers(&model, &stack);
        let batches: Vec<Batch<'_>> = callers.iter().map(Caller::batch).collect();
        for (want, input) in [
            (Want::All, InputGrad::All),
            (Want::LastOfRows, InputGrad::All),
            (Want::All, InputGrad::Prefix),
            (Want::LastOfRows, InputGrad::Prefix),
            (Want::Tokens, InputGrad::All),
            (Want::MeanOfRows, InputGrad::Prefix),
        ] {
            let (hidden, grads) = forward_backward(&model, &stack, &batches, want, input);
            for (i, (batch, caller)) in batches.iter().zip(&callers).enumerate() {
                let (expected, expected_grads) = forward_backward(&model, &stack, &[*batch], want, input);
                assert_close(&hidden[i], &expected[0], 1e-5, &format!("{name}, {want:?}: output {i}"));
                let (found, expected) = (&grads[i], &expected_grads[0]);
                assert_close(&found.input, &expected.input, 2e-5, &format!("{name}, {want:?}: input {i}"));
                assert_eq!(found.injected.len(), caller.tunables.len(), "{name}: tunables of {i}");
                let tolerance = if caller.tunables.len() > 1 { 1e-4 } else { 2e-5 };
                let label = format!("{name}, {want:?}: tunables of {i}");
                assert_all_close(&tensors(&found.injected), &tensors(&expected.injected), tolerance, &label);
            }
        }
    }
}

#[test]
fn prefix_gradient_is_part_of_the_full_gradient() {
    for (name, model) in tiny_models() {
        // A single block is both the first and the last.
        for stack in [model.full_stack(), model.stack(0, 1)] {
            // Tunables of later blocks have no effect in the short stack.
            let adapters = [lora(&model, 4, |_| true, 9), ia3(&model, 10)].map(|tunables| (tunables, 1e-4));
            for (tunables, tolerance) in [(vec![deep_prompts(&model, 3, 8)], 1e-5)].into_iter().chain(adapters) {
                let caller = Caller::new(&model, &stack, 3, &[4, 68, 2], tunables, 7);
                for want in WANTS {
                    let (_, full) = forward_backward(&model, &stack, &[caller.batch()], want, InputGrad::All);
                    let (_, prefix) = forward_backward(&model, &stack, &[caller.batch()], want, InputGrad::Prefix);
                    assert_close(&prefix[0].input, &full[0].input.narrow(0, 0, 3), 1e-5, name);
                    assert_all_close(&tensors(&prefix[0].injected), &tensors(&full[0].injected), tolerance, name);
                }
            }
        }
    }
}

#[test]
fn gradients_of_the_last_adapters_are_the_same_without_those_of_the_input() {
    for (name, model) in tiny_models() {
        let stack = model.full_stack();
        let last = model.config.n_blocks - 1;
        let all = lora(&model, 4, |_| true, 9).into_iter().chain(ia3(&model, 10));
        let part = |tunable: Tunable| {
            let tensor = tunable.tensor.narrow(0, last as i64, 1);
            Tunable { first_block: last, ..Tunable::new(tunable.name, tensor) }
        };
        let caller = Caller::new(&model, &stack, 0, &[4, 68, 2], all.map(part).collect(), 7);
        for want in WANTS {
            let (_, full) = forward_backward(&model, &stack, &[caller.batch()], want, InputGrad::All);
            let (_, short) = forward_backward(&model, &stack, &[caller.batch()], want, InputGrad::Prefix);
            assert_eq!(short[0].input.size(), [0, model.config.hidden as i64], "{name}");
            assert_all_close(&tensors(&short[0].injected), &tensors(&full[0].injected), 1e-5, name);
        }
    }
}

#[test]
fn prefix_cache_gives_the_output_of_a_computed_prefix() {
    for (name, model) in tiny_models() {
        let stack = model.full_stack();
        let callers = callers(&model, &stack);
        for want in WANTS {
            let batches: Vec<Batch<'_>> = callers.iter().map(Caller::batch).collect();
            let outputs = forward_batches(&stack, &batches, want, SaveMode::PrefixCache);
            let texts: Vec<Tensor> = callers.iter().map(Caller::text).collect();
            let cached = callers.iter().zip(&texts).zip(&outputs);
            let short = cached.map(|((caller, text), output)| match &output.prefix_cache {
                Some(cache) => Batch { hidden: text, prefix: Prefix::Cached(cache), ..caller.batch() },
                None => caller.batch(),
            });
            let short: Vec<Batch<'_>> = short.collect();
            for (output, caller) in outputs.iter().zip(&callers) {
                assert_eq!(output.prefix_cache.is_some(), caller.prefix_len > 0, "{name}");
            }
            let shortened = forward_batches(&stack, &short, want, SaveMode::None);
            for ((output, short), caller) in outputs.iter().zip(shortened).zip(&callers) {
                let expected = match want {
                    Want::All => output.hidden.narrow(0, caller.prefix_len as i64, caller.rows.n_tokens() as i64),
                    _ => output.hidden.shallow_clone(),
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
        let callers = callers(&model, &stack).into_iter();
        // Adapters of layers save tensors of their own.
        for caller in callers.filter(|caller| caller.tunables.len() <= 1) {
            for want in WANTS {
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
    let caller = Caller::new(&model, &stack, 2, &[3], Vec::new(), 3);
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

#[test]
fn non_finite_numbers_are_reported_for_their_caller_and_block() {
    for name in ["llama-gqa", "gpt-neox", "mixtral"] {
        let model = Tiny::open(name);
        let stack = model.full_stack();
        let mut prompts = deep_prompts(&model, 2, 1);
        let block_1 = prompts.tensor.narrow(0, 1, 1);
        prompts.tensor = prompts.tensor.copy();
        prompts.tensor.narrow(0, 1, 1).copy_(&(block_1 * f64::INFINITY));
        let callers = [
            Caller::new(&model, &stack, 2, &[3, 1], Vec::new(), 1),
            Caller::new(&model, &stack, 2, &[4], vec![prompts], 2),
            Caller::new(&model, &stack, 0, &[5], Vec::new(), 3),
        ];
        let batches: Vec<Batch<'_>> = callers.iter().map(Caller::batch).collect();
        let outputs = forward_batches(&stack, &batches, Want::All, SaveMode::Tape);
        let found: Vec<Option<usize>> = outputs.iter().map(|output| output.non_finite_block).collect();
        assert_eq!(found, [None, Some(1), None], "{name}");

        let outputs = forward_batches(&stack, &[batches[0], batches[2]], Want::All, SaveMode::Tape);
        let tapes = outputs.into_iter().enumerate().map(|(i, output)| {
            let factor = if i == 0 { f64::NAN } else { 1.0 };
            (output.tape.expect("a tape"), output.hidden * factor)
        });
        let options = GradOptions { input: InputGrad::All, injected: false };
        let grads = stack.backward_batches(tapes.collect(), options).expect("gradients");
        let found: Vec<Option<usize>> = grads.iter().map(|grads| grads.non_finite_block).collect();
        assert_eq!(found, [Some(model.config.n_blocks - 1), None], "{name}");
    }
}
