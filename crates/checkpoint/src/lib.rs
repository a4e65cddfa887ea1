//! Frozen checkpoints: a folder in the HF layout (`config.json` with safetensors, in one file or in
//! shards) or a GGUF file, read one tensor at a time under the names of the HF layout.
//!
//! The crate computes nothing, fetches nothing and does not depend on libtorch. It uses `sepal-core` and
//! `sepal-tokenize`; `sepal-blocks` builds blocks from its tensors, and `sepal-pipeline` and the program open models with
//! it. The table of model families is in `families`: their names, configuration keys and GGUF layouts.
//!
//! Weights are not memory-mapped, because truncating a mapped file is undefined behaviour, which no safe interface can
//! rule out. Positioned reads have the same advantages: only the bytes of requested tensors are read, and processes share
//! them in the page cache.
//!
//! A model in shards can be opened with only some of them. Its index names the others, and an outline of less than a
//! megabyte describes them, see [`write_outline`]. [`Checkpoint::missing_files`] lists the files that a part of the model
//! needs; the crate's user fetches them.
//!
//! Invariants: an open [`Checkpoint`] has a configuration that the blocks can compute, and every tensor lies within its
//! file, so that a truncated file is refused before any tensor is used. Converted and quantized tensors of GGUF files are
//! returned in fp32, with rows in the order of the HF layout. Two processes that open the same weights have the same
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
mod families;
mod family;
mod file;
mod folder;
mod gguf;
mod header;
mod keys;
mod layout;
mod linear_sites;
mod make_outline;
mod outline;
mod output;
mod part;
mod probe;
mod rows;
mod store;
mod summary;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use sepal_core::{DType, HostTensor, ModelConfig};
use sepal_tokenize::Tokenizer;

pub use error::{OpenError, ReadError, TokenizerError};
pub use families::{classifier_class, tensor_names};
pub use family::TensorNames;
pub use folder::screen;
pub use header::FetchRanges;
pub use layout::missing_shards;
pub use linear_sites::{linear_sites, site_path};
pub use make_outline::write_outline;
pub use part::Part;
pub use summary::ModelSummary;

use crate::outline::Outline;
use crate::store::{Store, Stored};

/// An open checkpoint. Threads can share it.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    config: ModelConfig,
    store: Store,
    digest: String,
}

/// Storage format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `config.json` with safetensors.
    Safetensors,
    /// A GGUF file.
    Gguf,
}

/// Summary of a checkpoint: `gguf, Q4_1/Q8_0/F32, 98.4 MB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Storage format of the weights.
    pub format: Format,
    /// Number types, the one with the most bytes first.
    pub dtypes: Vec<String>,
    /// Size of the weights files in bytes.
    pub size_bytes: u64,
}

