use std::error::Error;
use std::path::PathBuf;

use sepal_data::{FolderError, LoaderError};
use sepal_tokenize::EncodeError;

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
    #[error("read the {split} rows{}", key_of(split, source))]
    Rows {
        /// `training`, `validation`, `labelled`, `given` or `calibration`.
        split: &'static str,
        source: BoxError,
    },
}

/// Key of the pipeline file that helps against an error of rows.
fn key_of(split: &str, source: &BoxError) -> &'static str {
    if too_many_windows(&**source).is_some() {
        return " (`data.long_texts.windows.max_windows`)";
    }
    if matches!(source.downcast_ref(), Some(LoaderError::AllDropped { .. })) {
        return " (a smaller `loader.batch_size`, or `loader.drop_last: false`, uses them)";
    }
    let has_no_split = matches!(source.downcast_ref(), Some(FolderError::NoSplit { .. }));
    match split {
        "training" if has_no_split => " (`data.train`)",
        "validation" if has_no_split => " (`data.validation`, or `data.validation_split` in its place)",
        _ => "",
    }
}

/// Returns the number of windows of a text, and the maximum, if the error is a text of more.
pub fn too_many_windows(error: &(dyn Error + 'static)) -> Option<[usize; 2]> {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.find_map(|cause| match cause.downcast_ref::<EncodeError>() {
        Some(&EncodeError::Windows { n_windows, max_windows, .. }) => Some([n_windows, max_windows]),
        _ => None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_too_many_windows_names_its_key() {
        let rows = |source: BoxError| DataError::Rows { split: "training", source };
        let error = rows(EncodeError::Windows { n_windows: 9, n_tokens: 40, max_windows: 8 }.into());
        assert_eq!(error.to_string(), "read the training rows (`data.long_texts.windows.max_windows`)");
        assert_eq!(too_many_windows(&error), Some([9, 8]));
        assert_eq!(rows("no file".into()).to_string(), "read the training rows");
    }

    #[test]
    fn rows_of_less_than_a_batch_name_its_keys() {
        let source = LoaderError::AllDropped { rows: 3, batch_size: 8 }.into();
        let error = DataError::Rows { split: "training", source };
        let expected =
            "read the training rows (a smaller `loader.batch_size`, or `loader.drop_last: false`, uses them)";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn folder_without_the_split_names_its_key() {
        for (split, expected) in [
            ("training", "read the training rows (`data.train`)"),
            ("validation", "read the validation rows (`data.validation`, or `data.validation_split` in its place)"),
            ("labelled", "read the labelled rows"),
        ] {
            let (folder, splits, files) = ("data".into(), vec!["train".to_owned()], Vec::new());
            let source = FolderError::NoSplit { folder, splits, files }.into();
            assert_eq!(DataError::Rows { split, source }.to_string(), expected);
        }
    }
}
