//! Blocks that compute in 16 bits, against transformers in the same format and against fp32.

use std::collections::HashMap;
use std::fmt::Write;

use sepal_blocks::{
    Batch, BlockStack, GradOptions, Injected, InputGrad, KeysValues, Placement, Prefix, PrefixCache, SaveMode,
};
use sepal_core::{ComputeFormat, PREFIX_KEYS_VALUES, Ragged, Span, Want};
use sepal_nn::Tunable;
use tch::{Kind, Tensor};

use crate::goldens::{EXACT, Golden};
use crate::model::{
    Outcome, Tiny, assert_all_close, assert_close, forward, forward_backward, forward_batches, models, outcome,
    tensors, tiny_models,
};
use crate::tunables::{deep_prompts, ia3, lora};

/// Formats of 16 bits, in the order of the goldens.
const FORMATS: [ComputeFormat; 2] = [ComputeFormat::Bf16, ComputeFormat::F16];

/// Models of all kinds of blocks but mixtures of experts. Other sums of the same numbers may round a score to the other side
/// of another expert's, after which nothing is close.
const WITHOUT_EXPERTS: [&str; 7] = ["llama-gqa", "bloom", "gemma2", "gpt2", "gpt-neox", "olmo2", "cohere"];

fn stack_of(model: &Tiny, span: Span, compute: ComputeFormat) -> BlockStack {
    BlockStack::load_with(model, span, Placement { compute, ..Placement::default() }).expect("a stack")
}

fn stack(model: &Tiny, compute: ComputeFormat) -> BlockStack {
    stack_of(model, Span::new(0, model.config.n_blocks).expect("a span"), compute)
}

/// Largest difference between two ways to sum the same products, relative to the largest number: about two units in the last
/// place for hidden states. Each later rounding may double it.
fn tolerance(compute: ComputeFormat) -> f64 {
    match compute {
        ComputeFormat::F32 => 1e-5,
        ComputeFormat::Bf16 => 2e-2,
        ComputeFormat::F16 => 2.5e-3,
    }
}

/// Norm of all differences over the norm of the reference.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let expected = expected.to_kind(Kind::Double);
    let off = (found.to_kind(Kind::Double) - &expected).norm() / expected.norm();
    let off = f64::try_from(off).expect("a number");
    assert!(off.is_finite());
    off
}

/// Inputs of a model, which are those of all models unless it has its own.
fn of_model<'a, T>(inputs: &'a HashMap<String, T>, name: &str, what: &str) -> &'a T {
    inputs.get(&format!("{name}.{what}")).unwrap_or_else(|| &inputs[what])
}

/// Returns the errors of hidden states and of gradients of the prompts against the golden's fp64, each row alone.
fn errors(name: &str, compute: ComputeFormat, golden: &Golden) -> [f64; 2] {
    let (model, rows) = (Tiny::open(name), golden.rows());
    let (ends, stack, width) = (model.ends(), stack(&model, compute), model.config.hidden as i64);
    let columns = |what: &str| of_model(&golden.floats, name, what).narrow(1, 0, width);
    let (prompts, direction) = (columns("prompts"), columns("direction"));
    let text = ends.embed(&Tensor::from_slice(of_model(&golden.integers, name, "ids").as_slice())).expect("embedded");
    let row = |row: usize| {
        let leaf = prompts.copy().set_requires_grad(true);
        let text = text.narrow(0, rows.range(row).start as i64, rows.row_len(row) as i64);
        let hidden = Tensor::cat(&[ends.embed_prompts(&leaf).expect("embedded"), text], 0);
        let one = Ragged::from_lengths([rows.row_len(row)]).expect("a row");
        let last = forward(&stack, &hidden, prompts.size()[0] as usize, &one, Want::LastOfRows);
        assert_eq!(last.kind(), Kind::Float);
        let last = ends.final_norm(&last).expect("normed"); // [1, hidden]
        (&last * direction.narrow(0, row as i64, 1)).sum(Kind::Float).backward();
        (last.detach(), leaf.grad())
    };
    let (hidden, grads): (Vec<Tensor>, Vec<Tensor>) = (0..rows.len()).map(row).unzip();
    let expected = |what: &str| {
        let key = format!("{name}.{what}");
        golden.floats.get(&key).unwrap_or_else(|| panic!("no golden `{key}`: make_compute.py makes one"))
    };
    [
        relative_error(&Tensor::cat(&hidden, 0), expected("hidden")),
        relative_error(&Tensor::stack(&grads, 0), expected("grad")),
    ]
}

#[test]
fn goldens_of_16_bits_are_those_of_the_models() {
    let golden = Golden::read("compute.golden.safetensors");
    for name in &models() {
        let off = errors(name, ComputeFormat::F32, &golden);
        assert!(off.iter().all(|&off| off < EXACT), "{name} in fp32 is off by {off:?}");
    }
}

