//! Quantized matrices of GGUF files that stay as they lie in the file.

use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use sepal_autograd::packed::{Columns, widen};
use sepal_blocks::{BlockStack, Placement, weight_bytes};
use sepal_checkpoint::{Checkpoint, Part};
use sepal_core::{Ragged, Span, Want, WeightFormat};
use tch::{Device, Kind, Tensor};

const TYPES: [GgmlDType; 12] = {
    use GgmlDType::*;
    [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K]
};
const HIDDEN: usize = 256;
const FFN: usize = 512;
const LAYERS: [(&str, usize, usize); 7] = [
    ("attn_q", HIDDEN, HIDDEN),
    ("attn_k", HIDDEN / 2, HIDDEN),
    ("attn_v", HIDDEN / 2, HIDDEN),
    ("attn_output", HIDDEN, HIDDEN),
    ("ffn_gate", FFN, HIDDEN),
    ("ffn_up", FFN, HIDDEN),
    ("ffn_down", HIDDEN, FFN),
];

fn matrix(seed: usize, rows: usize, width: usize, dtype: GgmlDType) -> QTensor {
    let numbers = (0..rows * width).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 50_000.0 - 0.1);
    let tensor = candle_core::Tensor::from_iter(numbers, &candle_core::Device::Cpu).expect("numbers");
    let tensor = tensor.reshape((rows, width)).expect("a matrix");
    QTensor::quantize(&tensor, dtype).expect("quantized")
}

fn ones(n: usize) -> QTensor {
    let numbers = (0..n).map(|i| 1.0 + (i % 5) as f32 / 10.0);
    let tensor = candle_core::Tensor::from_iter(numbers, &candle_core::Device::Cpu).expect("numbers");
    QTensor::quantize(&tensor, GgmlDType::F32).expect("numbers")
}

/// Writes a Llama of two blocks. The layers have the types of `types`, one after another.
fn write(path: &Path, types: &[GgmlDType]) {
    let metadata = [
        ("general.architecture", Meta::String("llama".into())),
        ("llama.block_count", Meta::U32(2)),
        ("llama.context_length", Meta::U32(64)),
        ("llama.embedding_length", Meta::U32(HIDDEN as u32)),
        ("llama.feed_forward_length", Meta::U32(FFN as u32)),
        ("llama.attention.head_count", Meta::U32(4)),
        ("llama.attention.head_count_kv", Meta::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("llama.rope.freq_base", Meta::F32(10_000.0)),
    ];
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), matrix(99, 8, HIDDEN, GgmlDType::F32)),
        ("output_norm.weight".to_owned(), ones(HIDDEN)),
    ];
    for block in 0..2 {
        for norm in ["attn_norm", "ffn_norm"] {
            tensors.push((format!("blk.{block}.{norm}.weight"), ones(HIDDEN)));
        }
        for (i, (name, out, inner)) in LAYERS.into_iter().enumerate() {
            let dtype = types[(7 * block + i) % types.len()];
            tensors.push((format!("blk.{block}.{name}.weight"), matrix(i, out, inner, dtype)));
        }
    }
    let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).expect("a file"), &metadata, &tensors).expect("written");
}

fn largest(tensor: &Tensor) -> f64 {
    f64::try_from(tensor.abs().max()).expect("a number")
}

/// The widened rows are the numbers of the same tensor in fp32, to the bit.
#[test]
fn rows_of_every_type_are_widened_to_the_same_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    for dtype in TYPES {
        let path = folder.path().join("model.gguf");
        write(&path, &[dtype]);
        let checkpoint = Checkpoint::open(&path).expect("opens");
        for name in ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"] {
            let name = format!("model.layers.1.{name}.weight");
            let packed = checkpoint.packed(&name).expect("read").expect("a packed matrix");
            let rows = Tensor::from_slice(packed.data()).view([packed.n_rows() as i64, -1]);
            let found = widen(&rows, packed.encoding(), packed.width() as i64, Columns::default()).expect("numbers");
            let expected = sepal_nn::from_host(&checkpoint.tensor(&name).expect("read")).expect("a tensor");
            assert_eq!(found.view_dtype(Kind::Int), expected.view_dtype(Kind::Int), "{dtype:?}: {name}");
        }
    }
}

/// Blocks on stored matrices equal blocks on widened ones but for the order of sums, and take the memory of the file.
#[test]
fn stored_matrices_give_the_results_of_widened_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for types in [&[GgmlDType::Q4K][..], &[GgmlDType::Q8_0], &TYPES] {
        write(&path, types);
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let span = Span::new(0, 2).expect("a span");
        let rows = Ragged::from_lengths([7, 2, 40]).expect("rows");
        tch::manual_seed(3);
        let hidden = Tensor::randn([52, HIDDEN as i64], (Kind::Float, Device::Cpu));
        let grad = Tensor::randn([3, HIDDEN as i64], (Kind::Float, Device::Cpu));
        let run = |format: WeightFormat| {
            let stack = BlockStack::load_with(&checkpoint, span, format).expect("a stack");
            let hidden = hidden.copy().set_requires_grad(true);
            let output = stack.forward(&hidden, 3, &rows, &[], Want::LastOfRows).expect("a forward");
            (&output * &grad).sum(Kind::Float).backward();
            (output.detach(), hidden.grad(), stack.weight_bytes())
        };
        let (output, input_grad, _) = run(WeightFormat::F32);
        let (found, found_grad, bytes) = run(WeightFormat::Auto);
        let off = largest(&(found - &output)) / largest(&output);
        let off_grad = largest(&(found_grad - &input_grad)) / largest(&input_grad);
        assert!(off < 1e-5 && off_grad < 1e-5, "{types:?}: off by {off}, gradient by {off_grad}");
        let stored = weight_bytes(&checkpoint.part_sizes(Part::Blocks(span)), Placement::default());
        assert!(bytes as f64 <= 1.05 * stored as f64, "{types:?}: {bytes} bytes for {stored} in the file");
    }
}
