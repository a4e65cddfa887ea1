use sepal_blocks::{BlockStack, ForwardError, KeysValues};
use sepal_core::{LABEL_KIND, LabelKind, Span, in_one_line};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::{HEAD, PREFIX_LEN, Random, named, tiny, try_export};
use crate::config::{CONFIG, PROMPT_EMBEDDINGS, TENSORS};
use crate::{ExportError, ExportOptions, Form, Import, ImportOptions, UsedPlugin, Verify, export, has_encoder};

#[test]
fn export_computes_the_trained_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in sepal_testkit::tiny::models().into_iter().filter(|name| name != "falcon-rw") {
        let (_, checkpoint) = tiny(&name);
        if checkpoint.multimodal_type().is_some() {
            let adapter = Random::new(&checkpoint, false).write(folder.path());
            let refused = try_export(folder.path(), &checkpoint, &adapter, Form::PromptTuning);
            assert!(matches!(refused, Err(ExportError::Multimodal { .. })), "{name}: {refused:?}");
            continue;
        }
        for (form, deep) in [(Form::PrefixTuning, true), (Form::PromptTuning, false), (Form::PTuning, false)] {
            let home = folder.path().join(format!("{name}-{form}"));
            std::fs::create_dir(&home).expect("a folder");
            let adapter = Random::new(&checkpoint, deep).write(&home);
            let verified =
                try_export(&home, &checkpoint, &adapter, form).expect("exported").verified.expect("verified");
            assert_eq!(verified.rows, 5);
            assert!(verified.largest > 0.1, "{name}: {verified:?}");
            assert!(verified.difference <= 1e-5 * verified.largest.max(1.0), "{name}: {verified:?}");
        }
    }
}

#[test]
fn exported_files_match_the_layout_of_peft() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("llama-gqa");
    let config = checkpoint.config();
    let random = Random::new(&checkpoint, true);
    let exported = try_export(folder.path(), &checkpoint, &random.write(folder.path()), Form::PrefixTuning);
    assert_eq!(exported.expect("exported").labels, ["bad", "\"good\""]);
    let out = folder.path().join("out");

    let text = std::fs::read(out.join(CONFIG)).expect("a configuration");
    let written: Value = serde_json::from_slice(&text).expect("JSON");
    let width = config.n_kv_heads * config.head_dim;
    assert_eq!(
        written,
        json!({
            "base_model_name_or_path": "owner/name", "inference_mode": true, "num_attention_heads": config.n_kv_heads,
            "num_layers": config.n_blocks, "num_virtual_tokens": PREFIX_LEN, "peft_type": "PREFIX_TUNING",
            "prefix_projection": false, "task_type": "SEQ_CLS", "token_dim": width,
        })
    );
    let contents = sepal_nn::file::read(&out.join(TENSORS)).expect("tensors");
    assert_eq!(contents.metadata.into_iter().collect::<Vec<_>>(), [("format".to_owned(), "pt".to_owned())]);
    let shape = |name| contents.tensors.iter().find(|named| named.name == name).map(|named| named.tensor.shape());
    assert_eq!(shape(PROMPT_EMBEDDINGS), Some(&[PREFIX_LEN, config.n_blocks * 2 * width][..]));
    assert_eq!(shape(HEAD), Some(&[2, config.hidden][..]));
    let card = std::fs::read_to_string(out.join("README.md")).expect("a card");
    assert!(card.contains(r#"id2label={0: "bad", 1: "\"good\""}"#), "{card}");
}

#[test]
fn encoded_prompts_are_exported_as_prompts() {
    let (_, checkpoint) = tiny("llama-gqa");
    let hidden = checkpoint.config().hidden as i64;
    let encoder = vec![named("p_tuning.embedding", &[4, hidden]), named("p_tuning.mlp.0.bias", &[hidden])];
    let random = Random::with_head(&checkpoint, "p-tuning", encoder);
    for (form, method) in [(None, "PREFIX_TUNING"), (Some(Form::PTuning), "P_TUNING")] {
        let folder = tempfile::tempdir().expect("a folder");
        let (adapter, out) = (random.write(folder.path()), folder.path().join("out"));
        assert!(has_encoder(&adapter).expect("read"));
        let without = ExportOptions { base_model: "b".to_owned(), form, ..ExportOptions::default() };
        let error = export(&without, &checkpoint, &adapter, &out).expect_err("no prompts");
        assert!(error.to_string().contains("the prompts that they make were not computed"), "{error}");
        let prompts = Some(named("prompts", &[4, hidden]).tensor);
        let options = ExportOptions { prompts: prompts.clone(), verify: Verify::Samples, ..without };
        let exported = export(&options, &checkpoint, &adapter, &out).expect("exported");
        assert_eq!((exported.description.as_str(), exported.labels.len()), ("4 soft prompts", 2));
        let text = std::fs::read_to_string(out.join(CONFIG)).expect("a configuration");
        assert!(text.contains(method) && text.contains("\"num_virtual_tokens\": 4"), "{text}");
        let tensors = sepal_nn::file::read(&out.join(TENSORS)).expect("tensors").tensors;
        let written = tensors.into_iter().find(|named| named.name == PROMPT_EMBEDDINGS).map(|named| named.tensor);
        assert_eq!(written == prompts, form.is_some(), "only P_TUNING holds the prompts themselves");

        // The encoder itself comes back, with the number of its prompts.
        let import = Import::open(&ImportOptions::default(), Some(&checkpoint), &out, &folder.path().join("back"));
        let import = import.expect("imported");
        assert_eq!((import.prefix_len(), import.modes()[0].name.as_str()), (4, "p-tuning"));
        assert!(has_encoder(&import.finish(None).expect("written")).expect("read"));
    }
}

#[test]
fn heads_without_a_class_in_transformers_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let adapter = Random::new(&checkpoint, false).write(folder.path());
    let mut choices = Random::new(&checkpoint, false);
    choices.metadata.insert("task".to_owned(), "multiple-choice".to_owned());
    choices.metadata.insert(LABEL_KIND.to_owned(), LabelKind::Choice.to_string());
    let other = tempfile::tempdir().expect("a folder");
    let choices = choices.write(other.path());
    for (adapter, pooling, expected) in [
        (&adapter, "last", None),
        (&adapter, "mean", Some("pooling `mean`")),
        (&choices, "last", Some("`multiple-choice` predicts one of the options of each row")),
    ] {
        let with = json!({ "pooling": pooling }).as_object().expect("an object").clone();
        let task = Some(UsedPlugin { name: "sequence-classification".to_owned(), with });
        let options = ExportOptions { base_model: "b".to_owned(), task, overwrite: true, ..ExportOptions::default() };
        let error = export(&options, &checkpoint, adapter, &folder.path().join("out")).err();
        let text = error.map(|error| in_one_line(&error));
        assert_eq!(text.is_some(), expected.is_some(), "{text:?}");
        assert!(text.iter().zip(expected).all(|(text, expected)| text.contains(expected)), "{text:?}");
    }
}

