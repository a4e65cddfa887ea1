use std::fs;
use std::ops::Range;

use sepal_core::{DType, Family};

use super::*;
use crate::outline::OUTLINE;
use crate::{FetchRanges, Part, ReadError, TokenizerError, missing_shards, screen, tensor_names, write_outline};

fn single() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    let tensors = [("model.embed_tokens.weight", vec![5, 8], numbers(40)), ("model.norm.weight", vec![8], numbers(8))];
    write_shard(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn sharded() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    write_shard(&folder.path().join("first.safetensors"), &[("model.embed_tokens.weight", vec![5, 8], numbers(40))]);
    write_shard(&folder.path().join("second.safetensors"), &[("model.norm.weight", vec![8], numbers(8))]);
    let weight_map =
        json!({"model.embed_tokens.weight": "first.safetensors", "model.norm.weight": "second.safetensors"});
    write_index(folder.path(), &json!({"metadata": {}, "weight_map": weight_map}));
    folder
}

fn write_index(folder: &Path, index: &Value) {
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("writes");
}

#[test]
fn single_file_is_read_by_hf_names() {
    let folder = single();
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let config = checkpoint.config();
    assert_eq!((config.family, config.hidden, config.head_dim, config.n_kv_heads), (Family::Llama, 8, 4, 1));
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["model.embed_tokens.weight", "model.norm.weight"]);
    for name in ["model.embed_tokens.weight", "embed_tokens.weight"] {
        let tensor = checkpoint.tensor(name).expect("is there");
        assert_eq!((tensor.dtype(), tensor.shape()), (DType::F32, [5, 8].as_slice()));
        assert_eq!(tensor.to_f32(), numbers(40));
    }
    assert!(checkpoint.has("norm.weight") && !checkpoint.has("lm_head.weight"));
    let error = checkpoint.tensor("lm_head.weight").expect_err("is not there");
    assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
    assert_eq!(tensor_names(checkpoint.config().family).block_prefix(3), "model.layers.3.");
}

#[test]
fn checkpoint_is_shared_between_threads() {
    let folder = single();
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(checkpoint.tensor("embed_tokens.weight").expect("reads").to_f32(), numbers(40));
                    assert_eq!(checkpoint.tensor("norm.weight").expect("reads").to_f32(), numbers(8));
                }
            });
        }
    });
}

#[test]
fn names_without_prefix_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let bloom = json!({"model_type": "bloom", "hidden_size": 8, "n_layer": 1, "n_head": 2, "vocab_size": 5});
    write_config(folder.path(), &bloom);
    write_shard(&folder.path().join("model.safetensors"), &[("h.0.input_layernorm.bias", vec![8], numbers(8))]);
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let name = format!("{}input_layernorm.bias", tensor_names(checkpoint.config().family).block_prefix(0));
    assert_eq!(name, "transformer.h.0.input_layernorm.bias");
    assert_eq!(checkpoint.tensor(&name).expect("is there").to_f32(), numbers(8));
}

#[test]
fn shards_are_read_as_one_checkpoint() {
    let (single, sharded) = (single(), sharded());
    let (single, sharded) = (Checkpoint::open(single.path()), Checkpoint::open(sharded.path()));
    let (single, sharded) = (single.expect("opens"), sharded.expect("opens"));
    for name in single.names() {
        assert_eq!(single.tensor(name).expect("reads"), sharded.tensor(name).expect("reads"), "{name}");
    }
    assert_eq!(single.digest(), sharded.digest(), "how weights are dealt out to files does not matter");
    assert_eq!(single.digest().len(), "sha256:".len() + 64);
    assert_eq!(sharded.describe().dtypes, ["F32"]);
}

