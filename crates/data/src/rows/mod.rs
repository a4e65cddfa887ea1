//! Rows of a file or a stream of any size, a chunk at a time.

mod choose;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;

use crate::{Dialect, Format, Place, RawLabel, ReadError};

pub(crate) use choose::TEXT_NAMES;
pub use stream::RowStream;

/// What is wanted of each row of a file or stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSpec {
    /// The format; by the file's ending if not given, where `.txt` is [`Format::Lines`].
    pub format: Option<Format>,
    /// The conventions of a text file that its format and its first bytes do not tell.
    pub dialect: Dialect,
    /// The column of texts. If none is named, one with a name that such columns often have (`text`, `sentence`,
    /// `review` and others), or else the only column of texts.
    pub text: Option<String>,
    /// The column of second texts.
    pub text_pair: Option<String>,
    /// The column of labels.
    pub label: Option<String>,
    /// Only rows whose column has this value are used.
    pub filter: BTreeMap<String, String>,
    /// The columns that go along to what is written.
    pub carry: Carry,
    /// What to do about a row without a text.
    pub on_bad_row: OnBadRow,
    /// The most rows of a chunk; more than 8192 are taken for 8192.
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
            filter: BTreeMap::new(),
            carry: Carry::Nothing,
            on_bad_row: OnBadRow::Skip,
            chunk_rows: 1024,
        }
    }
}

/// Columns that go along as the file has them, those of texts and labels like any other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Carry {
    /// None.
    #[default]
    Nothing,
    /// All of them, in the order of the file.
    All,
    /// These, in this order.
    Columns(Vec<String>),
}

/// What to do about a row without a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnBadRow {
    /// The rows before it are given, and then its error.
    Error,
    /// It is left out, and listed in [`Rows::skipped`].
    #[default]
    Skip,
}

/// A row that nothing can be predicted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// The file and row.
    pub place: Place,
    /// The column.
    pub column: String,
    /// What is wrong there.
    pub problem: CellProblem,
}

/// What is wrong with the text of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellProblem {
    /// It has no character; in csv and tsv files, nothing stands there.
    Empty,
    /// It is null or missing.
    Null,
    /// It is a list or an object.
    NotText,
    /// It yields no token, as blanks do with some tokenizers.
    NoToken,
}

impl fmt::Display for CellProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CellProblem::Empty => "empty",
            CellProblem::Null => "null",
            CellProblem::NotText => "no text",
            CellProblem::NoToken => "without a token that the tokenizer knows",
        })
    }
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` is {}", self.place, self.column, self.problem)
    }
}

impl From<BadRow> for ReadError {
    fn from(BadRow { place, column, problem }: BadRow) -> Self {
        match problem {
            CellProblem::Empty => ReadError::EmptyText { place, column },
            CellProblem::Null => ReadError::Null { place, column },
            CellProblem::NotText => ReadError::NotText { place, column },
            CellProblem::NoToken => ReadError::NoToken { place, column },
        }
    }
}

/// A chunk of rows, in the order of the file. There may be none, if all were skipped.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The texts, none of them empty.
    pub texts: Vec<String>,
    /// The second texts, if a column of them was named.
    pub pairs: Option<Vec<String>>,
    /// The labels as the file has them, if a column of them was named; `None` where the file has none. An empty cell of
    /// a csv or tsv file is an empty name.
    pub labels: Option<Vec<Option<RawLabel>>>,
    /// The data row of each, from 1; a header does not count.
    pub numbers: Vec<usize>,
    /// Rows that were left out, those of the chunk and no others.
    pub skipped: Vec<BadRow>,
    /// A row for each of the texts. Of whole objects, one column with their JSON.
    pub(crate) carried: RecordBatch,
    path: Arc<Path>,
}

impl Rows {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether all rows of the chunk were skipped.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Moves rows whose texts yield no token to the [skipped](Rows::skipped) ones. `has_tokens` says of each row that it
    /// stays.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] if the carried columns cannot be taken apart.
    ///
    /// # Panics
    /// If `has_tokens` has another length.
    pub fn leave_out_without_tokens(&mut self, column: &str, has_tokens: &[bool]) -> Result<(), ReadError> {
        assert_eq!(has_tokens.len(), self.len(), "a flag for each row");
        let bare = (0..self.len()).filter(|&row| !has_tokens[row]).map(|row| BadRow {
            place: self.place(row),
            column: column.to_owned(),
            problem: CellProblem::NoToken,
        });
        self.skipped.extend(bare.collect::<Vec<_>>());
        if self.carried.num_columns() > 0 {
            let stays = BooleanArray::from(has_tokens.to_vec());
            self.carried = filter_record_batch(&self.carried, &stays)
                .map_err(|error| ReadError::broken(&self.path, Format::Arrow, error))?;
        }
        retain(&mut self.texts, has_tokens);
        retain(&mut self.numbers, has_tokens);
        if let Some(pairs) = &mut self.pairs {
            retain(pairs, has_tokens);
        }
        if let Some(labels) = &mut self.labels {
            retain(labels, has_tokens);
        }
        Ok(())
    }

    /// Place that a row comes from.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn place(&self, row: usize) -> Place {
        Place { path: PathBuf::from(&*self.path), row: self.numbers[row] }
    }
}

/// Keeps the items that `stays` marks.
fn retain<T>(items: &mut Vec<T>, stays: &[bool]) {
    let mut flags = stays.iter();
    items.retain(|_| flags.next().copied().unwrap_or(true));
}

/// The columns that the rows of a stream have, for what is written from them.
#[derive(Debug, Clone)]
pub struct Layout {
    pub(crate) label: bool,
    /// The columns that are carried; of objects, those that are known.
    pub(crate) carried: SchemaRef,
    pub(crate) form: Form,
}

/// The form of the rows that are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Columns of arrow.
    Arrow,
    /// Columns with the JSON of each value.
    Json,
    /// One column with the JSON of each object.
    Objects,
}

/// How the column of texts was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chosen {
    /// It was named.
    Named,
    /// Its name is one that columns of texts often have.
    Usual,
    /// No other holds texts.
    Only,
}
