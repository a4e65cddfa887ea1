use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;

use super::filter::{FilterCells, FilterValue, FoundValues};
use super::{
    BadRow, BadRowPolicy, CellProblem, Form, Passthrough, RowSchema, RowSpec, Rows, TextColumnOrigin, text_column,
};
use crate::read::{Batches, KeyScan, OpenOptions, OpenTable, Projection, Source, open};
use crate::spec::uncompressed;
use crate::{Format, RawLabel, ReadError, RowLocation, columns};

/// Rows of a file or stream, in chunks. Memory holds at most one chunk, or one batch of an arrow file, whose size its
/// writer decided.
///
/// Iteration ends after an error.
pub struct RowStream {
    path: Arc<Path>,
    format: Format,
    bad_rows: BadRowPolicy,
    columns: Option<Columns>,
    batches: Batches,
    /// Batch that was read to choose the text column.
    first: Option<RecordBatch>,
    /// Error to return after the rows before it.
    pending_error: Option<ReadError>,
    ended: bool,
    read: usize,
    skipped: usize,
    filter_values: FoundValues,
}

struct Column {
    name: String,
    index: usize,
}

struct Columns {
    text: Column,
    origin: TextColumnOrigin,
    pair: Option<Column>,
    label: Option<Column>,
    options: Vec<Column>,
    /// True if the text column may hold lists of words.
    words: bool,
    filter: Vec<(Column, FilterValue)>,
    passthrough: Vec<usize>,
    passthrough_schema: SchemaRef,
    form: Form,
}

/// Options of the rows of a batch.
enum OptionTexts {
    /// One column of lists.
    Lists(Vec<Option<Vec<String>>>),
    /// A column for each option.
    Columns(Vec<StringArray>),
}

impl OptionTexts {
    /// Options of a row without a problem.
    fn of_row(&self, row: usize) -> Vec<String> {
        match self {
            Self::Lists(lists) => lists[row].clone().unwrap_or_default(),
            Self::Columns(columns) => columns.iter().map(|texts| texts.value(row).to_owned()).collect(),
        }
    }
}

