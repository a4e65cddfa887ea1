//! Quantized layers, as `make_quantized.py` in the goldens of `sepal-testkit` packs them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use safetensors::SafeTensors;
use sepal_core::{DType, HostTensor, PackedMatrix, RowEncoding};

use super::partial::{ranges_of, write_pieces};
use super::*;
use crate::{Part, ReadError, screen, write_outline};

mod compressed;
mod zeros;

const LAYER: &str = "model.layers.0.mlp.up_proj";
const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";
const SHARDS: [&str; 2] = ["a.safetensors", "b.safetensors"];

/// Tensors by name: type, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/goldens/quantized")
}

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("the goldens");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let parts = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, parts(view))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("bytes fit the shape"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("writes");
}

/// A layer of the goldens.
struct Golden {
    parts: Tensors,
    shape: [usize; 2],
    values: Vec<f32>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let part = |full: &str| Some(format!("{LAYER}.{}", full.strip_prefix(name)?.strip_prefix('/')?));
        let all = read(&goldens().join("layers.safetensors"));
        let mut parts: Tensors = all.into_iter().filter_map(|(name, tensor)| Some((part(&name)?, tensor))).collect();
        let (_, shape, values) = parts.remove(&format!("{LAYER}.values")).expect("values");
        let shape = [shape[0], shape[1]];
        let values = HostTensor::new(DType::F32, shape.to_vec(), values.into()).expect("values").to_f32();
        Self { parts, shape, values }
    }

    /// A Llama whose layer `mlp.up_proj` has the shape of the golden.
    fn folder(&self, quantization: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = llama_config();
        config["hidden_size"] = json!(self.shape[1]);
        config["intermediate_size"] = json!(self.shape[0]);
        config["quantization_config"] = quantization;
        write_config(folder.path(), &config);
        write(&folder.path().join("model.safetensors"), &self.parts);
        folder
    }
}

fn gptq(bits: usize, group: i64) -> Value {
    json!({"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": false, "sym": false})
}

fn compressed(format: &str, weights: Value) -> Value {
    let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights}});
    json!({"quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": ["lm_head"]})
}

/// Checks that a layer is read as the golden, up to a relative error, and is encoded in rows of `encoding`.
#[track_caller]
fn check(name: &str, quantization: Value, encoding: Option<RowEncoding>, error: f32) {
    check_golden(name, &Golden::read(name), quantization, encoding, error);
}

#[track_caller]
fn check_golden(name: &str, golden: &Golden, quantization: Value, encoding: Option<RowEncoding>, error: f32) {
    let folder = golden.folder(quantization);
    let checkpoint = Checkpoint::open(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), [WEIGHT], "{name}");
    assert_eq!((checkpoint.dtype(WEIGHT), checkpoint.shape(WEIGHT)), (Some(DType::F32), Some(&golden.shape[..])));
    assert_eq!(checkpoint.parameter_count(), golden.values.len() as u64, "{name}");
    let found = checkpoint.tensor(WEIGHT).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(found.shape(), golden.shape, "{name}");
    let found = found.to_f32();
    let differs = found.iter().zip(&golden.values).position(|(found, expected)| {
        let difference = (found - expected).abs();
        difference > error * expected.abs() || difference.is_nan()
    });
    assert_eq!((found.len(), differs), (golden.values.len(), None), "{name}");

    let stored = &checkpoint.store.tensors[WEIGHT];
    let packed = checkpoint.store.packed_rows(WEIGHT, stored).expect("reads");
    assert_eq!(packed.as_ref().map(PackedMatrix::encoding), encoding, "{name}");
    let bytes = packed.as_ref().map(|packed| (packed.encoding(), packed.data().len() as u64));
    assert_eq!(checkpoint.store.packed_bytes(stored), bytes, "{name}");
    if let Some(packed) = packed {
        assert_eq!([packed.n_rows(), packed.width()], golden.shape, "{name}");
    }
    let width = golden.shape[1];
    let rows = checkpoint.store.dequantized_rows(WEIGHT, stored, 3..5).expect("reads");
    assert_eq!(rows, found[3 * width..5 * width], "{name}");
}

