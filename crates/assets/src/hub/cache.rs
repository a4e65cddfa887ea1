//! The hub's cache folder, as its Python tools lay it out: in `models--OWNER--NAME`, the content of each file is in
//! `blobs`, under its digest, and `snapshots/COMMIT` has links to it; `refs/main` says which commit that is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::cache::write_atomic;
use crate::hub::api::Entry;
use crate::{AssetOptions, FetchError, HubSource, Kind};

const CONFIG: &str = "config.json";
const TOKENIZERS: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What an adapter must have, and what it has if it was exported here.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const EXPORTED: [&str; 2] = ["sepal.json", "sepal_adapter.safetensors"];

/// What is cached of one repository.
#[derive(Debug)]
pub(crate) struct Repository {
    folder: PathBuf,
    /// Where it is noted which files a commit has.
    listings: PathBuf,
    locks: PathBuf,
    kind: Kind,
    revision: String,
}

/// How much of what is fetched at once a snapshot holds.
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
            Kind::Model | Kind::Adapter => "models",
            Kind::Dataset => "datasets",
        };
        let name = format!("{kinds}--{}--{}", source.owner(), source.name());
        Self {
            folder: options.hub_cache.join(&name),
            listings: options.cache.join("assets/hub").join(&name),
            locks: options.hub_cache.join(".locks").join(&name),
            kind,
            revision: source.revision().unwrap_or("main").to_owned(),
        }
    }

    pub(crate) fn revision(&self) -> &str {
        &self.revision
    }

    /// The commit that the revision stood for when something of it was fetched.
    pub(crate) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// A file of a commit, if it is here.
    pub(crate) fn file(&self, commit: &str, path: &str) -> Option<PathBuf> {
        let file = self.snapshot(commit).join(path);
        file.is_file().then_some(file)
    }

    /// How much the snapshot of a commit holds of what is fetched at once.
    pub(crate) fn held(&self, commit: &str) -> Holding {
        let folder = self.snapshot(commit);
        match self.listed(commit) {
            Some(entries) if at_once(&entries, self.kind).iter().all(|entry| folder.join(&entry.path).is_file()) => {
                Holding::All
            }
            Some(_) => Holding::Part,
            None => holding(&files(&folder), self.kind),
        }
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the content of a file lies.
    pub(crate) fn blob(&self, entry: &Entry) -> PathBuf {
        self.folder.join("blobs").join(&entry.oid)
    }

    /// Gives content that is here its name in a commit.
    pub(crate) fn link(&self, commit: &str, entry: &Entry) -> Result<PathBuf, FetchError> {
        let file = self.snapshot(commit).join(&entry.path);
        let folder = file.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(FetchError::io("make the folder", folder))?;
        let up = "../".repeat(2 + entry.path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", entry.oid));
        if fs::read_link(&file).is_ok_and(|found| found == target) {
            return Ok(file);
        }
        let place = tempfile::Builder::new().prefix(".incoming-").tempdir_in(folder);
        let place = place.map_err(FetchError::io("write in", folder))?;
        let link = place.path().join("link");
        std::os::unix::fs::symlink(target, &link).map_err(FetchError::io("link", &file))?;
        fs::rename(link, &file).map_err(FetchError::io("link", &file))?;
        Ok(file)
    }

    /// Held while the content of a file is fetched, so that of several processes one does it; the Python tools take
    /// the same lock. `waiting` is called if somebody else has it.
    pub(crate) fn lock(&self, entry: &Entry, waiting: impl FnOnce()) -> Result<File, FetchError> {
        fs::create_dir_all(&self.locks).map_err(FetchError::io("make the folder", &self.locks))?;
        let path = self.locks.join(format!("{}.lock", entry.oid));
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FetchError::io("open", &path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            waiting();
            // Where a file system has no locks the work may be done twice, which the digest at its end finds.
            let _ = file.lock();
        }
        Ok(file)
    }

    /// Notes which commit the revision stands for.
    pub(crate) fn point_to(&self, commit: &str) -> Result<(), FetchError> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        write_atomic(&self.folder.join("refs").join(&self.revision), commit.as_bytes())
    }

    /// Notes which files of a commit belong to the model or dataset.
    pub(crate) fn record(&self, commit: &str, entries: &[Entry]) -> Result<(), FetchError> {
        let path = self.listing(commit);
        let json = serde_json::to_vec(entries).map_err(|error| FetchError::io("write", &path)(error.into()))?;
        write_atomic(&path, &json)
    }

    /// The files of a commit that belong to the model or dataset, if they were noted.
    pub(crate) fn listed(&self, commit: &str) -> Option<Vec<Entry>> {
        serde_json::from_slice(&fs::read(self.listing(commit)).ok()?).ok()
    }

    fn listing(&self, commit: &str) -> PathBuf {
        // A repository may hold a model and an adapter. What was noted of models before they had all files of a
        // tokenizer has the name without an ending.
        let kind = match self.kind {
            Kind::Adapter => ".adapter",
            Kind::Model => ".model",
            Kind::Dataset => "",
        };
        self.listings.join(format!("{commit}{kind}.json"))
    }
}

