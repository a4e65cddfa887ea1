//! Content of a file, and its likely columns of texts and labels.

mod choose;
mod sketch;
mod tags;
mod tally;

use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef};

use crate::folder::{partitions, training_files};
use crate::read::{KeyScan, OpenOptions, OpenTable, Projection, Source, open};
use crate::suggest::{Remedy, delimiter_hint, delimiter_remedy, listed};
use crate::{Dialect, FolderError, Format, LabelKind, RawLabel, ReadError, columns};
use tally::{Cell, Tally};

/// Options of a survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SurveyOptions {
    /// The format; by the file's ending if none.
    pub format: Option<Format>,
    /// Conventions of a text file that its format and its first bytes do not tell.
    pub dialect: Dialect,
    /// Greatest number of rows to read, if limited.
    pub max_rows: Option<usize>,
}

/// Content of a file, or of the files of a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The file or folder.
    pub path: PathBuf,
    /// Its format, or that of its first file.
    pub format: Format,
    /// Conventions of a text file that differ from the defaults of its format.
    pub dialect: Dialect,
    /// Number of rows that were read.
    pub rows: usize,
    /// True if these are all rows.
    pub is_complete: bool,
    /// The columns, in the order of the file.
    pub columns: Vec<ColumnSurvey>,
    /// The likely column of texts.
    pub text: Option<ColumnChoice>,
    /// Other columns of texts, the most likely first.
    pub text_alternatives: Vec<ColumnChoice>,
    /// The likely column of second texts, for tasks on pairs.
    pub pair: Option<ColumnChoice>,
    /// The likely column of labels.
    pub label: Option<LabelChoice>,
    /// Other columns of labels, or other interpretations of the same column, the most likely first.
    pub label_alternatives: Vec<LabelChoice>,
}

impl Survey {
    /// Column of this name.
    pub fn column(&self, name: &str) -> Option<&ColumnSurvey> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Column of this name, which has to exist.
    ///
    /// # Errors
    /// [`ReadError::MissingColumn`] with the most similar name.
    pub fn require_column(&self, name: &str) -> Result<&ColumnSurvey, ReadError> {
        self.column(name).ok_or_else(|| ReadError::missing_column(&self.path, name, self.names()))
    }

    /// Names of the columns, with a hint if another delimiter seems to separate them.
    pub fn columns_text(&self) -> String {
        let names = self.names();
        format!("{}{}", listed(&names), delimiter_hint(delimiter_remedy(&names)))
    }

    /// Setting by which a single column becomes several, if another delimiter seems to separate them.
    pub fn remedy(&self) -> Option<Remedy> {
        delimiter_remedy(&self.names())
    }

    /// Reason why [`survey`] does not propose a column for labels.
    pub fn no_labels_reason(&self, column: &ColumnSurvey) -> String {
        choose::no_labels_reason(column)
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }
}

/// Content of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSurvey {
    /// Its name.
    pub name: String,
    /// Kind of its cells.
    pub kind: ColumnKind,
    /// Number of null or missing cells.
    pub missing: usize,
    /// Number of cells of empty or blank texts, including empty cells of csv and tsv files.
    pub empty: usize,
    /// Number of blank cells among the empty ones; they are texts, but not labels.
    pub blank: usize,
    /// Row, from 1, of the first missing cell or empty text.
    pub first_empty: Option<usize>,
    /// Number of distinct values.
    pub distinct: Count,
    /// Number of cells that repeat an earlier one.
    pub duplicates: Count,
    /// A few distinct values, cut to 80 characters.
    pub examples: Vec<String>,
    /// Lengths of its texts.
    pub words: Lengths,
}

/// Kind of the cells of a column. Digits are numbers in every format, and empty cells are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnKind {
    /// Texts.
    Text,
    /// Integers, including those with a point and zeros.
    Integer,
    /// Numbers.
    Number,
    /// `true` and `false`.
    Boolean,
    /// Lists.
    List,
    /// Other values, such as objects.
    Other,
    /// No values.
    Empty,
}

/// Count, estimated if there are too many values to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// The count.
    pub n: usize,
    /// True if the count is exact. Estimates are likely off by less than a few percent of all cells.
    pub exact: bool,
}

/// Numbers of words between white space. From 4096 words on, all but `max` are rounded down by less than 1/2000.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: usize,
    /// The 90th percentile.
    pub p90: usize,
    /// The 95th percentile.
    pub p95: usize,
    /// The 99th percentile.
    pub p99: usize,
    /// The maximum.
    pub max: usize,
}

/// Proposed column, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnChoice {
    /// The column.
    pub column: String,
    /// The reason, in words.
    pub reason: String,
}

