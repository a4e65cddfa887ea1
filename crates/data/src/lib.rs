//! Labelled text from files to ragged token batches, and predictions back to files.
//!
//! | task | types |
//! | --- | --- |
//! | read a file into memory | [`TableSpec`], [`Table`] |
//! | read a file or stream of any size in chunks | [`RowSpec`], [`RowStream`] |
//! | convert a label column | [`LabelSet`], [`Labels`] |
//! | hold out validation rows, or take few of each class | [`split()`], [`few_shot()`] |
//! | tokenize, with a cache by content | [`TokenSpec`], [`TokenTable`] |
//! | make batches in the background | [`LoaderConfig`], [`Loader`] |
//! | write predictions | [`OutputSpec`], [`PredictionWriter`] |
//! | summarize an unknown file | [`survey()`] |
//!
//! Formats are parquet, arrow, csv, tsv, json, jsonl and lines. Text files may be compressed by gzip. They are UTF-8, unless a byte order mark or a [`Dialect`]
//! names another encoding. Truncated or ambiguous files are refused with the line.
//!
//! **Limits.** This crate downloads nothing, pads nothing, and does not know libtorch. Its errors name no setting of the
//! layers above: [`Remedy`] is the typed hint that they translate.
//!
//! **Place in the crate graph.** It is the only crate that knows arrow and parquet.
//!
//! **Invariants.** A table has at least one row, and no text of a table or chunk is empty. Streams and writers hold at most
//! one chunk (for arrow files, one batch; for parquet output, 16 MiB of a row group). A file of predictions is complete or
//! absent. Every error about a row names its file and number. The same files, seed and options produce the same batches in
//! every process and version.
//!
//! ```
//! use std::sync::Arc;
//! use sepal_data::{LabelSet, Loader, LoaderConfig, Table, TableSpec, TokenSpec, TokenTable};
//! # let definition = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
//! #     "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "dull": 1, "splendid": 2}}}"#;
//! # let tokenizer = sepal_tokenize::Tokenizer::from_bytes(definition.as_bytes())?;
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("train.tsv");
//! std::fs::write(&path, "sentence\tlabel\nsplendid\tpositive\ndull\tnegative\nawful\t0\n")?;
//!
//! let table = Table::read(&TableSpec::new(path, "sentence").with_label("label"))?;
//! let labels = LabelSet::new(["negative", "positive"])?.labels(&table)?;
//! let tokens = TokenTable::build(&table, &tokenizer, &TokenSpec::new(64))?;
//!
//! let config = LoaderConfig { batch_size: 2, ..LoaderConfig::default() };
//! let loader = Loader::new(Arc::new(tokens), Some(labels), config)?;
//! let batches: Vec<_> = loader.epoch(0).collect();
//! assert_eq!(batches.len(), 2);
//! assert_eq!(batches[0].tokens.n_tokens(), batches[0].tokens.ids.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod columns;
mod dialect;
mod encode;
mod folder;
mod json;
mod labels;
mod loader;
mod location;
mod metrics;
mod predicted;
mod predictions;
mod raw_label;
mod read;
mod rows;
mod shuffle;
mod skipped;
mod spec;
mod split;
mod suggest;
mod survey;
mod table;
mod template;
#[cfg(test)]
mod testing;
mod token_cache;
mod tokens;
mod write;

pub use dialect::{Delimiter, Dialect, DialectError, Encoding};
pub use encode::{Encode, EncodedRow, RowEncoder, RowError, RowTexts, TokenRow, encode_texts};
pub use folder::{FolderError, VALIDATION_SPLITS, split_files, training_files, unsplit_files};
pub use labels::{LabelError, LabelSet, ListLayout, check_classes};
pub use loader::{Batch, Epoch, Loader, LoaderConfig, LoaderError};
pub use location::{BadRow, CellProblem, RowLocation};
pub use metrics::metrics_parquet;
pub use predicted::{Outcomes, Predictions};
pub use predictions::{PredictionRef, predictions_parquet};
pub use raw_label::RawLabel;
pub use read::{ReadError, utf8_text};
pub use rows::{BadRowPolicy, FilterValue, Passthrough, RowSchema, RowSpec, RowStream, Rows, TextColumnOrigin};
pub use sepal_core::{LabelKind, Labels, RowForm, Task};
pub use skipped::SkippedRows;
pub use spec::{Format, TableSpec};
pub use split::{SplitError, few_shot, split};
pub use suggest::Remedy;
pub use survey::{
    Balance, ClassCount, ColumnChoice, ColumnKind, ColumnSurvey, Count, LabelChoice, Lengths, Survey, SurveyOptions,
    survey,
};
pub use table::Table;
pub use template::{Template, TemplateError};
pub use tokens::{TokenSpec, TokenTable, TokenizeError};
pub use write::{OutputSpec, PredictionWriter, WriteError};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
