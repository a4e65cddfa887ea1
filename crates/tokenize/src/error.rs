use std::path::PathBuf;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Error of loading a tokenizer definition.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read the tokenizer {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not a tokenizer definition.
    #[error("take {} for a tokenizer definition", path.display())]
    File { path: PathBuf, source: BoxError },
    /// The bytes are not a tokenizer definition.
    #[error("take the bytes for a tokenizer definition")]
    Definition { source: BoxError },
}

/// Error of encoding a text.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum EncodeError {
    /// The limit is too small for one token of each text.
    #[error(
        "fit the text into {max_length} tokens: special tokens, the words around the text and one token of each text take \
         {least}; raise the limit or shorten the words around the text"
    )]
    MaxLength { max_length: usize, least: usize },
    /// The windows would make no progress.
    #[error(
        "divide the text into windows that share {stride} tokens: a window has room for {room} tokens of the text; share fewer \
         or raise the limit"
    )]
    Stride { stride: usize, room: usize },
    /// The text is too long for windows of this size.
    #[error(
        "divide the text of {n_tokens} tokens into windows: there would be {n_windows}, at most {max_windows} are made; raise that \
         number or the limit of tokens, share fewer or shorten the text"
    )]
    Windows { n_windows: usize, n_tokens: usize, max_windows: usize },
    /// The text is empty, or has only characters that the vocabulary lacks.
    #[error("encode the text: it yields no token")]
    NoToken,
    /// The tokenizer failed.
    #[error("encode the text")]
    Model { source: BoxError },
}

/// Error of encoding a row of a batch.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("encode row {row}")]
pub struct BatchError {
    pub row: usize,
    pub source: EncodeError,
}
