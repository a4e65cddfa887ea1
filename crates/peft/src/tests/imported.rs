use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::{DType, HostTensor};
use sepal_nn::{share_from_host, to_host};
use sepal_track::export::{RECORD, TRAINED};
use serde_json::json;

use super::{HEAD, HEAD_BESIDE_LAYERS, Random, import, named, tiny, try_export};
use crate::adapter::Adapter;
use crate::config::{CONFIG, PROMPT_EMBEDDINGS, TENSORS};
use crate::{Form, Import, ImportError, ImportOptions};

fn foreign(folder: &Path, peft_type: &str, tensors: &[(&str, HostTensor)]) {
    let config = json!({ "peft_type": peft_type, "task_type": "SEQ_CLS", "num_virtual_tokens": 3, "auto_mapping": null,
        "base_model_name_or_path": "owner/base" });
    std::fs::write(folder.join(CONFIG), config.to_string()).expect("written");
    let named = |(name, tensor): &(&str, HostTensor)| sepal_core::NamedHostTensor {
        name: (*name).to_owned(),
        tensor: tensor.clone(),
    };
    let tensors: Vec<_> = tensors.iter().map(named).collect();
    sepal_nn::file::write(&folder.join(TENSORS), &tensors, &BTreeMap::new()).expect("written");
}

fn numbers(shape: &[i64], dtype: DType) -> HostTensor {
    let tensor = share_from_host(&named("numbers", shape).tensor).expect("a tensor");
    to_host(&tensor, dtype).expect("on the host")
}

/// Returns the error of an import for the model `llama-gqa`: three blocks, two key heads of size 8, hidden size 32.
fn refused(folder: &Path) -> ImportError {
    let (_, checkpoint) = tiny("llama-gqa");
    import(&ImportOptions::default(), Some(&checkpoint), folder, &folder.join("imported")).expect_err("refused")
}

#[test]
fn import_of_an_export_is_bit_exact() {
    for (form, deep) in [(Form::PrefixTuning, true), (Form::PrefixTuning, false), (Form::PromptTuning, false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, checkpoint) = tiny("bloom");
        let adapter = Random::new(&checkpoint, deep).write(folder.path());
        try_export(folder.path(), &checkpoint, &adapter, form).expect("exported");
        let (out, back) = (folder.path().join("out"), folder.path().join("back"));
        let (imported, notices) = import(&ImportOptions::default(), Some(&checkpoint), &out, &back).expect("imported");
        assert_eq!(notices, Vec::<String>::new());
        let imported = Adapter::read(&imported).expect("read");
        assert_eq!(imported.facts.tuning, if deep { "deep-ptune" } else { "ptune" });
        assert_eq!(imported, Adapter::read(&adapter).expect("read"));
        let (_, other) = tiny("bloom-six-heads");
        let elsewhere = folder.path().join("elsewhere");
        import(&ImportOptions::default(), Some(&other), &out, &elsewhere).expect_err("another model");
        assert!(!elsewhere.exists());
    }
}

#[test]
fn import_of_foreign_prompts_writes_an_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let hidden = checkpoint.config().hidden as i64;
    let tensors = [(HEAD, numbers(&[4, hidden], DType::Bf16)), (PROMPT_EMBEDDINGS, numbers(&[3, hidden], DType::F32))];
    foreign(folder.path(), "PROMPT_TUNING", &tensors);
    let (imported, notices) =
        import(&ImportOptions::default(), Some(&checkpoint), folder.path(), &folder.path().join("a"))
            .expect("imported");
    assert_eq!(notices.len(), 1, "{notices:?}");
    let adapter = Adapter::read(&imported).expect("an adapter");
    assert_eq!(adapter.facts.labels, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]);
    assert_eq!((adapter.prefix_len(), adapter.facts.model_digest.as_str()), (3, checkpoint.digest()));
    assert_eq!((adapter.tensors.len(), adapter.prompts()), (1, Some(&tensors[1].1)));
    assert_eq!(adapter.score.to_f32(), tensors[0].1.to_f32());

    let labels = Some(["w", "x", "y", "z"].map(str::to_owned).to_vec());
    let options = ImportOptions { labels, ..ImportOptions::default() };
    let (imported, notices) =
        import(&options, Some(&checkpoint), folder.path(), &folder.path().join("b")).expect("imported");
    assert_eq!(notices, Vec::<String>::new());
    assert_eq!(Adapter::read(&imported).expect("an adapter").facts.labels, ["w", "x", "y", "z"]);
    let options = ImportOptions { labels: Some(vec!["alone".to_owned()]), ..ImportOptions::default() };
    import(&options, Some(&checkpoint), folder.path(), &folder.path().join("c")).expect_err("a name for each");
    let error = import(&options, None, folder.path(), &folder.path().join("d")).expect_err("of no model");
    assert!(error.to_string().contains("which it calls \"owner/base\""), "{error}");
}

#[test]
fn import_takes_labels_from_the_nearest_config() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let hidden = checkpoint.config().hidden as i64;
    let tensors = [(HEAD, numbers(&[2, hidden], DType::F32)), (PROMPT_EMBEDDINGS, numbers(&[3, hidden], DType::F16))];
    let home = folder.path().join("peft");
    std::fs::create_dir(&home).expect("a folder");
    foreign(&home, "PROMPT_TUNING", &tensors);
    let labels = |out: &str| {
        let options = ImportOptions { model_folder: Some(folder.path().to_owned()), ..ImportOptions::default() };
        let import = Import::open(&options, Some(&checkpoint), &home, &folder.path().join(out)).expect("imported");
        (import.labels().join(","), import.multi_label())
    };
    assert_eq!(labels("a"), ("LABEL_0,LABEL_1".to_owned(), false));
    let config = |folder: &Path, config: serde_json::Value| {
        std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    };
    config(folder.path(), json!({ "id2label": { "0": "no", "1": "yes" } }));
    assert_eq!(labels("b"), ("no,yes".to_owned(), false));
    let problem = "multi_label_classification";
    config(&home, json!({ "id2label": { "0": "short", "1": "funny" }, "problem_type": problem }));
    assert_eq!(labels("c"), ("short,funny".to_owned(), true));
}

