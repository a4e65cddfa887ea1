//! Adapters of linear layers against PEFT and against finite differences, and adapters that do not fit.

use std::collections::BTreeSet;
use std::path::PathBuf;

use sepal_blocks::{BlockStack, ForwardError};
use sepal_checkpoint::linear_sites;
use sepal_core::{
    DEEP_PROMPTS, Family, PREFIX_KEYS_VALUES, Ragged, Span, TunableName, Want, WeightFormat, in_one_line,
};
use sepal_nn::Tunable;
use tch::{Device, Kind, Reduction, Tensor};

use crate::goldens::{EXACT, Golden, largest_error};
use crate::model::{Tiny, WANTS, assert_all_close, assert_close, goldens, last_of_rows, outcome};
use crate::tunables::{deep_prompts, ia3, lora};

/// Returns the models with goldens of adapters.
fn models() -> Vec<String> {
    let files = std::fs::read_dir(goldens().join("adapters")).expect("the goldens");
    let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let names = files.filter_map(|file| name(file.expect("an entry").path()));
    let mut names: Vec<String> = names.filter(|name| goldens().join(format!("tiny-{name}")).is_dir()).collect();
    names.sort();
    names
}

/// Numbers that PEFT computed with the adapters of one case.
struct Case {
    model: Tiny,
    golden: Golden,
    name: String,
}

impl Case {
    /// Returns the cases of a model.
    fn of_model(model: &str) -> Vec<Self> {
        let read = || Golden::read(&format!("adapters/{model}.safetensors"));
        let case = |key: &String| Some(key.strip_suffix(".logits")?.to_owned());
        let mut names: Vec<String> = read().floats.keys().filter_map(case).collect();
        names.sort();
        names.into_iter().map(|name| Self { model: Tiny::open(model), golden: read(), name }).collect()
    }

    fn float(&self, key: &str) -> &Tensor {
        &self.golden.floats[&format!("{}.{key}", self.name)]
    }

    /// Returns the trainable tensors, as PEFT has them, by the names of tunables.
    fn leaves(&self) -> Vec<(TunableName, Tensor)> {
        let prefix = format!("{}.", self.name);
        let tunable = |key: &String| {
            let name = TunableName::parse(key.strip_prefix(&prefix)?)?;
            Some((name, self.golden.trainable(key)))
        };
        let mut leaves: Vec<_> = self.golden.floats.keys().filter_map(tunable).collect();
        leaves.sort_by_key(|(name, _)| name.to_string());
        leaves
    }

    /// Returns tunables of the model's last blocks. PEFT leaves the scaling out of the second factor.
    fn tunables(&self, leaves: &[(TunableName, Tensor)]) -> Vec<Tunable> {
        let tunable = |(name, leaf): &(TunableName, Tensor)| {
            let tensor = match name {
                TunableName::LoraB(_) => leaf * self.float("scaling"),
                _ => leaf.shallow_clone(),
            };
            let first_block = self.model.config.n_blocks - tensor.size()[0] as usize;
            Tunable { first_block, ..Tunable::new(name.to_string(), tensor) }
        };
        leaves.iter().map(tunable).collect()
    }

    /// Returns the hidden states before the blocks, after zeros in the place of injected keys and values.
    fn input(&self, prefix_len: usize) -> Tensor {
        let text = self.model.ends().embed(&Tensor::from_slice(&self.golden.integers["ids"])).expect("embedded");
        let prefix = Tensor::zeros([prefix_len as i64, self.model.config.hidden as i64], (Kind::Float, Device::Cpu));
        Tensor::cat(&[prefix, text], 0)
    }