#[test]
fn fp8_is_read_as_the_golden() {
    let fp8 = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]});
    let group = |group| Some(RowEncoding::Fp8 { group });
    check("fp8-blocks", fp8.clone(), group(32), 0.0);
    check("fp8-blocks-bf16", fp8, group(32), 0.0);
    check("fp8-channels", json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}), group(72), 0.0);
    check("fp8-tensor", json!({"quant_method": "fp8", "activation_scheme": "static"}), group(72), 0.0);
    let channels = json!({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true});
    check("fp8-channels", compressed("float-quantized", channels), group(72), 0.0);
    let blocks = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "16x32"});
    check("fp8-blocks", compressed("float-quantized", blocks), group(32), 0.0);
}

#[test]
fn gptq_is_read_as_the_golden() {
    let with = |mut quantization: Value, key: &str, value: Value| {
        quantization[key] = value;
        quantization
    };
    check("gptq-4", gptq(4, 32), Some(RowEncoding::Int4 { group: 32 }), 0.0);
    check("gptq-4-rows", gptq(4, -1), Some(RowEncoding::Int4 { group: 64 }), 0.0);
    let v2 = |bits, group| with(gptq(bits, group), "checkpoint_format", json!("gptq_v2"));
    check("gptq-4-v2", v2(4, 16), Some(RowEncoding::Int4 { group: 16 }), 0.0);
    check("gptq-2", v2(2, 32), Some(RowEncoding::Int4 { group: 32 }), 0.0);
    check("gptq-3", gptq(3, 32), Some(RowEncoding::Int4 { group: 32 }), 0.0);
    check("gptq-8", gptq(8, 32), Some(RowEncoding::Uint8 { group: 32 }), 0.0);
    check("gptq-4-reordered", with(gptq(4, 16), "desc_act", json!(true)), None, 0.0);
}

#[test]
fn awq_is_read_as_the_golden() {
    let encoding = Some(RowEncoding::Int4 { group: 32 });
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": true});
    check("awq-4", awq, encoding, 0.0);
    check("awq-4", json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}), encoding, 0.0);
}

#[test]
fn bitsandbytes_is_read_as_the_golden() {
    // The factor SCB / 127 and the product are rounded to fp32.
    check("int8", json!({"load_in_8bit": true}), Some(RowEncoding::Int8), 2.4e-7);
    let nf4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    check("nf4", nf4.clone(), Some(RowEncoding::Nf4), 0.0);
    check("nf4-nested", nf4.clone(), Some(RowEncoding::Nf4), 0.0);
    check("nf4-across-rows", nf4, None, 0.0);
}

#[test]
fn compressed_integers_are_read_as_the_golden() {
    let channels = json!({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true});
    check("int8-channels", compressed("int-quantized", channels), Some(RowEncoding::Int8), 0.0);
    let scheme = |symmetric: bool| {
        let scheme =
            json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": symmetric});
        compressed("pack-quantized", scheme)
    };
    check("packed-4", scheme(true), Some(RowEncoding::Int4 { group: 32 }), 0.0);
    check("packed-4-asymmetric", scheme(false), Some(RowEncoding::Int4 { group: 32 }), 0.0);
    check("packed-4-reordered", scheme(true), None, 0.0);
    let bytes = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
    check("packed-8", compressed("pack-quantized", bytes), Some(RowEncoding::Uint8 { group: 64 }), 0.0);
}

/// Whole models, and their quantization in summaries.
const MODELS: [(&str, &str); 5] =
    [("fp8", "FP8"), ("gptq", "GPTQ-4"), ("gptq-reordered", "GPTQ-4"), ("awq", "AWQ-4"), ("nf4", "NF4")];

