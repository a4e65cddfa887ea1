use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::{DType, HostTensor};
use sepal_nn::{share_from_host, to_host};
use serde_json::json;

use super::{Random, named, tiny, try_export};
use crate::adapter::Adapter;
use crate::config::{CONFIG, HEAD, PROMPT_EMBEDDINGS, TENSORS};
use crate::side::{SIDE, TRAINED};
use crate::{Form, ImportError, ImportOptions, import};

/// A folder as PEFT writes it.
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

fn refused(folder: &Path) -> ImportError {
    import(&ImportOptions::default(), None, folder, &folder.join("imported")).expect_err("refused")
}

#[test]
fn an_export_comes_back_as_it_was() {
    for (form, deep) in [(Form::PrefixTuning, true), (Form::PrefixTuning, false), (Form::PromptTuning, false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, checkpoint) = tiny("bloom");
        let adapter = Random::new(&checkpoint, deep).write(folder.path());
        try_export(folder.path(), &checkpoint, &adapter, form).expect("exported");
        let (out, back) = (folder.path().join("out"), folder.path().join("back"));
        let imported = import(&ImportOptions::default(), Some(&checkpoint), &out, &back).expect("imported");
        assert_eq!(imported.tuning, if deep { "deep-ptune" } else { "ptune" });
        assert_eq!(imported.notices, Vec::<String>::new());
        assert_eq!(Adapter::read(&imported.adapter).expect("read"), Adapter::read(&adapter).expect("read"));
        let (_, other) = tiny("bloom-six-heads");
        let elsewhere = folder.path().join("elsewhere");
        import(&ImportOptions::default(), Some(&other), &out, &elsewhere).expect_err("another model");
        assert!(!elsewhere.exists());
    }
}

#[test]
fn prompts_of_others_become_an_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let hidden = checkpoint.config().hidden as i64;
    let tensors = [(HEAD, numbers(&[4, hidden], DType::Bf16)), (PROMPT_EMBEDDINGS, numbers(&[3, hidden], DType::F32))];
    foreign(folder.path(), "PROMPT_TUNING", &tensors);
    let imported = import(&ImportOptions::default(), None, folder.path(), &folder.path().join("a")).expect("imported");
    assert_eq!(imported.labels, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]);
    assert_eq!((imported.prefix_len, imported.base_model.as_deref()), (3, Some("owner/base")));
    assert_eq!(imported.notices.len(), 2, "{:?}", imported.notices);
    let adapter = Adapter::read(&imported.adapter).expect("an adapter");
    assert_eq!(adapter.prompts, tensors[1].1);
    assert_eq!(adapter.score.to_f32(), tensors[0].1.to_f32());

    let labels = Some(["w", "x", "y", "z"].map(str::to_owned).to_vec());
    let options = ImportOptions { labels, ..ImportOptions::default() };
    let imported = import(&options, Some(&checkpoint), folder.path(), &folder.path().join("b")).expect("imported");
    assert_eq!(imported.notices, Vec::<String>::new());
    let adapter = Adapter::read(&imported.adapter).expect("an adapter");
    assert_eq!((adapter.facts.labels.len(), adapter.facts.model_digest.as_str()), (4, checkpoint.digest()));
    let options = ImportOptions { labels: Some(vec!["alone".to_owned()]), ..ImportOptions::default() };
    import(&options, None, folder.path(), &folder.path().join("c")).expect_err("a name for each");
}

#[test]
fn what_cannot_be_prompts_is_refused() {
    let (prompts, head) = (numbers(&[3, 8], DType::F32), numbers(&[2, 8], DType::F32));
    let whole = [(PROMPT_EMBEDDINGS, prompts.clone()), (HEAD, head.clone())];
    let no_head = [(PROMPT_EMBEDDINGS, prompts.clone())];
    let bias = [
        (PROMPT_EMBEDDINGS, prompts.clone()),
        (HEAD, head.clone()),
        ("base_model.score.bias", numbers(&[2], DType::F32)),
    ];
    let of_lora = [(PROMPT_EMBEDDINGS, prompts), ("base_model.model.score.weight", head.clone())];
    let fewer = [(PROMPT_EMBEDDINGS, numbers(&[2, 8], DType::F32)), (HEAD, head)];
    type Tensors<'a> = &'a [(&'a str, HostTensor)];
    let cases: [(&str, Tensors<'_>, &str); 6] = [
        ("PREFIX_TUNING", &whole, "of no prompts"),
        ("LORA", &whole, "import LORA"),
        ("PROMPT_TUNING", &no_head, "no `base_model.score.weight`"),
        ("PROMPT_TUNING", &bias, "has a bias"),
        ("PROMPT_TUNING", &of_lora, "holds `base_model.model.score.weight`"),
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
fn a_pickle_is_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    foreign(folder.path(), "PROMPT_TUNING", &[]);
    std::fs::rename(folder.path().join(TENSORS), folder.path().join("adapter_model.bin")).expect("renamed");
    let error = refused(folder.path());
    assert!(matches!(error, ImportError::Pickle { .. }), "{error:?}");
    assert!(error.to_string().contains("safe_serialization=True"), "{error}");
}

#[test]
fn a_changed_export_is_refused() {
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
        std::fs::remove_file(out.join(SIDE)).expect("removed");
        assert!(matches!(refused(&out), ImportError::ForeignPrefix));
    }
}
