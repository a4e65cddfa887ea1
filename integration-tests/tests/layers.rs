//! Crates that need no libtorch, by the list of ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names of the dependencies in a manifest, without those of tests and build scripts.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split(['.', ' ', '=']).next().map(str::to_owned);
    lines.filter(|line| !line.starts_with('#')).filter_map(name).filter(|name| !name.is_empty()).collect()
}

/// Dependencies of each crate of the workspace, by the name of its package.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let mut packages = BTreeMap::new();
    for folder in ["crates", "plugins"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder") {
            let folder = entry.expect("an entry");
            let manifest = fs::read_to_string(folder.path().join("Cargo.toml")).expect("a manifest");
            let name = folder.file_name().into_string().expect("a name");
            packages.insert(format!("sepal-{name}"), dependencies(&manifest));
        }
    }
    packages
}

/// True if the crate or one that it stands on depends on the bindings of libtorch.
fn has_libtorch(name: &str, packages: &BTreeMap<String, BTreeSet<String>>) -> bool {
    let (mut open, mut seen) = (vec![name], BTreeSet::new());
    while let Some(name) = open.pop() {
        if ["tch", "torch-sys"].contains(&name) {
            return true;
        }
        if seen.insert(name) {
            open.extend(packages.get(name).into_iter().flatten().map(String::as_str));
        }
    }
    false
}

#[test]
fn crates_that_are_listed_without_libtorch_do_not_depend_on_it() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable");
    let text = text.replace('\n', " ");
    let listed = text.split("crates build without libtorch:").nth(1).expect("a list");
    let listed = listed.split('.').next().unwrap_or_default();
    let listed: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
    let packages = packages();
    assert!(listed.contains(&"front") && listed.len() > 15, "{listed:?}");
    for name in &listed {
        let name = format!("sepal-{name}");
        assert!(packages.contains_key(&name), "there is no crate {name}");
        assert!(!has_libtorch(&name, &packages), "{name} depends on libtorch");
    }
    assert!(has_libtorch("sepal-cli", &packages) && has_libtorch("sepal-lora", &packages));
}
