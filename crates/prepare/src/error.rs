use std::error::Error;
use std::path::PathBuf;

/// Cause of any type.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A frozen model whose files or tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ModelError {
    /// Source that cannot be fetched.
    #[error("fetch the model")]
    Fetch(#[source] sepal_assets::FetchError),
    /// Unreadable files.
    #[error("open the model {}", path.display())]
    Open { path: PathBuf, source: BoxError },
    /// Unreadable tokenizer.
    #[error("read the tokenizer of {}", path.display())]
    Tokenizer { path: PathBuf, source: BoxError },
    /// Tokenizer with ids without embeddings.
    #[error(
        "use the tokenizer of {}: it has {ids} ids, up to `{last}`, and the model {embeddings} embeddings; take the tokenizer \
         files that belong to the model, or a model whose embeddings were resized for them",
        path.display()
    )]
    Vocabulary { path: PathBuf, ids: usize, embeddings: usize, last: String },
}

/// Labelled rows that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum DataError {
    /// Source that cannot be fetched.
    #[error("fetch the data")]
    Fetch(#[source] sepal_assets::FetchError),
    /// Unusable rows.
    #[error("read the {split} rows")]
    Rows {
        /// `training`, `validation`, `labelled`, `given` or `calibration`.
        split: &'static str,
        source: BoxError,
    },
}

/// Files of a pipeline that cannot be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// Failure of the model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Failure of the data.
    #[error(transparent)]
    Data(#[from] DataError),
}
