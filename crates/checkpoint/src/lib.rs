//! Frozen checkpoints: a folder in the HF layout (`config.json` with safetensors, in one file or in
//! shards) or a GGUF file, read one tensor at a time under the names of the HF layout.
//!
//! This crate computes nothing, fetches nothing and does not know libtorch. A server asks for the
//! tensors of its blocks, a client for the embeddings and the final norm; nothing else is read.
//! Weights are not memory-mapped, because a map of a file that someone shortens is undefined
//! behaviour, which no safe interface can rule out. Positioned reads serve the same end: only the
//! bytes of the tensors asked for are read, and processes share them in the page cache.
//!
//! Of a model in shards only some need to be here. Its index names the others, and an [`outline`] of less than a
//! megabyte says what is in them; [`Checkpoint::missing_files`] names those that somebody needs. Whoever uses this crate
//! brings them.
//!
//! Invariants: a [`Checkpoint`] that is open has a configuration that the blocks can compute, and
//! every tensor it names lies within its file, so that a truncated file is refused before any
//! tensor is used. What is converted or quantized in GGUF comes out as the model had it: fp32, and
//! rows in the order of the HF layout. Two processes that open the same weights find the same
//! [`Checkpoint::digest`], whichever shards they have.
//!
//! ```
//! use safetensors::tensor::{Dtype, TensorView};
//! use sepal_checkpoint::Checkpoint;
//!
//! let folder = tempfile::tempdir()?;
//! let config = r#"{"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
//!     "intermediate_size": 8, "vocab_size": 3, "rms_norm_eps": 1e-5}"#;
//! std::fs::write(folder.path().join("config.json"), config)?;
//! let norm = TensorView::new(Dtype::F32, vec![4], &[0; 16])?;
//! let weights = safetensors::serialize([("model.norm.weight", norm)], None)?;
//! std::fs::write(folder.path().join("model.safetensors"), weights)?;
//!
//! let checkpoint = Checkpoint::open(folder.path())?;
//! assert_eq!(checkpoint.config().head_dim, 2);
//! assert_eq!(checkpoint.tensor("norm.weight")?.shape(), [4]);
//! assert_eq!(checkpoint.describe().to_string(), "safetensors, F32, 0.0 MB");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod digest;
mod error;
mod file;
mod folder;
mod gguf;
mod keys;
mod outline;
mod part;
mod rows;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use sepal_core::{HostTensor, ModelConfig};
use sepal_tokenize::Tokenizer;

pub use error::{OpenError, ReadError, TokenizerError};
pub use folder::screen;
pub use outline::{Elsewhere, missing_shards, outline};
pub use part::Part;

use crate::outline::Outline;
use crate::store::{Store, Stored};

/// An open checkpoint; threads may share it.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    config: ModelConfig,
    store: Store,
    digest: String,
}

/// How the weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `config.json` with safetensors.
    Safetensors,
    /// A GGUF file.
    Gguf,
}

/// What a checkpoint is, for people: `gguf, Q4_1/Q8_0/F32, 98.4 MB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// How the weights are stored.
    pub format: Format,
    /// The number types, the one with the most bytes first.
    pub dtypes: Vec<String>,
    /// Bytes of the weights files.
    pub size_bytes: u64,
}