    /// Asserts that logits, loss and gradients are PEFT's. Returns the largest error relative to the largest entry.
    fn check(&self, label: &str, want: Want) -> f64 {
        let (golden, leaves) = (&self.golden, self.leaves());
        let keys_values = leaves.iter().find(|(name, _)| *name == TunableName::PrefixKeysValues);
        let prefix_len = keys_values.map_or(0, |(_, tensor)| tensor.size()[1] as usize);
        let (rows, score) = (golden.rows(), golden.trainable("score.weight"));
        let (stack, input) = (self.model.full_stack(), self.input(prefix_len));
        let output = stack.forward(&input, prefix_len, &rows, &self.tunables(&leaves), want);
        let output = output.expect("a forward");
        let last = if want == Want::All { last_of_rows(&output, prefix_len, &rows) } else { output };
        let logits = self.model.ends().final_norm(&last).expect("normed").matmul(&score.tr());
        let labels = Tensor::from_slice(&golden.integers["labels"]);
        let loss = logits.cross_entropy_loss(&labels, None::<Tensor>, Reduction::Sum, -100, 0.0);
        loss.backward();

        let tunables = leaves.iter().map(|(name, leaf)| (format!("grad.{name}"), leaf.grad()));
        let score = [("grad.score.weight".to_owned(), score.grad())];
        let outputs = [("logits".to_owned(), logits.detach()), ("loss".to_owned(), loss.detach())];
        let found = outputs.into_iter().chain(score).chain(tunables);
        let errors = found.map(|(key, found)| {
            let expected = self.float(&key);
            let off = largest_error(&found, expected) / expected.abs().max().double_value(&[]);
            assert!(off < EXACT, "{label}, {}, {want:?}: {key} is off by {off:.1e} of its largest entry", self.name);
            off
        });
        errors.fold(0.0, f64::max)
    }
}

#[test]
fn adapters_of_every_layer_equal_peft() {
    for name in models() {
        for case in Case::of_model(&name) {
            let worst = [Want::LastOfRows, Want::All].map(|want| case.check(&name, want));
            println!("{name}, {}: off by {:.1e}", case.name, worst[0].max(worst[1]));
        }
    }
}

#[test]
fn every_family_has_goldens_of_adapters_of_all_its_layers() {
    let mut families = BTreeSet::new();
    for name in models() {
        let cases = Case::of_model(&name);
        let model = &cases[0].model;
        let layers: BTreeSet<String> = linear_sites(&model.config).into_iter().map(|site| site.name).collect();
        for case in ["lora", "ia3"] {
            let case = cases.iter().find(|found| found.name == case).expect("a case");
            let leaves = case.leaves();
            let adapted = leaves.iter().filter_map(|(name, _)| name.site().map(str::to_owned));
            assert_eq!(adapted.collect::<BTreeSet<String>>(), layers, "{name}, {}", case.name);
        }
        families.insert(model.config.family.name());
    }
    let missing: Vec<&str> =
        Family::ALL.map(Family::name).into_iter().filter(|name| !families.contains(name)).collect();
    assert!(missing.is_empty(), "make_adapters.py makes goldens of {missing:?}");
}

const PREFIX_LEN: usize = 3;

fn rows() -> Ragged {
    Ragged::from_lengths([4, 1, 9]).expect("rows")
}

/// Deep prompts, low-rank factors and scales of all layers.
fn all_kinds(model: &Tiny) -> Vec<Tunable> {
    let adapters = lora(model, 3, |_| true, 21).into_iter().chain(ia3(model, 22));
    [deep_prompts(model, PREFIX_LEN, 20)].into_iter().chain(adapters).collect()
}

/// Asserts that the slope in the direction of each tunable's gradient is its norm.
fn check_slopes(label: &str, model: &Tiny, stack: &BlockStack, want: Want) {
    let (rows, tunables) = (rows(), all_kinds(model));
    let hidden = model.hidden(PREFIX_LEN, &rows, 23);
    let size = [want.positions(PREFIX_LEN, &rows) as i64, model.config.hidden as i64];
    let weights = model.random(&size, 24);
    let run = |hidden: &Tensor, tunables: &[Tunable]| {
        stack.forward(hidden, PREFIX_LEN, &rows, tunables, want).expect("a forward")
    };
    let grads = outcome(&hidden, &tunables, &weights, run).grads;
    for (i, (tunable, grad)) in tunables.iter().zip(&grads).enumerate() {
        let norm = grad.norm().double_value(&[]);
        assert!(norm > 1e-2, "{label}: the gradient of {} is {norm}", tunable.name);
        let step = 5e-3;
        let shifted = |sign: f64| {
            let mut shifted: Vec<Tunable> = tunables.iter().map(Tunable::shallow_clone).collect();
            shifted[i].tensor = &tunable.tensor + grad * (sign * step / norm);
            (run(&hidden, &shifted) * &weights).sum(Kind::Double).double_value(&[])
        };
        let slope = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
        let off = (slope - norm).abs();
        assert!(off <= 0.02 * norm.max(0.3), "{label}, {}: {slope}, the gradient has norm {norm}", tunable.name);
    }
}

