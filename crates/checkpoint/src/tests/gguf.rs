use std::fs::{self, File};

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use sepal_core::{DType, Experts, Factors, Family, Rope, RopeScaling};

use super::*;
use crate::rows::tests::{concatenate, interleave};
use crate::{ReadError, TokenizerError};

pub(super) type Tensors = Vec<(&'static str, QTensor)>;

fn tensor(shape: &[usize], values: Vec<f32>, dtype: GgmlDType) -> QTensor {
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("fits");
    QTensor::quantize(&tensor, dtype).expect("quantizes")
}

fn f32s(shape: &[usize], values: Vec<f32>) -> QTensor {
    tensor(shape, values, GgmlDType::F32)
}

pub(super) fn llama_metadata() -> Vec<(&'static str, Meta)> {
    vec![
        ("general.architecture", Meta::String("llama".into())),
        ("llama.block_count", Meta::U32(1)),
        ("llama.context_length", Meta::U32(64)),
        ("llama.embedding_length", Meta::U32(8)),
        ("llama.feed_forward_length", Meta::U32(16)),
        ("llama.attention.head_count", Meta::U32(2)),
        ("llama.attention.head_count_kv", Meta::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("llama.rope.freq_base", Meta::F32(100_000.0)),
        ("llama.rope.dimension_count", Meta::U32(4)),
    ]
}

/// The metadata with `changes`; `None` removes a key.
fn changed(changes: &[(&'static str, Option<Meta>)]) -> Vec<(&'static str, Meta)> {
    let mut metadata = llama_metadata();
    for (key, value) in changes {
        metadata.retain(|(known, _)| known != key);
        metadata.extend(value.clone().map(|value| (*key, value)));
    }
    metadata
}

/// Embeddings, queries and keys of a Llama, as the converter stores them.
pub(super) fn llama_tensors() -> Tensors {
    vec![
        ("token_embd.weight", f32s(&[5, 8], numbers(40))),
        ("blk.0.attn_q.weight", f32s(&[8, 8], interleave(&numbers(64), 2, 8))),
        ("blk.0.attn_k.weight", f32s(&[4, 8], interleave(&numbers(32), 1, 4))),
        ("blk.0.attn_k.bias", f32s(&[4], interleave(&numbers(4), 1, 4))),
        ("blk.0.attn_v.weight", f32s(&[4, 8], numbers(32))),
    ]
}

pub(super) fn write(path: &Path, metadata: &[(&str, Meta)], tensors: &[(&str, QTensor)]) {
    let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut File::create(path).expect("creates"), &metadata, &tensors).expect("writes");
}

fn opened(metadata: &[(&str, Meta)], tensors: &[(&str, QTensor)]) -> Result<Checkpoint, OpenError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, metadata, tensors);
    Checkpoint::open(&path)
}

#[test]
fn llama_is_read() {
    let checkpoint = opened(&llama_metadata(), &llama_tensors()).expect("opens");
    let config = checkpoint.config();
    assert_eq!((config.family, config.n_blocks, config.hidden, config.ffn), (Family::Llama, 1, 8, 16));
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size), (2, 1, 4, 5));
    assert_eq!((config.norm_eps, config.max_positions), (1e-5, Some(64)));
    assert_eq!(config.rope, Some(Rope { theta: 100_000.0, dim: 4, scaling: RopeScaling::Default }));
    let read = |name: &str| checkpoint.tensor(name).expect("is there").to_f32();
    assert_eq!(read("model.embed_tokens.weight"), numbers(40));
    assert_eq!(read("model.layers.0.self_attn.q_proj.weight"), numbers(64));
    assert_eq!(read("layers.0.self_attn.k_proj.weight"), numbers(32));
    assert_eq!(read("model.layers.0.self_attn.k_proj.bias"), numbers(4));
    assert_eq!(read("model.layers.0.self_attn.v_proj.weight"), numbers(32));
    assert!(matches!(checkpoint.tensor("lm_head.weight"), Err(ReadError::Missing { .. })));
    assert_eq!(checkpoint.describe().dtypes, ["F32"]);
}

