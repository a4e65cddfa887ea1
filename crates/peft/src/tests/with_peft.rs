//! Comparison with PEFT and transformers, if a Python with them is installed.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sepal_checkpoint::{Checkpoint, classifier_class};
use sepal_core::SiteRole;
use serde_json::{Value, json};

use super::{Random, difference, logits, lora_factor, lora_options, tiny};
use crate::{ExportOptions, Form, MergeOptions, export, merge};

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

/// Adapter to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prompts {
        form: Form,
        len: usize,
        deep: bool,
    },
    /// Low-rank additions to all layers of all blocks, with alpha / r.
    Lora,
    /// Low-rank additions to queries and values of the last block, with alpha / sqrt(r).
    LastLora,
    Ia3,
    /// As `Lora`, merged into the model, for transformers alone.
    MergedLora,
    MergedIa3,
}

impl Kind {
    fn is_merged(self) -> bool {
        matches!(self, Self::MergedLora | Self::MergedIa3)
    }

    fn random(self, checkpoint: &Checkpoint) -> Random {
        let is_query_or_value =
            |role: SiteRole| matches!(role, SiteRole::Query | SiteRole::Value | SiteRole::QueryKeyValue);
        match self {
            Self::Prompts { len, deep, .. } => Random::of_len(len, checkpoint, deep),
            Self::Lora | Self::MergedLora => Random::lora(checkpoint, checkpoint.config().n_blocks, |_| true),
            Self::LastLora => Random::lora(checkpoint, 1, |site| is_query_or_value(site.role)),
            Self::Ia3 | Self::MergedIa3 => Random::ia3(checkpoint),
        }
    }

    /// Writes the folder that Python loads.
    fn write(self, base: &Path, checkpoint: &Checkpoint, adapter: &Path, out: &Path) {
        let tuning = vec![lora_options(self == Self::LastLora)];
        if self.is_merged() {
            merge(&MergeOptions { tuning, ..MergeOptions::default() }, base, checkpoint, adapter, out).expect("merged");
            return;
        }
        let base_model = base.to_str().expect("a name").to_owned();
        let form = match self {
            Self::Prompts { form, .. } => Some(form),
            _ => None,
        };
        export(&ExportOptions { base_model, form, tuning, ..ExportOptions::default() }, checkpoint, adapter, out)
            .expect("exported");
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompts { form, len, deep } => write!(f, "{form} {} {len}", if *deep { "deep" } else { "shallow" }),
            other => write!(f, "{other:?}"),
        }
    }
}

/// One model for each kind of positions and heads.
const FEW: [&str; 5] = ["bloom", "falcon-40b", "gemma3", "gpt2", "llama-gqa"];

/// Returns the largest difference of logits for each case, or the error of Python. A batch is padded on the right, but for
/// prompts without keys and values, of which PEFT needs one row at a time.
fn differences(python: &PathBuf, cases: &[(String, Kind)]) -> Vec<Result<f64, String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut asked, mut ours) = (Vec::new(), Vec::new());
    for (index, (name, kind)) in cases.iter().enumerate() {
        let (base, checkpoint) = tiny(name);
        let home = folder.path().join(index.to_string());
        std::fs::create_dir(&home).expect("a folder");
        let adapter = kind.random(&checkpoint).write(&home);
        kind.write(&base, &checkpoint, &adapter, &home.join("out"));
        let rows = rows(checkpoint.config().vocab_size);
        ours.push(logits(&checkpoint, &adapter, lora_factor(*kind == Kind::LastLora), &rows));
        let is_single = matches!(kind, Kind::Prompts { form, .. } if *form != Form::PrefixTuning);
        asked
            .push(json!({ "folder": home.join("out"), "rows": rows, "batch": !is_single, "merged": kind.is_merged() }));
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
        let found: Vec<f64> = found.iter().map(|logit| logit.as_f64().unwrap_or(f64::NAN)).collect();
        Ok(difference(&found, ours))
    };
    found.iter().zip(&ours).map(compare).collect()
}

#[test]
fn exports_match_the_logits_of_peft() {
    let Some(python) = python() else { return };
    let all = std::env::var_os("SEPAL_TEST_ALL_MODELS").is_some();
    // The rest have no class in transformers to compare with.
    let has_class = |name: &str| classifier_class(tiny(name).1.config().family).is_some();
    let is_asked = |name: &String| (all || FEW.contains(&name.as_str())) && has_class(name);
    let names: Vec<String> = sepal_testkit::tiny::models().into_iter().filter(is_asked).collect();
    let prompts = |form, len, deep| Kind::Prompts { form, len, deep };
    let prompts = [
        prompts(Form::PrefixTuning, 5, false),
        prompts(Form::PrefixTuning, 5, true),
        prompts(Form::PromptTuning, 5, false),
        prompts(Form::PTuning, 5, false),
        // More prompts than the windows of some models.
        prompts(Form::PrefixTuning, 9, true),
    ];
    let layers = [Kind::Lora, Kind::LastLora, Kind::Ia3, Kind::MergedLora, Kind::MergedIa3];
    let is_prompt = |kind: &Kind| matches!(kind, Kind::Prompts { .. });
    let kinds =
        prompts.into_iter().filter(|kind| all || matches!(kind, Kind::Prompts { deep: true, .. })).chain(layers);
    let with_names = |kind: Kind| names.iter().map(move |name| (name.clone(), kind));
    // Falcon with ALiBi is refused for prompts, and the text model of a multimodal model can only be merged.
    let is_multimodal = |name: &str| tiny(name).1.multimodal_type().is_some();
    let is_exported = |(name, kind): &(String, Kind)| {
        (name != "falcon-rw" || !is_prompt(kind)) && (kind.is_merged() || !is_multimodal(name))
    };
    let mut cases: Vec<(String, Kind)> = kinds.flat_map(with_names).filter(is_exported).collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    let found = differences(&python, &cases);
    for ((name, kind), found) in cases.iter().zip(&found) {
        match found {
            Ok(difference) => println!("{name:24} {kind}: {difference:.1e}"),
            Err(error) => println!("{name:24} {kind}: {error}"),
        }
    }
    let largest = found.iter().flatten().copied().fold(0.0, f64::max);
    println!("largest difference of {} cases: {largest:.1e}", found.len());
    let is_right = |found: &Result<f64, String>| matches!(found, Ok(difference) if *difference <= 1e-4);
    let wrong: Vec<_> = cases.iter().zip(&found).filter(|(_, found)| !is_right(found)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