impl RowStream {
    /// Opens a file.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be opened, or lacks one of the columns.
    pub fn open(path: &Path, spec: &RowSpec) -> Result<Self, ReadError> {
        let is_lines = uncompressed(path).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("txt"));
        let format = ReadError::require_format(spec.format.or(is_lines.then_some(Format::Lines)), path)?;
        let opened = |keys| Self::new(Source::open(path)?, path, format, spec, keys);
        match opened(key_scan(spec)) {
            // The first objects of a file may lack keys.
            Err(ReadError::MissingColumn { .. }) if format.is_json() && path.is_file() => opened(KeyScan::All),
            opened => opened,
        }
    }

    /// Reads a stream, such as standard input, which messages call `name`. The format is csv, tsv, json, jsonl or lines;
    /// `spec.format` is not used.
    ///
    /// # Errors
    /// [`ReadError`] if the stream lacks one of the columns, or the format requires a file.
    pub fn from_reader(
        reader: impl Read + Send + 'static,
        name: &str,
        format: Format,
        spec: &RowSpec,
    ) -> Result<Self, ReadError> {
        Self::new(Source::Stream(Box::new(reader)), Path::new(name), format, spec, key_scan(spec))
    }

    fn new(source: Source, path: &Path, format: Format, spec: &RowSpec, keys: KeyScan) -> Result<Self, ReadError> {
        let opened = open(source, path, format, OpenOptions { dialect: spec.dialect, keys })?;
        let opened = opened.with_partitions(&spec.partitions);
        let schema = opened.schema();
        let (columns, batches, first) = if schema.fields().is_empty() {
            (None, opened.batches(Projection::default(), spec.chunk_rows)?, None)
        } else {
            let (columns, batches, first) = Columns::find(opened, path, format, spec)?;
            (Some(columns), batches, first)
        };
        Ok(Self {
            path: path.into(),
            format,
            bad_rows: spec.bad_rows,
            columns,
            batches,
            first,
            pending_error: None,
            ended: false,
            read: 0,
            skipped: 0,
            filter_values: FoundValues::default(),
        })
    }

    /// Text column and the origin of its choice. `None` if there are no columns, and therefore no rows.
    pub fn text_column(&self) -> Option<(&str, TextColumnOrigin)> {
        self.columns.as_ref().map(|columns| (columns.text.name.as_str(), columns.origin))
    }

    /// Columns of the rows, for a writer.
    pub fn row_schema(&self) -> RowSchema {
        let columns = self.columns.as_ref();
        RowSchema {
            label: columns.is_some_and(|columns| columns.label.is_some()),
            passthrough: columns.map_or_else(|| Arc::new(Schema::empty()), |c| c.passthrough_schema.clone()),
            form: columns.map_or(Form::Arrow, |columns| columns.form),
        }
    }

    /// Number of rows read so far, including filtered and skipped rows.
    pub fn read(&self) -> usize {
        self.read
    }

    /// Number of rows skipped so far.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Values of the columns of the filter, as long as no row matched it.
    pub(crate) fn filter_values(&self) -> &FoundValues {
        &self.filter_values
    }

    /// Error for a stream that ended without rows, with or without columns.
    pub fn no_rows_error(&self) -> ReadError {
        // A lines file without lines has a column, too.
        ReadError::no_rows(&self.path, self.columns.is_some() && self.format != Format::Lines)
    }

    fn batch(&mut self) -> Option<Result<RecordBatch, ReadError>> {
        self.first.take().map(Ok).or_else(|| self.batches.next())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Rows, ReadError> {
        let Some(columns) = &self.columns else { return Err(self.no_rows_error()) };
        let words = columns.words;
        let cells = BatchCells { path: &self.path, format: self.format, n_before: self.read, words, batch };
        let texts = if words { cells.words(&columns.text)? } else { cells.texts(&columns.text)? };
        let pairs = columns.pair.as_ref().map(|pair| cells.texts(pair)).transpose()?;
        let labels = columns.label.as_ref().map(|label| cells.labels(label)).transpose()?;
        let options = cells.options(&columns.options)?;
        let (mut selected, mut skipped) = (Vec::new(), Vec::new());
        for row in cells.filtered(&columns.filter, &mut self.filter_values)? {
            let pair = || cells.problem(columns.pair.as_ref()?, pairs.as_ref()?, row);
            let option = || cells.option_problem(&columns.options, options.as_ref()?, row);
            match cells.problem(&columns.text, &texts, row).or_else(pair).or_else(option) {
                None => selected.push(row),
                Some(bad) if self.bad_rows == BadRowPolicy::Skip => skipped.push(bad),
                Some(bad) => {
                    self.pending_error = Some(ReadError::BadRow(bad));
                    break;
                }
            }
        }
        let pick = |texts: &StringArray| selected.iter().map(|&row| texts.value(row).to_owned()).collect::<Vec<_>>();
        let rows = Rows {
            texts: pick(&texts),
            pairs: pairs.as_ref().map(pick),
            labels: labels.map(|labels| selected.iter().map(|&row| labels[row].clone()).collect()),
            options: options.map(|options| selected.iter().map(|&row| options.of_row(row)).collect()),
            numbers: selected.iter().map(|row| self.read + row + 1).collect(),
            passthrough: cells.passthrough(&columns.passthrough, &selected)?,
            skipped,
            path: self.path.clone(),
        };
        self.read += batch.num_rows();
        self.skipped += rows.skipped.len();
        Ok(rows)
    }
}

impl Iterator for RowStream {
    type Item = Result<Rows, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.pending_error.take() {
                self.ended = true;
                return Some(Err(error));
            }
            if self.ended {
                return None;
            }
            let rows = self.batch()?.and_then(|batch| self.rows(&batch));
            self.ended = rows.is_err();
            match rows {
                // The filter excluded all rows of the batch.
                Ok(rows) if rows.is_empty() && rows.skipped.is_empty() => {}
                rows => return Some(rows),
            }
        }
    }
}

impl std::fmt::Debug for RowStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowStream").field("path", &self.path).field("read", &self.read).finish_non_exhaustive()
    }
}

