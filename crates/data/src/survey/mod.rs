//! What a file holds, and which of its columns are likely texts and labels.

mod choose;
mod sketch;
mod tags;
mod tally;

use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef};

use crate::nearest::separators;
use crate::read::{Keys, Open, Projection, Source, open};
use crate::{Dialect, Format, LabelKind, RawLabel, ReadError, columns};
use tally::{Cell, Tally};

/// How a file is surveyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SurveyOptions {
    /// The format; by the file's ending if not given.
    pub format: Option<Format>,
    /// The conventions of a text file that its format and its first bytes do not tell.
    pub dialect: Dialect,
    /// No more rows than these are read, if given.
    pub max_rows: Option<usize>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// The conventions of a text file, as far as they are not the usual ones of its format.
    pub dialect: Dialect,
    /// The rows that were read.
    pub rows: usize,
    /// Whether these are all.
    pub whole: bool,
    /// The columns, as the file has them.
    pub columns: Vec<ColumnSurvey>,
    /// The column that is likely the texts.
    pub text: Option<Choice>,
    /// Other columns of texts, the likelier first.
    pub text_alternatives: Vec<Choice>,
    /// The column that is likely the second texts of a task on pairs.
    pub pair: Option<Choice>,
    /// The column that is likely the labels.
    pub label: Option<LabelChoice>,
    /// Other columns of labels, or the same taken otherwise, the likelier first.
    pub label_alternatives: Vec<LabelChoice>,
}

impl Survey {
    /// A column by its name.
    pub fn column(&self, name: &str) -> Option<&ColumnSurvey> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// A column by the name that somebody gave.
    ///
    /// # Errors
    /// [`ReadError::MissingColumn`] with the name most like it.
    pub fn named(&self, name: &str) -> Result<&ColumnSurvey, ReadError> {
        self.column(name).ok_or_else(|| ReadError::missing_column(&self.path, name, self.names()))
    }

    /// The columns' names, and what to do if they seem to be one that should be several.
    pub fn columns_text(&self) -> String {
        let names = self.names();
        format!("{}{}", names.join(", "), separators(&names))
    }

    /// Why no labels are read from a column that [`survey`] does not propose for them.
    pub fn why_no_labels(&self, column: &ColumnSurvey) -> String {
        choose::why_no_labels(column)
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSurvey {
    /// Its name.
    pub name: String,
    /// What most of its cells are.
    pub kind: ColumnKind,
    /// Cells that are null or missing.
    pub missing: usize,
    /// Cells without a letter, in csv and tsv files those without anything.
    pub empty: usize,
    /// Of the empty cells those that hold blanks, which are texts but no labels.
    pub blank: usize,
    /// The row, from 1, of the first cell that is missing or holds nothing.
    pub first_bare: Option<usize>,
    /// How many different values there are.
    pub distinct: Count,
    /// How many cells repeat an earlier one.
    pub duplicates: Count,
    /// A few different values, cut to 80 characters.
    pub examples: Vec<String>,
    /// The lengths of its texts.
    pub words: Lengths,
}

/// What the cells of a column are. Digits are numbers in every format, and empty cells count for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnKind {
    /// Texts.
    Text,
    /// Whole numbers, also with a point and zeros.
    Integer,
    /// Numbers.
    Number,
    /// `true` and `false`.
    Boolean,
    /// Lists.
    List,
    /// Anything else, such as objects.
    Other,
    /// Nothing.
    Empty,
}

/// A count, that is an estimate where there is too much to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// The count.
    pub n: usize,
    /// Whether it is exact. If not, it is likely off by less than a few percent of all cells.
    pub exact: bool,
}

/// Numbers of words, as white space parts them. From 4096 words on, all but `max` are rounded down by less than 1/2000.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// Half of the texts are no longer.
    pub p50: usize,
    /// 90 % are no longer.
    pub p90: usize,
    /// 95 % are no longer.
    pub p95: usize,
    /// 99 % are no longer.
    pub p99: usize,
    /// The longest.
    pub max: usize,
}

