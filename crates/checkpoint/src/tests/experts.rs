//! Layers of all experts in one tensor, in bf16 and in MXFP4.

use sepal_core::{DType, RowEncoding};

use super::*;
use crate::{Part, PartSizes};

const EXPERTS: usize = 3;
const FFN: usize = 4;
const HIDDEN: usize = 96;
/// Groups of a row of `HIDDEN` numbers.
const GROUPS: usize = 3;
/// Bytes of such a row and its factors.
const ROW_BYTES: usize = GROUPS * 17;

fn config() -> Value {
    json!({
        "model_type": "gpt_oss", "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": FFN, "vocab_size": 5, "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
    })
}

fn name(tensor: &str) -> String {
    format!("model.layers.0.mlp.experts.{tensor}")
}

fn write(path: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("bytes fit the shape"))
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
}

/// Rows of the numbers `[n_rows, width]`.
fn rows(numbers: &[f32], width: usize) -> Vec<Vec<f32>> {
    numbers.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

#[test]
fn layers_of_experts_are_columns_of_one_tensor() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &config());
    let bias: Vec<f32> = (0..EXPERTS * 2 * FFN).map(|index| index as f32).collect();
    let fused: Vec<half::bf16> =
        (0..EXPERTS * HIDDEN * 2 * FFN).map(|index| half::bf16::from_f32((index % 251) as f32)).collect();
    let tensors = [
        (
            name("gate_up_proj"),
            Dtype::BF16,
            vec![EXPERTS, HIDDEN, 2 * FFN],
            bytemuck::cast_slice::<_, u8>(&fused).to_vec(),
        ),
        (name("gate_up_proj_bias"), Dtype::F32, vec![EXPERTS, 2 * FFN], bytemuck::cast_slice::<_, u8>(&bias).to_vec()),
    ];
    write(&folder.path().join("model.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert!(checkpoint.names().eq([name("gate_up_proj"), name("gate_up_proj_bias")]));
    let sizes = checkpoint.part_sizes(Part::All);
    assert_eq!(sizes, PartSizes { plain: (EXPERTS * (HIDDEN + 1) * 2 * FFN) as u64, ..PartSizes::default() });
    let fused: Vec<f32> = fused.into_iter().map(half::bf16::to_f32).collect();
    for expert in 0..EXPERTS {
        let columns = &fused[expert * HIDDEN * 2 * FFN..(expert + 1) * HIDDEN * 2 * FFN];
        for (layer, first) in [("gate_proj", 0), ("up_proj", 1)] {
            let weight = checkpoint.tensor(&name(&format!("{expert}.{layer}.weight"))).expect("a layer");
            assert_eq!((weight.dtype(), weight.shape()), (DType::Bf16, [FFN, HIDDEN].as_slice()));
            assert!(checkpoint.packed(&name(&format!("{expert}.{layer}.weight"))).expect("read").is_none(), "columns");
            let output = |output: usize| -> Vec<f32> {
                (0..HIDDEN).map(|input| columns[input * 2 * FFN + 2 * output + first]).collect()
            };
            assert_eq!(rows(&weight.to_f32(), HIDDEN), (0..FFN).map(output).collect::<Vec<_>>());
            let bias = checkpoint.tensor(&name(&format!("{expert}.{layer}.bias"))).expect("a bias");
            let expected: Vec<f32> = (0..FFN).map(|output| (expert * 2 * FFN + 2 * output + first) as f32).collect();
            assert_eq!(bias.to_f32(), expected);
        }
    }
    assert!(!checkpoint.has(&name("3.gate_proj.weight")) && !checkpoint.has(&name("0.down_proj.weight")));
}

/// Numbers and factors of a tensor in MXFP4, which differ between groups.
fn quantized(outputs: usize) -> [(String, Dtype, Vec<usize>, Vec<u8>); 2] {
    let n_groups = EXPERTS * outputs * GROUPS;
    let numbers = (0..n_groups * 16).map(|index| (index * 7 % 251) as u8).collect();
    let factors = (0..n_groups).map(|group| 120 + group as u8 % 13).collect();
    [
        (name("gate_up_proj_blocks"), Dtype::U8, vec![EXPERTS, outputs, GROUPS, 16], numbers),
        (name("gate_up_proj_scales"), Dtype::U8, vec![EXPERTS, outputs, GROUPS], factors),
    ]
}

#[test]
fn mxfp4_is_dequantized_exactly() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config();
    config["quantization_config"] = json!({"quant_method": "mxfp4"});
    write_config(folder.path(), &config);
    let [numbers, factors] = quantized(2 * FFN);
    let (bytes, scales) = (numbers.3.clone(), factors.3.clone());
    // In two files.
    let files = json!({&numbers.0: "first.safetensors", &factors.0: "second.safetensors"});
    write(&folder.path().join("first.safetensors"), &[numbers]);
    write(&folder.path().join("second.safetensors"), &[factors]);
    let index = json!({"metadata": {}, "weight_map": files});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("writes");

    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(checkpoint.parameter_count(), (EXPERTS * 2 * FFN * HIDDEN) as u64);
    assert_eq!(checkpoint.describe().dtypes, ["MXFP4"]);
    let all = checkpoint.tensor(&name("gate_up_proj")).expect("all experts");
    assert_eq!((all.dtype(), all.shape()), (DType::Bf16, [EXPERTS, HIDDEN, 2 * FFN].as_slice()));
    assert!(checkpoint.packed(&name("gate_up_proj")).expect("read").is_none());
    let sizes = checkpoint.part_sizes(Part::All);
    assert_eq!(sizes.bytes(2, |encoding| encoding == RowEncoding::Mxfp4), (EXPERTS * 2 * FFN * ROW_BYTES) as u64);
    assert_eq!(sizes.bytes(2, |_| false), 2 * sizes.parameters(), "widened");
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    for expert in 0..EXPERTS {
        for (layer, first) in [("gate_proj", 0), ("up_proj", 1)] {
            let weight = checkpoint.tensor(&name(&format!("{expert}.{layer}.weight"))).expect("a layer").to_f32();
            let packed = checkpoint.packed(&name(&format!("{expert}.{layer}.weight"))).expect("read").expect("rows");
            assert_eq!((packed.encoding(), packed.width(), packed.n_rows()), (RowEncoding::Mxfp4, HIDDEN, FFN));
            for output in 0..FFN {
                let row = 2 * output + first;
                let packed = &packed.data()[output * ROW_BYTES..(output + 1) * ROW_BYTES];
                let first_group = (expert * 2 * FFN + row) * GROUPS;
                for (group, packed) in (first_group..).zip(packed.chunks_exact(17)) {
                    assert_eq!(packed[0], scales[group], "{layer} of {expert}");
                    assert_eq!(packed[1..], bytes[group * 16..(group + 1) * 16], "{layer} of {expert}");
                }
                for input in 0..HIDDEN {
                    let group = first_group + input / 32;
                    let byte = bytes[group * 16 + input % 32 / 2];
                    let level = if input % 2 == 0 { byte & 15 } else { byte >> 4 };
                    let expected = levels[usize::from(level)] * 2_f32.powi(i32::from(scales[group]) - 127);
                    assert_eq!(weight[output * HIDDEN + input], expected, "{layer} of {expert}");
                    let in_all = (expert * HIDDEN + input) * 2 * FFN + row;
                    assert_eq!(all.to_f32()[in_all], expected, "{layer} of {expert}");
                }
            }
        }
    }
    // Both files are needed to read a layer.
    let outline = crate::write_outline(folder.path(), &mut |_| Ok(Vec::new())).expect("an outline");
    assert!(outline.is_some());
    std::fs::remove_file(folder.path().join("second.safetensors")).expect("removed");
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(checkpoint.missing_files(Part::All), ["second.safetensors"]);
    let error = checkpoint.tensor(&name("0.up_proj.weight")).expect_err("a file is missing").to_string();
    assert!(error.contains("second.safetensors"), "{error}");
    let error = checkpoint.packed(&name("0.up_proj.weight")).expect_err("a file is missing").to_string();
    assert!(error.contains("second.safetensors"), "{error}");
}