#[test]
fn models_are_read_as_their_goldens() {
    for (name, kind) in MODELS {
        let checkpoint = Checkpoint::open(goldens().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(checkpoint.describe().dtypes, [kind, "F16"], "{name}");
        let golden = read(&goldens().join(format!("{name}.golden.safetensors")));
        assert_eq!((golden.len(), checkpoint.names().count()), (7, 12), "{name}: biases of zeros are left out");
        for (weight, (dtype, shape, bytes)) in golden {
            let dtype = if dtype == Dtype::F16 { DType::F16 } else { DType::F32 };
            let expected = HostTensor::new(dtype, shape, bytes.into()).expect("a tensor");
            let found = checkpoint.tensor(&weight).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!((found.shape(), found.to_f32()), (expected.shape(), expected.to_f32()), "{name}: {weight}");
        }
    }
}

/// The model in two shards, with the parts of each layer in both.
fn in_shards(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(goldens().join(name).join("config.json"), folder.path().join("config.json")).expect("copied");
    let (mut shards, mut weight_map) = ([Tensors::new(), Tensors::new()], serde_json::Map::new());
    for (index, (name, tensor)) in read(&goldens().join(name).join("model.safetensors")).into_iter().enumerate() {
        weight_map.insert(name.clone(), json!(SHARDS[index % 2]));
        shards[index % 2].insert(name, tensor);
    }
    for (file, tensors) in SHARDS.iter().zip(&shards) {
        write(&folder.path().join(file), tensors);
    }
    let index = json!({ "weight_map": weight_map });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("writes");
    folder
}

fn range_of(path: &Path, range: &Range<u64>) -> Vec<u8> {
    let bytes = fs::read(path).expect("reads");
    bytes[range.start as usize..bytes.len().min(range.end as usize)].to_vec()
}

#[test]
fn layers_are_read_from_several_shards() {
    for (name, _) in MODELS {
        let complete = Checkpoint::open(goldens().join(name)).expect("opens");
        let whole = in_shards(name);
        let sharded = Checkpoint::open(whole.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(sharded.digest(), complete.digest(), "{name}");
        assert_eq!(sharded.tensor(WEIGHT).expect("reads"), complete.tensor(WEIGHT).expect("reads"), "{name}");

        let folder = tempfile::tempdir().expect("a folder");
        for file in ["config.json", "model.safetensors.index.json", SHARDS[0]] {
            fs::copy(whole.path().join(file), folder.path().join(file)).expect("copied");
        }
        write_outline(folder.path(), &mut |ranges| {
            Ok(ranges.iter().map(|(file, range)| range_of(&whole.path().join(file), range)).collect())
        })
        .expect("an outline");
        let part = Checkpoint::open(folder.path()).expect("opens without a shard");
        assert_eq!((part.digest(), part.parameter_count()), (complete.digest(), complete.parameter_count()), "{name}");
        assert_eq!(part.missing_files(Part::Blocks("0:1".parse().expect("a span"))), [SHARDS[1]], "{name}");
        let error = part.tensor(WEIGHT).expect_err("a part of the layer is missing");
        assert!(matches!(&error, ReadError::MissingShard { path, .. } if path.ends_with(SHARDS[1])), "{name}: {error}");
        fs::copy(whole.path().join(SHARDS[1]), folder.path().join(SHARDS[1])).expect("copied");
        assert_eq!(part.tensor(WEIGHT).expect("it came"), complete.tensor(WEIGHT).expect("reads"), "{name}");
    }
}

#[test]
fn screen_accepts_quantized_models_and_refuses_damaged_ones() {
    for (name, _) in MODELS {
        let folder = tempfile::tempdir().expect("a folder");
        fs::copy(goldens().join(name).join("config.json"), folder.path().join("config.json")).expect("copied");
        let weights = goldens().join(name).join("model.safetensors");
        let result = screen(folder.path(), &mut |ranges| {
            Ok(ranges.iter().map(|(_, range)| range_of(&weights, range)).collect())
        });
        assert!(result.is_ok(), "{name}: {result:?}");
        let mut tensors = read(&weights);
        let scale = ["scales", "weight_scale_inv", "weight.absmax"].map(|part| format!("{LAYER}.{part}"));
        tensors.retain(|name, _| !scale.contains(name));
        write(&folder.path().join("damaged"), &tensors);
        let error = screen(folder.path(), &mut |ranges| {
            Ok(ranges.iter().map(|(_, range)| range_of(&folder.path().join("damaged"), range)).collect())
        });
        let error = error.expect_err("scales are missing");
        assert!(matches!(&error, OpenError::QuantizedLayer { name, .. } if scale.contains(name)), "{error}");
    }
}

#[test]
fn rows_of_a_quantized_output_layer_are_read() {
    let golden = Golden::read("gptq-4-reordered");
    let mut parts = golden.parts.clone();
    let renamed = |name: String| name.replace(LAYER, "lm_head");
    parts = parts.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
    let mut quantization = gptq(4, 16);
    quantization["desc_act"] = json!(true);
    let folder = Golden { parts, ..golden }.folder(quantization);
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let values = Golden::read("gptq-4-reordered").values;
    let ids = [5, 1, 2, 3, 30];
    let expected: Vec<f32> = ids.iter().flat_map(|&id| values[id * 64..(id + 1) * 64].to_vec()).collect();
    assert_eq!(checkpoint.output_rows(&ids).expect("rows").to_f32(), expected);
    assert!(matches!(checkpoint.output_rows(&[32]), Err(ReadError::Row { row: 32, .. })));
}

#[test]
fn incomplete_and_misshapen_layers_are_refused_by_tensor_name() {
    let fp8 = json!({"quant_method": "fp8", "weight_block_size": [16, 32]});
    let nf4 = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    let awq = json!({"quant_method": "awq", "group_size": 32});
    let refused = |golden: &Golden, quantization: &Value, part: &str, needle: &str| {
        let folder = golden.folder(quantization.clone());
        let (error, text) = open_error(folder.path());
        let expected = format!("{LAYER}.{part}");
        assert!(matches!(&error, OpenError::QuantizedLayer { name, .. } if *name == expected), "{text}");
        assert!(text.contains(needle) && text.contains("a GGUF file of the model"), "{text}");
    };
    for (name, quantization, part) in [
        ("fp8-blocks", &fp8, "weight_scale_inv"),
        ("gptq-4", &gptq(4, 32), "scales"),
        ("gptq-4", &gptq(4, 32), "qzeros"),
        ("awq-4", &awq, "scales"),
        ("int8", &json!({"load_in_8bit": true}), "SCB"),
        ("nf4", &nf4, "weight.absmax"),
        ("nf4-nested", &nf4, "weight.nested_quant_map"),
    ] {
        let mut golden = Golden::read(name);
        golden.parts.remove(&format!("{LAYER}.{part}")).expect("a part");
        refused(&golden, quantization, part, "is missing");
    }
    let mut golden = Golden::read("gptq-4");
    golden.parts.remove(&format!("{LAYER}.qweight")).expect("a part");
    refused(&golden, &gptq(4, 32), "g_idx", "belongs to no layer");

    refused(&Golden::read("gptq-4"), &gptq(4, 16), "scales", "[2, 32], expected [4, 32]");
    refused(&Golden::read("fp8-blocks"), &json!({"quant_method": "fp8"}), "weight_scale_inv", "expected [1, 1]");
    let wrong = Golden { shape: [41, 64], ..Golden::read("nf4") };
    refused(&wrong, &nf4, "weight", "has 1280 bytes");
    let mut golden = Golden::read("awq-4");
    golden.parts.get_mut(&format!("{LAYER}.scales")).expect("a part").0 = Dtype::I16;
    refused(&golden, &awq, "scales", "is of I16");
}

#[test]
fn damaged_contents_are_refused_when_they_are_read() {
    let nf4 = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    let refused = |golden: &Golden, quantization: Value, needle: &str| {
        let folder = golden.folder(quantization);
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        match checkpoint.tensor(WEIGHT) {
            Err(ReadError::Decode { name, source, .. }) => {
                assert!(name == WEIGHT && source.to_string().contains(needle), "{source}");
            }
            other => panic!("{needle}: {other:?}"),
        }
    };
    let mut golden = Golden::read("nf4");
    golden.parts.get_mut(&format!("{LAYER}.weight.quant_map")).expect("levels").2.fill(0);
    refused(&golden, nf4.clone(), "quant_map");
    refused(&Golden { shape: [20, 128], ..Golden::read("nf4") }, nf4, "its shape is [40, 64]");
    let mut golden = Golden::read("gptq-4");
    golden.parts.get_mut(&format!("{LAYER}.g_idx")).expect("groups").2.fill(0);
    refused(&golden, gptq(4, 32), "not divided into groups of 32");
}

#[test]
fn unsupported_quantizations_are_refused_before_weights_are_fetched() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |quantization: &Value, needle: &str| {
        let mut config = llama_config();
        config["quantization_config"] = quantization.clone();
        write_config(folder.path(), &config);
        let error = screen(folder.path(), &mut |_| panic!("{quantization} is fetched")).expect_err(needle).to_string();
        assert!(error.contains(needle) && error.contains("a GGUF file of the model"), "{error}");
    };
    for method in ["aqlm", "hqq", "eetq", "quanto", "mxfp4", "torchao", "auto-round", "higgs", "vptq", "bitnet"] {
        refused(&json!({"quant_method": method, "bits": 4}), &format!("`quantization_config` is {method}"));
    }
    let scheme = |format: &str, bits: usize, kind: &str| compressed(format, json!({"num_bits": bits, "type": kind}));
    let fp4 = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"});
    for (quantization, key) in [
        (json!({"quant_method": "gptq", "bits": 5}), "bits` is 5"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "checkpoint_format` is \"marlin\""),
        (json!({"quant_method": "gptq", "bits": 4, "dynamic": {"mlp": {"bits": 8}}}), "dynamic` is"),
        (json!({"quant_method": "awq", "version": "gemv"}), "version` is \"gemv\", supported: gemm"),
        (json!({"quant_method": "awq", "bits": 8}), "bits` is 8"),
        (json!({"quant_method": "awq", "zero_point": false}), "zero_point` is false"),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), "fmt` is \"e5m2\""),
        (fp4, "bnb_4bit_quant_type` is \"fp4\", supported: nf4"),
        (json!({"load_in_4bit": true}), "bnb_4bit_quant_type` is absent"),
        (scheme("nvfp4-pack-quantized", 4, "float"), "config_groups.group_0.weights.num_bits` is 4"),
        (scheme("pack-quantized", 3, "int"), "config_groups.group_0.weights.num_bits` is 3"),
        (scheme("marlin-24", 4, "int"), "config_groups.group_0.weights.num_bits` is 4"),
    ] {
        refused(&quantization, &format!("`quantization_config.{key}"));
    }
    let mut config = llama_config();
    config["model_type"] = json!("gpt2");
    config["quantization_config"] = gptq(4, 32);
    write_config(folder.path(), &config);
    let error = screen(folder.path(), &mut |_| panic!("weights are fetched")).expect_err("refused").to_string();
    assert!(error.contains("gptq of a gpt2 model"), "{error}");
}