/// Limits of the ratio of Sepal's error to that of transformers in the same format.
///
/// Over all models, the mean ratio of hidden states and that of gradients are at most 1 in both formats. A single model of
/// 32 numbers may be worse by luck: both round its few weights once, differently, because Sepal multiplies the weights of
/// norms into them before. Therefore one model may exceed the error of transformers by these factors, of hidden states and
/// of gradients. Gradients vary more, because roundings of the forward pass and of the backward pass both enter.
const LIMITS: [(&str, f64); 2] = [("hidden states", 1.5), ("gradients", 2.0)];

#[test]
fn errors_in_16_bits_are_at_most_those_of_transformers() {
    let golden = Golden::read("compute.golden.safetensors");
    let (mut report, mut is_within) = (String::new(), true);
    for (format_idx, compute) in FORMATS.into_iter().enumerate() {
        let mut logarithms = [0.0; 2];
        for name in &models() {
            let found = errors(name, compute, &golden);
            let reference = &golden.floats[&format!("{name}.errors")];
            for (kind_idx, (what, limit)) in LIMITS.into_iter().enumerate() {
                let ratio = found[kind_idx] / reference.double_value(&[format_idx as i64, kind_idx as i64]);
                logarithms[kind_idx] += ratio.ln();
                is_within &= ratio <= limit && found[kind_idx] > 1e-5;
                let _ = writeln!(report, "{name}, {compute}, {what}: off by {:.1e}, {ratio:.2}", found[kind_idx]);
            }
        }
        for ((what, _), logarithm) in LIMITS.into_iter().zip(logarithms) {
            let mean = (logarithm / models().len() as f64).exp();
            is_within &= mean <= 1.0;
            let _ = writeln!(report, "{compute}, {what}: mean ratio {mean:.2}");
        }
    }
    assert!(is_within, "errors against fp64, and their ratios to those of transformers:\n{report}");
}

#[test]
fn chain_of_stacks_equals_one_stack() {
    for (name, model) in tiny_models() {
        let rows = Ragged::from_lengths([4, 1, 9]).expect("rows");
        let (hidden, weights) = (model.hidden(3, &rows, 1), model.random(&[3, model.config.hidden as i64], 2));
        for compute in FORMATS {
            let tolerance = tolerance(compute);
            let span = |start, end| Span::new(start, end).expect("a span");
            let run = |stacks: &[BlockStack]| {
                outcome(&hidden, &[], &weights, |hidden, _| {
                    let mut hidden = hidden.shallow_clone();
                    for (i, stack) in stacks.iter().enumerate() {
                        let want = if i + 1 == stacks.len() { Want::LastOfRows } else { Want::All };
                        hidden = forward(stack, &hidden, 3, &rows, want);
                    }
                    hidden
                })
            };
            let full = run(&[stack_of(&model, span(0, 2), compute)]);
            let chained = run(&[stack_of(&model, span(0, 1), compute), stack_of(&model, span(1, 2), compute)]);
            assert_close(&chained.output, &full.output, tolerance, &format!("{name}, {compute}: output"));
            let label = format!("{name}, {compute}: gradient");
            assert_close(&chained.grad_hidden, &full.grad_hidden, 3.0 * tolerance, &label);
        }
    }
}

