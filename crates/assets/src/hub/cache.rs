//! Cache folder of the hub in the layout of its Python tools: in `models--OWNER--NAME`, `blobs` holds the content of
//! each file under its digest, `snapshots/COMMIT` links to the blobs, and `refs/main` names the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use sepal_machine::durable;
use sha2::{Digest, Sha256};

use crate::cache::write_atomic;
use crate::hub::api::Entry;
use crate::hub::pieces::Pieces;
use crate::{AssetOptions, FetchError, HubSource, Kind};

const CONFIG: &str = "config.json";
const TOKENIZERS: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Required files of an adapter, and the additional ones of an exported adapter.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const EXPORTED: [&str; 2] = ["sepal.json", "sepal_adapter.safetensors"];

/// Cached part of one repository.
#[derive(Debug)]
pub(crate) struct Repository {
    folder: PathBuf,
    /// Folder of the recorded file listings of commits.
    listings: PathBuf,
    locks: PathBuf,
    kind: Kind,
    revision: String,
}

/// Completeness of a snapshot with regard to the files that are fetched at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completeness {
    /// All files are cached.
    Complete,
    /// The required files are cached; the hub may have more.
    Usable,
    /// A required file is missing.
    Incomplete,
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

    /// Returns the commit that the revision stood for when it was fetched.
    pub(crate) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn file(&self, commit: &str, path: &str) -> Option<PathBuf> {
        let file = self.snapshot(commit).join(path);
        file.is_file().then_some(file)
    }

    /// Returns the completeness of a snapshot, of which `deferral` may leave out weights.
    pub(crate) fn completeness(&self, commit: &str, deferral: Deferral) -> Completeness {
        let folder = self.snapshot(commit);
        let is_here = |entry: &&Entry| {
            let path = folder.join(&entry.path);
            path.is_file() || (deferral.applies(entry) && Pieces::exist(&path))
        };
        match self.listed(commit) {
            Some(entries) if initial_files(&entries, self.kind).iter().all(is_here) => Completeness::Complete,
            Some(_) => Completeness::Incomplete,
            None => completeness(&files(&folder), self.kind),
        }
    }

    /// Returns the path of a file that `deferral` leaves out, if the listing of its folder is recorded.
    pub(crate) fn deferred_file(&self, commit: &str, path: &str, deferral: Deferral) -> Option<PathBuf> {
        let entries = self.listed_folder(commit, parent(path))?;
        let entry = entries.into_iter().find(|entry| entry.path == path)?;
        if deferral.applies(&entry) { self.make_folder(commit, path).ok() } else { None }
    }

    /// Makes the folder of a file that is left out, and returns the file's path.
    pub(crate) fn make_folder(&self, commit: &str, path: &str) -> Result<PathBuf, FetchError> {
        let file = self.snapshot(commit).join(path);
        let folder = file.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(FetchError::io("make the folder", folder))?;
        Ok(file)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, entry: &Entry) -> PathBuf {
        self.folder.join("blobs").join(&entry.oid)
    }

    pub(crate) fn link(&self, commit: &str, entry: &Entry) -> Result<PathBuf, FetchError> {
        let file = self.make_folder(commit, &entry.path)?;
        let folder = file.parent().unwrap_or(&self.folder);
        let up = "../".repeat(2 + entry.path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", entry.oid));
        if fs::read_link(&file).is_ok_and(|found| found == target) {
            return Ok(file);
        }
        let temporary = tempfile::Builder::new().prefix(".incoming-").tempdir_in(folder);
        let temporary = temporary.map_err(FetchError::io("write in", folder))?;
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(target, &link).map_err(FetchError::io("link", &file))?;
        durable::rename(&link, &file).map_err(FetchError::io("link", &file))?;
        Ok(file)
    }

    /// Locks the download of a file, so that one of several processes fetches it; the Python tools take the same lock.
    /// `waiting` is called if another process holds it.
    pub(crate) fn lock(&self, entry: &Entry, waiting: impl FnOnce()) -> Result<File, FetchError> {
        fs::create_dir_all(&self.locks).map_err(FetchError::io("make the folder", &self.locks))?;
        let path = self.locks.join(format!("{}.lock", entry.oid));
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FetchError::io("open", &path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            waiting();
            // Without file locks the work may be done twice, which the final digest check covers.
            let _ = file.lock();
        }
        Ok(file)
    }

    /// Records the commit of the revision.
    pub(crate) fn point_to(&self, commit: &str) -> Result<(), FetchError> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        write_atomic(&self.folder.join("refs").join(&self.revision), commit.as_bytes())
    }

    pub(crate) fn record(&self, commit: &str, entries: &[Entry]) -> Result<(), FetchError> {
        write_json(&self.listing(commit), entries)
    }

    pub(crate) fn listed(&self, commit: &str) -> Option<Vec<Entry>> {
        serde_json::from_slice(&fs::read(self.listing(commit)).ok()?).ok()
    }

    /// Records the GGUF files of a folder.
    pub(crate) fn record_folder(&self, commit: &str, folder: &str, entries: &[Entry]) -> Result<(), FetchError> {
        write_json(&self.folder_listing(commit, folder), entries)
    }

    pub(crate) fn listed_folder(&self, commit: &str, folder: &str) -> Option<Vec<Entry>> {
        serde_json::from_slice(&fs::read(self.folder_listing(commit, folder)).ok()?).ok()
    }

    fn folder_listing(&self, commit: &str, folder: &str) -> PathBuf {
        let digest = hex::encode(Sha256::digest(folder));
        self.listings.join(format!("{commit}.gguf-{}.json", &digest[..16]))
    }

    fn listing(&self, commit: &str) -> PathBuf {
        // A repository may hold a model and an adapter. Listings of older versions, without all tokenizer files, have
        // no suffix.
        let kind = match self.kind {
            Kind::Adapter => ".adapter",
            Kind::Model => ".model",
            Kind::Dataset => "",
        };
        self.listings.join(format!("{commit}{kind}.json"))
    }
}

