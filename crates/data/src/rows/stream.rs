use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Schema, SchemaRef};

use super::{BadRow, Carry, CellProblem, Chosen, Form, Layout, OnBadRow, RowSpec, Rows, choose};
use crate::read::{Batches, Keys, Open, Opened, Projection, Source, open};
use crate::{Format, Place, RawLabel, ReadError, columns};

/// The rows of a file or stream, in chunks. No more than one chunk is held, or one batch of an arrow file, whose
/// batches are as large as its writer made them.
///
/// An iterator; after an error it ends.
pub struct RowStream {
    path: Arc<Path>,
    format: Format,
    on_bad_row: OnBadRow,
    columns: Option<Columns>,
    batches: Batches,
    /// A batch that was read to choose the column of texts.
    first: Option<RecordBatch>,
    /// An error that comes after the rows before it.
    waiting: Option<ReadError>,
    ended: bool,
    read: usize,
    skipped: usize,
}

/// A column and its place in the batches.
struct Column {
    name: String,
    index: usize,
}

/// The columns that are used.
struct Columns {
    text: Column,
    chosen: Chosen,
    pair: Option<Column>,
    label: Option<Column>,
    filter: Vec<(Column, String)>,
    /// The places of what is carried in the batches.
    carried: Vec<usize>,
    carried_schema: SchemaRef,
    form: Form,
}

impl RowStream {
    /// The rows of a file.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be opened, or has not the columns that are asked for.
    pub fn open(path: &Path, spec: &RowSpec) -> Result<Self, ReadError> {
        let by_ending = || if has_ending(path, "txt") { Some(Format::Lines) } else { Format::of(path) };
        let format = spec.format.or_else(by_ending);
        let format = format.ok_or_else(|| ReadError::unknown_format(path))?;
        let opened = |keys| Self::new(Source::open(path)?, path, format, spec, keys);
        match opened(keys(spec)) {
            // The first lines of a jsonl file need not have all keys.
            Err(ReadError::MissingColumn { .. }) if format == Format::Jsonl && path.is_file() => opened(Keys::All),
            opened => opened,
        }
    }

    /// The rows of a stream, such as standard input, which messages call `name`. Its format is csv, tsv, jsonl or
    /// lines; `spec.format` is not used.
    ///
    /// # Errors
    /// [`ReadError`] if it has not the columns that are asked for, or the format is one of files.
    pub fn from_reader(
        reader: impl Read + Send + 'static,
        name: &str,
        format: Format,
        spec: &RowSpec,
    ) -> Result<Self, ReadError> {
        Self::new(Source::Stream(Box::new(reader)), Path::new(name), format, spec, keys(spec))
    }

