//! Folders saved by PEFT, and its predictions with them (make_peft.py of the goldens).

use std::path::Path;

use serde_json::Value;

use super::{import, imported_factor, logits, tiny};
use crate::{ExportOptions, Form, Import, ImportOptions, Verify, export};

/// Vocabulary of the tiny tokenizer, in the order of the ids.
const WORDS: [&str; 29] = [
    "[UNK]", "awful", "boring", "clumsy", "dull", "empty", "flat", "grim", "hollow", "bright", "clever", "funny",
    "gentle", "lively", "moving", "sharp", "warm", "a", "the", "film", "plot", "cast", "scene", "was", "is", "and",
    "very", "with", "it",
];

struct Saved {
    name: String,
    model: String,
    predicted: Vec<Vec<f64>>,
}

/// Returns the token ids of the texts, and the folders.
fn saved() -> (Vec<Vec<i64>>, Vec<Saved>) {
    let text = std::fs::read(sepal_testkit::tiny::goldens().join("peft.json")).expect("goldens");
    let json: Value = serde_json::from_slice(&text).expect("JSON");
    let id = |word: &str| WORDS.iter().position(|known| *known == word).expect("a word") as i64;
    let ids = |text: &Value| text.as_str().expect("a text").split(' ').map(id).collect();
    let numbers = |row: &Value| row.as_array().expect("a row").iter().map(|n| n.as_f64().expect("a number")).collect();
    let case = |case: &Value| Saved {
        name: case["name"].as_str().expect("a name").to_owned(),
        model: case["model"].as_str().expect("a model").to_owned(),
        predicted: case["predicted"].as_array().expect("rows").iter().map(numbers).collect(),
    };
    let list = |key: &str| json[key].as_array().expect("a list").clone();
    (list("texts").iter().map(ids).collect(), list("cases").iter().map(case).collect())
}

/// Returns probabilities, or a single logit unchanged.
fn predicted(logits: &[f64]) -> Vec<f64> {
    if logits.len() == 1 {
        return logits.to_vec();
    }
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

fn check(what: &str, found: &[f64], expected: &[Vec<f64>]) {
    for (found, expected) in found.chunks(expected[0].len()).zip(expected) {
        for (found, expected) in predicted(found).iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5, "{what}: {found} instead of {expected}");
        }
    }
}

#[test]
fn imported_folders_match_the_logits_of_peft() {
    let folder = tempfile::tempdir().expect("a folder");
    let (rows, saved) = saved();
    assert!(saved.len() > 20, "the goldens are there");
    for Saved { name, model, predicted } in saved {
        let (_, checkpoint) = tiny(&model);
        let open = |from: &Path, out: &str| {
            let out = folder.path().join(format!("{name}{out}"));
            let import = Import::open(&ImportOptions::default(), Some(&checkpoint), from, &out).expect("imported");
            assert_eq!(import.labels().len(), predicted[0].len(), "{name}");
            let modes = import.modes().to_vec();
            (import.finish(None).expect("written"), modes)
        };
        let (adapter, modes) = open(&sepal_testkit::tiny::goldens().join("peft").join(&name), "");
        let expected = [
            ("prompts", "ptune"),
            ("encoded", "ptune"),
            ("prefix", "prefix-kv"),
            ("projected", "prefix-kv"),
            ("lora", "lora"),
            ("ia3", "ia3"),
        ];
        let expected = expected.iter().find(|(part, _)| name.contains(part)).expect("a method").1;
        assert_eq!(modes.iter().map(|mode| mode.name.as_str()).collect::<Vec<_>>(), [expected], "{name}");
        check(&name, &logits(&checkpoint, &adapter, imported_factor(&modes), &rows), &predicted);

        // Export and import again from PEFT's own files.
        let again = folder.path().join(format!("{name}-again"));
        let options = ExportOptions {
            base_model: "owner/name".to_owned(),
            verify: Verify::Samples,
            tuning: modes,
            ..ExportOptions::default()
        };
        export(&options, &checkpoint, &adapter, &again).expect("exported");
        std::fs::remove_file(again.join("sepal.json")).expect("removed");
        let (back, modes) = open(&again, "-back");
        check(&name, &logits(&checkpoint, &back, imported_factor(&modes), &rows), &predicted);
    }
}

#[test]
fn trained_keys_and_values_cannot_be_exported_as_prompts() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("llama-gqa");
    let from = sepal_testkit::tiny::goldens().join("peft/llama-prefix");
    let (adapter, _) =
        import(&ImportOptions::default(), Some(&checkpoint), &from, &folder.path().join("a")).expect("imported");
    let options = ExportOptions {
        base_model: "owner/name".to_owned(),
        form: Some(Form::PromptTuning),
        ..ExportOptions::default()
    };
    let error = export(&options, &checkpoint, &adapter, &folder.path().join("b")).expect_err("no prompts");
    assert!(error.to_string().contains("as prefix-tuning, which is exact"), "{error}");
    let (_, other) = tiny("falcon-7b");
    let error = import(&ImportOptions::default(), Some(&other), &from, &folder.path().join("c")).expect_err("too wide");
    let text = sepal_core::in_one_line(&error);
    assert!(text.contains("keys and values for each of the model's"), "{text}");
}