#[test]
fn gradients_of_several_adapters_of_a_layer_equal_finite_differences() {
    for name in
        ["llama-gqa", "gemma3", "phi3", "bloom", "falcon-40b", "falcon-rw", "gpt2", "gpt-neox", "opt", "stablelm"]
    {
        let model = Tiny::open(name);
        for want in WANTS {
            check_slopes(&format!("{name}, {want:?}"), &model, &model.full_stack(), want);
        }
    }
}

/// Factors of the inputs, which quantized weights store apart, are folded into the weights of other formats.
#[test]
fn gradients_on_rounded_weights_equal_finite_differences() {
    for name in ["llama-gqa", "bloom", "phi3", "gpt2"] {
        let model = Tiny::open(name);
        let span = Span::new(0, model.config.n_blocks).expect("a span");
        for format in [WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Nf4] {
            let stack = BlockStack::load_with(&model, span, format).expect("a stack");
            check_slopes(&format!("{name}, {}", format.name()), &model, &stack, Want::LastOfRows);
        }
    }
}

/// Returns the part of a tunable for the blocks from `first_block` on.
fn part(tunable: &Tunable, first_block: usize, len: usize) -> Tunable {
    let tensor = tunable.tensor.narrow(0, first_block as i64, len as i64);
    Tunable { first_block, ..Tunable::new(tunable.name.as_str(), tensor) }
}

#[test]
fn tunables_of_some_blocks_leave_the_others_unchanged() {
    for name in ["llama-gqa", "bloom", "gpt2"] {
        let model = Tiny::open(name);
        let (n_blocks, rows) = (model.config.n_blocks, rows());
        let hidden = model.hidden(PREFIX_LEN, &rows, 5);
        let weights = model.random(&[rows.len() as i64, model.config.hidden as i64], 6);
        let run = |tunables: &[Tunable]| {
            outcome(&hidden, tunables, &weights, |hidden, tunables| {
                let output = model.full_stack().forward(hidden, PREFIX_LEN, &rows, tunables, Want::LastOfRows);
                output.expect("a forward")
            })
        };
        // Factors of zero in the first block, against none there.
        let padded = lora(&model, 4, |_| true, 7);
        padded.iter().for_each(|tunable| drop(tunable.tensor.narrow(0, 0, 1).zero_()));
        let last: Vec<Tunable> = padded.iter().map(|tunable| part(tunable, 1, n_blocks - 1)).collect();
        let (padded, last) = (run(&padded), run(&last));
        assert_close(&last.output, &padded.output, 1e-6, name);
        assert_close(&last.grad_hidden, &padded.grad_hidden, 1e-5, name);
        for (found, expected) in last.grads.iter().zip(&padded.grads) {
            assert_close(found, &expected.narrow(0, 1, n_blocks as i64 - 1), 1e-5, name);
        }
    }
}