impl Checkpoint {
    /// Opens a folder in the HF layout, a GGUF file, or a folder with one GGUF file in it. Reads the
    /// headers and, for the digest, a few kilobytes of each block. Shards that are not here must be in an
    /// [`outline`] in the folder.
    ///
    /// # Errors
    /// [`OpenError`] if there is no such checkpoint, a file is truncated or damaged, or the model is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let found = locate(path)?;
        let outline = if missing_shards(path)?.is_empty() { Outline::default() } else { Outline::read(path) };
        let (format, (config, store)) = match &found {
            Found::Folder => (Format::Safetensors, folder::open(path, &outline)?),
            Found::Gguf(file) => (Format::Gguf, gguf::open(file)?),
        };
        let digest = format!("sha256:{}", digest::fingerprint(&config, &store, &outline)?);
        Ok(Self { path: path.to_owned(), format, config, store, digest })
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `sha256:` and the digest of the configuration, of every tensor's name, type and shape, and of 4 KiB from the
    /// middle of one tensor of each block and of each tensor outside of blocks.
    ///
    /// Servers and clients compare it at each start. It tells apart what people mix up: another model, another
    /// fine-tuning (of any block, or of any kind of matrix in all of them), another quantization. It does not depend on
    /// how tensors are dealt out to files, nor on which files are here. It does not guard against someone who forges
    /// weights.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Reads a tensor by its HF name; what the family's names begin with (`model.`, `transformer.`) may
    /// be left out, or be there where the checkpoint has none.
    ///
    /// # Errors
    /// [`ReadError`] if it is not there, cannot be read, or is of a type that no weight has.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, ReadError> {
        let missing = || ReadError::Missing { name: name.to_owned(), path: self.path.clone() };
        self.store.read(name, self.find(name).ok_or_else(missing)?)
    }

    /// Whether [`Checkpoint::tensor`] finds the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.store.tensors.keys().map(String::as_str)
    }

    /// How many numbers all its tensors have together.
    pub fn parameter_count(&self) -> u64 {
        self.store.tensors.values().map(|stored| stored.shape.iter().product::<usize>() as u64).sum()
    }

    /// What the checkpoint is, for people.
    pub fn describe(&self) -> Description {
        let size_bytes = self.store.files.iter().map(file::WeightsFile::len).sum();
        Description { format: self.format, dtypes: self.store.encodings(), size_bytes }
    }

    /// The tokenizer: `tokenizer.json` beside `config.json`, or the vocabulary in the GGUF file; where
    /// that is of a kind that is not supported, a `tokenizer.json` beside the file stands in.
    ///
    /// # Errors
    /// [`TokenizerError`] if there is none, or it is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let file = match (self.format, self.store.files.first()) {
            (Format::Gguf, Some(file)) => file,
            _ => return from_file(&self.path.join(folder::TOKENIZER)),
        };
        let vocab = gguf::vocab(file).map_err(TokenizerError::Metadata)?;
        let beside = file.path().with_file_name(folder::TOKENIZER);
        match Tokenizer::from_gguf_vocab(&vocab) {
            Err(_) if beside.is_file() => from_file(&beside),
            built => built.map_err(|source| TokenizerError::Vocab { path: file.path().to_owned(), source }),
        }
    }

    /// The tokenizer without the files beside `tokenizer.json`, as it was before they were read. None if the tokenizer
    /// does not come from such a file, or the file cannot be read.
    pub fn tokenizer_alone(&self) -> Option<Tokenizer> {
        let folder = if self.format == Format::Safetensors { Some(self.path.as_path()) } else { self.path.parent() };
        Tokenizer::from_file_alone(folder?.join(folder::TOKENIZER)).ok()
    }

    fn find(&self, name: &str) -> Option<&Stored> {
        let prefix = self.config.family.prefix();
        let tensors = &self.store.tensors;
        let without = || name.strip_prefix(prefix).and_then(|name| tensors.get(name));
        tensors.get(name).or_else(|| tensors.get(&format!("{prefix}{name}"))).or_else(without)
    }
}

fn from_file(path: &Path) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_file(path).map_err(TokenizerError::File)
}

/// What was found at a path.
enum Found {
    Folder,
    Gguf(PathBuf),
}

fn locate(path: &Path) -> Result<Found, OpenError> {
    let metadata = std::fs::metadata(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    let layout = |problem: String| OpenError::Layout { path: path.to_owned(), problem };
    if !metadata.is_dir() {
        let gguf = is_gguf(path);
        let problem = "a file must be a .gguf; for safetensors give the folder that holds config.json";
        return if gguf { Ok(Found::Gguf(path.to_owned())) } else { Err(layout(problem.to_owned())) };
    }
    if folder::has_weights(path) {
        return Ok(Found::Folder);
    }
    let mut files = gguf_files(path)?;
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(Found::Gguf(file)),
        (Some(_), others) => Err(layout(format!("it holds {} .gguf files; name the one that is meant", others + 1))),
        (None, _) if path.join(folder::CONFIG).is_file() => Ok(Found::Folder),
        (None, _) => Err(layout("it holds neither config.json with model.safetensors nor a .gguf file".to_owned())),
    }
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let io = |source| OpenError::Io { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(io)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(io)?;
    Ok(paths.into_iter().filter(|path| is_gguf(path)).collect())
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::Gguf => "gguf",
        })
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {:.1} MB", self.format, self.dtypes.join("/"), self.size_bytes as f64 / 1e6)
    }
}
