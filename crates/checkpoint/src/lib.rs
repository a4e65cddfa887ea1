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
//! A model in shards, or in parts of a GGUF file, can be opened with only some of them. An outline describes the others, see
//! [`write_outline`]. [`Checkpoint::missing_files`] lists the files that a part of the model needs; the crate's user fetches
//! them. A model in one file can be opened with only some pieces of it, see [`Checkpoint::missing_ranges`].
//!
//! Invariants: an open [`Checkpoint`] has a configuration that the blocks can compute, and every tensor lies within its
//! file, so that a truncated file is refused before any tensor is used. Converted and quantized tensors of GGUF files are
//! returned in fp32, with rows in the order of the HF layout. So are quantized layers of safetensors (FP8, GPTQ, AWQ,
//! bitsandbytes and compressed-tensors), each under the name of its weight. Layers of single experts have names of their
//! own, also where a file stores those of all experts in one tensor. Two processes that open the same weights have the same
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
mod experts;
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
mod model_path;
mod multimodal;
mod mxfp4;
mod outline;
mod output;
mod part;
mod pieces;
mod probe;
mod quantized;
mod read_rows;
mod rows;
mod store;
mod summary;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sepal_core::{DType, HostTensor, ModelConfig, PackedMatrix};
use sepal_tokenize::Tokenizer;

pub use error::{OpenError, ReadError, TokenizerError};
pub use families::{classifier_class, tensor_names};
pub use family::TensorNames;
pub use folder::screen;
pub use header::FetchRanges;
pub use linear_sites::{linear_sites, site_path};
pub use make_outline::write_outline;
pub use model_path::missing_shards;
pub use part::{EMBEDDING_BYTES, EncodedSize, Part, PartSizes, ends_bytes};
pub use summary::ModelSummary;

use crate::folder::Folder;
use crate::layout::file_name;
use crate::model_path::ModelPath;
use crate::outline::Outline;
use crate::store::{Store, Stored};

/// An open checkpoint. Threads can share it, and clones read the same files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    config: ModelConfig,
    store: Arc<Store>,
    multimodal: Option<&'static str>,
    digest: String,
}

/// Storage format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `config.json` with safetensors.
    Safetensors,
    /// A GGUF file, or several parts of one.
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
    /// Opens a folder in the HF layout, a GGUF file or any part of one, or a folder with one GGUF model. Reads the headers and,
    /// for the digest, a few kilobytes of each block. An outline must describe missing files, see [`write_outline`].
    ///
    /// # Errors
    /// [`OpenError`] if there is no such checkpoint, a file is truncated or damaged, or the model is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let model = ModelPath::find(path)?;
        let format = match &model {
            ModelPath::Folder(_) => Format::Safetensors,
            ModelPath::Gguf(_) => Format::Gguf,
        };
        let outline_path = model.outline();
        let outline = if model.missing()?.is_empty() { Outline::default() } else { Outline::read(&outline_path) };
        let Folder { config, store, multimodal } = model.open(&outline)?;
        let digest = format!("sha256:{}", digest::fingerprint(&config, &store, &file_name(&outline_path))?);
        Ok(Self { path: path.to_owned(), format, config, store: Arc::new(store), multimodal, digest })
    }

    /// `model_type` of the multimodal model in the folder, for example `gemma3`, if this is its text model. Its tensors have
    /// the names of the text model alone, and those of the other parts are left out.
    pub fn multimodal_type(&self) -> Option<&'static str> {
        self.multimodal
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

    /// Reads the weight of a linear layer as it is stored, with a row for each output in the order of the model. `None` if it
    /// is in fp32 or not stored row by row.
    ///
    /// # Errors
    /// [`ReadError`] if the tensor does not exist or cannot be read.
    pub fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, ReadError> {
        let missing = || ReadError::Missing { name: name.to_owned(), path: self.path.clone() };
        let stored = self.find(name).ok_or_else(missing)?;
        if self.has_rows_of_inputs() { Ok(None) } else { self.store.packed(name, stored) }
    }

    /// True if linear layers are stored with a row for each input.
    fn has_rows_of_inputs(&self) -> bool {
        self.format == Format::Safetensors && families::spec(self.config.family).has_rows_of_inputs
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

    /// Names of all tensors, sorted. Layers of single experts that are parts of a tensor are found by name and not listed.
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
        let store = &self.store;
        let without = || name.strip_prefix(prefix).and_then(|name| store.get(name));
        store.get(name).or_else(|| store.get(&format!("{prefix}{name}"))).or_else(without)
    }
}

fn from_file(path: &Path) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_file(path).map_err(TokenizerError::File)
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