#[test]
fn export_does_not_overwrite_other_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let adapter = Random::new(&checkpoint, false).write(folder.path());
    let out = folder.path().join("out");
    let overwriting = ExportOptions { base_model: "b".to_owned(), overwrite: true, ..ExportOptions::default() };

    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("thesis.txt"), "mine").expect("written");
    let error = try_export(folder.path(), &checkpoint, &adapter, Form::PrefixTuning).expect_err("it is there");
    assert!(sepal_core::in_one_line(&error).contains("it exists"), "{error:?}");
    let error = export(&overwriting, &checkpoint, &adapter, &out).expect_err("it is no export");
    assert!(sepal_core::in_one_line(&error).contains("not a folder with"), "{error:?}");
    std::fs::remove_dir_all(&out).expect("removed");

    try_export(folder.path(), &checkpoint, &adapter, Form::PromptTuning).expect("exported");
    let other = ExportOptions { form: Some(Form::PrefixTuning), ..overwriting };
    export(&other, &checkpoint, &adapter, &out).expect("exported");
    let text = std::fs::read_to_string(out.join(CONFIG)).expect("a configuration");
    assert!(text.contains("PREFIX_TUNING"), "{text}");
    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("entries").map(|entry| entry.expect("one").file_name()).collect();
    left.sort();
    assert_eq!(left, ["adapter.safetensors", "out"]);
}