#[test]
fn digest_differs_between_weights() {
    let digest = |change: &dyn Fn(&Path)| {
        let folder = single();
        change(folder.path());
        Checkpoint::open(folder.path()).expect("opens").digest().to_owned()
    };
    let same = digest(&|_| ());
    assert_eq!(same, digest(&|_| ()));
    let mut other_values = numbers(40);
    other_values[39] += 1.0;
    let tensors = [("model.embed_tokens.weight", vec![5, 8], other_values), ("model.norm.weight", vec![8], numbers(8))];
    assert_ne!(same, digest(&|folder| write_shard(&folder.join("model.safetensors"), &tensors)));
    let mut other_config = llama_config();
    other_config["rms_norm_eps"] = json!(1e-6);
    assert_ne!(same, digest(&|folder| write_config(folder, &other_config)));
}

#[test]
fn half_precision_is_kept_and_integers_are_refused() {
    let folder = single();
    let halves: Vec<half::bf16> = [1.5, -2.0].map(half::bf16::from_f32).to_vec();
    let bytes: &[u8] = bytemuck::cast_slice(&halves);
    let views = [
        ("half", TensorView::new(Dtype::BF16, vec![2], bytes).expect("fits")),
        ("ids", TensorView::new(Dtype::I32, vec![1], bytes).expect("fits")),
    ];
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).expect("serializes"))
        .expect("writes");
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let tensor = checkpoint.tensor("half").expect("reads");
    assert_eq!((tensor.dtype(), tensor.to_f32()), (DType::Bf16, vec![1.5, -2.0]));
    assert!(matches!(checkpoint.tensor("ids"), Err(ReadError::DType { dtype, .. }) if dtype == "I32"));
    assert_eq!((checkpoint.dtype("half"), checkpoint.shape("half")), (Some(DType::Bf16), Some(&[2][..])));
    assert_eq!((checkpoint.dtype("ids"), checkpoint.shape("ids")), (None, Some(&[1][..])));
    assert_eq!((checkpoint.dtype("none"), checkpoint.shape("none")), (None, None));
}