/// A file with the metadata of a Llama under another architecture, and `more` of its keys.
fn opened_as(architecture: &str, more: &[(&str, Meta)], tensors: &[(&str, QTensor)]) -> Result<Checkpoint, OpenError> {
    let rename = |(key, value): (&str, Meta)| match key.strip_prefix("llama.") {
        Some(rest) => (format!("{architecture}.{rest}"), value),
        None => (key.to_owned(), Meta::String(architecture.into())),
    };
    let more: Vec<(String, Meta)> =
        more.iter().map(|(key, value)| (format!("{architecture}.{key}"), value.clone())).collect();
    let mut metadata: Vec<(String, Meta)> = llama_metadata().into_iter().map(rename).collect();
    metadata.retain(|(key, _)| more.iter().all(|(other, _)| key != other));
    metadata.extend(more);
    let metadata: Vec<(&str, Meta)> = metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    opened(&metadata, tensors)
}

#[test]
fn qwen2_is_not_interleaved() {
    let tensors = [("blk.0.attn_q.weight", f32s(&[8, 8], numbers(64)))];
    let error = opened_as("qwen2", &[], &tensors).expect_err("no embeddings and no vocab_size").to_string();
    assert!(error.contains("`qwen2.vocab_size` is missing"), "{error}");
    let checkpoint = opened_as("qwen2", &[("vocab_size", Meta::U32(5))], &tensors).expect("opens");
    assert_eq!(checkpoint.tensor("layers.0.self_attn.q_proj.weight").expect("reads").to_f32(), numbers(64));
}

#[test]
fn factors_of_granite_are_read() {
    let keys = [
        ("attention.scale", Meta::F32(0.25)),
        ("embedding_scale", Meta::F32(2.0)),
        ("residual_scale", Meta::F32(0.5)),
        ("logit_scale", Meta::F32(8.0)),
    ];
    let config = opened_as("granite", &keys, &llama_tensors()).expect("opens").config().clone();
    let factors = Factors { embedding: Some(2.0), residual: Some(0.5), logits: Some(0.125) };
    assert_eq!((config.family, config.factors, config.scores.scale), (Family::Granite, factors, Some(0.25)));
    let plain = opened_as("granite", &[("embedding_scale", Meta::F32(0.0))], &llama_tensors()).expect("opens");
    assert_eq!((plain.config().factors, plain.config().scores.scale), (Factors::default(), None));
    assert_eq!(plain.tensor("model.layers.0.self_attn.q_proj.weight").expect("reads").to_f32(), numbers(64));
    let unrotated = opened_as("granite", &[("rope.scaling.finetuned", Meta::Bool(false))], &llama_tensors());
    let error = unrotated.expect_err("no positions").to_string();
    assert!(error.contains("`granite.rope.scaling.finetuned` is false"), "{error}");
}