/// A row after a prefix is one sequence, and the prefix's gradient is the sum over all sequences.
#[test]
fn prefix_with_adapters_equals_sequences_that_begin_with_it() {
    for name in ["llama-gqa", "gemma2", "bloom", "gpt2", "gpt-neox", "mixtral", "opt", "phi3"] {
        let (model, rows) = (Tiny::open(name), rows());
        let (stack, prefix) = (model.full_stack(), PREFIX_LEN as i64);
        let hidden = model.hidden(PREFIX_LEN, &rows, 30);
        let tunables: Vec<Tunable> = lora(&model, 4, |_| true, 31).into_iter().chain(ia3(&model, 32)).collect();
        let weights = model.random(&[rows.len() as i64, model.config.hidden as i64], 33);
        let run = |hidden: &Tensor, prefix_len: usize, rows: &Ragged, weights: &Tensor| {
            outcome(hidden, &tunables, weights, |hidden, tunables| {
                stack.forward(hidden, prefix_len, rows, tunables, Want::LastOfRows).expect("a forward")
            })
        };
        let batch = run(&hidden, PREFIX_LEN, &rows, &weights);
        let mut grad_prefix = hidden.narrow(0, 0, prefix).zeros_like();
        let mut grads: Vec<Tensor> = batch.grads.iter().map(Tensor::zeros_like).collect();
        for row in 0..rows.len() {
            let (start, len) = (prefix + rows.range(row).start as i64, rows.row_len(row));
            let sequence = Tensor::cat(&[hidden.narrow(0, 0, prefix), hidden.narrow(0, start, len as i64)], 0);
            let length = Ragged::from_lengths([PREFIX_LEN + len]).expect("a row");
            let single = run(&sequence, 0, &length, &weights.narrow(0, row as i64, 1));
            assert_close(&single.output, &batch.output.narrow(0, row as i64, 1), 5e-5, name);
            grad_prefix += single.grad_hidden.narrow(0, 0, prefix);
            grads.iter_mut().zip(&single.grads).for_each(|(sum, grad)| *sum += grad);
        }
        assert_close(&batch.grad_hidden.narrow(0, 0, prefix), &grad_prefix, 5e-5, name);
        assert_all_close(&batch.grads, &grads, 1e-4, name);
    }
}

/// Returns the text of the error that a forward pass with these tunables, each with its first block, fails with.
fn refusal(model: &Tiny, stack: &BlockStack, tunables: &[(&str, usize, &[i64])]) -> String {
    let rows = Ragged::from_lengths([3, 2]).expect("rows");
    let hidden = model.random(&[8, model.config.hidden as i64], 1);
    let tunable = |&(name, first_block, shape): &(&str, usize, &[i64])| Tunable {
        first_block,
        ..Tunable::new(name, model.random(shape, 2))
    };
    let tunables: Vec<Tunable> = tunables.iter().map(tunable).collect();
    let error = stack.forward(&hidden, 3, &rows, &tunables, Want::All).expect_err("unfit tunables");
    in_one_line(&error)
}