/// Weights that a fetch leaves out, because they are fetched in parts later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deferral {
    /// None.
    Never,
    /// Parts of a GGUF file, and single files of more than this number of bytes.
    Above(u64),
}

impl Deferral {
    pub(crate) fn applies(self, entry: &Entry) -> bool {
        match self {
            Self::Never => false,
            Self::Above(limit) if is_gguf(&entry.path) || is_weights(&entry.path) => {
                entry.size > limit || is_gguf_part(&entry.path)
            }
            Self::Above(_) => false,
        }
    }
}

/// Folder of a path in a repository; empty for the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

pub(crate) fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// Returns true for one of several parts, `NAME-00001-of-00003.gguf`.
fn is_gguf_part(name: &str) -> bool {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let numbers = numbers.and_then(|(head, count)| Some((head.rsplit_once('-')?.1, count)));
    numbers.is_some_and(|(number, count)| is_number(number) && is_number(count) && count != "00001")
}

fn write_json(path: &Path, entries: &[Entry]) -> Result<(), FetchError> {
    let json = serde_json::to_vec(entries).map_err(|error| FetchError::io("write", path)(error.into()))?;
    write_atomic(path, &json)
}

/// Files of a listing that are fetched at once. The shards of a sharded model are fetched by name.
pub(crate) fn initial_files(entries: &[Entry], kind: Kind) -> Vec<&Entry> {
    let is_sharded = entries.iter().any(|entry| entry.path == INDEX);
    let is_initial = |entry: &&Entry| match kind {
        Kind::Dataset | Kind::Adapter => true,
        Kind::Model if is_sharded => !is_weights(&entry.path),
        Kind::Model => !is_weights(&entry.path) || entry.path == SINGLE,
    };
    entries.iter().filter(is_initial).collect()
}

pub(crate) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

pub(crate) fn is_relevant(name: &str, kind: Kind) -> bool {
    match kind {
        Kind::Model => {
            // Some repositories hold copies of the weights for other tools.
            let foreign =
                name.contains('/') || ["consolidated", "adapter_"].iter().any(|start| name.starts_with(start));
            (is_weights(name) && !foreign) || [CONFIG, INDEX].contains(&name) || TOKENIZERS.contains(&name)
        }
        Kind::Adapter => ADAPTER.contains(&name) || EXPORTED.contains(&name),
        Kind::Dataset => {
            let endings = [".parquet", ".arrow", ".feather", ".csv", ".tsv", ".jsonl", ".json"];
            let file = name.rsplit('/').next().unwrap_or(name);
            let is_fact = ["dataset_info", "dataset_dict", "state."].iter().any(|start| file.starts_with(start));
            let is_of_model = file.ends_with("config.json") || file == INDEX || TOKENIZERS.contains(&file);
            let name = name.strip_suffix(".gz").unwrap_or(name);
            !is_fact && !is_of_model && endings.iter().any(|ending| name.ends_with(ending))
        }
    }
}