#[test]
fn experts_of_qwens_are_read() {
    let keys = [
        ("expert_count", Meta::U32(2)),
        ("expert_used_count", Meta::U32(1)),
        ("expert_feed_forward_length", Meta::U32(4)),
        ("expert_shared_feed_forward_length", Meta::U32(6)),
    ];
    let experts = |shared_ffn| Experts { is_softmax_of_all: true, shared_ffn, ..Experts::new(2, 1) };
    for shape in [vec![8], vec![1, 8]] {
        let tensors = [
            llama_tensors().remove(0),
            ("blk.0.ffn_gate_exps.weight", f32s(&[2, 4, 8], numbers(64))),
            ("blk.0.ffn_gate_inp_shexp.weight", f32s(&shape, numbers(8))),
        ];
        let checkpoint = opened_as("qwen2moe", &keys, &tensors).expect("opens");
        let config = checkpoint.config();
        assert_eq!((config.family, config.ffn, config.experts), (Family::Qwen2Moe, 4, Some(experts(Some(6)))));
        let second = checkpoint.tensor("model.layers.0.mlp.experts.1.gate_proj.weight").expect("is there");
        assert_eq!((second.shape(), second.to_f32()), ([4, 8].as_slice(), numbers(64)[32..].to_vec()));
        let gate = checkpoint.tensor("model.layers.0.mlp.shared_expert_gate.weight").expect("is there");
        assert_eq!((gate.shape(), gate.to_f32()), ([1, 8].as_slice(), numbers(8)));
    }
    let older = opened_as("qwen2moe", &keys[..2], &[llama_tensors().remove(0)]).expect("opens");
    assert_eq!((older.config().ffn, older.config().experts), (16, Some(experts(Some(16)))));
    let shared = [llama_tensors().remove(0), ("blk.0.ffn_gate_shexp.weight", f32s(&[6, 8], numbers(48)))];
    let error = opened_as("qwen3moe", &keys, &shared).expect_err("another architecture").to_string();
    assert!(error.contains("`blk.0.ffn_gate_shexp.weight`"), "{error}");
    let error = opened_as("qwen3moe", &[], &[llama_tensors().remove(0)]).expect_err("no experts").to_string();
    assert!(error.contains("`qwen3moe.expert_count` is missing"), "{error}");
    let error = opened_as("qwen3", &keys, &[llama_tensors().remove(0)]).expect_err("experts").to_string();
    assert!(error.contains("`qwen3.expert_count` is 2"), "{error}");
}

#[test]
fn number_of_experts_is_that_of_the_metadata() {
    let refused = |count: u32, shape: &[usize], needle: &str| {
        let n = shape.iter().product();
        let tensors = [llama_tensors().remove(0), ("blk.0.ffn_gate_exps.weight", f32s(shape, numbers(n)))];
        let keys = [
            ("expert_count", Meta::U32(count)),
            ("expert_used_count", Meta::U32(1)),
            ("expert_feed_forward_length", Meta::U32(4)),
        ];
        let error = opened_as("qwen3moe", &keys, &tensors).expect_err(needle).to_string();
        assert!(error.contains(needle), "{error}");
    };
    refused(3, &[2, 4, 8], "`blk.0.ffn_gate_exps.weight` is of the shape [2, 4, 8]");
    refused(4097, &[2, 4, 8], "`qwen3moe.expert_count` is 4097, expected at most 4096");
}

#[test]
fn empty_tensors_and_alignments_of_zero_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, &llama_metadata(), &[llama_tensors().remove(0)]);
    let mut bytes = fs::read(&path).expect("reads");
    // The dimensions `[8, 5]` of the embeddings, as they lie in the file, become `[2^40, 0]`.
    let name = b"token_embd.weight";
    let start = bytes.windows(name.len()).position(|window| window == name).expect("a tensor") + name.len() + 4;
    bytes[start..start + 16].copy_from_slice(&[(1_u64 << 40).to_le_bytes(), 0_u64.to_le_bytes()].concat());
    fs::write(&path, &bytes).expect("writes");
    let (error, _) = open_error(&path);
    let OpenError::Header { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("`token_embd.weight`"), "{source}");

    let error = opened(&changed(&[("general.alignment", Some(Meta::U32(0)))]), &llama_tensors()).expect_err("zero");
    let OpenError::Header { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("`general.alignment` is 0"), "{source}");
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let value = |name| (name, f32s(&[4, 8], numbers(32)));
    let tensors = [llama_tensors().remove(0), value("blk.0.attn_v.weight"), value("blk.00.attn_v.weight")];
    let error = opened(&llama_metadata(), &tensors).expect_err("the same block").to_string();
    assert!(error.contains("`blk.0.attn_v.weight`") && error.contains("`blk.00.attn_v.weight`"), "{error}");
}