#[test]
fn truncated_file_is_refused_at_any_length() {
    let folder = single();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).expect("reads");
    for length in [0, 7, 8, 20, whole.len() - 33, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("writes");
        match open_error(folder.path()) {
            (OpenError::Length { expected, found, .. }, text) => {
                assert!(found == length as u64 && expected > found && expected <= whole.len() as u64, "{text}");
                assert!(text.contains("model.safetensors"), "{text}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    fs::write(&path, [whole.as_slice(), &[0]].concat()).expect("writes");
    assert!(matches!(open_error(folder.path()).0, OpenError::Length { .. }), "a byte too many");
    let mut damaged = whole.clone();
    damaged[8..12].copy_from_slice(b"!!!!");
    fs::write(&path, &damaged).expect("writes");
    assert!(matches!(open_error(folder.path()).0, OpenError::Header { .. }));
    damaged[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &damaged).expect("writes");
    assert!(matches!(open_error(folder.path()).0, OpenError::Header { .. }));
}

#[test]
fn invalid_index_is_refused() {
    let folder = sharded();
    let check = |index: Value, needle: &str| {
        write_index(folder.path(), &index);
        let (_, text) = open_error(folder.path());
        assert!(text.contains(needle), "{text}");
    };
    check(json!({"weight_map": {"model.norm.weight": "third.safetensors"}}), "third.safetensors");
    check(json!({"weight_map": {"model.norm.weight": "first.safetensors"}}), "`model.norm.weight`");
    check(json!({"weight_map": {"model.norm.weight": "../first.safetensors"}}), "`weight_map.model.norm.weight`");
    check(json!({"weight_map": 3}), "`weight_map` is 3");
    check(json!({}), "`weight_map` is missing");
    check(json!([1]), "model.safetensors.index.json");
}

#[test]
fn tokenizer_is_read_beside_the_configuration() {
    let folder = single();
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert!(matches!(checkpoint.tokenizer(), Err(TokenizerError::File(_))));
    let definition = json!({"version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "unk_token": "x", "vocab": {"x": 0, "y": 1}}});
    fs::write(folder.path().join("tokenizer.json"), definition.to_string()).expect("writes");
    assert_eq!(checkpoint.tokenizer().expect("loads").encode("y", None, 4).expect("encodes").ids, [1]);
}

/// Two blocks of one matrix each in their own shards, the ends in a third shard.
fn in_parts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = llama_config();
    config["num_hidden_layers"] = json!(2);
    write_config(folder.path(), &config);
    let mut weight_map = serde_json::Map::new();
    let shards = [
        ("a.safetensors", vec!["model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"]),
        ("b.safetensors", vec!["model.layers.1.mlp.up_proj.weight"]),
        ("c.safetensors", vec!["model.embed_tokens.weight", "model.norm.weight"]),
        ("d.safetensors", vec!["lm_head.weight"]),
    ];
    for (file, names) in shards {
        let values = || -> Vec<f32> { numbers(4800).into_iter().map(|n| n + file.len() as f32).collect() };
        let tensors: Vec<(&str, Vec<usize>, Vec<f32>)> =
            names.iter().map(|name| (*name, vec![8, 600], values())).collect();
        write_shard(&folder.path().join(file), &tensors);
        weight_map.extend(names.into_iter().map(|name| (name.to_owned(), json!(file))));
    }
    write_index(folder.path(), &json!({ "weight_map": weight_map }));
    folder
}

/// A copy of the folder without its shards, and a function that reads ranges of them.
fn without_shards(whole: &Path) -> (tempfile::TempDir, Box<FetchRanges<'static>>) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors.index.json"] {
        fs::copy(whole.join(file), folder.path().join(file)).expect("copied");
    }
    let whole = whole.to_owned();
    let show = move |wanted: &[(String, Range<u64>)]| {
        let part = |(file, range): &(String, Range<u64>)| {
            let bytes = fs::read(whole.join(file))?;
            let end = bytes.len().min(range.end as usize);
            Ok(bytes[range.start as usize..end].to_vec())
        };
        wanted.iter().map(part).collect()
    };
    (folder, Box::new(show))
}

#[test]
fn outline_replaces_missing_shards() {
    let whole = in_parts();
    let all = Checkpoint::open(whole.path()).expect("opens");
    assert_eq!(all.missing_files(Part::All), Vec::<String>::new());
    let (folder, mut show) = without_shards(whole.path());
    assert_eq!(missing_shards(folder.path()).expect("an index").len(), 4);
    write_outline(folder.path(), &mut *show).expect("an outline");
    let part = Checkpoint::open(folder.path()).expect("opens without a shard");
    assert_eq!(part.digest(), all.digest());
    assert_eq!(part.parameter_count(), all.parameter_count());
    assert_eq!(part.describe(), all.describe());
    assert!(part.names().eq(all.names()));

    let blocks = |text: &str| part.missing_files(Part::Blocks(text.parse().expect("a span")));
    assert_eq!(blocks("0:1"), ["a.safetensors"]);
    assert_eq!(blocks("1:2"), ["a.safetensors", "b.safetensors"]);
    assert_eq!(part.missing_files(Part::Ends), ["c.safetensors"]);
    assert_eq!(part.missing_files(Part::Output), ["d.safetensors"]);
    assert!(matches!(part.output_rows(&[0]), Err(ReadError::MissingShard { .. })));
    assert_eq!(part.missing_files(Part::All).len(), 4);

    let name = "model.layers.1.mlp.up_proj.weight";
    let error = part.tensor(name).expect_err("its shard is not here");
    assert!(matches!(&error, ReadError::MissingShard { path, .. } if path.ends_with("b.safetensors")), "{error}");

    // A shard that arrives later is found.
    fs::copy(whole.path().join("b.safetensors"), folder.path().join("b.safetensors")).expect("copied");
    assert_eq!(part.tensor(name).expect("it came"), all.tensor(name).expect("reads"));
    assert_eq!(blocks("1:2"), ["a.safetensors"]);
    let reopened = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!((reopened.digest(), reopened.tensor(name).is_ok()), (all.digest(), true));
}

#[test]
fn digest_is_the_same_for_any_set_of_shards() {
    let whole = in_parts();
    let all = Checkpoint::open(whole.path()).expect("opens");
    // The outline of the complete model, copied to a folder with some of its shards.
    write_outline(whole.path(), &mut |_| panic!("all is here")).expect("an outline");
    for present in 0..16_u32 {
        let (folder, _) = without_shards(whole.path());
        fs::copy(whole.path().join(OUTLINE), folder.path().join(OUTLINE)).expect("copied");
        for (at, shard) in ["a", "b", "c", "d"].iter().enumerate().filter(|(at, _)| present >> at & 1 == 1) {
            let file = format!("{shard}.safetensors");
            fs::copy(whole.path().join(&file), folder.path().join(&file)).unwrap_or_else(|_| panic!("copied {at}"));
        }
        let part = Checkpoint::open(folder.path()).expect("opens");
        assert_eq!(part.digest(), all.digest(), "{present:b}");
    }
}

#[test]
fn missing_shard_without_outline_is_refused() {
    let whole = in_parts();
    fs::remove_file(whole.path().join("b.safetensors")).expect("removed");
    let (error, text) = open_error(whole.path());
    assert!(matches!(&error, OpenError::NoOutline { path, .. } if path.ends_with("b.safetensors")), "{text}");
    let failed = write_outline(whole.path(), &mut |_| Err("no network".into())).expect_err("it cannot be looked into");
    assert!(matches!(&failed, OpenError::Fetch { source, .. } if source.to_string() == "no network"), "{failed}");
    for answer in [vec![], vec![0; 4], vec![255; 1000]] {
        let error = write_outline(whole.path(), &mut |_| Ok(vec![answer.clone()])).expect_err("no shard");
        assert!(matches!(error, OpenError::Fetch { .. }), "{error}");
    }
    assert!(!whole.path().join(OUTLINE).exists());
}

#[test]
fn shard_that_differs_from_the_outline_is_refused() {
    let whole = in_parts();
    let (folder, mut show) = without_shards(whole.path());
    write_outline(folder.path(), &mut *show).expect("an outline");
    let part = Checkpoint::open(folder.path()).expect("opens");
    fs::copy(whole.path().join("c.safetensors"), folder.path().join("b.safetensors")).expect("copied");
    let error = part.tensor("model.layers.1.mlp.up_proj.weight").expect_err("another shard");
    assert!(matches!(&error, ReadError::Io { source, .. } if source.to_string().contains("another file")), "{error:?}");
}

#[test]
fn pickled_weights_are_refused_with_a_conversion() {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    for name in ["pytorch_model-00002-of-00002.bin", "pytorch_model-00001-of-00002.bin", "training_args.bin"] {
        fs::write(folder.path().join(name), "pickled").expect("writes");
    }
    let (error, text) = open_error(folder.path());
    assert!(matches!(&error, OpenError::Pickled { file, .. } if file == "pytorch_model-00001-of-00002.bin"), "{text}");
    assert!(text.contains("is not supported") && text.contains("save_pretrained"), "{text}");
}

#[test]
fn long_header_is_fetched_in_two_ranges() {
    let whole = in_parts();
    let names: Vec<String> = (0..800).map(|at| format!("model.layers.0.some.matrix.{at}.weight")).collect();
    let tensors: Vec<(&str, Vec<usize>, Vec<f32>)> =
        names.iter().map(|name| (name.as_str(), vec![1, 1], vec![1.0])).collect();
    write_shard(&whole.path().join("long.safetensors"), &tensors);
    let weight_map: serde_json::Map<String, Value> =
        names.iter().map(|name| (name.clone(), json!("long.safetensors"))).collect();
    write_index(whole.path(), &json!({ "weight_map": weight_map }));
    let (folder, mut show) = without_shards(whole.path());
    let mut asked = Vec::new();
    write_outline(folder.path(), &mut |wanted| {
        asked.push(wanted.to_vec());
        show(wanted)
    })
    .expect("an outline");
    let starts: Vec<u64> = asked.iter().map(|wanted| wanted[0].1.start).collect();
    assert_eq!((asked.len(), &starts[..2]), (3, [0, 1 << 15].as_slice()), "the head, the rest of it, and a block");
    let (part, all) = (Checkpoint::open(folder.path()), Checkpoint::open(whole.path()));
    assert_eq!(part.expect("opens").digest(), all.expect("opens").digest());
}

/// A Llama of one block, with these tensors beside its embeddings.
fn with_tensors(tensors: &[(&str, Dtype)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_config(folder.path(), &llama_config());
    fs::write(folder.path().join("model.safetensors"), file_of(tensors)).expect("writes");
    folder
}

fn file_of(tensors: &[(&str, Dtype)]) -> Vec<u8> {
    let embeddings = ("model.embed_tokens.weight", TensorView::new(Dtype::F32, vec![5, 8], &[0; 160]).expect("fits"));
    let bytes = [0; 32];
    let view = |&(name, dtype): &(&'static str, Dtype)| {
        let len = 4 * dtype.bitsize() / 8;
        (name, TensorView::new(dtype, vec![4], &bytes[..len]).expect("fits"))
    };
    let tensors: Vec<(&'static str, Dtype)> =
        tensors.iter().map(|(name, dtype)| (String::leak((*name).to_owned()) as &str, *dtype)).collect();
    safetensors::serialize(tensors.iter().map(view).chain([embeddings]), None).expect("serializes")
}

#[test]
fn quantized_weights_are_refused_by_tensor_name() {
    let layer = "model.layers.0.self_attn.q_proj";
    for (part, dtype) in [
        ("weight_scale", Dtype::F32),
        ("weight_scale_inv", Dtype::F32),
        ("input_scale", Dtype::F32),
        ("weight_zero_point", Dtype::I32),
        ("SCB", Dtype::F32),
        ("weight.absmax", Dtype::U8),
        ("weight.quant_state.bitsandbytes__nf4", Dtype::U8),
    ] {
        let name = format!("{layer}.{part}");
        let folder = with_tensors(&[(&format!("{layer}.weight"), Dtype::BF16), (&name, dtype)]);
        let (error, text) = open_error(folder.path());
        assert!(matches!(&error, OpenError::Quantized { key, .. } if *key == name), "{text}");
        assert!(text.contains("a GGUF file of the model"), "{text}");
    }
    // Without the weight that they quantize.
    for part in ["qweight", "W_q", "weight_packed", "weight._data"] {
        let name = format!("{layer}.{part}");
        let (error, text) = open_error(with_tensors(&[(&name, Dtype::I32)]).path());
        assert!(matches!(&error, OpenError::Quantized { key, .. } if *key == name), "{text}");
    }
    for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::I8, Dtype::U8, Dtype::I32] {
        let name = format!("{layer}.weight");
        let (error, text) = open_error(with_tensors(&[(&name, dtype)]).path());
        assert!(matches!(&error, OpenError::Quantized { found, .. } if found.contains(&dtype.to_string())), "{text}");
    }
}

#[test]
fn buffers_are_not_taken_for_quantized_weights() {
    let names = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.attention.masked_bias",
        "model.decoder.version",
        "lm_head.weight",
    ];
    let folder = with_tensors(&names.map(|name| (name, Dtype::F32)));
    assert!(Checkpoint::open(folder.path()).is_ok());
    assert!(Checkpoint::open(with_tensors(&[("h.0.attn.bias", Dtype::BOOL)]).path()).is_ok());
}

#[test]
fn biases_that_the_configuration_rules_out_are_refused() {
    let bias = "model.layers.0.self_attn.o_proj.bias";
    let folder = with_tensors(&[("model.layers.0.self_attn.o_proj.weight", Dtype::F32), (bias, Dtype::F32)]);
    let check = |changes: Value, expected: Option<&str>| {
        let mut config = llama_config();
        config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        write_config(folder.path(), &config);
        match expected {
            None => assert!(Checkpoint::open(folder.path()).is_ok()),
            Some(needle) => {
                let (_, text) = open_error(folder.path());
                assert!(text.contains(bias) && text.contains(needle), "{text}");
            }
        }
    };
    check(json!({"attention_bias": true}), None);
    check(json!({"attention_bias": false}), Some("unless `attention_bias` is true"));
    check(json!({}), Some("config.json"));
    check(json!({"model_type": "mistral"}), Some("the tensors of a mistral model"));
    check(json!({"model_type": "qwen2"}), Some("the tensors of a qwen2 model"));
    check(json!({"model_type": "qwen3", "attention_bias": true}), None);
}

#[test]
fn absent_sizes_are_refused_if_weights_differ_from_the_defaults() {
    let folder = with_tensors(&[("model.layers.0.mlp.up_proj.weight", Dtype::F32)]);
    for key in ["hidden_size", "vocab_size", "num_hidden_layers"] {
        let mut config = llama_config();
        config.as_object_mut().expect("an object").remove(key);
        if key == "hidden_size" {
            config["head_dim"] = json!(4);
        }
        write_config(folder.path(), &config);
        let (error, text) = open_error(folder.path());
        assert!(matches!(&error, OpenError::MissingKey { key: missing, .. } if missing == key), "{text}");
    }
    let bloom = json!({"model_type": "bloom", "vocab_size": 3});
    write_config(folder.path(), &bloom);
    let norm = |name| (name, vec![8], numbers(8));
    let embeddings = ("word_embeddings.weight", vec![3, 64], numbers(192));
    let tensors = [embeddings, norm("h.0.ln.weight"), norm("h.1.ln.weight")];
    write_shard(&folder.path().join("model.safetensors"), &tensors);
    assert_eq!(Checkpoint::open(folder.path()).expect("opens").config().hidden, 64);
}

#[test]
fn screen_refuses_a_model_before_its_weights_are_fetched() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut asked = 0;
    let mut judge = |config: &Value, file: Result<Vec<u8>, &str>| {
        write_config(folder.path(), config);
        screen(folder.path(), &mut |wanted| {
            asked += 1;
            let bytes = file.clone()?;
            let part = |range: &Range<u64>| bytes[range.start as usize..bytes.len().min(range.end as usize)].to_vec();
            Ok(wanted.iter().map(|(_, range)| part(range)).collect())
        })
    };
    let weight = ("model.layers.0.mlp.up_proj.weight", Dtype::BF16);
    let scale = ("model.layers.0.mlp.up_proj.weight_scale", Dtype::F32);
    assert!(judge(&llama_config(), Ok(file_of(&[weight]))).is_ok());
    let error = judge(&llama_config(), Ok(file_of(&[weight, scale]))).expect_err("scales beside the weights");
    assert!(matches!(&error, OpenError::Quantized { key, .. } if key == scale.0), "{error}");
    // Without the header, only the configuration is checked.
    assert!(judge(&llama_config(), Err("whole files only")).is_ok());
    assert!(judge(&llama_config(), Ok(vec![7; 100])).is_ok());
    let mut quantized = llama_config();
    quantized["quantization_config"] = json!({"quant_method": "aqlm"});
    let error = judge(&quantized, Err("must not be asked")).expect_err("quantized").to_string();
    assert!(error.contains("`quantization_config` is aqlm"), "{error}");
    assert_eq!(asked, 4, "a model that its configuration tells apart is not asked for");
}
