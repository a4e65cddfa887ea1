//! `just new-plugin` creates crates that build, keep their contract and train, and families that compute like Llama.

use std::path::{Path, PathBuf};
use std::process::Command;

use sepal_integration_tests::fixture::{Fixture, binary, stdout};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// Mirrors the repository's sources to `to`, without build outputs. Unchanged files keep their time, so that only
/// changed ones are built again.
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

fn edit(repository: &Path, path: &str, change: impl Fn(String) -> String) {
    let path = repository.join(path);
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(path, change(text)).expect("written");
}

/// Runs `just new-plugin KIND NAME`. Returns true on success, and the output.
fn new_plugin(repository: &Path, kind: &str, name: &str) -> (bool, String) {
    let script = repository.join("scripts/new_plugin.py");
    let output = Command::new("python3").arg(script).args([kind, name]).output().expect("it runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn fresh_copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&root(), folder.path());
    folder
}

#[test]
fn generated_plugins_and_family_build_and_train() {
    // The plugins are generated in a fresh copy and mirrored to a lasting one, so that unchanged crates are not built
    // again.
    let fresh = fresh_copy();
    for (kind, name) in [("head", "my-head"), ("tuning", "my-tuning"), ("family", "my-family")] {
        let (succeeds, text) = new_plugin(fresh.path(), kind, name);
        assert!(succeeds, "{kind}: {text}");
        let (succeeds, text) = new_plugin(fresh.path(), kind, name);
        assert!(!succeeds && text.contains("exists already"), "{kind}: {text}");
        assert!(!new_plugin(fresh.path(), kind, "My Name").0);
    }
    // The real script needs transformers; the test needs only a valid script.
    let goldens = "crates/testkit/goldens/make_goldens.py";
    let entry = "    \"my-family\": auto(\"my_family\", **llama(num_hidden_layers=2)),\n}\n";
    assert!(std::fs::read_to_string(fresh.path().join(goldens)).expect("readable").contains(entry));
    let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
    succeed(Command::new("python3").current_dir(fresh.path()).args(["-c", parse, goldens]));
    // The programs get other names, so that they do not replace those of the other tests, in the shared target
    // folder, which has the dependencies.
    for (program, folder) in [("sepal", "front"), ("sepal-engine", "cli")] {
        edit(fresh.path(), &format!("crates/{folder}/Cargo.toml"), |text| {
            text.replace(&format!("name = \"{program}\""), &format!("name = \"{program}-with-plugins\""))
        });
    }
    // Another version: cargo would otherwise confuse the crates of both copies, which have equal relative paths.
    edit(fresh.path(), "Cargo.toml", |text| text.replace("version = \"0.1.0\"", "version = \"0.1.0-plugins\""));
    // That of the patch of zip as well: otherwise tch is built again in its place, and documentation tests that run later find
    // another tch than the one that their crates were built with.
    edit(fresh.path(), "patches/zip/Cargo.toml", |text| text.replace("version = \"0.6.6\"", "version = \"0.6.7\""));
    edit(fresh.path(), "Cargo.lock", |text| {
        text.replace("name = \"zip\"\nversion = \"0.6.6\"", "name = \"zip\"\nversion = \"0.6.7\"")
            .replace("\"zip 0.6.6\"", "\"zip 0.6.7\"")
    });
    // Only the tests of the plugins are built; the other crates' tests run anyway.
    for entry in std::fs::read_dir(fresh.path().join("crates")).expect("crates") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        edit(fresh.path(), &format!("crates/{name}/Cargo.toml"), |text| match text.contains("[lib]") {
            true => text,
            false => text + "\n[lib]\ntest = false\n",
        });
    }
    let repository = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-plugin");
    copy(fresh.path(), &repository);

    let target = binary().parent().and_then(Path::parent).expect("target/debug/sepal").to_owned();
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(&repository).args(args).args(["--offline", "--target-dir"]).arg(&target);
        command.env_remove("CARGO_TARGET_DIR");
        command
    };
    let tests = ["test", "--workspace", "--exclude", "sepal-integration-tests", "--lib", "--", "contract_holds"];
    let listed = succeed(cargo(&tests[..5]).args(&tests[5..]));
    assert_eq!(listed.matches("contract_holds ... ok").count(), 13, "{listed}");
    let built = succeed(&mut cargo(&["build", "--workspace", "--bins"]));
    assert!(!built.contains("warning"), "{built}");
    let program = target.join("debug/sepal-engine-with-plugins");

    let fixture = Fixture::new("llama-gqa");
    let sets = "task.use=my-head tuning.use=my-tuning task.with.smoothing=0.05 train.max_steps=40 \
                train.deterministic=true";
    let run = |runs: &str| {
        let mut sepal = fixture.sepal(&[]);
        stdout(
            Command::new(&program)
                .current_dir(fixture.folder.path())
                .envs(sepal.env("SEPAL_LOG", "warn").get_envs().filter_map(|(key, value)| Some((key, value?))))
                .args(["run", "pipeline.yaml", "--set", &format!("output.folder={runs}")])
                .args(sets.split(' ')),
        );
        fixture.run_in(runs).losses()
    };
    let losses = run("plugins");
    assert!(losses[36..].iter().sum::<f64>() < losses[..4].iter().sum::<f64>(), "{losses:?}");
    // A Llama that is declared as the new family trains as before.
    edit(fixture.folder.path(), "model/config.json", |text| text.replace("\"llama\"", "\"my_family\""));
    assert_eq!(run("family"), losses, "to the last bit");
}

/// Checks that nothing is written if the marker of a list is missing.
#[test]
fn family_without_its_marker_comment_is_an_error() {
    let fresh = fresh_copy();
    for (path, anchor) in [
        ("crates/core/src/model.rs", "families! {"),
        ("crates/blocks/src/families/mod.rs", "const FAMILIES: "),
        ("crates/checkpoint/src/families/mod.rs", "const FAMILIES: "),
        ("crates/testkit/goldens/make_goldens.py", "MODELS = {"),
    ] {
        let file = fresh.path().join(path);
        let before = std::fs::read_to_string(&file).expect("readable");
        edit(fresh.path(), path, |text| text.replace(anchor, "elsewhere {"));
        let (succeeds, text) = new_plugin(fresh.path(), "family", "my-family");
        assert!(!succeeds && text.contains(&format!("{path} has no line `{anchor}`")), "{text}");
        for crate_name in ["blocks", "checkpoint"] {
            let path = format!("crates/{crate_name}/src/families/my_family.rs");
            assert!(!fresh.path().join(&path).exists(), "{path} is left, without {anchor}");
        }
        std::fs::write(file, before).expect("written");
    }
    assert!(new_plugin(fresh.path(), "family", "my-family").0);
}