#[test]
fn values_that_llama_cpp_fixes_are_applied() {
    let embeddings = || llama_tensors().remove(0);
    let olmo2 = |keys: &[(&str, Meta)]| opened_as("olmo2", keys, &[embeddings()]);
    assert!(olmo2(&[("attention.sliding_window", Meta::U32(0))]).is_ok());
    let error = olmo2(&[("attention.sliding_window", Meta::U32(8))]).expect_err("an OLMo-3").to_string();
    assert!(error.contains("`olmo2.attention.sliding_window` is 8"), "{error}");

    let unrotated = |n_blocks: u32| {
        let keys = [("block_count", Meta::U32(n_blocks))];
        opened_as("smollm3", &keys, &[embeddings()]).expect("opens").config().unrotated_blocks.clone()
    };
    assert_eq!(unrotated(3), Vec::<bool>::new());
    assert_eq!(unrotated(5), [false, false, false, true, false], "every fourth block");

    let eps = [("attention.layer_norm_epsilon", Meta::F32(1e-5))];
    let norms = [embeddings(), ("blk.0.attn_q_norm.weight", f32s(&[2, 4], numbers(8)))];
    let checkpoint = opened_as("stablelm", &eps, &norms).expect("opens");
    let second = checkpoint.tensor("model.layers.0.self_attn.q_layernorm.norms.1.weight").expect("is there");
    assert_eq!((second.shape(), second.to_f32()), ([4].as_slice(), numbers(8)[4..].to_vec()));
    assert!(checkpoint.config().has_head_norms);
    assert!(!opened_as("stablelm", &eps, &[embeddings()]).expect("opens").config().has_head_norms);
}

#[test]
fn bloom_is_read() {
    let metadata = [
        ("general.architecture", Meta::String("bloom".into())),
        ("bloom.block_count", Meta::U32(1)),
        ("bloom.embedding_length", Meta::U32(6)),
        ("bloom.feed_forward_length", Meta::U32(24)),
        ("bloom.attention.head_count", Meta::U32(3)),
        ("bloom.attention.head_count_kv", Meta::U32(3)),
        ("bloom.attention.layer_norm_epsilon", Meta::F32(1e-5)),
        ("bloom.vocab_size", Meta::U32(7)),
    ];
    let tensors = [
        ("token_embd_norm.weight", f32s(&[6], numbers(6))),
        ("blk.0.attn_qkv.weight", f32s(&[18, 6], concatenate(&numbers(108), 3, 1, 18))),
        ("blk.0.attn_qkv.bias", f32s(&[18], concatenate(&numbers(18), 3, 1, 18))),
    ];
    let checkpoint = opened(&metadata, &tensors).expect("opens");
    assert_eq!((checkpoint.config().family, checkpoint.config().rope.clone()), (Family::Bloom, None));
    assert_eq!((checkpoint.config().ffn, checkpoint.config().vocab_size), (24, 7));
    let read = |name: &str| checkpoint.tensor(name).expect("is there").to_f32();
    assert_eq!(read("transformer.word_embeddings_layernorm.weight"), numbers(6));
    assert_eq!(read("transformer.h.0.self_attention.query_key_value.weight"), numbers(108));
    assert_eq!(read("h.0.self_attention.query_key_value.bias"), numbers(18));
}

#[test]
fn quantized_numbers_are_dequantized_within_their_step() {
    let wave: Vec<f32> = (0..512).map(|at| (at as f32 * 0.37).sin()).collect();
    // A block spans -1 to 1, so half a step is 1 / (number of levels - 1), and scales are rounded as well.
    let cases = [
        (GgmlDType::F16, 0.001),
        (GgmlDType::BF16, 0.004),
        (GgmlDType::Q8_0, 0.01),
        (GgmlDType::Q5_0, 0.08),
        (GgmlDType::Q5_1, 0.05),
        (GgmlDType::Q4_0, 0.15),
        (GgmlDType::Q4_1, 0.09),
        (GgmlDType::Q6K, 0.05),
        (GgmlDType::Q5K, 0.06),
        (GgmlDType::Q4K, 0.12),
        (GgmlDType::Q3K, 0.3),
        (GgmlDType::Q2K, 0.5),
    ];
    for (dtype, tolerance) in cases {
        let tensors = [("output_norm.weight", tensor(&[2, 256], wave.clone(), dtype)), llama_tensors().remove(0)];
        let checkpoint = opened(&llama_metadata(), &tensors).expect("opens");
        let read = checkpoint.tensor("model.norm.weight").expect("reads");
        assert_eq!((read.dtype(), read.shape()), (DType::F32, [2, 256].as_slice()));
        let worst = read.to_f32().iter().zip(&wave).map(|(read, written)| (read - written).abs()).fold(0.0, f32::max);
        assert!(worst < tolerance, "{dtype:?}: {worst}");
        assert!(worst > 0.0, "{dtype:?} was not quantized");
    }
}

