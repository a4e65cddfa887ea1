//! Predictions as a file or stream, a chunk at a time.

mod cells;
mod encode;
mod layout;
mod target;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use crate::labels::JOIN;
use crate::rows::Form;
use crate::{Format, LabelKind, LabelSet, Layout, Place, Predicted, Rows};
use encode::Encoder;
use layout::Plan;
use target::Target;

/// What is written of each prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSpec {
    /// The format; by the file's ending if not given.
    pub format: Option<Format>,
    /// The names of the classes.
    pub labels: LabelSet,
    /// What the labels are.
    pub kind: LabelKind,
    /// Whether there is a column `probability_NAME` for each class.
    pub probabilities: bool,
    /// Of several labels, those of at least this probability are predicted.
    pub threshold: f32,
    /// Whether a file of this name is replaced.
    pub overwrite: bool,
}

impl OutputSpec {
    /// No probabilities but that of what is predicted, and no file is replaced.
    pub fn new(labels: LabelSet, kind: LabelKind) -> Self {
        Self { format: None, labels, kind, probabilities: false, threshold: 0.5, overwrite: false }
    }
}

/// Writes predictions chunk by chunk as csv, tsv, jsonl or parquet; no more than a chunk is held, or 16 MiB of a row
/// group.
///
/// The columns, in this order: those that the rows carry, but for those that have the name of one behind them; `label`,
/// if the rows have it, by its name; `predicted`: the name of the class, the number, or the list of labels;
/// `probability`, but for numbers: that of the class, or one for each label of the list; and `probability_NAME` for each
/// class if asked for. Probabilities of classes are columns of numbers in every format, for those are what pandas
/// computes with: a list in a cell is an object to it.
///
/// In csv and tsv files lists are joined by `|`, and a missing value is an empty cell. Tsv files know no quotation
/// marks (for pandas: `quoting=3`), so that a tab or line break in a text becomes a space there. What comes from a
/// csv or jsonl file is text in parquet; from jsonl to jsonl members are carried as they were written, and none is added. Types
/// that a format does not have are written as texts: times as in ISO 8601, binary data in hexadecimal, all others as JSON.
pub struct PredictionWriter {
    spec: OutputSpec,
    plan: Plan,
    encoder: Encoder,
    target: Target,
    /// Whether what stands before the first row is written.
    headed: bool,
    rows: u64,
    /// An error came before, and what is written is not whole.
    failed: bool,
}

impl PredictionWriter {
    /// Writes a file. It stands under a temporary name beside it until [`PredictionWriter::finish`]; without that,
    /// nothing is left.
    ///
    /// # Errors
    /// [`WriteError`] if it cannot be made, if there is one and `spec.overwrite` is not set, or if the rows carry two
    /// columns of one name.
    pub fn create(path: &Path, spec: OutputSpec, layout: &Layout) -> Result<Self, WriteError> {
        let format = format_of(path, spec.format)?;
        let plan = layout::plan(&spec, layout, format)?;
        let target = Target::file(path, spec.overwrite)?;
        Self::new(spec, format, plan, target)
    }

    /// Says what [`PredictionWriter::create`] would say of a file's name, format and folder.
    ///
    /// # Errors
    /// [`WriteError`] if such a file cannot be made, or is there and not to be replaced.
    pub fn check(path: &Path, format: Option<Format>, overwrite: bool) -> Result<(), WriteError> {
        check_format(format_of(path, format)?)?;
        Target::file(path, overwrite).map(drop)
    }

    /// Says what a writer would say of the columns that rows carry, whatever is predicted.
    ///
    /// # Errors
    /// [`WriteError::Column`] if there are two of one name, [`WriteError::Type`] if one is of a type without texts.
    pub fn check_layout(layout: &Layout) -> Result<(), WriteError> {
        layout::check_carried(layout)
    }

    /// Says what [`PredictionWriter::to_writer`] would say of a format.
    ///
    /// # Errors
    /// [`WriteError`] if it is one of files, or one that predictions are not written in.
    pub fn check_stream(format: Format) -> Result<(), WriteError> {
        match format {
            Format::Parquet => Err(WriteError::NeedsFile { format }),
            _ => check_format(format),
        }
    }

    /// Writes to a stream, such as standard output, and flushes it after each chunk; nothing before the first. The format
    /// is csv, tsv or jsonl; `spec.format` is not used.
    ///
    /// # Errors
    /// [`WriteError`] if the rows carry two columns of one name, or if the format is one of files.
    pub fn to_writer(
        out: impl Write + Send + 'static,
        format: Format,
        spec: OutputSpec,
        layout: &Layout,
    ) -> Result<Self, WriteError> {
        Self::check_stream(format)?;
        let plan = layout::plan(&spec, layout, format)?;
        Self::new(spec, format, plan, Target::stream(out))
    }

    fn new(spec: OutputSpec, format: Format, plan: Plan, target: Target) -> Result<Self, WriteError> {
        let encoder = match format {
            Format::Csv => Encoder::Csv,
            Format::Tsv => Encoder::Tsv,
            Format::Jsonl => Encoder::Jsonl,
            Format::Parquet => Encoder::parquet(&plan.schema, &target)?,
            Format::Arrow | Format::Lines => return Err(WriteError::Unsupported { format }),
        };
        Ok(Self { spec, plan, encoder, target, headed: false, rows: 0, failed: false })
    }

