//! Rows of a file or a stream of any size, a chunk at a time.

mod filter;
mod stream;
mod text_column;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;

use crate::{BadRow, CellProblem, Dialect, Format, RawLabel, ReadError, RowLocation};

pub use filter::FilterValue;
pub(crate) use filter::FoundValues;
pub use stream::RowStream;
pub(crate) use text_column::TEXT_NAMES;

/// Columns and treatment of the rows of a file or stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSpec {
    /// The format; by the file's ending if none, with `.txt` for [`Format::Lines`].
    pub format: Option<Format>,
    /// Conventions of a text file that its format and its first bytes do not tell.
    pub dialect: Dialect,
    /// The column of texts. If none is named, a column with a common name (`text`, `sentence`, `review` and others), or
    /// else the only column of texts.
    pub text: Option<String>,
    /// The column of second texts.
    pub text_pair: Option<String>,
    /// The column of labels.
    pub label: Option<String>,
    /// The columns of the options of each row, or one column of lists of them.
    pub options: Vec<String>,
    /// True if the column of texts may hold lists of words, which are joined by blanks.
    pub words: bool,
    /// Values by column; rows with other values are left out.
    pub filter: BTreeMap<String, FilterValue>,
    /// Columns with one value in all rows, such as those in the names of the folders of a file. A column of the file goes
    /// before one of the same name.
    pub partitions: Vec<(String, Option<String>)>,
    /// Columns that are passed through to the output.
    pub passthrough: Passthrough,
    /// Treatment of a row without a text.
    pub bad_rows: BadRowPolicy,
    /// Greatest number of rows of a chunk; at most 8192 take effect.
    pub chunk_rows: usize,
}

impl Default for RowSpec {
    fn default() -> Self {
        Self {
            format: None,
            dialect: Dialect::default(),
            text: None,
            text_pair: None,
            label: None,
            options: Vec::new(),
            words: false,
            filter: BTreeMap::new(),
            partitions: Vec::new(),
            passthrough: Passthrough::None,
            bad_rows: BadRowPolicy::Skip,
            chunk_rows: 1024,
        }
    }
}

/// Columns that are passed through unchanged, including those of texts and labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Passthrough {
    /// No column.
    #[default]
    None,
    /// All columns, in the order of the file.
    All,
    /// These columns, in this order.
    Columns(Vec<String>),
}

/// Treatment of a row without a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BadRowPolicy {
    /// The stream ends with an error after the rows before it.
    Fail,
    /// The row is left out, and listed in [`Rows::skipped`].
    #[default]
    Skip,
}

/// Chunk of rows, in the order of the file; without rows if all were skipped.
#[derive(Debug, Clone)]
pub struct Rows {
    /// First texts, none of them empty.
    pub texts: Vec<String>,
    /// Second texts, if a column of them was named.
    pub pairs: Option<Vec<String>>,
    /// Labels as the file has them, if a column of them was named; `None` for missing labels. An empty cell of a csv or tsv
    /// file is an empty name.
    pub labels: Option<Vec<Option<RawLabel>>>,
    /// Options of each row, at least two, if columns of them were named.
    pub options: Option<Vec<Vec<String>>>,
    /// Data row of each text, from 1; a header does not count.
    pub numbers: Vec<usize>,
    /// Rows of this chunk that were left out, in the order of the file.
    pub skipped: Vec<BadRow>,
    /// Passthrough columns, with a row for each text. Complete objects are one column with their JSON.
    pub(crate) passthrough: RecordBatch,
    path: Arc<Path>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns true if all rows of the chunk were skipped.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Moves the rows with false in `has_tokens`, whose texts yield no token, to the [skipped](Rows::skipped) rows.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] if the passthrough columns cannot be filtered.
    ///
    /// # Panics
    /// If `has_tokens` has another length.
    pub fn skip_rows_without_tokens(&mut self, column: &str, has_tokens: &[bool]) -> Result<(), ReadError> {
        assert_eq!(has_tokens.len(), self.len(), "a flag for each row");
        let without_tokens = (0..self.len()).filter(|&row| !has_tokens[row]).map(|row| BadRow {
            location: self.location(row),
            column: column.to_owned(),
            problem: CellProblem::NoToken,
        });
        self.skipped.extend(without_tokens.collect::<Vec<_>>());
        self.skipped.sort_by_key(|bad| bad.location.row);
        if self.passthrough.num_columns() > 0 {
            let mask = BooleanArray::from(has_tokens.to_vec());
            self.passthrough = filter_record_batch(&self.passthrough, &mask)
                .map_err(|error| ReadError::corrupt(&self.path, Format::Arrow, error))?;
        }
        retain(&mut self.texts, has_tokens);
        retain(&mut self.numbers, has_tokens);
        if let Some(pairs) = &mut self.pairs {
            retain(pairs, has_tokens);
        }
        if let Some(labels) = &mut self.labels {
            retain(labels, has_tokens);
        }
        if let Some(options) = &mut self.options {
            retain(options, has_tokens);
        }
        Ok(())
    }

    /// File and row that a row comes from.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn location(&self, row: usize) -> RowLocation {
        RowLocation { path: PathBuf::from(&*self.path), row: self.numbers[row] }
    }
}

fn retain<T>(items: &mut Vec<T>, mask: &[bool]) {
    let mut flags = mask.iter();
    items.retain(|_| flags.next().copied().unwrap_or(true));
}

/// Columns of the rows of a stream, for writers.
#[derive(Debug, Clone)]
pub struct RowSchema {
    pub(crate) label: bool,
    /// Passthrough columns; for objects, the known keys.
    pub(crate) passthrough: SchemaRef,
    pub(crate) form: Form,
}

/// Representation of the passthrough columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Arrow,
    /// Columns with the JSON of each value.
    Json,
    /// One column with the JSON of each object.
    Objects,
}

/// Origin of the choice of the text column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TextColumnOrigin {
    /// The caller named it.
    Named,
    /// It has a common name of text columns.
    CommonName,
    /// It is the only column of texts.
    OnlyCandidate,
}
