use std::path::PathBuf;

/// Why a checkpoint was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file or folder cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is something at the path, but no checkpoint.
    #[error("open {} as a checkpoint: {problem}", path.display())]
    Layout {
        /// The path that was given.
        path: PathBuf,
        /// What was looked for and what was found.
        problem: String,
    },
    /// The file is shorter or longer than its own header says.
    #[error("open {}: its header describes {expected} bytes, the file has {found}; it is truncated or damaged", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that the header describes.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The header of a weights file, or a JSON file, cannot be understood.
    #[error("understand {}; it is truncated, damaged or of another format", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key of the configuration is missing.
    #[error("read the configuration in {}: `{key}` is missing", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key of the configuration has a value that makes no sense.
    #[error("read the configuration in {}: `{key}` is {found}, expected {expected}", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would make sense.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The model needs something that the blocks do not do.
    #[error("use {}: `{key}` is {found}, supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key or tensor that says so.
        key: String,
        /// What it says.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// The weights are quantized in a way that is not read, so that their numbers alone are not the model's.
    #[error(
        "use {}: `{key}` is {found}, which says that the weights are quantized. Take the checkpoint that they were made \
         from, in f32, f16 or bf16, or a GGUF file of the model, whose quantized formats are read",
        path.display()
    )]
    Quantized {
        /// The file, or the folder of the weights.
        path: PathBuf,
        /// The key or tensor that says so.
        key: String,
        /// The method or type that it states.
        found: String,
    },
    /// The numbers of a GGUF file have their bytes in the other order.
    #[error(
        "open {}: it is a GGUF file for big-endian machines. Take one for little-endian ones, or convert it (pip install \
         gguf): `gguf-convert-endian {0} little` changes the file itself",
        path.display()
    )]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// The weights are in pickled files alone.
    #[error(
        "open {} as a checkpoint: its weights are in {file}, a pickled file, which runs code when it is opened and is \
         never read here. Convert it where you trust it (pip install torch transformers):\n  python3 -c \"from transformers \
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
    /// A shard is not here, and what is in it is not known either.
    #[error(
        "open {}: this shard is not here, and no outline beside it says what is in it. Copy the shard, or the file \
         {outline}, which `sepal outline FOLDER` writes where the whole model is; or name the model as hub:OWNER/NAME, \
         of which only the shards that are needed are fetched",
        path.display()
    )]
    NoOutline {
        /// The shard.
        path: PathBuf,
        /// The name of the outline.
        outline: &'static str,
    },
    /// A shard that is not here cannot be looked into.
    #[error("look into the shards of {}, which are not here", path.display())]
    Elsewhere {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
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

/// Why a tensor was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The checkpoint has no such tensor.
    #[error("find tensor `{name}` in {}", path.display())]
    Missing {
        /// What was asked for.
        name: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// The shard that has it is not here.
    #[error(
        "read tensor `{name}`: its shard {} is not here. Copy it there, for example with `hf download OWNER/NAME \
         {}`; of a model that is named as hub:OWNER/NAME, `sepal serve --blocks` and `sepal fetch` bring the shards that \
         they need",
        path.display(),
        path.file_name().unwrap_or_default().display()
    )]
    NotHere {
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
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The numbers are of a type that is no weight's.
    #[error("read tensor `{name}` from {}: its type {dtype} is not supported", path.display())]
    DType {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// The type as the file names it.
        dtype: String,
    },
    /// The blocks of a quantized tensor cannot be widened, or the rows are not as many as the heads say.
    #[error("decode tensor `{name}` from {}", path.display())]
    Decode {
        /// The tensor.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a checkpoint gives no tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` is missing or wrong.
    #[error("load the tokenizer beside the weights")]
    File(#[source] sepal_tokenize::LoadError),
    /// The vocabulary in the GGUF file is not usable.
    #[error("load the tokenizer inside {}", path.display())]
    Vocab {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sepal_tokenize::VocabError,
    },
    /// The GGUF file has no vocabulary, or a key of it has the wrong type.
    #[error("load the tokenizer inside the weights file")]
    Metadata(#[source] OpenError),
}