    fn new(source: Source, path: &Path, format: Format, spec: &RowSpec, keys: Keys) -> Result<Self, ReadError> {
        let opened = open(source, path, format, Open { dialect: spec.dialect, keys })?;
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
            on_bad_row: spec.on_bad_row,
            columns,
            batches,
            first,
            waiting: None,
            ended: false,
            read: 0,
            skipped: 0,
        })
    }

    /// The column of texts and how it was found. `None` if there is no column at all, and so no row.
    pub fn text_column(&self) -> Option<(&str, Chosen)> {
        self.columns.as_ref().map(|columns| (columns.text.name.as_str(), columns.chosen))
    }

    /// The columns that its rows have, for a writer.
    pub fn layout(&self) -> Layout {
        let columns = self.columns.as_ref();
        Layout {
            label: columns.is_some_and(|columns| columns.label.is_some()),
            carried: columns.map_or_else(|| Arc::new(Schema::empty()), |c| c.carried_schema.clone()),
            form: columns.map_or(Form::Arrow, |columns| columns.form),
        }
    }

    /// The rows that were read so far, with those that a filter or a problem kept out.
    pub fn read(&self) -> usize {
        self.read
    }

    /// The rows that were skipped so far.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The error of a stream that has ended without a row: whether it was empty, or had columns.
    pub fn no_rows(&self) -> ReadError {
        // Lines have a column whether there are any or not.
        ReadError::no_rows(&self.path, self.columns.is_some() && self.format != Format::Lines)
    }

    fn batch(&mut self) -> Option<Result<RecordBatch, ReadError>> {
        self.first.take().map(Ok).or_else(|| self.batches.next())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Rows, ReadError> {
        let Some(columns) = &self.columns else { return Err(self.no_rows()) };
        let cells = Cells { path: &self.path, format: self.format, before: self.read, batch };
        let texts = cells.texts(&columns.text)?;
        let pairs = columns.pair.as_ref().map(|pair| cells.texts(pair)).transpose()?;
        let labels = columns.label.as_ref().map(|label| cells.labels(label)).transpose()?;
        let (mut kept, mut skipped) = (Vec::new(), Vec::new());
        for row in cells.filtered(&columns.filter)? {
            let pair = || cells.problem(columns.pair.as_ref()?, pairs.as_ref()?, row);
            match cells.problem(&columns.text, &texts, row).or_else(pair) {
                None => kept.push(row),
                Some(bad) if self.on_bad_row == OnBadRow::Skip => skipped.push(bad),
                Some(bad) => {
                    self.waiting = Some(bad.into());
                    break;
                }
            }
        }
        let pick = |texts: &StringArray| kept.iter().map(|&row| texts.value(row).to_owned()).collect::<Vec<_>>();
        let rows = Rows {
            texts: pick(&texts),
            pairs: pairs.as_ref().map(pick),
            labels: labels.map(|labels| kept.iter().map(|&row| labels[row].clone()).collect()),
            numbers: kept.iter().map(|row| self.read + row + 1).collect(),
            carried: cells.carried(&columns.carried, &kept)?,
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
            if let Some(error) = self.waiting.take() {
                self.ended = true;
                return Some(Err(error));
            }
            if self.ended {
                return None;
            }
            let rows = self.batch()?.and_then(|batch| self.rows(&batch));
            self.ended = rows.is_err();
            match rows {
                // The filter left nothing.
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
    /// The columns, their batches, and the first of those if it was needed to choose.
    fn find(
        opened: Opened,
        path: &Path,
        format: Format,
        spec: &RowSpec,
    ) -> Result<(Self, Batches, Option<RecordBatch>), ReadError> {
        let schema = opened.schema();
        let wanted = Wanted::find(&opened, spec)?;
        let form = match (format, &spec.carry) {
            (Format::Jsonl, Carry::All) => Form::Objects,
            (Format::Jsonl, _) => Form::Json,
            _ => Form::Arrow,
        };
        let projection = |columns: &[usize]| Projection { columns: columns.to_vec(), objects: form == Form::Objects };
        let named = match &spec.text {
            Some(name) => Some((opened.find(name)?, Chosen::Named)),
            None => choose::by_name(&schema, &wanted.others),
        };
        let (text, chosen, used, batches, first) = match named {
            Some((text, chosen)) => {
                let used = wanted.used(text, form);
                let batches = opened.batches(projection(&used), spec.chunk_rows)?;
                (text, chosen, used, batches, None)
            }
            None => {
                let all: Vec<usize> = (0..schema.fields().len()).collect();
                let mut batches = opened.batches(projection(&all), spec.chunk_rows)?;
                let first = batches.next().transpose()?;
                let text = choose::by_content(&schema, &wanted.others, first.as_ref(), format == Format::Jsonl, path)?;
                (text, Chosen::Only, all, batches, first)
            }
        };
        let name = schema.field(text).name();
        if schema.fields().iter().filter(|field| field.name() == name).nth(1).is_some() {
            return Err(ReadError::AmbiguousColumn { path: path.to_owned(), column: name.clone() });
        }
        // Where a column of the file is in the batches.
        let place = |index: usize| used.partition_point(|&used| used < index);
        let column = |index: usize| Column { name: schema.field(index).name().clone(), index: place(index) };
        let columns = Self {
            text: column(text),
            chosen,
            pair: wanted.pair.map(column),
            label: wanted.label.map(column),
            filter: wanted.filter.iter().map(|&index| column(index)).zip(spec.filter.values().cloned()).collect(),
            carried_schema: Arc::new(
                schema.project(&wanted.carried).map_err(|error| ReadError::broken(path, format, error))?,
            ),
            carried: match form {
                // Behind the columns.
                Form::Objects => vec![used.len()],
                Form::Arrow | Form::Json => wanted.carried.into_iter().map(place).collect(),
            },
            form,
        };
        Ok((columns, batches, first))
    }
}

/// Places of columns in a file, but for that of the texts.
struct Wanted {
    pair: Option<usize>,
    label: Option<usize>,
    filter: Vec<usize>,
    /// All but second texts and labels.
    others: Vec<usize>,
    carried: Vec<usize>,
}

impl Wanted {
    fn find(opened: &Opened, spec: &RowSpec) -> Result<Self, ReadError> {
        let find = |name: &String| opened.find(name);
        let pair = spec.text_pair.as_ref().map(find).transpose()?;
        let label = spec.label.as_ref().map(find).transpose()?;
        let all = 0..opened.schema().fields().len();
        let carried = match &spec.carry {
            Carry::Nothing => Vec::new(),
            Carry::Columns(names) => names.iter().map(find).collect::<Result<_, _>>()?,
            Carry::All => all.clone().collect(),
        };
        Ok(Self {
            pair,
            label,
            filter: spec.filter.keys().map(find).collect::<Result<_, _>>()?,
            others: all.filter(|index| ![pair, label].contains(&Some(*index))).collect(),
            carried,
        })
    }

    /// All columns that are decoded, in the file's order.
    fn used(&self, text: usize, form: Form) -> Vec<usize> {
        let mut used: Vec<usize> = [Some(text), self.pair, self.label].into_iter().flatten().collect();
        used.extend(&self.filter);
        if form != Form::Objects {
            used.extend(&self.carried);
        }
        used.sort_unstable();
        used.dedup();
        used
    }
}

/// A batch and what it is of.
struct Cells<'a> {
    path: &'a Path,
    format: Format,
    /// The rows that came before.
    before: usize,
    batch: &'a RecordBatch,
}

impl Cells<'_> {
    fn texts(&self, column: &Column) -> Result<StringArray, ReadError> {
        let cells = self.batch.column(column.index);
        let texts = if self.is_json() { columns::json_texts(cells) } else { columns::texts(cells) };
        texts.ok_or_else(|| self.wrong_type(column, cells, "texts"))
    }

    fn labels(&self, column: &Column) -> Result<Vec<Option<RawLabel>>, ReadError> {
        let cells = self.batch.column(column.index);
        let labels = if self.is_json() { columns::json_labels(cells) } else { columns::labels(cells) };
        let labels = labels.ok_or_else(|| self.wrong_type(column, cells, "numbers, names or lists of them"))?;
        // An empty cell is a null to the decoder. It may stand for no label of several.
        let empty = matches!(self.format, Format::Csv | Format::Tsv).then(|| RawLabel::Name(String::new()));
        Ok(labels.into_iter().map(|label| label.or_else(|| empty.clone())).collect())
    }

    /// The rows that a filter leaves.
    fn filtered(&self, filter: &[(Column, String)]) -> Result<Vec<usize>, ReadError> {
        let conditions = filter.iter().map(|(column, value)| Ok((self.texts(column)?, value.as_str())));
        let conditions = conditions.collect::<Result<Vec<_>, ReadError>>()?;
        let holds =
            |row: &usize| conditions.iter().all(|(cells, value)| cells.is_valid(*row) && cells.value(*row) == *value);
        Ok((0..self.batch.num_rows()).filter(holds).collect())
    }

    /// What is wrong with the text of a row, if anything.
    fn problem(&self, column: &Column, texts: &StringArray, row: usize) -> Option<BadRow> {
        let problem = match texts.is_valid(row) {
            true if texts.value(row).is_empty() => CellProblem::Empty,
            true => return None,
            false if self.is_json() && self.batch.column(column.index).is_valid(row) => CellProblem::NotText,
            // An empty cell is a null to the decoder.
            false if matches!(self.format, Format::Csv | Format::Tsv) => CellProblem::Empty,
            false => CellProblem::Null,
        };
        let place = Place { path: self.path.to_owned(), row: self.before + row + 1 };
        Some(BadRow { place, column: column.name.clone(), problem })
    }

    fn carried(&self, columns: &[usize], rows: &[usize]) -> Result<RecordBatch, ReadError> {
        if columns.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
        }
        let rows: UInt32Array = rows.iter().map(|&row| row as u32).collect();
        let carried = self.batch.project(columns).and_then(|batch| take_record_batch(&batch, &rows));
        carried.map_err(|error| ReadError::broken(self.path, self.format, error))
    }

    fn is_json(&self) -> bool {
        self.format == Format::Jsonl
    }

    fn wrong_type(&self, column: &Column, cells: &ArrayRef, expected: &'static str) -> ReadError {
        let found = if self.is_json() { "objects".to_owned() } else { cells.data_type().to_string() };
        ReadError::ColumnType { path: self.path.to_owned(), column: column.name.clone(), expected, found }
    }
}

/// The lines of a jsonl file that are looked at before any is given: all, if what is carried has to be known. A stream that
/// waited for more than a chunk would keep someone waiting who types it.
fn keys(spec: &RowSpec) -> Keys {
    match spec.carry {
        Carry::All => Keys::All,
        Carry::Nothing | Carry::Columns(_) => Keys::First(spec.chunk_rows),
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}
