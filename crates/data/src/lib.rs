//! Labelled text from files to ragged token batches.
//!
//! A [`TableSpec`] names the columns of a parquet, arrow, csv, tsv or jsonl file; [`Table::read`] decodes those and no
//! others. A [`LabelSet`] makes what the label column holds [`Labels`] to train on, [`split`] sets rows aside,
//! [`TokenTable::build`] tokenizes (once: it keeps the result by content), and a [`Loader`] deals batches, prepared in
//! the background. What does not fit into memory is read as a [`RowStream`], in chunks, and predictions for it leave by
//! a [`PredictionWriter`], as they come; [`survey`] says what an unknown file holds. This crate fetches nothing, pads
//! nothing, and does not know libtorch.
//!
//! A text file is UTF-8, unless a byte order mark or a [`Dialect`] says otherwise. Where its structure is cut off or
//! ambiguous, it is refused with the line.
//!
//! Invariants: a table has at least one row and no empty text, and a chunk no empty text; a stream and a writer hold no
//! more than a chunk (of an arrow file, one of its batches; in parquet, 16 MiB of a row group); a file of predictions is
//! there whole or not at all; every error about a row names its file and number; the same files, seed and options give
//! the same batches in every process and in every version.
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
//! assert_eq!(batches[0].rows.n_tokens(), batches[0].ids.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod columns;
mod dialect;
mod folder;
mod json;
mod labels;
mod loader;
mod nearest;
mod numbers;
mod order;
mod predicted;
mod predictions;
mod read;
mod rows;
mod spec;
mod split;
mod survey;
mod table;
mod template;
#[cfg(test)]
mod testing;
mod token_cache;
mod tokens;
mod write;

pub use dialect::{Delimiter, Dialect, DialectError, Encoding};
pub use folder::{FolderError, split_files};
pub use sepal_core::{LabelKind, Labels};

pub use labels::{LabelError, LabelSet, ListLayout, check_classes};
pub use loader::{Batch, Epoch, Loader, LoaderConfig, LoaderError};
pub use numbers::metrics_parquet;
pub use predicted::{Outcomes, Predictions};
pub use predictions::{Predicted, PredictionError, predictions_parquet};
pub use read::ReadError;
pub use rows::{BadRow, Carry, CellProblem, Chosen, Layout, OnBadRow, RowSpec, RowStream, Rows};
pub use spec::{Format, TableSpec};
pub use split::{SplitError, split};
pub use survey::{
    Balance, Choice, ClassCount, ColumnKind, ColumnSurvey, Count, LabelChoice, Lengths, Survey, SurveyOptions, survey,
};
pub use table::{Place, RawLabel, Table};
pub use template::{Template, TemplateError};
pub use tokens::{Encode, TokenRow, TokenSpec, TokenTable, TokenizeError, encode_texts};
pub use write::{OutputSpec, PredictionWriter, WriteError};