#[test]
fn large_tensors_are_dequantized_in_chunks() {
    // Queries of more than one chunk, with rows reordered across chunks.
    let (n_rows, width) = (4, (1 << 20) + 32);
    let values: Vec<f32> = (0..n_rows * width).map(|at| (at % 251) as f32).collect();
    let stored = tensor(&[n_rows, width], interleave(&values, 2, n_rows), GgmlDType::Q8_0);
    let checkpoint = opened(&llama_metadata(), &[("blk.0.attn_q.weight", stored), llama_tensors().remove(0)]);
    let read = checkpoint.expect("opens").tensor("layers.0.self_attn.q_proj.weight").expect("reads").to_f32();
    assert_eq!(read.len(), values.len());
    assert!(read.iter().zip(&values).all(|(read, written)| (read - written).abs() <= 1.1));
}

#[test]
fn truncated_file_is_refused_at_any_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, &llama_metadata(), &llama_tensors());
    let whole = fs::read(&path).expect("reads");
    assert!(Checkpoint::open(folder.path()).is_ok(), "a folder with one file in it");
    for length in [0, 10, 200, 500] {
        fs::write(&path, &whole[..length]).expect("writes");
        let (error, text) = open_error(&path);
        assert!(matches!(error, OpenError::Header { .. }) && text.contains("model.gguf"), "{length}: {text}");
    }
    for missing in [1, 64, 300] {
        fs::write(&path, &whole[..whole.len() - missing]).expect("writes");
        let (error, text) = open_error(&path);
        assert!(matches!(error, OpenError::Length { expected, found, .. } if found < expected), "{missing}: {text}");
    }
}

#[test]
fn errors_name_file_and_key() {
    let check = |key: &'static str, value: Option<Meta>, needle: &str| {
        let error = opened(&changed(&[(key, value)]), &llama_tensors()).expect_err(needle).to_string();
        assert!(error.contains("model.gguf") && error.contains(needle), "{error}");
    };
    check("general.architecture", None, "`general.architecture` is missing");
    check("general.architecture", Some(Meta::String("mamba".into())), "phi3, qwen2, qwen2moe, qwen3");
    check("llama.block_count", None, "`llama.block_count` is missing");
    check("llama.block_count", Some(Meta::U32(0)), "`llama.block_count` is 0");
    check("llama.block_count", Some(Meta::U32(5000)), "`llama.block_count` is 5000, expected at most 4096 blocks");
    check("llama.embedding_length", Some(Meta::U32(1 << 21)), "at most 1048576 numbers");
    check("llama.embedding_length", Some(Meta::String("x".into())), "`llama.embedding_length` is \"x\"");
    check("llama.attention.head_count_kv", Some(Meta::U32(3)), "`llama.attention.head_count_kv` is 3");
    let per_block = Meta::Array(vec![Meta::U32(1), Meta::U32(2)]);
    check("llama.attention.head_count_kv", Some(per_block), "the same for all blocks");
    check("llama.rope.scaling.type", Some(Meta::String("longrope".into())), "none, linear and yarn");
    check("llama.rope.scaling.type", Some(Meta::String("yarn".into())), "`llama.rope.scaling.factor` is missing");
    check("llama.expert_count", Some(Meta::U32(8)), "`llama.expert_used_count` is missing");
    check("llama.rope.dimension_count", Some(Meta::U32(6)), "`llama.rope.dimension_count` is 6");
    check("split.count", Some(Meta::U16(2)), "`split.count` is 2");
    let gate = [("blk.0.ffn_sub_norm.weight", f32s(&[8], numbers(8)))];
    let error = opened(&changed(&[("llama.vocab_size", Some(Meta::U32(5)))]), &gate).expect_err("unknown").to_string();
    assert!(error.contains("`blk.0.ffn_sub_norm.weight`"), "{error}");
}