#[test]
fn quantization_of_plain_weights_is_refused() {
    let mut golden = Golden::read("fp8-tensor");
    golden.parts = BTreeMap::from([(WEIGHT.to_owned(), (Dtype::F16, vec![40, 72], vec![0; 40 * 72 * 2]))]);
    let (error, text) = open_error(golden.folder(json!({"quant_method": "fp8"})).path());
    assert!(matches!(&error, OpenError::Unsupported { key, .. } if key == "quantization_config"), "{text}");
    assert!(text.contains("no layer of these weights is quantized"), "{text}");
}

#[test]
fn biases_of_gptq_are_left_out_only_if_they_are_zeros() {
    let bias = format!("{LAYER}.bias");
    let mut golden = Golden::read("gptq-4");
    golden.parts.insert(bias.clone(), (Dtype::F16, vec![32], vec![0; 64]));
    let folder = golden.folder(gptq(4, 32));
    assert!(!Checkpoint::open(folder.path()).expect("opens").has(&bias));
    golden.parts.insert(bias.clone(), (Dtype::F16, vec![32], vec![1; 64]));
    let (error, text) = open_error(golden.folder(gptq(4, 32)).path());
    assert!(matches!(&error, OpenError::Unsupported { key, .. } if *key == bias), "{text}");
    // Of other methods they are refused, as those of plain weights are.
    let mut golden = Golden::read("awq-4");
    golden.parts.insert(bias.clone(), (Dtype::F16, vec![40], vec![0; 80]));
    let (error, text) = open_error(golden.folder(json!({"quant_method": "awq", "group_size": 32})).path());
    assert!(matches!(&error, OpenError::Unsupported { key, .. } if *key == bias), "{text}");
}

