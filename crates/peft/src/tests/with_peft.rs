//! Comparison with PEFT itself, if a Python with it is installed.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Random, logits, tiny};
use crate::{ExportOptions, Form, export};

/// Returns the interpreter of `SEPAL_TEST_PYTHON`, or that of the peers if it exists.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("SEPAL_TEST_PYTHON").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let python =
        named.or_else(|| home.map(|home| home.join(".cache/sepal/peers/bin/python")).filter(|path| path.is_file()));
    let Some(python) = python else {
        eprintln!("skipped: no Python with peft; SEPAL_TEST_PYTHON names one");
        return None;
    };
    let has_peft = Command::new(&python).args(["-c", "import peft, transformers"]).stderr(Stdio::null()).status();
    if has_peft.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {} has no peft with transformers", python.display());
    None
}

/// Returns rows of several lengths, longer than the windows, without the padding token 0.
fn rows(vocab: usize) -> Vec<Vec<i64>> {
    let row =
        |(index, len): (usize, usize)| (0..len).map(|i| ((31 * i + 17 * index) % (vocab - 1) + 1) as i64).collect();
    [9, 1, 22, 4].into_iter().enumerate().map(row).collect()
}

/// Model, form of the export, number of prompts, and true for deep prompts.
type Case = (String, Form, usize, bool);

/// One model for each kind of positions and heads.
const FEW: [&str; 5] = ["bloom", "falcon-40b", "gemma3", "gpt2", "llama-gqa"];

/// Returns the largest difference of logits for each case, or PEFT's error. A batch is padded on the right for
/// prefix-tuning; prompt-tuning of PEFT needs one row at a time.
fn differences(python: &PathBuf, cases: &[Case]) -> Vec<Result<f64, String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut asked, mut ours) = (Vec::new(), Vec::new());
    for (index, (name, form, prefix_len, deep)) in cases.iter().enumerate() {
        let (base, checkpoint) = tiny(name);
        let home = folder.path().join(index.to_string());
        std::fs::create_dir(&home).expect("a folder");
        let adapter = Random::of_len(*prefix_len, &checkpoint, *deep).write(&home);
        let base_model = base.to_str().expect("a name").to_owned();
        let options = ExportOptions { base_model, form: *form, ..ExportOptions::default() };
        export(&options, &checkpoint, &adapter, &home.join("out")).expect("exported");
        let rows = rows(checkpoint.config().vocab_size);
        ours.push(logits(&checkpoint, &adapter, &rows));
        asked.push(json!({ "folder": home.join("out"), "rows": rows, "batch": *form == Form::PrefixTuning }));
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/logits.py");
    let mut command = Command::new(python);
    command.arg(script).env("HF_HUB_OFFLINE", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = command.spawn().expect("Python starts");
    let mut input = running.stdin.take().expect("a pipe");
    input.write_all(Value::from(asked).to_string().as_bytes()).expect("asked");
    drop(input);
    let output = running.wait_with_output().expect("an answer");
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).expect("an answer in JSON");
    assert_eq!(found.len(), ours.len());
    let compare = |(found, ours): (&Value, &Vec<f64>)| {
        let Some(found) = found.as_array() else { return Err(found.as_str().unwrap_or_default().to_owned()) };
        assert_eq!(found.len(), ours.len());
        let pairs = found.iter().zip(ours);
        let off = pairs.map(|(found, ours)| (found.as_f64().unwrap_or(f64::NAN) - ours).abs());
        Ok(off.fold(0.0, |largest: f64, off| if off.is_nan() { off } else { largest.max(off) }))
    };
    found.iter().zip(&ours).map(compare).collect()
}

#[test]
fn exports_match_the_logits_of_peft() {
    let Some(python) = python() else { return };
    let all = std::env::var_os("SEPAL_TEST_ALL_MODELS").is_some();
    let is_asked = |name: &String| (all || FEW.contains(&name.as_str())) && name != "falcon-rw";
    let names: Vec<String> = sepal_testkit::tiny::models().into_iter().filter(is_asked).collect();
    let forms = [(Form::PrefixTuning, 5, false), (Form::PrefixTuning, 5, true), (Form::PromptTuning, 5, false)];
    // More prompts than the windows of some models.
    let forms = forms.into_iter().chain([(Form::PrefixTuning, 9, true)]).filter(|(.., deep)| all || *deep);
    let with_names = |(form, len, deep)| names.iter().map(move |name| (name.clone(), form, len, deep));
    let mut cases: Vec<Case> = forms.flat_map(with_names).collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    let found = differences(&python, &cases);
    for ((name, form, len, deep), found) in cases.iter().zip(&found) {
        let kind = if *deep { "deep" } else { "shallow" };
        match found {
            Ok(difference) => println!("{name:24} {form} {kind} {len}: {difference:.1e}"),
            Err(error) => println!("{name:24} {form} {kind} {len}: {error}"),
        }
    }
    let is_right = |found: &Result<f64, String>| matches!(found, Ok(difference) if *difference <= 1e-4);
    let wrong: Vec<_> = cases.iter().zip(&found).filter(|(_, found)| !is_right(found)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
