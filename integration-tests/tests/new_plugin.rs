//! `just new-plugin` makes crates that build, keep their contract and train.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{Bench, binary};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// Makes `to` a copy of the repository's sources, without what is built or run and without what an earlier copy had
/// and they have no more. A file that is the same already keeps its time, so that only what changed is built again.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(to).expect("a folder") {
        let path = entry.expect("an entry").path();
        if !from.join(path.file_name().expect("a name")).exists() {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.expect("removed");
        }
    }
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if [".git", "target", "runs"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        let copied = to.join(name);
        if path.is_dir() {
            copy(&path, &copied);
        } else if std::fs::read(&copied).ok() != Some(std::fs::read(&path).expect("readable")) {
            std::fs::copy(&path, copied).expect("copied");
        }
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}:\n{text}");
    text
}

#[test]
fn a_new_head_and_a_new_tuning_mode_build_and_train() {
    let repository = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-plugin");
    copy(&root(), &repository);
    let plugins = repository.join("plugins");
    // Left by an earlier test.
    ["my-head", "my-tuning"].iter().for_each(|name| drop(std::fs::remove_dir_all(plugins.join(name))));
    let script = repository.join("scripts/new_plugin.py");
    let make = |kind: &str, name: &str| Command::new("python3").arg(&script).args([kind, name]).output().expect("runs");
    assert!(make("head", "my-head").status.success());
    assert!(make("tuning", "my-tuning").status.success());
    let again = make("head", "my-head");
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("exists already"));
    assert!(!make("head", "My Head").status.success());

    // The program under another name, so that it does not replace the one that other tests run; in the tests' own
    // target folder, where every dependency is built already.
    let manifest = repository.join("crates/cli/Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("readable");
    std::fs::write(&manifest, text.replace("name = \"sepal\"", "name = \"sepal-with-plugins\"")).expect("written");
    // Another version: cargo tells crates of one workspace-relative path apart by nothing else, and would replace
    // what these tests were built from.
    let root_manifest = repository.join("Cargo.toml");
    let text = std::fs::read_to_string(&root_manifest).expect("readable");
    std::fs::write(&root_manifest, text.replace("version = \"0.1.0\"", "version = \"0.1.0-plugins\""))
        .expect("written");
    let target = binary().parent().and_then(Path::parent).expect("target/debug/sepal").to_owned();
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(&repository).args(args).args(["--offline", "--target-dir"]).arg(&target);
        command.env_remove("CARGO_TARGET_DIR");
        command
    };
    // Only the plugins' own tests are built: those of the other crates run anyway.
    for entry in std::fs::read_dir(repository.join("crates")).expect("crates") {
        let manifest = entry.expect("an entry").path().join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).expect("readable");
        std::fs::write(&manifest, text + "\n[lib]\ntest = false\n").expect("written");
    }
    let tests = ["test", "--workspace", "--exclude", "sepal-integration-tests", "--lib", "--", "it_keeps_the_contract"];
    let listed = succeed(cargo(&tests[..5]).args(&tests[5..]));
    assert_eq!(listed.matches("it_keeps_the_contract ... ok").count(), 5, "{listed}");
    succeed(&mut cargo(&["build", "--workspace", "--bins"]));
    let program = target.join("debug/sepal-with-plugins");

    let bench = Bench::new("llama-gqa");
    let mut run = bench.sepal(&[]);
    let sets = ["task.use=my-head", "tuning.use=my-tuning", "task.with.smoothing=0.05", "train.max_steps=40"];
    let output = Command::new(&program)
        .current_dir(bench.folder.path())
        .envs(run.env("SEPAL_LOG", "warn").get_envs().filter_map(|(key, value)| Some((key, value?))))
        .args(["run", "pipeline.yaml", "--set"])
        .args(sets)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let losses = bench.only_run().losses();
    assert!(losses[36..].iter().sum::<f64>() < losses[..4].iter().sum::<f64>(), "{losses:?}");
}