#[test]
fn biases_of_gptq_that_are_not_there_are_left_out() {
    let mut golden = Golden::read("gptq-4");
    golden.parts.insert(format!("{LAYER}.bias"), (Dtype::F16, vec![32], vec![0; 64]));
    let second = |(name, tensor): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        (name.replace("layers.0", "layers.1"), tensor.clone())
    };
    let of_second: Vec<_> = golden.parts.iter().map(second).collect();
    golden.parts.extend(of_second);
    let complete = golden.folder(gptq(4, 32));
    let config = fs::read_to_string(complete.path().join("config.json")).expect("reads");
    let mut config: Value = serde_json::from_str(&config).expect("an object");
    config["num_hidden_layers"] = json!(2);
    write_config(complete.path(), &config);
    let expected = Checkpoint::open(complete.path()).expect("opens");

    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &config);
    write_outline(folder.path(), &mut *ranges_of(complete.path())).expect("fetched").expect("an outline");
    let first = Checkpoint::open(folder.path()).expect("opens");
    let (file, ranges) = first.missing_ranges(Part::Blocks("0:1".parse().expect("a span"))).expect("no file");
    write_pieces(&folder.path().join(&file), &complete.path().join(&file), &ranges);
    let again = Checkpoint::open(folder.path()).expect("opens with the pieces of block 0");
    assert!(again.names().eq(expected.names()) && !again.has(&format!("{LAYER}.bias")));
    assert_eq!(again.digest(), expected.digest());
    assert_eq!(again.tensor(WEIGHT).expect("reads"), expected.tensor(WEIGHT).expect("reads"));
    let other = WEIGHT.replace("layers.0", "layers.1");
    assert!(matches!(again.tensor(&other), Err(ReadError::MissingShard { .. })));
    assert!(matches!(again.rows(&other, &[0, 2]), Err(ReadError::MissingShard { .. })));
}