#[test]
fn uneven_rows_are_refused() {
    let tensors = [("blk.0.attn_q.weight", f32s(&[6, 8], numbers(48))), llama_tensors().remove(0)];
    let checkpoint = opened(&llama_metadata(), &tensors).expect("opens");
    assert!(matches!(checkpoint.tensor("layers.0.self_attn.q_proj.weight"), Err(ReadError::Decode { .. })));
}

#[test]
fn rope_scalings_are_read() {
    let scaling = |changes: &[(&'static str, Option<Meta>)]| {
        let checkpoint = opened(&changed(changes), &llama_tensors()).expect("opens");
        checkpoint.config().rope.clone().expect("has positions").scaling
    };
    let factor = ("llama.rope.scaling.factor", Some(Meta::F32(2.0)));
    let kind = |kind: &str| ("llama.rope.scaling.type", Some(Meta::String(kind.into())));
    assert_eq!(scaling(&[kind("none"), factor.clone()]), RopeScaling::Default);
    assert_eq!(scaling(&[kind("linear"), factor.clone()]), RopeScaling::Linear { factor: 2.0 });
    assert_eq!(scaling(std::slice::from_ref(&factor)), RopeScaling::Linear { factor: 2.0 });
    let original = ("llama.rope.scaling.original_context_length", Some(Meta::U32(32)));
    let (beta_fast, beta_slow, attention_factor) = (32.0, 1.0, None);
    let yarn = RopeScaling::Yarn {
        factor: 2.0,
        beta_fast,
        beta_slow,
        original_max_positions: 32,
        attention_factor,
        is_untruncated: false,
    };
    assert_eq!(scaling(&[kind("yarn"), factor, original]), yarn);
}

#[test]
fn stated_factors_scale_the_wavelengths() {
    let factors = |n: usize| [("rope_freqs.weight", f32s(&[n], vec![2.5; n])), llama_tensors().remove(0)];
    let checkpoint = opened(&llama_metadata(), &factors(2)).expect("opens");
    let expected = RopeScaling::Longrope { factors: vec![2.5, 2.5], attention_factor: 1.0 };
    assert_eq!(checkpoint.config().rope.as_ref().expect("rope").scaling, expected);
    assert!(!checkpoint.has("rope_freqs.weight"));
    let error = opened(&llama_metadata(), &factors(3)).expect_err("three factors for two pairs").to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
}

#[test]
fn vocabulary_is_read_from_the_file() {
    let texts = |texts: &[&str]| Meta::Array(texts.iter().map(|&text| Meta::String(text.into())).collect());
    let types = Meta::Array([3, 1, 1, 1, 1].map(Meta::I32).to_vec());
    let vocab = [
        ("tokenizer.ggml.model", Some(Meta::String("gpt2".into()))),
        ("tokenizer.ggml.pre", Some(Meta::String("smollm".into()))),
        ("tokenizer.ggml.tokens", Some(texts(&["<s>", "a", "b", "ab", "1"]))),
        ("tokenizer.ggml.token_type", Some(types)),
        ("tokenizer.ggml.merges", Some(texts(&["a b"]))),
        ("tokenizer.ggml.bos_token_id", Some(Meta::U32(0))),
        ("tokenizer.ggml.add_bos_token", Some(Meta::Bool(true))),
    ];
    let tokenizer = opened(&changed(&vocab), &llama_tensors()).expect("opens").tokenizer().expect("loads");
    assert_eq!(tokenizer.encode("ab11<s>", None, 16).expect("encodes").ids, [0, 3, 4, 4, 0]);

    let error = opened(&llama_metadata(), &llama_tensors()).expect("opens").tokenizer().expect_err("none inside");
    assert!(matches!(error, TokenizerError::Metadata(OpenError::MissingKey { .. })), "{error:?}");
    let unknown = [vocab.as_slice(), &[("tokenizer.ggml.pre", Some(Meta::String("tekken".into())))]].concat();
    let error = opened(&changed(&unknown), &llama_tensors()).expect("opens").tokenizer().expect_err("unknown");
    assert!(matches!(error, TokenizerError::Vocab { .. }), "{error:?}");
}

#[test]
fn joined_file_is_accepted() {
    let whole = opened(&llama_metadata(), &llama_tensors()).expect("opens");
    let split = |count: u16, no: u16| {
        let split = [("split.count", Some(Meta::U16(count))), ("split.no", Some(Meta::U16(no)))];
        opened(&changed(&[split.as_slice(), &[("split.tensors.count", Some(Meta::I32(5)))]].concat()), &llama_tensors())
    };
    for (count, no) in [(0, 0), (0, 2), (1, 0)] {
        let joined = split(count, no).expect("opens");
        assert_eq!(joined.digest(), whole.digest(), "{count} parts");
    }
    for no in [0, 1] {
        let error = split(2, no).expect_err("a part").to_string();
        assert!(error.contains("`split.count` is 2") && error.contains("llama-gguf-split --merge"), "{error}");
    }
}

#[test]
fn big_endian_file_is_refused_as_such() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, &llama_metadata(), &llama_tensors());
    let whole = fs::read(&path).expect("reads");
    let is_big_endian = |start: &[u8]| {
        fs::write(&path, [start, &whole[start.len()..]].concat()).expect("writes");
        let (error, text) = open_error(&path);
        let is_named = text.contains("big-endian") && text.contains("gguf-convert-endian");
        assert_eq!(matches!(error, OpenError::BigEndian { .. }), is_named, "{text}");
        is_named
    };
    assert!(is_big_endian(&[b"GGUF".as_slice(), &3_u32.to_be_bytes()].concat()));
    assert!(is_big_endian(&[b"GGUF".as_slice(), &2_u32.to_be_bytes()].concat()));
    assert!(is_big_endian(b"FUGG"));
    assert!(!is_big_endian(&[b"GGUF".as_slice(), &9_u32.to_le_bytes()].concat()), "a version to come");
    assert!(!is_big_endian(b"GGML"));
    fs::write(&path, b"GGUF").expect("writes");
    assert!(matches!(open_error(&path).0, OpenError::Header { .. }));
}

