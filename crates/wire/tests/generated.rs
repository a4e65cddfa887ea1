//! The committed code is what the schema gives.

use std::path::Path;
use std::process::Command;

fn here(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Lines but for those that name the version of the `capnp` compiler.
fn code(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("generated code is readable");
    text.lines().filter(|line| !line.starts_with("// capnp binary version")).map(str::to_owned).collect()
}

#[test]
fn committed_code_is_current() {
    if Command::new("capnp").arg("--version").output().is_err() {
        println!("skipped: the `capnp` compiler is not installed, so the committed code was not compared");
        return;
    }
    let out = tempfile::tempdir().expect("a temporary folder");
    capnpc::CompilerCommand::new()
        .src_prefix(here("../../schemas/rpc"))
        .file(here("../../schemas/rpc/sepal.capnp"))
        .output_path(out.path())
        .default_parent_module(vec!["generated".into()])
        .run()
        .expect("the schema compiles");
    let current = code(&here("src/generated/sepal_capnp.rs")) == code(&out.path().join("sepal_capnp.rs"));
    assert!(current, "src/generated/sepal_capnp.rs is not what schemas/rpc/sepal.capnp gives; run `just schemas`");
}