#[test]
fn plain_weight_beside_a_quantized_one_is_refused() {
    let mut golden = Golden::read("gptq-4");
    golden.parts.insert(WEIGHT.to_owned(), (Dtype::F16, vec![1], vec![0; 2]));
    let (error, text) = open_error(golden.folder(gptq(4, 32)).path());
    assert!(matches!(&error, OpenError::QuantizedLayer { name, .. } if name == WEIGHT), "{text}");
    assert!(text.contains(&format!("{LAYER}.qweight")), "{text}");
}

#[test]
fn quantization_of_a_text_model_is_read_beside_or_in_it() {
    let golden = Golden::read("gptq-4");
    let folder = golden.folder(gptq(4, 32));
    let expected = Checkpoint::open(folder.path()).expect("opens").tensor(WEIGHT).expect("reads");
    let mut text = llama_config();
    text["model_type"] = json!("mistral");
    (text["hidden_size"], text["intermediate_size"]) = (json!(golden.shape[1]), json!(golden.shape[0]));
    let renamed = golden.parts.iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor.clone()));
    write(&folder.path().join("model.safetensors"), &renamed.collect());
    for is_inside in [false, true] {
        let mut config = json!({"model_type": "mistral3", "text_config": text, "vision_config": {}});
        let place = if is_inside { &mut config["text_config"] } else { &mut config };
        place["quantization_config"] = gptq(4, 32);
        write_config(folder.path(), &config);
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        assert_eq!(checkpoint.tensor(WEIGHT).expect("reads"), expected, "{is_inside}");
    }
}

#[test]
fn scales_of_activations_are_left_out() {
    let mut golden = Golden::read("fp8-tensor");
    let scale = (Dtype::F32, Vec::new(), vec![0; 4]);
    for name in ["model.layers.0.mlp.up_proj.input_scale", "model.layers.0.self_attn.k_scale"] {
        golden.parts.insert(name.to_owned(), scale.clone());
    }
    let folder = golden.folder(json!({"quant_method": "fp8", "activation_scheme": "static"}));
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), [WEIGHT]);
    assert_eq!(checkpoint.tensor(WEIGHT).expect("reads").to_f32(), golden.values);
}