#[test]
fn callers_together_equal_each_alone() {
    for name in WITHOUT_EXPERTS {
        let model = Tiny::open(name);
        let lengths: [&[usize]; 3] = [&[5, 1, 70, 3], &[2, 9], &[66, 3, 3]];
        let prefixes = [4, 0, 2];
        let rows = lengths.map(|lengths| Ragged::from_lengths(lengths.iter().copied()).expect("rows"));
        let hidden: Vec<Tensor> =
            prefixes.iter().zip(&rows).map(|(&prefix_len, rows)| model.hidden(prefix_len, rows, 7)).collect();
        for compute in FORMATS {
            let (stack, tolerance) = (stack(&model, compute), tolerance(compute));
            let tunables = [vec![deep_prompts(&model, 4, 2)], lora(&model, 4, |_| true, 5), ia3(&model, 7)];
            let injected = tunables.map(|tunables| stack.inject(stack.span(), &tunables).expect("tunables that fit"));
            let batch = |i: usize| {
                let prefix = Prefix::Computed(prefixes[i]);
                Batch { hidden: &hidden[i], prefix, rows: &rows[i], injected: &injected[i] }
            };
            let run =
                |batches: &[Batch<'_>]| forward_backward(&model, &stack, batches, Want::LastOfRows, InputGrad::All);
            let (together, grads) = run(&[batch(0), batch(1), batch(2)]);
            for i in 0..3 {
                let (expected, expected_grads) = run(&[batch(i)]);
                let label = format!("{name}, {compute}: caller {i}");
                assert_close(&together[i], &expected[0], tolerance, &label);
                assert_close(&grads[i].input, &expected_grads[0].input, 3.0 * tolerance, &label);
                let (found, expected) = (tensors(&grads[i].injected), tensors(&expected_grads[0].injected));
                assert!(found.iter().all(|grad| grad.kind() == Kind::Float), "{label}");
                assert_all_close(&found, &expected, 3.0 * tolerance, &label);
            }
        }
    }
}

/// Statistics, log-sums, weights of experts and masks stay in fp32. The row is short, so that masks are small.
#[test]
fn tapes_and_prefix_caches_of_16_bits_take_half_the_memory() {
    for (name, model) in tiny_models() {
        let (rows, prefix_len, injected) = (Ragged::from_lengths([4]).expect("rows"), 2, Injected::default());
        let hidden = model.hidden(prefix_len, &rows, 1);
        let bytes = |compute: ComputeFormat| {
            let stack = stack(&model, compute);
            let batch =
                Batch { hidden: &hidden, prefix: Prefix::Computed(prefix_len), rows: &rows, injected: &injected };
            let tape = forward_batches(&stack, &[batch], Want::All, SaveMode::Tape).remove(0).tape.expect("a tape");
            let outputs = forward_batches(&stack, &[batch], Want::All, SaveMode::PrefixCache);
            let predicted = stack.tape_bytes(stack.span(), prefix_len, &rows, Want::All) as f64;
            let ratio = tape.bytes() as f64 / predicted;
            // The prediction excludes positions.
            assert!((1.0..1.05).contains(&ratio), "{name}, {compute}: {ratio}");
            (tape.bytes() as f64, outputs[0].prefix_cache.as_ref().map(PrefixCache::bytes).expect("a prefix cache"))
        };
        let (tape, cache) = bytes(ComputeFormat::F32);
        for compute in FORMATS {
            let (half_tape, half_cache) = bytes(compute);
            let share = half_tape / tape;
            assert!((0.5..0.6).contains(&share), "{name}, {compute}: {share} of the bytes of fp32");
            assert_eq!(2 * half_cache, cache, "{name}, {compute}");
        }
    }
}

#[test]
fn prefix_cache_gives_the_output_of_a_computed_prefix() {
    for name in WITHOUT_EXPERTS {
        let model = Tiny::open(name);
        let (rows, injected) = (Ragged::from_lengths([4, 1, 9]).expect("rows"), Injected::default());
        let hidden = model.hidden(3, &rows, 1);
        let text = hidden.narrow(0, 3, rows.n_tokens() as i64);
        for compute in FORMATS {
            let (stack, label) = (stack(&model, compute), format!("{name}, {compute}"));
            let computed = Batch { hidden: &hidden, prefix: Prefix::Computed(3), rows: &rows, injected: &injected };
            let output = forward_batches(&stack, &[computed], Want::Tokens, SaveMode::PrefixCache).remove(0);
            let cache = output.prefix_cache.expect("a prefix cache");
            let keys_values: Vec<KeysValues> = stack.keys_and_values(&cache).expect("keys and values");
            assert!(keys_values.iter().all(|kv| kv.keys.kind() == Kind::Float && kv.values.kind() == Kind::Float));
            let copy = stack.prefix_cache_from(stack.span(), &keys_values).expect("a prefix cache");
            assert_eq!(copy.bytes(), cache.bytes(), "{label}");
            let run = |cache: &PrefixCache| {
                let batch = Batch { hidden: &text, prefix: Prefix::Cached(cache), rows: &rows, injected: &injected };
                forward_batches(&stack, &[batch], Want::Tokens, SaveMode::None).remove(0).hidden
            };
            let cached = run(&cache);
            assert_close(&cached, &output.hidden, tolerance(compute), &label);
            assert_close(&run(&copy), &cached, 1e-6, &label);
        }
    }
}

/// Limits of the errors against fp32, a few times those of transformers in the goldens.
fn grad_limit(compute: ComputeFormat) -> f64 {
    match compute {
        ComputeFormat::F32 => EXACT,
        ComputeFormat::Bf16 => 0.15,
        ComputeFormat::F16 => 0.02,
    }
}

/// Asserts errors within the limit: of the output, and of the gradients of all tunables together. A single tunable may have
/// a small gradient, as a difference of large numbers, and four times the error.
fn assert_near_fp32(found: &Outcome, expected: &Outcome, compute: ComputeFormat, label: &str) {
    let limit = grad_limit(compute);
    let off = relative_error(&found.output, &expected.output);
    assert!(off > 1e-6 && off < limit, "{label}, {compute}: output off by {off}");
    let off = relative_error(&found.grad_hidden, &expected.grad_hidden);
    assert!(off < limit, "{label}, {compute}: gradient of hidden states off by {off}");
    for (i, (found, expected)) in found.grads.iter().zip(&expected.grads).enumerate() {
        assert_eq!(found.kind(), Kind::Float);
        let off = relative_error(found, expected);
        assert!(off < 4.0 * limit, "{label}, {compute}: gradient of tunable {i} off by {off}");
    }
    let flat = |grads: &[Tensor]| Tensor::cat(&grads.iter().map(|grad| grad.flatten(0, -1)).collect::<Vec<_>>(), 0);
    let off = relative_error(&flat(&found.grads), &flat(&expected.grads));
    assert!(off < limit, "{label}, {compute}: gradients of tunables off by {off}");
}

/// Compares a pass with `tunables` and a prefix of 3 in 16 bits with the same in fp32.
fn assert_pass_near_fp32(model: &Tiny, rows: [usize; 3], tunables: &[Tunable], label: &str) {
    let rows = Ragged::from_lengths(rows).expect("rows");
    let (hidden, weights) = (model.hidden(3, &rows, 1), model.random(&[3, model.config.hidden as i64], 3));
    let run = |compute: ComputeFormat| {
        let stack = stack(model, compute);
        outcome(&hidden, tunables, &weights, |hidden, tunables| {
            stack.forward(hidden, 3, &rows, tunables, Want::LastOfRows).expect("a forward")
        })
    };
    let expected = run(ComputeFormat::F32);
    for compute in FORMATS {
        assert_near_fp32(&run(compute), &expected, compute, label);
    }
}

#[test]
fn gradients_of_adapters_are_close_to_fp32() {
    for (name, model) in tiny_models().filter(|(_, model)| model.config.experts.is_none()) {
        for tunables in [lora(&model, 4, |_| true, 4), ia3(&model, 5), vec![deep_prompts(&model, 3, 6)]] {
            assert_pass_near_fp32(&model, [5, 1, 12], &tunables, &format!("{name}, {}", tunables[0].name));
        }
    }
}

#[test]
fn gradients_of_prefix_keys_and_values_are_close_to_fp32() {
    for name in WITHOUT_EXPERTS {
        let model = Tiny::open(name);
        let shape = [model.config.n_blocks, 3, 2 * model.config.kv_size()].map(|size| size as i64);
        let tunables = [Tunable::new(PREFIX_KEYS_VALUES, model.random(&shape, 4))];
        assert_pass_near_fp32(&model, [4, 1, 9], &tunables, name);
    }
}

#[test]
fn results_of_blocks_are_fp32() {
    for (name, model) in tiny_models() {
        let (rows, injected) = (Ragged::from_lengths([4, 2]).expect("rows"), Injected::default());
        let hidden = model.hidden(2, &rows, 1);
        for compute in FORMATS {
            let stack = stack(&model, compute);
            for want in [Want::All, Want::LastOfRows, Want::Tokens, Want::MeanOfRows] {
                for input in [InputGrad::All, InputGrad::Prefix] {
                    let batch =
                        Batch { hidden: &hidden, prefix: Prefix::Computed(2), rows: &rows, injected: &injected };
                    let output = forward_batches(&stack, &[batch], want, SaveMode::Tape).remove(0);
                    let (tape, grad) = (output.tape.expect("a tape"), output.hidden.ones_like());
                    let options = GradOptions { input, injected: false };
                    let grads = stack.backward_batches(vec![(tape, grad)], options).expect("gradients");
                    let kinds = (output.hidden.kind(), grads[0].input.kind());
                    assert_eq!(kinds, (Kind::Float, Kind::Float), "{name}, {compute}, {want:?}");
                    assert_eq!((output.non_finite_block, grads[0].non_finite_block), (None, None), "{name}");
                }
            }
        }
    }
}

/// fp16 ends at 65504; hidden states between blocks are fp32.
#[test]
fn hidden_states_beyond_the_range_of_fp16_have_gradients() {
    for name in ["llama-gqa", "gemma2", "bloom"] {
        let model = Tiny::open(name);
        let rows = Ragged::from_lengths([5, 2]).expect("rows");
        let (hidden, weights) = (model.hidden(3, &rows, 1) * 1e6, model.random(&[2, model.config.hidden as i64], 3));
        let run = |compute: ComputeFormat| {
            let stack = stack(&model, compute);
            let run = |hidden: &Tensor, _: &[Tunable]| forward(&stack, hidden, 3, &rows, Want::LastOfRows);
            outcome(&hidden, &[], &weights, run)
        };
        let (found, expected) = (run(ComputeFormat::F16), run(ComputeFormat::F32));
        let off = relative_error(&found.grad_hidden, &expected.grad_hidden);
        assert!(off < grad_limit(ComputeFormat::F16), "{name}: off by {off}");
    }
}