    /// The columns of the input that are left out because a new one has their name.
    pub fn replaced(&self) -> &[String] {
        &self.plan.replaced
    }

    /// Writes the predictions of a chunk, one for each of its rows.
    ///
    /// # Errors
    /// [`WriteError::Rows`] if there is not one for each, [`WriteError::Closed`] if nobody reads any more, and others.
    pub fn write(&mut self, rows: &Rows, predicted: Predicted<'_>) -> Result<(), WriteError> {
        let written = self.chunk(rows, predicted);
        self.failed |= written.is_err();
        written
    }

    fn chunk(&mut self, rows: &Rows, predicted: Predicted<'_>) -> Result<(), WriteError> {
        layout::check(&self.spec, rows, predicted)?;
        if rows.is_empty() {
            return Ok(());
        }
        let new = layout::new_columns(&self.spec, rows, predicted)?;
        self.head()?;
        let bytes = match (self.plan.form, &self.encoder) {
            (Form::Objects, Encoder::Jsonl) => {
                let new = RecordBatch::try_new(Arc::clone(&self.plan.new), new)?;
                encode::object_lines(layout::objects(rows), &new)?
            }
            (form, _) => {
                let mut columns = self.plan.carried(rows)?;
                let json = if form == Form::Arrow { 0 } else { columns.len() };
                columns.extend(new);
                self.encoder.encode(&RecordBatch::try_new(Arc::clone(&self.plan.schema), columns)?, json)?
            }
        };
        self.target.write(&bytes)?;
        self.rows += rows.len() as u64;
        Ok(())
    }

    fn head(&mut self) -> Result<(), WriteError> {
        if !self.headed {
            self.target.write(&self.encoder.header(&self.plan.schema)?)?;
            self.headed = true;
        }
        Ok(())
    }

    /// The rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Brings all to the disk and gives the file its name; the number of rows.
    ///
    /// # Errors
    /// [`WriteError`] if that fails, or if a chunk failed before; then there is no file.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        if self.failed {
            return Err(WriteError::Unfinished { rows: self.rows });
        }
        self.head()?;
        self.encoder.finish()?;
        self.target.finish()?;
        Ok(self.rows)
    }
}

fn format_of(path: &Path, given: Option<Format>) -> Result<Format, WriteError> {
    given.or_else(|| Format::of(path)).ok_or_else(|| WriteError::Format { path: path.to_owned() })
}

fn check_format(format: Format) -> Result<(), WriteError> {
    match format {
        Format::Arrow | Format::Lines => Err(WriteError::Unsupported { format }),
        Format::Csv | Format::Tsv | Format::Jsonl | Format::Parquet => Ok(()),
    }
}

impl std::fmt::Debug for PredictionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PredictionWriter").field("spec", &self.spec).field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// Predictions that are not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The ending says nothing.
    #[error("tell the format of {}: its ending is none of csv, tsv, jsonl, parquet", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// A format that predictions are not written in.
    #[error("write predictions as {format}: expected csv, tsv, jsonl or parquet")]
    Unsupported {
        /// The format.
        format: Format,
    },
    /// A format that has its index at the end.
    #[error("write {format} to a stream: that takes a file; streams are csv, tsv or jsonl")]
    NeedsFile {
        /// The format.
        format: Format,
    },
    /// There is such a file already.
    #[error("write {}: it exists; allow it to be overwritten, or give another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A folder or a device has the name.
    #[error("write {}: it is no file", path.display())]
    NotAFile {
        /// What has the name.
        path: PathBuf,
    },
    /// The file's folder is not there, or takes no file.
    #[error("write into the folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two columns would have one name.
    #[error("write two columns `{column}`: the input has two of that name; rename one, or do not carry them")]
    Column {
        /// Their name.
        column: String,
    },
    /// The header of a csv file, or the schema of a parquet file, was written before there was such a key.
    #[error(
        "write {place}: the key `{key}` is in no earlier row, so there is no column for it; read from a file \
         instead of a stream, or write jsonl"
    )]
    LateKey {
        /// The row.
        place: Place,
        /// The key.
        key: String,
    },
    /// No format has a form for a carried column.
    #[error("write the column `{column}`: values of type {found} cannot be written; leave it out")]
    Type {
        /// The column.
        column: String,
        /// Its type.
        found: String,
    },
    /// A name that cannot be told from two.
    #[error("join the label `{name}` with others by `|`: it holds one; write jsonl or parquet")]
    Name {
        /// The label.
        name: String,
    },
    /// Not one prediction for each row, or not one number for each class.
    #[error("write predictions: {predictions} for {rows} {of}")]
    Rows {
        /// Predictions.
        predictions: usize,
        /// How many there should be.
        rows: usize,
        /// Of what.
        of: &'static str,
    },
    /// Whoever read the stream has closed it: a reason to stop, and none to complain.
    #[error("write to a stream that was closed")]
    Closed,
    /// The file or stream takes no more.
    #[error("write {}", path.display())]
    Io {
        /// The file, or what stands for the stream.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An error came before, so there is no file.
    #[error("finish predictions: an error came after {rows} rows")]
    Unfinished {
        /// The rows before the error.
        rows: u64,
    },
    /// A column cannot be built or written out.
    #[error("lay out predictions")]
    Arrow(#[from] ArrowError),
    /// A parquet file cannot be written.
    #[error("write predictions as parquet")]
    Parquet(#[from] ParquetError),
}
