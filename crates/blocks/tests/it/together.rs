//! Several callers' batches in one run, kept prefixes, and what tapes hold.

use sepal_blocks::{Batch, BlockStack, Grads, Injected, InputGrad, Keep, Output, Prefix, WantGrads};
use sepal_core::{Ragged, Span, Want};
use tch::Tensor;

use crate::model::{Tiny, assert_close, models};

/// One caller.
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
        let prefix = Prefix::Computed(self.prefix_len);
        Batch { hidden: &self.hidden, prefix, rows: &self.rows, injected: Injected::deep(self.deep_prompts.as_ref()) }
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

fn run(stack: &BlockStack, batches: &[Batch<'_>], want: Want, keep: Keep) -> Vec<Output> {
    stack.run(stack.span(), batches, want, keep).expect("a run")
}

/// Outputs, and gradients from numbers that depend on the caller alone.
fn both_ways(
    model: &Tiny,
    stack: &BlockStack,
    callers: &[&Caller],
    want: Want,
    input: InputGrad,
) -> (Vec<Tensor>, Vec<Grads>) {
    let batches: Vec<Batch<'_>> = callers.iter().map(|caller| caller.batch()).collect();
    let outputs = run(stack, &batches, want, Keep::Tape);
    let pull = |output: &Tensor| model.random(&output.size(), output.size()[0] as u64);
    let (hidden, tapes): (Vec<_>, Vec<_>) = outputs
        .into_iter()
        .map(|output| {
            let pull = pull(&output.hidden);
            (output.hidden, (output.tape.expect("a tape"), pull))
        })
        .unzip();
    let grads = stack.backward(tapes, WantGrads { input, injected: true }).expect("gradients");
    (hidden, grads)
}

#[test]
fn callers_together_get_what_each_gets_alone() {
    for name in &models() {
        let model = Tiny::open(name);
        let (stack, callers) = (model.whole(), callers(&model));
        for (want, input) in [
            (Want::All, InputGrad::All),
            (Want::LastOfRows, InputGrad::All),
            (Want::All, InputGrad::Prefix),
            (Want::LastOfRows, InputGrad::Prefix),
        ] {
            let together = both_ways(&model, &stack, &callers.iter().collect::<Vec<_>>(), want, input);
            for (i, caller) in callers.iter().enumerate() {
                let (hidden, grads) = both_ways(&model, &stack, &[caller], want, input);
                assert_close(&together.0[i], &hidden[0], 1e-5, &format!("{name}, {want:?}: output {i}"));
                let found = &together.1[i];
                assert_close(&found.input, &grads[0].input, 2e-5, &format!("{name}, {want:?}: input {i}"));
                match (&found.deep_prompts, &grads[0].deep_prompts) {
                    (Some(found), Some(alone)) => assert_close(found, alone, 2e-5, &format!("{name}: deep {i}")),
                    (found, alone) => assert_eq!((found.is_some(), alone.is_some()), (false, false)),
                }
            }
        }
    }
}

#[test]
fn the_gradient_of_a_prefix_is_a_part_of_the_whole() {
    for name in &models() {
        let model = Tiny::open(name);
        // One block is the first and the last at once.
        for stack in [model.whole(), model.stack(0, 1)] {
            let mut caller = Caller::new(&model, 3, &[4, 68, 2], true, 7);
            caller.deep_prompts = caller.deep_prompts.map(|deep| deep.narrow(0, 0, stack.span().len() as i64));
            for want in [Want::All, Want::LastOfRows] {
                let (_, whole) = both_ways(&model, &stack, &[&caller], want, InputGrad::All);
                let (_, part) = both_ways(&model, &stack, &[&caller], want, InputGrad::Prefix);
                assert_close(&part[0].input, &whole[0].input.narrow(0, 0, 3), 1e-5, name);
                let deep = |grads: &[Grads]| grads[0].deep_prompts.as_ref().expect("deep prompts").shallow_clone();
                assert_close(&deep(&part), &deep(&whole), 1e-5, name);
            }
        }
    }
}

#[test]
fn a_kept_prefix_is_as_good_as_a_computed_one() {
    for name in &models() {
        let model = Tiny::open(name);
        let (stack, callers) = (model.whole(), callers(&model));
        for want in [Want::All, Want::LastOfRows] {
            let batches: Vec<Batch<'_>> = callers.iter().map(Caller::batch).collect();
            let outputs = run(&stack, &batches, want, Keep::Prefix);
            let texts: Vec<Tensor> = callers.iter().map(Caller::text).collect();
            let short: Vec<Batch<'_>> = callers
                .iter()
                .zip(&texts)
                .zip(&outputs)
                .map(|((caller, text), output)| match &output.prefix {
                    Some(kept) => Batch { hidden: text, prefix: Prefix::Kept(kept), ..caller.batch() },
                    None => caller.batch(),
                })
                .collect();
            assert_eq!(outputs.iter().filter(|output| output.prefix.is_some()).count(), 3, "one has no prefix");
            for ((output, short), caller) in outputs.iter().zip(run(&stack, &short, want, Keep::Nothing)).zip(&callers)
            {
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
fn a_tape_holds_what_it_is_said_to_hold() {
    for name in &models() {
        let model = Tiny::open(name);
        let stack = model.whole();
        for caller in callers(&model) {
            for want in [Want::All, Want::LastOfRows] {
                let mut outputs = run(&stack, &[caller.batch()], want, Keep::Tape);
                let tape = outputs.pop().and_then(|output| output.tape).expect("a tape");
                let said = stack.tape_bytes(stack.span(), caller.prefix_len, &caller.rows, want) as f64;
                let ratio = tape.bytes() as f64 / said;
                // Not said: positions, and the masks and outputs of the last tokens alone.
                assert!((1.0..1.1).contains(&ratio), "{name}, {want:?}: {ratio}");
            }
        }
    }
}

#[test]
fn tapes_and_prefixes_of_other_blocks_are_refused() {
    let model = Tiny::open("llama-gqa");
    let (stack, first) = (model.whole(), Span::new(0, 1).expect("a span"));
    let caller = Caller::new(&model, 2, &[3], false, 3);
    let mut kept = stack.run(first, &[caller.batch()], Want::All, Keep::Prefix).expect("a run");
    let kept = kept.pop().and_then(|output| output.prefix).expect("a prefix");
    let text = caller.text();
    let short = Batch { hidden: &text, prefix: Prefix::Kept(&kept), ..caller.batch() };
    let error = stack.run(stack.span(), &[short], Want::All, Keep::Nothing).expect_err("of other blocks");
    assert!(error.to_string().contains("0:1"), "{error}");

    let tape = |span: Span| {
        let mut outputs = stack.run(span, &[caller.batch()], Want::All, Keep::Tape).expect("a run");
        let output = outputs.pop().expect("an output");
        (output.tape.expect("a tape"), output.hidden)
    };
    let want = WantGrads { input: InputGrad::All, injected: false };
    assert!(stack.backward(vec![tape(first), tape(stack.span())], want).is_err());
    let (tape, hidden) = tape(first);
    let error = stack.backward(vec![(tape, hidden.narrow(0, 0, 2))], want).expect_err("too short");
    assert!(error.to_string().contains("gradient"), "{error}");
}