#[test]
fn deep_prompts_of_a_wrong_shape_are_refused() {
    let model = Tiny::open("bloom");
    let stack = model.stack(1, 3);
    for (shape, expected) in [
        (&[3, 3, 32][..], "blocks 1..4: the model has 3"),
        (&[0, 3, 32], "blocks 1..1: the model has 3"),
        (&[], "blocks 1..1: the model has 3"),
        (&[2, 3, 31], "[2, 3, 31]: expected [blocks, prefix_len, 32]"),
        (&[2, 0, 32], "[2, 0, 32]: expected [blocks, prefix_len, 32]"),
        (&[2, 96], "[2, 96]: expected [blocks, prefix_len, 32]"),
    ] {
        let text = refusal(&model, &stack, &[(DEEP_PROMPTS, 1, shape)]);
        assert!(text.contains(DEEP_PROMPTS) && text.contains(expected), "{text}");
    }
    let text = refusal(&model, &stack, &[(DEEP_PROMPTS, 1, &[2, 2, 32])]);
    assert!(text.contains("a prefix of 3 positions: the tunables are for 2"), "{text}");
    let rows = Ragged::from_lengths([3, 2]).expect("rows");
    let deep = [Tunable { first_block: 1, ..Tunable::new(DEEP_PROMPTS, model.random(&[2, 2, 32], 2)) }];
    let error = stack.forward(&model.random(&[5, 32], 1), 0, &rows, &deep, Want::LastOfRows).expect_err("no prefix");
    let text = in_one_line(&error);
    assert!(text.contains("a prefix of 0 positions: the tunables are for 2"), "{text}");
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let (model, mixtral) = (Tiny::open("llama-gqa"), Tiny::open("mixtral"));
    let stack = model.full_stack();
    let (a, b) = ("lora_A:self_attn.v_proj", "lora_B:self_attn.v_proj");
    for (tunables, expected) in [
        // Ranks, sizes and blocks of the factors.
        (&[(a, 0, &[3, 4, 32][..]), (b, 0, &[3, 16, 2])][..], &[a, b, "rank"][..]),
        (&[(a, 0, &[3, 4, 32]), (b, 1, &[2, 16, 4])], &[a, b, "blocks"]),
        (&[(a, 0, &[3, 4, 32])], &[a, b, "missing"]),
        (&[(b, 0, &[3, 16, 4])], &[a, b, "missing"]),
        (&[(a, 0, &[3, 4, 31]), (b, 0, &[3, 16, 4])], &[a, "[3, 4, 31]", "[blocks, rank, 32]"]),
        (&[(a, 0, &[3, 4, 32]), (b, 0, &[3, 32, 4])], &[b, "[3, 32, 4]", "[blocks, 16, rank]"]),
        (&[(a, 0, &[3, 17, 32]), (b, 0, &[3, 16, 17])], &[a, "[3, 17, 32]", "16"]),
        (&[(a, 2, &[2, 4, 32]), (b, 2, &[2, 16, 4])], &[a, "2..4", "the model has 3"]),
        (&[(a, 0, &[3, 4, 32]), (a, 0, &[3, 4, 32]), (b, 0, &[3, 16, 4])], &[a, "twice"]),
        // Names.
        (&[("lora_A:self_attn.v_prj", 0, &[3, 4, 32])], &["self_attn.v_prj", "did you mean `self_attn.v_proj`?"]),
        (&[("lora_A:mlp.experts", 0, &[3, 4, 32])], &["mlp.experts", "self_attn.q_proj", "mlp.down_proj"]),
        (&[("lora_C:self_attn.v_proj", 0, &[3, 4, 32])], &["lora_C:self_attn.v_proj"]),
        // Scales.
        (&[("scale_output:mlp.up_proj", 0, &[3, 32])], &["scale_output:mlp.up_proj", "[blocks, 56]"]),
        (&[("scale_input:mlp.down_proj", 0, &[3, 32])], &["scale_input:mlp.down_proj", "[blocks, 56]"]),
        (&[("scale_input:mlp.up_proj", 0, &[3, 32])], &["scale_input:mlp.up_proj", "last layer"]),
        // Lengths of the prefix.
        (
            &[(DEEP_PROMPTS, 0, &[3, 3, 32]), (PREFIX_KEYS_VALUES, 0, &[3, 1, 32])],
            &[PREFIX_KEYS_VALUES, "a prefix of 1 positions", "is for 3"],
        ),
    ] {
        let text = refusal(&model, &stack, tunables);
        expected.iter().for_each(|expected| assert!(text.contains(expected), "{expected} of {text}"));
    }
    let long = format!("lora_A:{}", "q".repeat(1 << 20));
    let text = refusal(&model, &stack, &[(long.as_str(), 0, &[3, 4, 32])]);
    assert!(text.contains("the name has 1048583 bytes") && text.len() < 100, "{text}");
    let text = refusal(&mixtral, &mixtral.full_stack(), &[("lora_A:mlp.down_proj", 0, &[2, 4, 56])]);
    assert!(text.contains("`mlp.down_proj`") && text.contains("self_attn.o_proj"), "{text}");
}

#[test]
fn tunables_of_another_kind_are_refused() {
    let model = Tiny::open("llama-gqa");
    let rows = Ragged::from_lengths([3, 2]).expect("rows");
    let tunables = [Tunable::new("scale_output:mlp.up_proj", model.random(&[3, 56], 1).to_kind(Kind::Double))];
    let result = model.full_stack().forward(&model.random(&[5, 32], 2), 0, &rows, &tunables, Want::All);
    assert!(matches!(result, Err(ForwardError::Shape { kind: Kind::Double, .. })), "{result:?}");
}