#[test]
fn export_without_an_equivalent_in_peft_is_refused() {
    let (_, checkpoint) = tiny("gpt2");
    let (_, other) = tiny("gpt2-scaled");
    let hidden = checkpoint.config().hidden as i64;
    type Change = fn(&mut Random, i64);
    let cases: [(Form, Change, &str); 8] = [
        (Form::PrefixTuning, |random, _| random.tensors.push(named("score.bias", &[2])), "its head has a bias"),
        (
            Form::PrefixTuning,
            |random, _| random.tensors.push(named("dense.weight", &[2, 2])),
            "it holds `dense.weight`",
        ),
        (Form::PrefixTuning, |random, _| drop(random.tensors.pop()), "it has no `score.weight`"),
        (Form::PromptTuning, |_, _| (), "PEFT has no such method"),
        (
            Form::Lora,
            |_, _| (),
            "export deep-ptune as lora: the method does not hold its tensors; export it as prefix-tuning",
        ),
        (
            Form::PrefixTuning,
            |random, hidden| random.tensors[1] = named("deep_prompts", &[1, 4, hidden]),
            "`deep_prompts` is [1, 4,",
        ),
        (
            Form::PrefixTuning,
            |random, hidden| random.tensors[1] = named("deep_prompts", &[77, 5, hidden]),
            "one for each of the model's",
        ),
        (
            Form::PrefixTuning,
            |random, _| drop(random.metadata.insert("model_digest".to_owned(), "sha256:0".to_owned())),
            "it was trained on the model sha256:0",
        ),
    ];
    for (form, change, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = Random::new(&checkpoint, true);
        change(&mut random, hidden);
        let adapter = random.write(folder.path());
        let error = try_export(folder.path(), &checkpoint, &adapter, form).expect_err(expected);
        let text = sepal_core::in_one_line(&error);
        assert!(text.contains(expected), "{text}");
        assert!(!folder.path().join("out").exists(), "{expected}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = Random::new(&checkpoint, true).write(folder.path());
    try_export(folder.path(), &other, &adapter, Form::PrefixTuning).expect_err("another model");
}

#[test]
fn adapter_trained_with_rounding_is_exported_with_a_notice() {
    let (_, checkpoint) = tiny("llama-gqa");
    for (formats, expected) in [
        ("", None),
        ("+int8", Some("the blocks were loaded as int8 in training")),
        ("+compute-bf16", Some("the blocks were computed in bf16 in training")),
        ("+nf4+compute-f16", Some("the blocks were loaded as nf4 and computed in f16 in training")),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = Random::new(&checkpoint, true);
        random.metadata.insert("model_digest".to_owned(), format!("{}{formats}", checkpoint.digest()));
        let adapter = random.write(folder.path());
        let exported = try_export(folder.path(), &checkpoint, &adapter, Form::PrefixTuning).expect("exported");
        let notice = exported.notices.iter().find(|notice| notice.starts_with("the blocks were"));
        assert_eq!(notice.is_some(), expected.is_some(), "{formats}: {:?}", exported.notices);
        assert!(
            notice.is_none_or(|notice| expected.is_some_and(|expected| notice.starts_with(expected))),
            "{notice:?}"
        );
        let options = ImportOptions::default();
        let (out, back) = (folder.path().join("out"), folder.path().join("back"));
        Import::open(&options, Some(&checkpoint), &out, &back).expect("the same model");
    }
}

#[test]
fn non_finite_adapter_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let mut random = Random::new(&checkpoint, false);
    let shape = random.tensors[0].tensor.shape().to_vec();
    let numbers = vec![f32::NAN; shape.iter().product()];
    random.tensors[0].tensor = sepal_core::HostTensor::from_f32(shape, &numbers).expect("fits");
    let adapter = random.write(folder.path());
    let error = try_export(folder.path(), &checkpoint, &adapter, Form::PrefixTuning).expect_err("not numbers");
    assert!(sepal_core::in_one_line(&error).contains("not finite"), "{error:?}");
}

#[test]
fn model_computed_differently_by_peft_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("falcon-rw");
    let adapter = Random::new(&checkpoint, false).write(folder.path());
    for form in [Form::PrefixTuning, Form::PromptTuning, Form::PTuning] {
        let error = try_export(folder.path(), &checkpoint, &adapter, form).expect_err("ALiBi in bf16");
        assert!(error.to_string().contains("Falcon with ALiBi"), "{error}");
    }
}

#[test]
fn keys_of_another_shape_are_refused() {
    let (_, checkpoint) = tiny("llama-gqa");
    let config = checkpoint.config();
    let block = Span::new(1, 2).expect("a block");
    let stack = BlockStack::load(&checkpoint, block).expect("loads");
    let zeros = |heads, len| Tensor::zeros([heads, len, config.head_dim as i64], (Kind::Float, Device::Cpu));
    let heads = config.n_kv_heads as i64;
    let prefix_of = |span, heads, len| {
        let keys_values = KeysValues { keys: zeros(heads, 3), values: zeros(heads, len) };
        stack.prefix_cache_from(span, &[keys_values]).map(|cache| cache.len())
    };
    assert_eq!(prefix_of(block, heads, 3).expect("fits"), 3);
    assert!(matches!(prefix_of(block, heads, 2), Err(ForwardError::Shape { .. })));
    assert!(matches!(prefix_of(block, heads + 1, 3), Err(ForwardError::Shape { .. })));
    let elsewhere = Span::new(0, 1).expect("a block");
    assert!(matches!(prefix_of(elsewhere, heads, 3), Err(ForwardError::Span { .. })));
}
