//! Runs every example.

use std::path::Path;
use std::process::Command;

fn check(program: &str, model: Option<&Path>, expected: &str) {
    let output = Command::new(program).args(model).output().expect("the example starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(expected), "{text}");
}

#[test]
fn prompt_tuning_loop_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = sepal_testkit::tiny::model(folder.path(), "llama-gqa");
    check(env!("CARGO_BIN_EXE_prompt_tuning_loop"), Some(&model), "step 30: loss");
}

#[test]
fn custom_head_runs() {
    check(env!("CARGO_BIN_EXE_custom_head"), None, "accuracy: ");
}

#[test]
fn docs_show_the_custom_head() {
    let source = include_str!("../custom_head.rs");
    let shown =
        source.split("// Shown in docs/plugins.md.\n").nth(1).and_then(|part| part.split("// Shown until").next());
    let shown = shown.expect("markers in the example");
    assert!(shown.lines().count() <= 60, "{} lines", shown.lines().count());
    assert!(include_str!("../../docs/plugins.md").contains(shown), "docs/plugins.md shows another custom head");
}

#[test]
fn custom_tuning_runs() {
    check(env!("CARGO_BIN_EXE_custom_tuning"), None, "lora_A:self_attn.v_proj [12, 4, 16]");
}

#[test]
fn serve_and_train_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = sepal_testkit::tiny::model(folder.path(), "llama-gqa");
    check(env!("CARGO_BIN_EXE_serve_and_train"), Some(&model), "40 steps, best: Some");
}