impl Columns {
    /// Finds the columns. Returns them with their batches, and with the first batch if the choice needed it.
    fn find(
        opened: OpenTable,
        path: &Path,
        format: Format,
        spec: &RowSpec,
    ) -> Result<(Self, Batches, Option<RecordBatch>), ReadError> {
        let schema = opened.schema();
        let indices = ColumnIndices::find(&opened, spec)?;
        let form = match (format, &spec.passthrough) {
            (Format::Json | Format::Jsonl, Passthrough::All) => Form::Objects,
            (Format::Json | Format::Jsonl, _) => Form::Json,
            _ => Form::Arrow,
        };
        let projection = |columns: &[usize]| Projection { columns: columns.to_vec(), objects: form == Form::Objects };
        let named = match &spec.text {
            Some(name) => Some((opened.find(name)?, TextColumnOrigin::Named)),
            None => text_column::by_name(&schema, &indices.candidates),
        };
        let (text, origin, used, batches, first) = match named {
            Some((text, origin)) => {
                let used = indices.used(text, form);
                let batches = opened.batches(projection(&used), spec.chunk_rows)?;
                (text, origin, used, batches, None)
            }
            None => {
                let all: Vec<usize> = (0..schema.fields().len()).collect();
                let mut batches = opened.batches(projection(&all), spec.chunk_rows)?;
                let first = batches.next().transpose()?;
                let text = text_column::by_content(&schema, &indices.candidates, first.as_ref(), format, path)?;
                (text, TextColumnOrigin::OnlyCandidate, all, batches, first)
            }
        };
        let name = schema.field(text).name();
        if schema.fields().iter().filter(|field| field.name() == name).nth(1).is_some() {
            return Err(ReadError::AmbiguousColumn { path: path.to_owned(), column: name.clone() });
        }
        // Position of a column of the file in the batches.
        let position = |index: usize| used.partition_point(|&used| used < index);
        let column = |index: usize| Column { name: schema.field(index).name().clone(), index: position(index) };
        let columns = Self {
            text: column(text),
            origin,
            pair: indices.pair.map(column),
            label: indices.label.map(column),
            options: indices.options.iter().map(|&index| column(index)).collect(),
            words: spec.words,
            filter: indices.filter.iter().map(|&index| column(index)).zip(spec.filter.values().cloned()).collect(),
            passthrough_schema: Arc::new(
                schema.project(&indices.passthrough).map_err(|error| ReadError::corrupt(path, format, error))?,
            ),
            passthrough: match form {
                // The objects follow the columns.
                Form::Objects => vec![used.len()],
                Form::Arrow | Form::Json => indices.passthrough.into_iter().map(position).collect(),
            },
            form,
        };
        Ok((columns, batches, first))
    }
}

/// Indices in a file of all columns but the text column.
struct ColumnIndices {
    pair: Option<usize>,
    label: Option<usize>,
    options: Vec<usize>,
    filter: Vec<usize>,
    /// Candidates for the text column: all but second texts, labels and options.
    candidates: Vec<usize>,
    passthrough: Vec<usize>,
}

impl ColumnIndices {
    fn find(opened: &OpenTable, spec: &RowSpec) -> Result<Self, ReadError> {
        let find = |name: &String| opened.find(name);
        let pair = spec.text_pair.as_ref().map(find).transpose()?;
        let label = spec.label.as_ref().map(find).transpose()?;
        let options: Vec<usize> = spec.options.iter().map(find).collect::<Result<_, _>>()?;
        let all = 0..opened.schema().fields().len();
        let is_other = |index: &usize| [pair, label].contains(&Some(*index)) || options.contains(index);
        let passthrough = match &spec.passthrough {
            Passthrough::None => Vec::new(),
            Passthrough::Columns(names) => names.iter().map(find).collect::<Result<_, _>>()?,
            Passthrough::All => all.clone().collect(),
        };
        Ok(Self {
            pair,
            label,
            filter: spec.filter.keys().map(find).collect::<Result<_, _>>()?,
            candidates: all.filter(|index| !is_other(index)).collect(),
            options,
            passthrough,
        })
    }

    fn used(&self, text: usize, form: Form) -> Vec<usize> {
        let mut used: Vec<usize> = [Some(text), self.pair, self.label].into_iter().flatten().collect();
        used.extend(&self.filter);
        used.extend(&self.options);
        if form != Form::Objects {
            used.extend(&self.passthrough);
        }
        used.sort_unstable();
        used.dedup();
        used
    }
}

struct BatchCells<'a> {
    path: &'a Path,
    format: Format,
    n_before: usize,
    words: bool,
    batch: &'a RecordBatch,
}