/// Of the files of a model or dataset those that are fetched at once. The shards of a model come when somebody needs
/// them: its index says what is in which.
pub(crate) fn at_once(entries: &[Entry], kind: Kind) -> Vec<&Entry> {
    let is_sharded = entries.iter().any(|entry| entry.path == INDEX);
    let is_wanted = |entry: &&Entry| match kind {
        Kind::Dataset | Kind::Adapter => true,
        Kind::Model if is_sharded => !is_weights(&entry.path),
        Kind::Model => !is_weights(&entry.path) || entry.path == SINGLE,
    };
    entries.iter().filter(is_wanted).collect()
}

pub(crate) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Whether a file of a repository belongs to what is fetched of it.
pub(crate) fn belongs(name: &str, kind: Kind) -> bool {
    match kind {
        Kind::Model => {
            // Other tools' copies of the same weights lie beside them in some repositories.
            let foreign =
                name.contains('/') || ["consolidated", "adapter_"].iter().any(|start| name.starts_with(start));
            (is_weights(name) && !foreign) || [CONFIG, INDEX].contains(&name) || TOKENIZERS.contains(&name)
        }
        Kind::Adapter => ADAPTER.contains(&name) || EXPORTED.contains(&name),
        Kind::Dataset => {
            let endings = [".parquet", ".arrow", ".feather", ".csv", ".tsv", ".jsonl"];
            endings.iter().any(|ending| name.ends_with(ending))
        }
    }
}

/// What a repository must have to be of the kind.
pub(crate) fn is_whole(names: &[&str], kind: Kind) -> bool {
    match kind {
        Kind::Model => names.contains(&CONFIG) && (names.contains(&SINGLE) || names.contains(&INDEX)),
        Kind::Adapter => ADAPTER.iter().all(|name| names.contains(name)),
        Kind::Dataset => !names.is_empty(),
    }
}

fn holding(names: &[String], kind: Kind) -> Holding {
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| belongs(name, kind)).collect();
    if !is_whole(&names, kind) || (kind == Kind::Dataset && !all_shards(&names)) {
        Holding::Part
    // Few repositories have the last one.
    } else if kind == Kind::Model && TOKENIZERS[..3].iter().all(|name| names.contains(name)) {
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

/// The first of the files whose weights are pickled.
pub(crate) fn pickled<'a>(names: &[&'a str]) -> Option<&'a str> {
    let is_pickled = |name: &&str| {
        let weights = ["pytorch_model", "model", "consolidated"].iter().any(|start| name.starts_with(start));
        weights && [".bin", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending))
    };
    names.iter().copied().filter(is_pickled).min()
}

pub(crate) fn is_commit(text: &str) -> bool {
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
    fn a_model_needs_config_and_weights_or_their_index() {
        let tokenizer = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
        check(&[&["config.json", "model.safetensors"], &tokenizer[..]].concat(), Kind::Model, Holding::All);
        check(&[&["config.json", INDEX], &tokenizer[..]].concat(), Kind::Model, Holding::All);
        check(&["config.json", "model.safetensors", "tokenizer.json"], Kind::Model, Holding::Enough);
        check(&["config.json", "model.safetensors"], Kind::Model, Holding::Enough);
        check(&["model.safetensors", "tokenizer.json"], Kind::Model, Holding::Part);
        check(&["config.json", "tokenizer.json"], Kind::Model, Holding::Part);
        check(&["config.json", "tokenizer.json", "model-00001-of-00003.safetensors"], Kind::Model, Holding::Part);
        check(&["config.json", "tokenizer.json", INDEX], Kind::Model, Holding::Enough);
    }

    #[test]
    fn shards_come_when_they_are_needed() {
        let check = |names: &[&str], kind: Kind, expected: &[&str]| {
            let entry = |name: &&str| Entry { path: (*name).to_owned(), size: 1, oid: "x".to_owned() };
            let entries: Vec<Entry> = names.iter().map(entry).collect();
            let found: Vec<&str> = at_once(&entries, kind).iter().map(|entry| entry.path.as_str()).collect();
            assert_eq!(found, expected);
        };
        let shard = "model-00001-of-00002.safetensors";
        check(&["config.json", INDEX, shard], Kind::Model, &["config.json", INDEX]);
        check(&["config.json", SINGLE, "other.safetensors"], Kind::Model, &["config.json", SINGLE]);
        check(&["a.csv", "b.csv"], Kind::Dataset, &["a.csv", "b.csv"]);
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
        assert!(belongs(INDEX, Kind::Model) && belongs(SINGLE, Kind::Model));
        assert!(!belongs("dataset_infos.json", Kind::Dataset));
    }

    #[test]
    fn pickled_weights_are_known_by_name() {
        let names = [
            "config.json",
            "training_args.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model-00001-of-00002.bin",
        ];
        assert_eq!(pickled(&names), Some("pytorch_model-00001-of-00002.bin"));
        assert_eq!(pickled(&["training_args.bin", "tokenizer.json"]), None);
    }
}
