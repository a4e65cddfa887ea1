use std::path::PathBuf;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Error of opening a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file or folder cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The path holds no checkpoint.
    #[error("open {} as a checkpoint: {problem}", path.display())]
    Layout {
        /// The path.
        path: PathBuf,
        /// Description of what is missing.
        problem: String,
    },
    /// The file is shorter or longer than its own header says.
    #[error("open {}: its header describes {expected} bytes, the file has {found}; it is truncated or damaged", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Number of bytes that the header describes.
        expected: u64,
        /// Number of bytes of the file.
        found: u64,
    },
    /// The header of a weights file, or a JSON file, cannot be parsed.
    #[error("parse {}; it is truncated, damaged or of another format", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Source,
    },
    /// A key of the configuration is missing.
    #[error("read the configuration in {}: `{key}` is missing", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key of the configuration has an invalid value.
    #[error("read the configuration in {}: `{key}` is {found}, expected {expected}", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Valid values.
        expected: String,
        /// The value.
        found: String,
    },
    /// The model needs a computation that is not supported.
    #[error("use {}: `{key}` is {found}, supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key or tensor.
        key: String,
        /// Its value.
        found: String,
        /// Supported values.
        supported: String,
    },
    /// The weights are quantized in an unsupported format.
    #[error(
        "use {}: `{key}` is {found}, so the weights are quantized. Use the original checkpoint in f32, f16 or bf16, or a \
         GGUF file of the model, whose quantized formats are supported",
        path.display()
    )]
    Quantized {
        /// The file, or the folder of the weights.
        path: PathBuf,
        /// The key or tensor.
        key: String,
        /// The stated method or type.
        found: String,
    },
    /// A GGUF file is big-endian.
    #[error(
        "open {}: it is a GGUF file for big-endian machines. Use a little-endian file, or convert it (pip install gguf): \
         `gguf-convert-endian {0} little` changes the file itself",
        path.display()
    )]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// The weights are in pickled files only.
    #[error(
        "open {} as a checkpoint: its weights are in {file}, a pickled file, which runs code when it is opened and is \
         not supported. If you trust it, convert it (pip install torch transformers):\n  python3 -c \"from transformers \
         import AutoModelForCausalLM as M; M.from_pretrained('{0}', torch_dtype='auto').save_pretrained('{0}')\"\n\
         which writes model.safetensors beside it",
        path.display()
    )]
    Pickled {
        /// The folder.
        path: PathBuf,
        /// The first of its pickled files.
        file: String,
    },
    /// A shard is missing, and no outline describes it.
    #[error("open {}: the shard is missing, and no outline ({outline}) beside it describes it", path.display())]
    NoOutline {
        /// The shard.
        path: PathBuf,
        /// File name of the outline.
        outline: &'static str,
    },
    /// Parts of missing shards cannot be fetched.
    #[error("fetch the headers of shards that are missing in {}", path.display())]
    Fetch {
        /// The folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Source,
    },
    /// The index names a tensor that its shard does not hold.
    #[error("open {}: the index says that it holds `{name}`, which it does not", path.display())]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

/// Error of reading a tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The checkpoint has no such tensor.
    #[error("find tensor `{name}` in {}", path.display())]
    Missing {
        /// The tensor.
        name: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// The tensor's shard is missing.
    #[error("read tensor `{name}`: its shard {} is missing", path.display())]
    MissingShard {
        /// The tensor.
        name: String,
        /// The shard.
        path: PathBuf,
    },
    /// The file cannot be read any more.
    #[error("read tensor `{name}` from {}", path.display())]
    Io {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The tensor has an unsupported number type.
    #[error("read tensor `{name}` from {}: its type {dtype} is not supported", path.display())]
    DType {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// The type as the file names it.
        dtype: String,
    },
    /// A quantized tensor cannot be dequantized, or its rows do not fit the number of heads.
    #[error("decode tensor `{name}` from {}", path.display())]
    Decode {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Source,
    },
}

/// Error of loading a checkpoint's tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` is missing or invalid.
    #[error("load the tokenizer beside the weights")]
    File(#[source] sepal_tokenize::LoadError),
    /// The vocabulary in the GGUF file is not usable.
    #[error("load the tokenizer inside {}", path.display())]
    Vocab {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: sepal_tokenize::VocabError,
    },
    /// The GGUF file has no vocabulary, or a key of it has the wrong type.
    #[error("load the tokenizer inside the weights file")]
    Metadata(#[source] OpenError),
}