/// A column, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The column.
    pub column: String,
    /// What speaks for it, in words.
    pub reason: String,
}

/// A column of labels, and how they are taken.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelChoice {
    /// The column.
    pub column: String,
    /// What its labels are.
    pub kind: LabelKind,
    /// What speaks for it, in words.
    pub reason: String,
    /// The classes: numbers in their order, names by the alphabet. None for values. Of multi-hot vectors, their places.
    pub classes: Vec<ClassCount>,
    /// True if the file has class numbers, from 0 without a gap, or multi-hot vectors instead of names.
    pub numbered: bool,
    /// Rows without a label.
    pub missing: usize,
    /// The row, from 1, of the first of them.
    pub first_missing: Option<usize>,
    /// How unlike the classes' numbers are; none for values.
    pub balance: Option<Balance>,
    /// The least and the greatest value; none for classes.
    pub range: Option<(f64, f64)>,
}

/// A class and its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCount {
    /// The label as the file has it.
    pub value: String,
    /// What the file's metadata call it, if the label is a number.
    pub name: Option<String>,
    /// Its rows.
    pub rows: usize,
}

/// How unlike the classes' numbers are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    /// The largest class's part of all labels: the accuracy of always guessing it.
    pub largest: f64,
    /// How many rows of the largest class there are to one of the smallest.
    pub ratio: f64,
}

/// Reads a file once and says what it holds, in bounded memory.
///
/// # Errors
/// [`ReadError`] if it cannot be read, or has no rows.
pub fn survey(path: &Path, options: &SurveyOptions) -> Result<Survey, ReadError> {
    let format = options.format.or_else(|| Format::of(path));
    let format = format.ok_or_else(|| ReadError::unknown_format(path))?;
    let opened = open(Source::open(path)?, path, format, Open { dialect: options.dialect, keys: Keys::All })?;
    let (schema, dialect) = (opened.schema(), opened.dialect());
    let mut tallies: Vec<Tally> = schema.fields().iter().map(|_| Tally::new(schema.fields().len())).collect();
    let columns = (0..schema.fields().len()).collect();
    let batches = opened.batches(Projection { columns, objects: false }, 2048)?;
    let (mut rows, mut whole) = (0, true);
    for batch in batches {
        let batch = batch?;
        let left = options.max_rows.map_or(usize::MAX, |max| max - rows);
        whole = batch.num_rows() <= left;
        let batch = batch.slice(0, batch.num_rows().min(left));
        for (column, tally) in batch.columns().iter().zip(&mut tallies) {
            cells(column, format, tally);
        }
        rows += batch.num_rows();
        if !whole {
            break;
        }
    }
    if rows == 0 {
        return Err(ReadError::no_rows(path, !schema.fields().is_empty()));
    }
    let columns = schema.fields().iter().zip(&tallies).map(|(field, tally)| tally.survey(field.name())).collect();
    let chosen = choose::choose(columns, &tallies, &schema, rows);
    Ok(Survey { path: path.to_owned(), format, dialect, rows, whole, ..chosen })
}

fn cells(column: &ArrayRef, format: Format, tally: &mut Tally) {
    let json = format == Format::Jsonl;
    let texts = if json { columns::json_texts(column) } else { columns::texts(column) };
    let empty_is_null = matches!(format, Format::Csv | Format::Tsv);
    for row in 0..column.len() {
        let text = texts.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row));
        match text {
            Some(text) => tally.add(Cell::Text(text)),
            None if column.is_null(row) => tally.add(if empty_is_null { Cell::Text("") } else { Cell::Missing }),
            None => {
                let one = column.slice(row, 1);
                let list = if json { columns::json_labels(&one) } else { columns::labels(&one) };
                match list.and_then(|mut list| list.pop()) {
                    Some(Some(RawLabel::Many(items))) => tally.add(Cell::List(&items)),
                    _ => tally.add(Cell::Other),
                }
            }
        }
    }
}
