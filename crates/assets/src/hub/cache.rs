//! The hub's cache folder, as its Python tools lay it out: `models--OWNER--NAME/{refs,snapshots}`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::write_atomic;
use crate::{AssetOptions, FetchError, HubSource, Kind};

/// What is cached of one repository.
#[derive(Debug)]
pub(crate) struct Repository {
    folder: PathBuf,
    /// Where it is noted which files a snapshot consists of.
    listings: PathBuf,
    kind: Kind,
    revision: String,
}

/// How much of a model or dataset a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    /// All of it.
    All,
    /// As much as is needed, but the hub may have more.
    Enough,
    /// Something is missing.
    Part,
}

impl Repository {
    pub(crate) fn new(options: &AssetOptions, source: &HubSource, kind: Kind) -> Self {
        let kinds = match kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let name = format!("{kinds}--{}--{}", source.owner(), source.name());
        Self {
            folder: options.hub_cache.join(&name),
            listings: options.cache.join("assets/hub").join(&name),
            kind,
            revision: source.revision().unwrap_or("main").to_owned(),
        }
    }

    pub(crate) fn revision(&self) -> &str {
        &self.revision
    }

    /// A file of the repository, if it is here.
    pub(crate) fn file(&self, path: &str) -> Option<PathBuf> {
        let file = self.snapshot(&self.commit()?).join(path);
        file.is_file().then_some(file)
    }

    /// The snapshot's folder and how much it holds, if there is one.
    pub(crate) fn held(&self) -> Option<(PathBuf, Holding)> {
        let commit = self.commit()?;
        let folder = self.snapshot(&commit);
        folder.is_dir().then(|| {
            let listing = fs::read_to_string(self.listing(&commit)).ok();
            let holding = match listing {
                Some(listing) if listing.lines().all(|name| folder.join(name).is_file()) => Holding::All,
                Some(_) => Holding::Part,
                None => holding(&files(&folder), self.kind),
            };
            (folder, holding)
        })
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Notes which commit the revision stands for.
    pub(crate) fn point_to(&self, commit: &str) -> Result<(), FetchError> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        write_atomic(&self.folder.join("refs").join(&self.revision), commit.as_bytes())
    }

    /// Notes which files the model or dataset consists of.
    pub(crate) fn record(&self, commit: &str, names: &[&str]) -> Result<(), FetchError> {
        write_atomic(&self.listing(commit), names.join("\n").as_bytes())
    }

    fn listing(&self, commit: &str) -> PathBuf {
        self.listings.join(format!("{commit}.list"))
    }

    fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }
}

/// Whether a file of a repository belongs to what is fetched of it.
pub(crate) fn belongs(name: &str, kind: Kind) -> bool {
    match kind {
        Kind::Model => {
            // Other tools' copies of the same weights lie beside them in some repositories.
            let foreign =
                name.contains('/') || ["consolidated", "adapter_"].iter().any(|start| name.starts_with(start));
            let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
            (weights && !foreign) || ["config.json", "tokenizer.json", "tokenizer_config.json"].contains(&name)
        }
        Kind::Dataset => {
            let endings = [".parquet", ".arrow", ".feather", ".csv", ".tsv", ".jsonl"];
            endings.iter().any(|ending| name.ends_with(ending))
        }
    }
}

/// What a repository must have to be of the kind.
pub(crate) fn is_whole(names: &[&str], kind: Kind) -> bool {
    match kind {
        Kind::Model => names.contains(&"config.json") && names.iter().any(|name| name.ends_with(".safetensors")),
        Kind::Dataset => !names.is_empty(),
    }
}

fn holding(names: &[String], kind: Kind) -> Holding {
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| belongs(name, kind)).collect();
    if !is_whole(&names, kind) || !all_shards(&names) {
        Holding::Part
    } else if kind == Kind::Model && names.contains(&"tokenizer.json") {
        Holding::All
    } else {
        Holding::Enough
    }
}

/// Whether of files named `PREFIX00001-of-00003SUFFIX` all are there.
fn all_shards(names: &[&str]) -> bool {
    let mut found: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for name in names {
        let Some((head, tail)) = name.split_once("-of-") else { continue };
        let prefix = head.trim_end_matches(|c: char| c.is_ascii_digit());
        if prefix.len() < head.len() && tail.starts_with(|c: char| c.is_ascii_digit()) {
            found.entry((prefix, tail)).or_default().insert(&head[prefix.len()..]);
        }
    }
    found.iter().all(|((_, tail), shards)| {
        let digits = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        tail[..digits].parse() == Ok(shards.len())
    })
}

/// The files below a folder, with `/` between the parts of their names. Dangling links are left out.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let path = entry.path();
            if path.is_dir() {
                folders.push((path, format!("{name}/")));
            } else if path.is_file() {
                found.push(name);
            }
        }
    }
    found
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], kind: Kind, expected: Holding) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(holding(&names, kind), expected, "{names:?}");
    }

    #[test]
    fn a_model_needs_config_and_all_shards() {
        let shard = |i: usize| format!("model-0000{i}-of-00003.safetensors");
        let (one, two, three) = (shard(1), shard(2), shard(3));
        check(&["config.json", "model.safetensors", "tokenizer.json"], Kind::Model, Holding::All);
        check(&["config.json", "model.safetensors"], Kind::Model, Holding::Enough);
        check(&["model.safetensors", "tokenizer.json"], Kind::Model, Holding::Part);
        check(&["config.json", "tokenizer.json"], Kind::Model, Holding::Part);
        check(&["config.json", "tokenizer.json", &one, &three], Kind::Model, Holding::Part);
        check(&["config.json", "tokenizer.json", &one, &two, &three], Kind::Model, Holding::All);
    }

    #[test]
    fn a_dataset_needs_all_shards_of_what_is_there() {
        check(&["README.md"], Kind::Dataset, Holding::Part);
        check(&["data/train-00000-of-00002.parquet"], Kind::Dataset, Holding::Part);
        let both = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "x.csv"];
        check(&both, Kind::Dataset, Holding::Enough);
    }

    #[test]
    fn copies_for_other_tools_are_left_alone() {
        for name in
            ["original/model.safetensors", "consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin"]
        {
            assert!(!belongs(name, Kind::Model), "{name}");
        }
        assert!(belongs("model.safetensors.index.json", Kind::Model));
        assert!(!belongs("dataset_infos.json", Kind::Dataset));
    }
}
