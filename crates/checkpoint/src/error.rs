use std::path::PathBuf;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Error of opening a checkpoint.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum OpenError {
    /// A file or folder cannot be read.
    #[error("read {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The path holds no checkpoint.
    #[error("open {} as a checkpoint: {problem}", path.display())]
    Layout { path: PathBuf, problem: String },
    /// The file is shorter or longer than its own header says.
    #[error("open {}: its header describes {expected} bytes, the file has {found}; it is truncated or damaged", path.display())]
    Length { path: PathBuf, expected: u64, found: u64 },
    /// The header of a weights file, or a JSON file, cannot be parsed.
    #[error("parse {}; it is truncated, damaged or of another format", path.display())]
    Header { path: PathBuf, source: BoxError },
    /// A key of the configuration is missing.
    #[error("read the configuration in {}: `{key}` is missing", path.display())]
    MissingKey { path: PathBuf, key: String },
    /// A key of the configuration has an invalid value.
    #[error("read the configuration in {}: `{key}` is {found}, expected {expected}", path.display())]
    WrongKey { path: PathBuf, key: String, expected: String, found: String },
    /// The model needs a computation that is not supported.
    #[error("use {}: `{key}` is {found}, supported: {supported}", path.display())]
    Unsupported { path: PathBuf, key: String, found: String, supported: String },
    /// The weights, in the file or folder `path`, are quantized in an unsupported format.
    #[error(
        "use {}: `{key}` is {found}, so the weights are quantized in a format that is not supported. Supported are FP8, \
         GPTQ, AWQ, bitsandbytes (int8 and NF4) and compressed-tensors, if config.json describes them in \
         `quantization_config`. Use the original checkpoint in f32, f16 or bf16, or a GGUF file of the model",
        path.display()
    )]
    Quantized { path: PathBuf, key: String, found: String },
    /// A tensor of a quantized layer is missing or has another shape or type than `quantization_config` implies.
    #[error(
        "use the quantized layers in {}: `{name}` {problem}. Fetch the files again, or use the original checkpoint or a \
         GGUF file of the model",
        path.display()
    )]
    QuantizedLayer { path: PathBuf, name: String, problem: String },
    /// A GGUF file is big-endian.
    #[error(
        "open {}: it is a GGUF file for big-endian machines. Use a little-endian file, or convert it (pip install gguf): \
         `gguf-convert-endian {0} little` changes the file itself",
        path.display()
    )]
    BigEndian { path: PathBuf },
    /// The weights are in pickled files only.
    #[error(
        "open {} as a checkpoint: its weights are in {file}, a pickled file, which runs code when it is opened and is \
         not supported. If you trust it, convert it (pip install torch transformers):\n  python3 -c \"from transformers \
         import AutoModelForCausalLM as M; M.from_pretrained('{0}', torch_dtype='auto').save_pretrained('{0}')\"\n\
         which writes model.safetensors beside it",
        path.display()
    )]
    Pickled { path: PathBuf, file: String },
    /// A shard, or a part of a GGUF file, is missing, and no outline describes it.
    #[error("open {}: this file of the model is missing, and no outline ({outline}) beside it describes it", path.display())]
    NoOutline { path: PathBuf, outline: String },
    /// Byte ranges of missing files cannot be fetched.
    #[error("fetch the headers of weights files that are missing in {}", path.display())]
    Fetch { path: PathBuf, source: BoxError },
    /// The index names a tensor that its shard does not hold.
    #[error("open {}: the index says that it holds `{name}`, which it does not", path.display())]
    NotInShard { path: PathBuf, name: String },
}

/// Error of reading a tensor.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ReadError {
    /// The checkpoint has no such tensor.
    #[error("find tensor `{name}` in {}", path.display())]
    Missing { name: String, path: PathBuf },
    /// The tensor's file is missing, or the pieces of it with the tensor's bytes.
    #[error("read tensor `{name}`: its bytes in {} are not there; fetch this part of the model", path.display())]
    MissingShard { name: String, path: PathBuf },
    /// The output layer has a bias, which its rows leave out.
    #[error(
        "read rows of the output layer in {}: it has the bias `{name}`, which is not supported; use a classification head",
        path.display()
    )]
    OutputBias { name: String, path: PathBuf },
    /// The tensor has no such row.
    #[error("read row {row} of tensor `{name}` in {}: it has {n_rows} rows", path.display())]
    Row { name: String, path: PathBuf, row: usize, n_rows: usize },
    /// The file cannot be read any more.
    #[error("read tensor `{name}` from {}", path.display())]
    Io { name: String, path: PathBuf, source: std::io::Error },
    /// The tensor has an unsupported number type.
    #[error("read tensor `{name}` from {}: its type {dtype} is not supported", path.display())]
    DType { name: String, path: PathBuf, dtype: String },
    /// The tensor of a GGUF file has an unsupported number type.
    #[error(
        "read tensor `{name}` from {}: its type {dtype} is not supported; use a file of the model in which this tensor has one of \
         the types {supported}",
        path.display()
    )]
    BlockType { name: String, path: PathBuf, dtype: String, supported: String },
    /// A quantized tensor cannot be dequantized, or its rows do not fit the number of heads.
    #[error("decode tensor `{name}` from {}", path.display())]
    Decode { name: String, path: PathBuf, source: BoxError },
}

/// Error of loading a checkpoint's tokenizer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` is missing or invalid.
    #[error("load the tokenizer beside the weights")]
    File(#[source] sepal_tokenize::LoadError),
    /// The vocabulary in the GGUF file is not usable.
    #[error("load the tokenizer inside {}", path.display())]
    Vocab { path: PathBuf, source: sepal_tokenize::VocabError },
    /// The GGUF file has no vocabulary, or a key of it has the wrong type.
    #[error("load the tokenizer inside the weights file")]
    Metadata(#[source] OpenError),
}
