//! Single operations of a step, on the shapes of the usual one: 442 positions of SmolLM2-135M. If libtorch has the
//! same as separate operations, these are measured, too.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Bencher, BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use sepal_autograd::fused::{self, Rotate};
use sepal_autograd::linear::{RowCount, linear};
use sepal_core::DType;
use sepal_nn::host::{from_host, to_host};
use sepal_nn::{Parameters, init};
use sepal_optim::{AdamW, AdamWConfig, Optimizer};
use sepal_testkit::tiny;
use sepal_tokenize::{Input, Tokenizer, Truncation, TruncationSide};
use tch::{Kind, Tensor};

const POSITIONS: i64 = 442;
const HIDDEN: i64 = 576;
const FFN: i64 = 1536;
const HEAD: i64 = 64;
const EPS: f64 = 1e-5;

fn random(shape: &[i64]) -> Tensor {
    init::normal(shape, 1.0, &mut init::rng(1, "pieces")).expect("numbers")
}

fn main() {
    // Operations below a millisecond need few samples.
    let criterion =
        Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut criterion = criterion.sample_size(30).without_plots().configure_from_args();
    products(&mut criterion);
    kernels(&mut criterion);
    formats(&mut criterion);
    client(&mut criterion);
    criterion.final_summary();
}

fn piece<T>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut work: impl FnMut() -> T) {
    group.bench_function(name, |bencher: &mut Bencher<'_>| bencher.iter(|| black_box(work())));
}

/// Linear layers. Each call uses the weights of another block, as those of one block would stay in the processor's
/// cache.
fn products(criterion: &mut Criterion) {
    const BLOCKS: usize = 12;
    let mut group = criterion.benchmark_group("products");
    for (rows, inner, out) in
        [(POSITIONS, HIDDEN, 2 * FFN), (POSITIONS, FFN, HIDDEN), (POSITIONS, HIDDEN, HIDDEN), (32, HIDDEN, 2 * FFN)]
    {
        group.throughput(Throughput::Elements((2 * rows * inner * out) as u64));
        let x = random(&[rows, inner]);
        let weights: Vec<Tensor> = (0..BLOCKS).map(|_| random(&[inner, out])).collect();
        let name = format!("{rows} x {inner} x {out}");
        let mut block = 0..;
        let mut weight = || &weights[block.next().expect("no end") % BLOCKS];
        piece(&mut group, &name, || linear(&x, weight(), None, None, RowCount::Repeated).expect("shapes agree"));
        piece(&mut group, &format!("{name}, libtorch"), || x.mm(weight()));
    }
    group.finish();
}

fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Elements(POSITIONS as u64));
    let (x, grad, gate_up) =
        (random(&[POSITIONS, HIDDEN]), random(&[POSITIONS, HIDDEN]), random(&[POSITIONS, 2 * FFN]));
    let mut sum = random(&[POSITIONS, HIDDEN]);

    let (_, scales) = fused::rms_norm(&x, EPS).expect("a matrix");
    piece(&mut group, "RMSNorm", || fused::rms_norm(&x, EPS).expect("a matrix"));
    piece(&mut group, "RMSNorm, libtorch", || &x * (x.square().mean_dim(-1, true, Kind::Float) + EPS).rsqrt());
    piece(&mut group, "RMSNorm, back", || {
        fused::add_rms_norm_grad(&mut sum, &grad, &x, &scales).expect("shapes agree")
    });

    let grad = random(&[POSITIONS, FFN]);
    let mut out = gate_up.empty_like();
    piece(&mut group, "SwiGLU", || fused::silu_mul(&gate_up).expect("a matrix"));
    piece(&mut group, "SwiGLU, libtorch", || gate_up.narrow(1, 0, FFN).silu() * gate_up.narrow(1, FFN, FFN));
    piece(&mut group, "SwiGLU, back", || fused::silu_mul_grad(&mut out, &grad, &gate_up).expect("shapes agree"));

    let angles = random(&[POSITIONS, HEAD / 2]);
    let (cos, sin) = (angles.cos(), angles.sin());
    let mut turned = x.copy();
    piece(&mut group, "rotation", || {
        fused::rotate(&mut turned, &cos, &sin, HEAD, Rotate::Forward).expect("shapes agree")
    });
    group.finish();
}

fn formats(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Bytes((POSITIONS * HIDDEN * 4) as u64));
    let hidden = random(&[POSITIONS, HIDDEN]);
    for dtype in [DType::F32, DType::F16, DType::Bf16, DType::Q8] {
        let host = to_host(&hidden, dtype).expect("numbers");
        piece(&mut group, &format!("to {}", dtype.name()), || to_host(&hidden, dtype).expect("numbers"));
        piece(&mut group, &format!("from {}", dtype.name()), || from_host(&host).expect("numbers"));
    }
    group.finish();
}

/// Work of the client between two steps: 30 blocks of 16 deep prompts, and the words of 32 sentences.
fn client(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client");
    let (mut params, mut optimizer) = (Parameters::new(), AdamW::new(AdamWConfig::default()));
    let deep = params.add("deep_prompts", &random(&[30, 16, HIDDEN])).expect("the only one");
    (&deep * &deep).sum(Kind::Float).backward();
    piece(&mut group, "AdamW", || optimizer.step(&params, 1e-3).expect("a step"));

    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny::model(folder.path(), "bloom");
    let tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).expect("a tokenizer");
    let sentence = ["the film was very clever and the cast moving with a warm scene"; 32];
    let rows = sentence.map(|text| Input::new(text, None));
    let truncation = Truncation { max_length: 64, side: TruncationSide::Right };
    piece(&mut group, "tokens of 32 sentences", || tokenizer.encode_batch(&rows, truncation).expect("tokens"));
    group.finish();
}