#[test]
fn grouped_heads_need_the_same_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("falcon-40b");
    let config = checkpoint.config();
    let [hidden, heads, dim] = [config.hidden, config.n_heads, config.head_dim].map(|size| size as i64);
    let copies = heads / config.n_kv_heads as i64;
    assert!(copies > 1, "queries are grouped");
    let parts = 2 * config.n_blocks as i64;
    let each = share_from_host(&named("each", &[3, parts * heads * dim]).tensor).expect("a tensor");
    let alike = each.view([3, parts, heads / copies, copies, dim]).narrow(3, 0, 1);
    let alike = alike.repeat([1, 1, 1, copies, 1]).view([3, -1]);
    let write = |table: &tch::Tensor| {
        let table = to_host(table, DType::F32).expect("on the host");
        foreign(
            folder.path(),
            "PREFIX_TUNING",
            &[(HEAD, numbers(&[2, hidden], DType::F32)), (PROMPT_EMBEDDINGS, table)],
        );
    };
    write(&alike);
    import(&ImportOptions::default(), Some(&checkpoint), folder.path(), &folder.path().join("a")).expect("imported");
    write(&each);
    let error = import(&ImportOptions::default(), Some(&checkpoint), folder.path(), &folder.path().join("b"));
    let error = error.expect_err("each has its own");
    assert!(matches!(error, ImportError::SplitHeads { .. }), "{error:?}");
}

#[test]
fn folder_with_several_adapters_names_them() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["second", "first"] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        std::fs::write(folder.path().join(name).join(CONFIG), "{}").expect("written");
    }
    let text = refused(folder.path()).to_string();
    assert!(text.ends_with("adapters are in its folders first, second: name one of them"), "{text}");
}

#[test]
fn import_of_unsupported_tensors_is_refused() {
    let (prompts, head) = (numbers(&[3, 32], DType::F32), numbers(&[2, 32], DType::F32));
    let complete = [(PROMPT_EMBEDDINGS, prompts.clone()), (HEAD, head.clone())];
    let no_head = [(PROMPT_EMBEDDINGS, prompts.clone())];
    let bias = [
        (PROMPT_EMBEDDINGS, prompts.clone()),
        (HEAD, head.clone()),
        ("base_model.score.bias", numbers(&[2], DType::F32)),
    ];
    let of_lora = [(PROMPT_EMBEDDINGS, prompts), (HEAD_BESIDE_LAYERS, head.clone())];
    let fewer = [(PROMPT_EMBEDDINGS, numbers(&[2, 32], DType::F32)), (HEAD, head)];
    let flat = [(PROMPT_EMBEDDINGS, numbers(&[3], DType::F32)), complete[1].clone()];
    type Tensors<'a> = &'a [(&'a str, HostTensor)];
    let cases: [(&str, Tensors<'_>, &str); 10] = [
        ("PROMPT_TUNING", &flat, "`prompts` is [3], expected [prefix_len, 32]"),
        ("PREFIX_TUNING", &flat, "keys and values for each of the model's 3 blocks"),
        ("PREFIX_TUNING", &complete, "expected [prefix_len, 96], keys and values for each of the model's 3 blocks"),
        ("ADALORA", &complete, "import ADALORA"),
        ("LORA", &of_lora, "`prompt_embeddings` is not of a layer that a run can tune (self_attn.q_proj, "),
        ("LORA", &complete, "no `base_model.model.score.weight`"),
        ("PROMPT_TUNING", &no_head, "no `base_model.score.weight`"),
        ("PROMPT_TUNING", &bias, "has a bias"),
        ("PROMPT_TUNING", &of_lora, "no `base_model.score.weight`"),
        ("PROMPT_TUNING", &fewer, "3 prompts, as adapter_config.json says"),
    ];
    for (peft_type, tensors, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        foreign(folder.path(), peft_type, tensors);
        let text = sepal_core::in_one_line(&refused(folder.path()));
        assert!(text.contains(expected), "{text}");
        assert!(!folder.path().join("imported").exists());
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test needs no sync")]
fn import_of_a_pickle_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    foreign(folder.path(), "PROMPT_TUNING", &[]);
    std::fs::rename(folder.path().join(TENSORS), folder.path().join("adapter_model.bin")).expect("renamed");
    let error = refused(folder.path());
    assert!(matches!(error, ImportError::Pickle { .. }), "{error:?}");
    assert!(error.to_string().contains("safe_serialization=True"), "{error}");
}

#[test]
fn import_of_a_changed_export_is_refused() {
    for file in [TRAINED, TENSORS] {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, checkpoint) = tiny("gpt2");
        let adapter = Random::new(&checkpoint, true).write(folder.path());
        try_export(folder.path(), &checkpoint, &adapter, Form::PrefixTuning).expect("exported");
        let out = folder.path().join("out");
        let mut bytes = std::fs::read(out.join(file)).expect("bytes");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(out.join(file), bytes).expect("written");
        let error = refused(&out);
        assert!(matches!(error, ImportError::Changed { file: found } if found == file), "{error:?}");
        std::fs::remove_file(out.join(RECORD)).expect("removed");
        let anew = folder.path().join("anew");
        import(&ImportOptions::default(), Some(&checkpoint), &out, &anew).expect("as anybody's");
    }
}
