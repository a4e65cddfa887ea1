//! Predictions as a file or stream, a chunk at a time.

mod cells;
mod encode;
mod error;
mod output_columns;
mod target;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::DataType;

use crate::rows::Form;
use crate::{Format, LabelKind, LabelSet, PredictionRef, RowSchema, Rows, Task};
use encode::Encoder;
pub use error::WriteError;
use output_columns::OutputColumns;
pub(crate) use output_columns::{float_lists, text_lists};
use target::Target;

/// Form of written predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSpec {
    /// The format; by the file's ending if none.
    pub format: Option<Format>,
    /// Names of the classes.
    pub labels: LabelSet,
    /// Task of the predictions.
    pub task: Task,
    /// True for a column `probability_NAME` for each class.
    pub probabilities: bool,
    /// Least probability of a predicted class; less probable ones are missing values, and a column `abstained` is true for
    /// them.
    pub abstain_below: Option<f32>,
    /// True to replace an existing file.
    pub overwrite: bool,
    /// Text before the names of the new columns, which tells the models of a file apart.
    pub prefix: String,
}

impl OutputSpec {
    /// Creates a spec without probabilities of all classes, and without overwriting.
    pub fn new(labels: LabelSet, kind: LabelKind) -> Self {
        let task = Task::new(kind, labels.names().to_vec());
        let (abstain_below, prefix) = (None, String::new());
        Self { format: None, labels, task, probabilities: false, abstain_below, overwrite: false, prefix }
    }
}

impl From<OutputSpec> for Vec<OutputSpec> {
    fn from(spec: OutputSpec) -> Self {
        vec![spec]
    }
}

/// Writer of predictions as csv, tsv, jsonl or parquet, chunk by chunk. Memory holds at most one chunk, or 16 MiB of a
/// row group.
///
/// The columns, in this order: the passthrough columns, unless a following column has the same name; `label`, if the rows
/// have labels; `predicted`: the name of the class, the number, the list of labels or of the words' tags, or the index of
/// the option; `probability`, except for numbers: that of the class or option, or a list with one entry for each predicted
/// label or word; `abstained`, if classes that are not probable enough are left out; and `probability_NAME` for each class on
/// request.
/// The latter are columns of numbers in every format, as pandas cannot compute with lists in cells.
/// Of several models, the new columns follow each other, with the prefix of each before their names.
///
/// In csv and tsv files, `|` joins lists, and missing values are empty cells. In tsv files, tabs and line breaks in texts
/// become spaces, and only cells that begin with a quotation mark are quoted. Columns of csv and jsonl files are texts in
/// parquet; from jsonl to jsonl, members are copied as written. Types that a format lacks are written as texts: times as in
/// ISO 8601, binary data in hexadecimal, all others as JSON.
pub struct PredictionWriter {
    /// One of each model.
    specs: Vec<OutputSpec>,
    columns: OutputColumns,
    encoder: Encoder,
    target: Target,
    is_header_written: bool,
    rows: u64,
    /// True after an error, when the output is incomplete.
    has_failed: bool,
}

impl PredictionWriter {
    /// Creates a file for the predictions of one model or several. It has a temporary name until
    /// [`PredictionWriter::finish`], and is removed without it. Format and overwriting are those of the first spec.
    ///
    /// # Errors
    /// [`WriteError`] if the file cannot be created, if it exists and `overwrite` is not set, or if two columns have one
    /// name.
    pub fn create(path: &Path, specs: impl Into<Vec<OutputSpec>>, row_schema: &RowSchema) -> Result<Self, WriteError> {
        let specs = specs.into();
        let first = specs.first();
        let format = resolve_format(path, first.and_then(|spec| spec.format))?;
        let columns = output_columns::plan(&specs, row_schema, format)?;
        let target = Target::file(path, first.is_some_and(|spec| spec.overwrite))?;
        Self::new(specs, format, columns, target)
    }

    /// Checks a file's name, format and folder for [`PredictionWriter::create`].
    ///
    /// # Errors
    /// [`WriteError`] if the file cannot be created, or exists and is not to be replaced.
    pub fn check(path: &Path, format: Option<Format>, overwrite: bool) -> Result<(), WriteError> {
        check_format(resolve_format(path, format)?)?;
        Target::file(path, overwrite).map(drop)
    }

    /// Checks the passthrough columns for any writer.
    ///
    /// # Errors
    /// [`WriteError::Column`] if two have one name, [`WriteError::Type`] if the type of one has no text form.
    pub fn check_row_schema(row_schema: &RowSchema) -> Result<(), WriteError> {
        output_columns::check_passthrough(row_schema)
    }

    /// Checks a format for [`PredictionWriter::to_writer`].
    ///
    /// # Errors
    /// [`WriteError`] if the format requires a file, or is not supported for predictions.
    pub fn check_stream(format: Format) -> Result<(), WriteError> {
        match format {
            Format::Parquet => Err(WriteError::NeedsFile { format }),
            _ => check_format(format),
        }
    }