#[test]
fn mxfp4_without_its_factors_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &config());
    let [numbers, factors] = quantized(2 * FFN);
    let file = folder.path().join("model.safetensors");
    let short = (factors.0.clone(), Dtype::U8, vec![EXPERTS, 1, GROUPS], vec![127; EXPERTS * GROUPS]);
    for tensors in [vec![numbers.clone()], vec![numbers, short]] {
        write(&file, &tensors);
        let (error, text) = open_error(folder.path());
        assert!(matches!(error, OpenError::Unsupported { .. }), "{text}");
        assert!(text.contains("gate_up_proj_blocks") && text.contains("gate_up_proj_scales"), "{text}");
    }
}

#[test]
fn other_numbers_of_experts_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    for shape in [vec![EXPERTS + 1, HIDDEN, 2 * FFN], vec![1 << 40, 0, 2 * FFN], vec![EXPERTS, HIDDEN, 0]] {
        write_config(folder.path(), &config());
        let bytes = vec![0; shape.iter().product::<usize>() * 2];
        write(&file, &[(name("gate_up_proj"), Dtype::BF16, shape.clone(), bytes)]);
        let (error, text) = open_error(folder.path());
        assert!(matches!(error, OpenError::Unsupported { .. }), "{text}");
        assert!(text.contains("gate_up_proj") && text.contains(&format!("{shape:?}")), "{text}");
    }
    // Of MXFP4 without numbers.
    let empty = |end: &str, shape: Vec<usize>| (name(&format!("gate_up_proj_{end}")), Dtype::U8, shape, Vec::new());
    write(&file, &[empty("blocks", vec![1 << 40, 0, 1, 16]), empty("scales", vec![1 << 40, 0, 1])]);
    let (error, text) = open_error(folder.path());
    assert!(matches!(error, OpenError::Unsupported { .. }) && text.contains("gate_up_proj_blocks"), "{text}");
    // A number that the configuration may not have.
    let mut config = config();
    config["num_local_experts"] = json!(4097);
    write_config(folder.path(), &config);
    let (_, text) = open_error(folder.path());
    assert!(text.contains("`num_local_experts` is 4097, expected at most 4096 experts"), "{text}");
}

#[test]
fn other_quantization_of_gpt_oss_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (model_type, method) in [("gpt_oss", "quark"), ("qwen3_moe", "mxfp4")] {
        let mut config = config();
        config["model_type"] = json!(model_type);
        config["quantization_config"] = json!({"quant_method": method});
        write_config(folder.path(), &config);
        write(&folder.path().join("model.safetensors"), &quantized(2 * FFN));
        let (error, text) = open_error(folder.path());
        assert!(matches!(error, OpenError::Quantized { .. }) && text.contains(method), "{text}");
    }
}
