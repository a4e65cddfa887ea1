use std::path::PathBuf;

/// The error type of the `tokenizers` crate.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A tokenizer definition that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read the tokenizer {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is no tokenizer definition.
    #[error("take {} for a tokenizer definition", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: BoxError,
    },
    /// The bytes are no tokenizer definition.
    #[error("take the bytes for a tokenizer definition")]
    Definition {
        /// Cause.
        #[source]
        source: BoxError,
    },
}

/// A text that has no encoding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The limit leaves no token to some text.
    #[error(
        "fit the text into {max_length} tokens: special tokens, the words around the text and one token of each text take \
         {least}; raise the limit or shorten the words around the text"
    )]
    MaxLength {
        /// The limit.
        max_length: usize,
        /// The least limit that works.
        least: usize,
    },
    /// The text is empty, or of characters that the vocabulary does not have.
    #[error("encode the text: it yields no token")]
    NoToken,
    /// The tokenizer failed.
    #[error("encode the text")]
    Model {
        /// Cause.
        #[source]
        source: BoxError,
    },
}

/// The row of a batch that has no encoding.
#[derive(Debug, thiserror::Error)]
#[error("encode row {row}")]
pub struct BatchError {
    /// Its index in the batch.
    pub row: usize,
    /// Cause.
    #[source]
    pub source: EncodeError,
}