impl BatchCells<'_> {
    fn texts(&self, column: &Column) -> Result<StringArray, ReadError> {
        let cells = self.batch.column(column.index);
        columns::texts(cells, self.format).ok_or_else(|| self.wrong_type(column, cells, "texts"))
    }

    fn words(&self, column: &Column) -> Result<StringArray, ReadError> {
        let cells = self.batch.column(column.index);
        columns::word_texts(cells, self.format).ok_or_else(|| self.wrong_type(column, cells, "texts or lists of words"))
    }

    fn options(&self, options: &[Column]) -> Result<Option<OptionTexts>, ReadError> {
        match options {
            [] => Ok(None),
            [column] => {
                let cells = self.batch.column(column.index);
                let lists = columns::text_lists(cells, self.format);
                let lists = lists.ok_or_else(|| self.wrong_type(column, cells, "lists of texts"))?;
                Ok(Some(OptionTexts::Lists(lists)))
            }
            columns => {
                let texts = columns.iter().map(|column| self.texts(column)).collect::<Result<_, _>>()?;
                Ok(Some(OptionTexts::Columns(texts)))
            }
        }
    }

    fn option_problem(&self, columns: &[Column], options: &OptionTexts, row: usize) -> Option<BadRow> {
        match options {
            OptionTexts::Columns(texts) => {
                columns.iter().zip(texts).find_map(|(column, texts)| self.problem(column, texts, row))
            }
            OptionTexts::Lists(lists) if lists[row].as_ref().is_some_and(|options| options.len() > 1) => None,
            OptionTexts::Lists(_) => {
                let location = RowLocation { path: self.path.to_owned(), row: self.n_before + row + 1 };
                let column = columns.first().map(|column| column.name.clone()).unwrap_or_default();
                Some(BadRow { location, column, problem: CellProblem::NoOptions })
            }
        }
    }

    fn labels(&self, column: &Column) -> Result<Vec<Option<RawLabel>>, ReadError> {
        let cells = self.batch.column(column.index);
        let labels = columns::labels(cells, self.format)
            .ok_or_else(|| self.wrong_type(column, cells, "numbers, names or lists of them"))?;
        // The decoder reads an empty cell as null. It may be an empty list of labels.
        let empty = self.format.is_delimited().then(|| RawLabel::Name(String::new()));
        Ok(labels.into_iter().map(|label| label.or_else(|| empty.clone())).collect())
    }

    /// Rows that a filter selects. `values` is for the message if it selects none.
    fn filtered(&self, filter: &[(Column, FilterValue)], values: &mut FoundValues) -> Result<Vec<usize>, ReadError> {
        let condition = |(column, value): &(Column, FilterValue)| {
            let cells = self.batch.column(column.index);
            FilterCells::compare(cells, self.format, value)
                .ok_or_else(|| self.wrong_type(column, cells, "texts, numbers, truth values or dates"))
        };
        let conditions = filter.iter().map(condition).collect::<Result<Vec<_>, ReadError>>()?;
        let holds = |row: &usize| conditions.iter().all(|cells| cells.matches(*row));
        let selected: Vec<usize> = (0..self.batch.num_rows()).filter(holds).collect();
        if selected.is_empty() {
            filter.iter().zip(&conditions).for_each(|((column, _), cells)| values.add(&column.name, cells));
        } else {
            values.note_match();
        }
        Ok(selected)
    }

    fn problem(&self, column: &Column, texts: &StringArray, row: usize) -> Option<BadRow> {
        let problem = match texts.is_valid(row) {
            true if texts.value(row).is_empty() => CellProblem::Empty,
            true => return None,
            false if self.words && self.batch.column(column.index).is_valid(row) => CellProblem::NotWords,
            false if self.is_json() && self.batch.column(column.index).is_valid(row) => CellProblem::NotText,
            // The decoder reads an empty cell as null.
            false if self.format.is_delimited() => CellProblem::Empty,
            false => CellProblem::Null,
        };
        let location = RowLocation { path: self.path.to_owned(), row: self.n_before + row + 1 };
        Some(BadRow { location, column: column.name.clone(), problem })
    }

    fn passthrough(&self, columns: &[usize], rows: &[usize]) -> Result<RecordBatch, ReadError> {
        if columns.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
        }
        let rows: UInt32Array = rows.iter().map(|&row| row as u32).collect();
        let passthrough = self.batch.project(columns).and_then(|batch| take_record_batch(&batch, &rows));
        let passthrough = match self.format.is_delimited() {
            true => passthrough.and_then(|batch| with_empty_cells(&batch)),
            false => passthrough,
        };
        passthrough.map_err(|error| ReadError::corrupt(self.path, self.format, error))
    }

    fn is_json(&self) -> bool {
        self.format.is_json()
    }

    fn wrong_type(&self, column: &Column, cells: &ArrayRef, expected: &'static str) -> ReadError {
        let found = if self.is_json() { "objects".to_owned() } else { cells.data_type().to_string() };
        ReadError::ColumnType { path: self.path.to_owned(), column: column.name.clone(), expected, found }
    }
}

/// Empty cells as empty texts, in place of null, which stands for a missing label where other formats have it.
fn with_empty_cells(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let cells = |column: &ArrayRef| -> ArrayRef {
        match column.as_string_opt::<i32>() {
            Some(texts) if texts.null_count() > 0 => {
                Arc::new(StringArray::from_iter_values(texts.iter().map(Option::unwrap_or_default)))
            }
            _ => Arc::clone(column),
        }
    };
    RecordBatch::try_new(batch.schema(), batch.columns().iter().map(cells).collect())
}

/// Objects of a file to search for keys before the first row: all, if all columns are passed through. At most one chunk
/// otherwise, as someone may type the stream.
fn key_scan(spec: &RowSpec) -> KeyScan {
    match spec.passthrough {
        Passthrough::All => KeyScan::All,
        Passthrough::None | Passthrough::Columns(_) => KeyScan::First(spec.chunk_rows),
    }
}