/// Proposed column of labels, with their interpretation.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelChoice {
    /// The column.
    pub column: String,
    /// Kind of its labels.
    pub kind: LabelKind,
    /// The reason, in words.
    pub reason: String,
    /// The classes: numbers in numeric order, names in alphabetic order. Empty for values. The classes of multi-hot vectors
    /// are indices.
    pub classes: Vec<ClassCount>,
    /// True if the file has class numbers, from 0 without a gap, or multi-hot vectors instead of names.
    pub numbered: bool,
    /// Number of rows without a label.
    pub missing: usize,
    /// Row, from 1, of the first of them.
    pub first_missing: Option<usize>,
    /// Balance of the classes; none for values.
    pub balance: Option<Balance>,
    /// Least and greatest value; none for classes.
    pub range: Option<(f64, f64)>,
}

/// Class with its number of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCount {
    /// The label as the file has it.
    pub value: String,
    /// Name of a numeric label in the metadata of the file.
    pub name: Option<String>,
    /// Number of its rows.
    pub rows: usize,
}

/// Balance of classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    /// Share of the largest class among all labels: the accuracy of always predicting it.
    pub largest: f64,
    /// Ratio of the rows of the largest class to those of the smallest.
    pub ratio: f64,
}

/// Surveys a file in one pass and in bounded memory, or the files of training rows of a folder.
///
/// # Errors
/// [`ReadError`] if a file cannot be read, has other columns than the first, or there are no rows.
pub fn survey(path: &Path, options: &SurveyOptions) -> Result<Survey, ReadError> {
    let files = training_files(path, options.format)?;
    let Some(first) = files.first() else { return Err(FolderError::no_split(path, &["train"]).into()) };
    let format = ReadError::require_format(options.format, first)?;
    let opened = open_file(path, first, format, options)?;
    let (schema, dialect) = (opened.schema(), opened.dialect());
    let n_columns = schema.fields().len();
    let mut tallies: Vec<Tally> = schema.fields().iter().map(|_| Tally::new(n_columns)).collect();
    let mut pass = Pass { tallies: &mut tallies, max_rows: options.max_rows, rows: 0, is_complete: true };
    pass.add(opened, format, &(0..n_columns).map(Some).collect::<Vec<_>>())?;
    for file in &files[1..] {
        let format = ReadError::require_format(options.format, file)?;
        let opened = open_file(path, file, format, options)?;
        let columns = schema.fields().iter().map(|field| match opened.find(field.name()) {
            // Objects leave out keys.
            Err(ReadError::MissingColumn { .. }) if format.is_json() => Ok(None),
            found => found.map(Some),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        pass.add(opened, format, &columns)?;
    }
    let Pass { rows, is_complete, .. } = pass;
    if rows == 0 {
        return Err(ReadError::no_rows(path, n_columns > 0));
    }
    let columns = schema.fields().iter().zip(&tallies).map(|(field, tally)| tally.survey(field.name())).collect();
    let chosen = choose::choose(columns, &tallies, &schema, rows);
    Ok(Survey { path: path.to_owned(), format, dialect, rows, is_complete, ..chosen })
}

fn open_file(folder: &Path, file: &Path, format: Format, options: &SurveyOptions) -> Result<OpenTable, ReadError> {
    let opened = open(Source::open(file)?, file, format, OpenOptions { dialect: options.dialect, keys: KeyScan::All })?;
    Ok(opened.with_partitions(&partitions(folder, file)))
}

/// Pass over the rows of files.
struct Pass<'a> {
    tallies: &'a mut [Tally],
    max_rows: Option<usize>,
    rows: usize,
    is_complete: bool,
}

impl Pass<'_> {
    /// Adds the rows of a file; `columns` are the indices in it of the columns of the tallies, none for missing ones.
    fn add(&mut self, opened: OpenTable, format: Format, columns: &[Option<usize>]) -> Result<(), ReadError> {
        let all = (0..opened.schema().fields().len()).collect();
        for batch in opened.batches(Projection { columns: all, objects: false }, 2048)? {
            if !self.is_complete {
                break;
            }
            let batch = batch?;
            let n_left = self.max_rows.map_or(usize::MAX, |max| max - self.rows);
            self.is_complete = batch.num_rows() <= n_left;
            let batch = batch.slice(0, batch.num_rows().min(n_left));
            for (column, tally) in columns.iter().zip(self.tallies.iter_mut()) {
                match column {
                    Some(index) => add_cells(batch.column(*index), format, tally),
                    None => (0..batch.num_rows()).for_each(|_| tally.add(Cell::Missing)),
                }
            }
            self.rows += batch.num_rows();
        }
        Ok(())
    }
}

fn add_cells(column: &ArrayRef, format: Format, tally: &mut Tally) {
    let texts = columns::texts(column, format);
    for row in 0..column.len() {
        let text = texts.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row));
        match text {
            Some(text) => tally.add(Cell::Text(text)),
            None if column.is_null(row) => {
                tally.add(if format.is_delimited() { Cell::Text("") } else { Cell::Missing })
            }
            None => {
                let one = column.slice(row, 1);
                match columns::labels(&one, format).and_then(|mut labels| labels.pop()) {
                    Some(Some(RawLabel::Many(items))) => tally.add(Cell::List(&items)),
                    _ => tally.add(Cell::Other),
                }
            }
        }
    }
}