#[test]
fn keys_of_other_architectures_are_ignored_or_refused() {
    let with = |key: &'static str, value: Meta| opened(&changed(&[(key, Some(value))]), &llama_tensors());
    let plain = opened(&llama_metadata(), &llama_tensors()).expect("opens");
    // llama.cpp reads neither for a Llama.
    for (key, value) in [
        ("llama.attn_logit_softcapping", Meta::F32(5.0)),
        ("llama.attention.sliding_window", Meta::U32(8)),
        ("llama.attention.sliding_window_pattern", Meta::U32(2)),
        ("llama.rope.scaling.factor", Meta::F32(0.0)),
        ("llama.rope.scaling.yarn_ext_factor", Meta::F32(1.0)),
        ("llama.attention.scale", Meta::F32(0.0)),
        ("llama.attention.causal", Meta::Bool(true)),
    ] {
        assert_eq!(with(key, value).expect(key).config(), plain.config(), "{key}");
    }
    for (key, value) in [
        ("llama.attention.scale", Meta::F32(0.5)),
        ("llama.residual_scale", Meta::F32(0.2)),
        ("llama.embedding_scale", Meta::F32(12.0)),
        ("llama.rope.scaling.yarn_ext_factor", Meta::F32(0.5)),
        ("llama.rope.scaling.yarn_log_multiplier", Meta::F32(0.1)),
        ("llama.attention.causal", Meta::Bool(false)),
    ] {
        let error = with(key, value).expect_err(key).to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
    let linear = with("llama.rope.scaling.type", Meta::String("linear".into())).expect("opens");
    assert_eq!(linear.config(), plain.config(), "a factor that is left out is 1");
}