impl Checkpoint {
    /// Opens a folder in the HF layout, a GGUF file, or a folder with one GGUF file. Reads the headers and, for the digest,
    /// a few kilobytes of each block. An outline in the folder must describe missing shards, see [`write_outline`].
    ///
    /// # Errors
    /// [`OpenError`] if there is no such checkpoint, a file is truncated or damaged, or the model is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let gguf_file = locate(path)?;
        let outline = if missing_shards(path)?.is_empty() { Outline::default() } else { Outline::read(path) };
        let (format, (config, store)) = match &gguf_file {
            None => (Format::Safetensors, folder::open(path, &outline)?),
            Some(file) => (Format::Gguf, gguf::open(file)?),
        };
        let digest = format!("sha256:{}", digest::fingerprint(&config, &store, &outline)?);
        Ok(Self { path: path.to_owned(), format, config, store, digest })
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `sha256:` and the digest of the configuration, of the name, type and shape of each tensor, and of 4 KiB from the
    /// middle of one tensor of each block and of each tensor outside blocks.
    ///
    /// Servers and clients compare it at each start. It detects another model, another fine-tuning (of any block, or of
    /// any kind of matrix in all blocks) and another quantization. It does not depend on the distribution of tensors over
    /// files or on missing files. It does not protect against forged weights.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Reads a tensor by its HF name, with or without the family's prefix (`model.`, `transformer.`).
    ///
    /// # Errors
    /// [`ReadError`] if the tensor does not exist, cannot be read, or has an unsupported type.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, ReadError> {
        let missing = || ReadError::Missing { name: name.to_owned(), path: self.path.clone() };
        self.store.read(name, self.find(name).ok_or_else(missing)?)
    }

    /// True if [`Checkpoint::tensor`] finds the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Number format in which [`Checkpoint::tensor`] returns a tensor; `None` if there is no such tensor, or its type is not
    /// supported, as of masks that some files contain.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.find(name)?.encoding.dtype()
    }

    /// Shape of a tensor; `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|stored| stored.shape.as_slice())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.store.tensors.keys().map(String::as_str)
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> u64 {
        self.store.tensors.values().map(|stored| stored.shape.iter().product::<usize>() as u64).sum()
    }

    /// Summary of the checkpoint.
    pub fn describe(&self) -> Description {
        let size_bytes = self.store.files.iter().map(file::WeightsFile::len).sum();
        Description { format: self.format, dtypes: self.store.encodings(), size_bytes }
    }

    /// The tokenizer: `tokenizer.json` beside `config.json`, or the vocabulary in the GGUF file. If the vocabulary is not
    /// supported, `tokenizer.json` beside the GGUF file is used.
    ///
    /// # Errors
    /// [`TokenizerError`] if there is none, or it is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let file = match (self.format, self.store.files.first()) {
            (Format::Gguf, Some(file)) => file,
            _ => return from_file(&self.path.join(layout::TOKENIZER)),
        };
        let vocab = gguf::vocab(file).map_err(TokenizerError::Metadata)?;
        let beside = file.path().with_file_name(layout::TOKENIZER);
        match Tokenizer::from_gguf_vocab(&vocab) {
            Err(_) if beside.is_file() => from_file(&beside),
            built => built.map_err(|source| TokenizerError::Vocab { path: file.path().to_owned(), source }),
        }
    }

    /// The tokenizer from `tokenizer.json` only, ignoring the files beside it, as earlier versions read it. `None` if the
    /// tokenizer does not come from such a file, or the file cannot be read.
    pub fn tokenizer_alone(&self) -> Option<Tokenizer> {
        let folder = if self.format == Format::Safetensors { Some(self.path.as_path()) } else { self.path.parent() };
        Tokenizer::from_definition_file(folder?.join(layout::TOKENIZER)).ok()
    }

    fn find(&self, name: &str) -> Option<&Stored> {
        let prefix = tensor_names(self.config.family).prefix;
        let tensors = &self.store.tensors;
        let without = || name.strip_prefix(prefix).and_then(|name| tensors.get(name));
        tensors.get(name).or_else(|| tensors.get(&format!("{prefix}{name}"))).or_else(without)
    }
}

fn from_file(path: &Path) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_file(path).map_err(TokenizerError::File)
}

/// The GGUF file at a path; `None` for a folder in the HF layout.
fn locate(path: &Path) -> Result<Option<PathBuf>, OpenError> {
    let metadata = std::fs::metadata(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    let layout = |problem: String| OpenError::Layout { path: path.to_owned(), problem };
    if !metadata.is_dir() {
        let problem = "a file must be a .gguf; for safetensors give the folder that holds config.json";
        return if is_gguf(path) { Ok(Some(path.to_owned())) } else { Err(layout(problem.to_owned())) };
    }
    if layout::has_weights(path) {
        return Ok(None);
    }
    let mut files = gguf_files(path)?;
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(Some(file)),
        (Some(_), others) => Err(layout(format!("it holds {} .gguf files; name the one that is meant", others + 1))),
        (None, _) if path.join(layout::CONFIG).is_file() => Ok(None),
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