pub(crate) fn is_complete(names: &[&str], kind: Kind) -> bool {
    match kind {
        Kind::Model => names.contains(&CONFIG) && (names.contains(&SINGLE) || names.contains(&INDEX)),
        Kind::Adapter => ADAPTER.iter().all(|name| names.contains(name)),
        Kind::Dataset => !names.is_empty(),
    }
}

fn completeness(names: &[String], kind: Kind) -> Completeness {
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_relevant(name, kind)).collect();
    if !is_complete(&names, kind) || (kind == Kind::Dataset && !all_shards(&names)) {
        Completeness::Incomplete
    // Few repositories have the last one.
    } else if kind == Kind::Model && TOKENIZERS[..3].iter().all(|name| names.contains(name)) {
        Completeness::Complete
    } else {
        Completeness::Usable
    }
}

/// Returns true if all shards of files named `PREFIX00001-of-00003SUFFIX` are present.
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

/// Files below a folder, with `/` between the parts of their names. Dangling links are left out.
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

    fn check(names: &[&str], kind: Kind, expected: Completeness) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(completeness(&names, kind), expected, "{names:?}");
    }

    #[test]
    fn completeness_model_needs_config_and_weights_or_index() {
        let tokenizer = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
        check(&[&["config.json", "model.safetensors"], &tokenizer[..]].concat(), Kind::Model, Completeness::Complete);
        check(&[&["config.json", INDEX], &tokenizer[..]].concat(), Kind::Model, Completeness::Complete);
        check(&["config.json", "model.safetensors", "tokenizer.json"], Kind::Model, Completeness::Usable);
        check(&["config.json", "model.safetensors"], Kind::Model, Completeness::Usable);
        check(&["model.safetensors", "tokenizer.json"], Kind::Model, Completeness::Incomplete);
        check(&["config.json", "tokenizer.json"], Kind::Model, Completeness::Incomplete);
        let without_index = ["config.json", "tokenizer.json", "model-00001-of-00003.safetensors"];
        check(&without_index, Kind::Model, Completeness::Incomplete);
        check(&["config.json", "tokenizer.json", INDEX], Kind::Model, Completeness::Usable);
    }

    #[test]
    fn initial_files_leave_out_shards() {
        let check = |names: &[&str], kind: Kind, expected: &[&str]| {
            let entry = |name: &&str| Entry { path: (*name).to_owned(), size: 1, oid: "x".to_owned() };
            let entries: Vec<Entry> = names.iter().map(entry).collect();
            let found: Vec<&str> = initial_files(&entries, kind).iter().map(|entry| entry.path.as_str()).collect();
            assert_eq!(found, expected);
        };
        let shard = "model-00001-of-00002.safetensors";
        check(&["config.json", INDEX, shard], Kind::Model, &["config.json", INDEX]);
        check(&["config.json", SINGLE, "other.safetensors"], Kind::Model, &["config.json", SINGLE]);
        check(&["a.csv", "b.csv"], Kind::Dataset, &["a.csv", "b.csv"]);
    }

    #[test]
    fn deferral_applies_to_parts_and_large_weights() {
        let check = |path: &str, size: u64, expected: bool| {
            let entry = Entry { path: path.to_owned(), size, oid: "x".to_owned() };
            assert_eq!(Deferral::Above(100).applies(&entry), expected, "{path}");
            assert!(!Deferral::Never.applies(&entry));
        };
        check("model.safetensors", 101, true);
        check("model.safetensors", 100, false);
        check("a/b.gguf", 101, true);
        check("a/b.gguf", 100, false);
        check("a/b-00001-of-00002.gguf", 1, true);
        check("a/b-00001-of-00001.gguf", 1, false);
        check("a/b-1-of-2.gguf", 1, false);
        check("tokenizer.json", 1000, false);
    }

    #[test]
    fn completeness_dataset_needs_all_shards() {
        check(&["README.md"], Kind::Dataset, Completeness::Incomplete);
        check(&["data/train-00000-of-00002.parquet"], Kind::Dataset, Completeness::Incomplete);
        let both = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "x.csv"];
        check(&both, Kind::Dataset, Completeness::Usable);
    }

    #[test]
    fn is_relevant_excludes_copies_for_other_tools() {
        for name in
            ["original/model.safetensors", "consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin"]
        {
            assert!(!is_relevant(name, Kind::Model), "{name}");
        }
        assert!(is_relevant(INDEX, Kind::Model) && is_relevant(SINGLE, Kind::Model));
        assert!(!is_relevant("dataset_infos.json", Kind::Dataset));
    }

    #[test]
    fn pickled_finds_weights_by_name() {
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