    /// Writes to a stream, such as standard output, and flushes it after each chunk. The first chunk comes with the header.
    /// The format is csv, tsv or jsonl; those of the specs are not used.
    ///
    /// # Errors
    /// [`WriteError`] if two columns have one name, or if the format requires a file.
    pub fn to_writer(
        out: impl Write + Send + 'static,
        format: Format,
        specs: impl Into<Vec<OutputSpec>>,
        row_schema: &RowSchema,
    ) -> Result<Self, WriteError> {
        Self::check_stream(format)?;
        let specs = specs.into();
        let columns = output_columns::plan(&specs, row_schema, format)?;
        Self::new(specs, format, columns, Target::stream(out))
    }

    fn new(specs: Vec<OutputSpec>, format: Format, columns: OutputColumns, target: Target) -> Result<Self, WriteError> {
        let encoder = match format {
            Format::Csv => Encoder::Csv,
            Format::Tsv => Encoder::Tsv,
            Format::Jsonl => Encoder::Jsonl,
            Format::Parquet => Encoder::parquet(&columns.schema, &target)?,
            Format::Arrow | Format::Json | Format::Lines => return Err(WriteError::Unsupported { format }),
        };
        Ok(Self { specs, columns, encoder, target, is_header_written: false, rows: 0, has_failed: false })
    }

    /// Columns of the input that are left out, as new columns have their names.
    pub fn replaced(&self) -> &[String] {
        &self.columns.replaced
    }

    /// Writes the predictions of a chunk, one for each of its rows.
    ///
    /// # Errors
    /// [`WriteError::Rows`] if their number differs from that of the rows, [`WriteError::Closed`] if the stream is closed, and
    /// others.
    pub fn write(&mut self, rows: &Rows, predicted: PredictionRef<'_>) -> Result<(), WriteError> {
        self.write_all(rows, &[predicted])
    }

    /// Writes the predictions of each model for a chunk, in the order of the specs.
    ///
    /// # Errors
    /// As [`PredictionWriter::write`]; also if there are more or fewer models than specs.
    pub fn write_all(&mut self, rows: &Rows, predicted: &[PredictionRef<'_>]) -> Result<(), WriteError> {
        let written = self.write_chunk(rows, predicted);
        self.has_failed |= written.is_err();
        written
    }

    fn write_chunk(&mut self, rows: &Rows, predicted: &[PredictionRef<'_>]) -> Result<(), WriteError> {
        if predicted.len() != self.specs.len() {
            return Err(WriteError::Rows { predictions: predicted.len(), rows: self.specs.len(), unit: "models" });
        }
        for (spec, predicted) in self.specs.iter().zip(predicted) {
            output_columns::check(spec, rows, *predicted)?;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut new = Vec::new();
        for (spec, predicted) in self.specs.iter().zip(predicted) {
            new.extend(output_columns::new_columns(spec, rows, *predicted)?);
        }
        for (column, field) in new.iter_mut().zip(self.columns.new.fields()) {
            if matches!((field.data_type(), column.data_type()), (DataType::Utf8, DataType::List(_))) {
                *column = cells::quoted_lists(column);
            }
        }
        self.write_header()?;
        let bytes = match (self.columns.form, &self.encoder) {
            (Form::Objects, Encoder::Jsonl) => {
                let new = RecordBatch::try_new(Arc::clone(&self.columns.new), new)?;
                encode::object_lines(output_columns::objects(rows), &new)?
            }
            (form, _) => {
                let mut columns = self.columns.passthrough(rows)?;
                let json = if form == Form::Arrow { 0 } else { columns.len() };
                columns.extend(new);
                self.encoder.encode(&RecordBatch::try_new(Arc::clone(&self.columns.schema), columns)?, json)?
            }
        };
        self.target.write(&bytes)?;
        self.rows += rows.len() as u64;
        Ok(())
    }

    fn write_header(&mut self) -> Result<(), WriteError> {
        if !self.is_header_written {
            self.target.write(&self.encoder.header(&self.columns.schema)?)?;
            self.is_header_written = true;
        }
        Ok(())
    }

    /// Number of rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Syncs the file to disk and gives it its name. Returns the number of rows.
    ///
    /// # Errors
    /// [`WriteError`] if that fails, or if a chunk failed before. Then no file is left.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        if self.has_failed {
            return Err(WriteError::Unfinished { rows: self.rows });
        }
        self.write_header()?;
        self.encoder.finish()?;
        self.target.finish()?;
        Ok(self.rows)
    }
}

fn resolve_format(path: &Path, format: Option<Format>) -> Result<Format, WriteError> {
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz")) {
        return Err(WriteError::Compressed { path: path.to_owned() });
    }
    format.or_else(|| Format::from_path(path)).ok_or_else(|| WriteError::Format { path: path.to_owned() })
}

fn check_format(format: Format) -> Result<(), WriteError> {
    match format {
        Format::Arrow | Format::Json | Format::Lines => Err(WriteError::Unsupported { format }),
        Format::Csv | Format::Tsv | Format::Jsonl | Format::Parquet => Ok(()),
    }
}

impl std::fmt::Debug for PredictionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PredictionWriter").field("specs", &self.specs).field("rows", &self.rows).finish_non_exhaustive()
    }
}
