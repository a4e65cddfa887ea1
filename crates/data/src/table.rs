use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::folder::partitions;
use crate::rows::FoundValues;
use crate::{
    BadRow, BadRowPolicy, CellProblem, Format, Passthrough, RawLabel, ReadError, RowLocation, RowSpec, RowStream, Rows,
    SkippedRows, TableSpec,
};

/// Texts with their labels, in file order. There is at least one row, and no text is empty.
#[derive(Debug, Clone)]
pub struct Table {
    texts: Vec<String>,
    pairs: Option<Vec<String>>,
    labels: Option<Vec<RawLabel>>,
    options: Option<Vec<Vec<String>>>,
    files: Arc<[PathBuf]>,
    /// File index and data row, from 1, of each row.
    origins: Vec<(usize, usize)>,
    skipped: SkippedRows,
    /// First row after these without a text or label, at which reading ended.
    ended_by: Option<BadRow>,
    digest: String,
}

impl Table {
    /// Reads the rows of one file.
    ///
    /// A row without a text or label is an error, unless the label of a row before it, or an item of it, may be missing: an
    /// empty cell or list item, or one that is NaN. Only the kind of labels tells which row is the first, so that
    /// [`LabelSet::labels_as`](crate::LabelSet::labels_as) refuses such a table.
    ///
    /// # Errors
    /// [`ReadError`] with the file, and with the row if one row is at fault.
    pub fn read(spec: &TableSpec) -> Result<Self, ReadError> {
        Self::read_files(spec, std::slice::from_ref(&spec.path))
    }

    /// Reads the rows of several files with the same columns, one after the other. Names of folders between `spec.path` and
    /// a file are columns, if they have the form `column=value`.
    ///
    /// # Errors
    /// [`ReadError`] as [`Table::read`].
    pub fn read_files(spec: &TableSpec, files: &[PathBuf]) -> Result<Self, ReadError> {
        let mut rows = TableBuilder::default();
        'files: for (file, path) in files.iter().enumerate() {
            let format = ReadError::require_format(spec.format, path)?;
            let partitions = partitions(&spec.path, path);
            let mut stream = RowStream::open(path, &RowSpec { partitions, ..row_spec(spec, format) })?;
            for chunk in &mut stream {
                match chunk.and_then(|chunk| rows.append(chunk, spec, file)) {
                    Err(ReadError::BadRow(bad)) if !spec.skip_empty && rows.may_lack_label() => {
                        rows.ended_by = Some(bad);
                        break 'files;
                    }
                    added => added?,
                }
            }
            rows.filter_values.extend(stream.filter_values());
            rows.read += stream.read();
            rows.has_columns |= stream.text_column().is_some();
        }
        if rows.texts.is_empty() {
            let mut conditions: Vec<String> =
                spec.filter.iter().map(|(column, value)| format!("{column} = {value}")).collect();
            conditions.extend((rows.skipped.rows > 0).then(|| "a text".to_owned()));
            let path = files.first().unwrap_or(&spec.path).clone();
            let filter = (!conditions.is_empty()).then(|| conditions.join(" and "));
            return Err(match rows.read {
                0 => ReadError::no_rows(&path, rows.has_columns),
                read => ReadError::NoRows { path, read, filter, found: rows.filter_values.description() },
            });
        }
        let pairs = spec.text_pair.is_some().then_some(rows.pairs);
        let labels = spec.label.is_some().then_some(rows.labels);
        let options = (!spec.options.is_empty()).then_some(rows.options);
        let table = Self {
            texts: rows.texts,
            pairs,
            labels,
            options,
            files: files.into(),
            origins: rows.origins,
            skipped: rows.skipped,
            ended_by: rows.ended_by,
            digest: String::new(),
        };
        Ok(table.with_digest())
    }

    fn with_digest(self) -> Self {
        let digest = digest(&self.texts, self.pairs(), self.labels(), self.options());
        Self { digest, ..self }
    }

    /// Number of rows.
    #[expect(clippy::len_without_is_empty, reason = "there is always a row")]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// First texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Second texts, if a column of them was named.
    pub fn pairs(&self) -> Option<&[String]> {
        self.pairs.as_deref()
    }

    /// Labels as the file has them, if a column of them was named.
    pub fn labels(&self) -> Option<&[RawLabel]> {
        self.labels.as_deref()
    }

    /// Options of each row, if columns of them were named.
    pub fn options(&self) -> Option<&[Vec<String>]> {
        self.options.as_deref()
    }

    /// File and row that a row comes from.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn location(&self, row: usize) -> RowLocation {
        let (file, number) = self.origins[row];
        RowLocation { path: self.files[file].clone(), row: number }
    }

    /// Rows that were left out when the table was read.
    pub fn skipped(&self) -> &SkippedRows {
        &self.skipped
    }

    /// First row after these without a text or label, at which reading ended.
    pub(crate) fn ended_by(&self) -> Option<&BadRow> {
        self.ended_by.as_ref()
    }

    /// Position of a row of the table's files, in the order in which they were read.
    pub(crate) fn position(&self, location: &RowLocation) -> (usize, usize) {
        let file = self.files.iter().position(|file| *file == location.path).unwrap_or(usize::MAX);
        (file, location.row)
    }

    pub(crate) fn with_skipped(self, skipped: SkippedRows) -> Self {
        Self { skipped, ..self }
    }

    /// Hexadecimal sha256 of texts, second texts, labels and options, but not of their locations.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Table of these rows, in this order, of which none was left out.
    ///
    /// # Panics
    /// If a row does not exist or `rows` is empty.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "a table has at least one row");
        let table = Self {
            texts: picked(&self.texts, rows),
            pairs: self.pairs.as_ref().map(|pairs| picked(pairs, rows)),
            labels: self.labels.as_ref().map(|labels| picked(labels, rows)),
            options: self.options.as_ref().map(|options| picked(options, rows)),
            files: self.files.clone(),
            origins: picked(&self.origins, rows),
            skipped: SkippedRows::default(),
            ended_by: self.ended_by.clone(),
            digest: String::new(),
        };
        table.with_digest()
    }
}

fn picked<T: Clone>(all: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|&row| all[row].clone()).collect()
}

/// Row spec for training: a row without a text is an error, unless empty rows are left out.
fn row_spec(spec: &TableSpec, format: Format) -> RowSpec {
    RowSpec {
        format: Some(format),
        dialect: spec.dialect,
        text: Some(spec.text.clone()),
        text_pair: spec.text_pair.clone(),
        label: spec.label.clone(),
        options: spec.options.clone(),
        words: spec.words,
        filter: spec.filter.clone(),
        partitions: Vec::new(),
        passthrough: Passthrough::None,
        bad_rows: if spec.skip_empty { BadRowPolicy::Skip } else { BadRowPolicy::Fail },
        chunk_rows: usize::MAX,
    }
}

#[derive(Default)]
struct TableBuilder {
    texts: Vec<String>,
    pairs: Vec<String>,
    labels: Vec<RawLabel>,
    options: Vec<Vec<String>>,
    origins: Vec<(usize, usize)>,
    skipped: SkippedRows,
    ended_by: Option<BadRow>,
    filter_values: FoundValues,
    read: usize,
    has_columns: bool,
}

impl TableBuilder {
    fn append(&mut self, mut chunk: Rows, spec: &TableSpec, file: usize) -> Result<(), ReadError> {
        let mut skipped = std::mem::take(&mut chunk.skipped);
        if let Some(bad) = skipped.iter().find(|bad| !bad.problem.is_absence()) {
            return Err(ReadError::BadRow(bad.clone()));
        }
        let mut refused = None;
        let mut selected = Vec::with_capacity(chunk.len());
        for row in 0..chunk.len() {
            match problem(&chunk, row, spec) {
                None => selected.push(row),
                Some(bad) if spec.skip_empty => skipped.push(bad),
                Some(bad) => {
                    refused = Some(bad);
                    break;
                }
            }
        }
        skipped.sort_by_key(|bad| bad.location.row);
        skipped.into_iter().for_each(|bad| self.skipped.add(bad));
        for &row in &selected {
            self.origins.push((file, chunk.numbers[row]));
            self.texts.push(std::mem::take(&mut chunk.texts[row]));
            self.pairs.extend(chunk.pairs.as_mut().map(|pairs| std::mem::take(&mut pairs[row])));
            self.labels.extend(chunk.labels.as_mut().and_then(|labels| labels[row].take()));
            self.options.extend(chunk.options.as_mut().map(|options| std::mem::take(&mut options[row])));
        }
        refused.map_or(Ok(()), |bad| Err(ReadError::BadRow(bad)))
    }

    /// Returns true if a row may turn out to lack a label once the kind of labels is known.
    fn may_lack_label(&self) -> bool {
        self.labels.iter().any(RawLabel::may_be_missing)
    }
}

/// Problem of a row: a missing label or, if empty rows are left out, a blank text.
fn problem(chunk: &Rows, row: usize, spec: &TableSpec) -> Option<BadRow> {
    let bad = |column: &str, problem| BadRow { location: chunk.location(row), column: column.to_owned(), problem };
    let is_blank = |text: &String| spec.skip_empty && text.trim().is_empty();
    if is_blank(&chunk.texts[row]) {
        return Some(bad(&spec.text, CellProblem::Empty));
    }
    if chunk.pairs.as_ref().is_some_and(|pairs| is_blank(&pairs[row])) {
        return Some(bad(spec.text_pair.as_deref().unwrap_or_default(), CellProblem::Empty));
    }
    let lacks_label = chunk.labels.as_ref().is_some_and(|labels| labels[row].is_none());
    lacks_label.then(|| bad(spec.label.as_deref().unwrap_or_default(), CellProblem::Null))
}

fn digest(
    texts: &[String],
    pairs: Option<&[String]>,
    labels: Option<&[RawLabel]>,
    options: Option<&[Vec<String>]>,
) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for column in [Some(texts), pairs].into_iter().flatten() {
        add(b"texts");
        column.iter().for_each(|text| add(text.as_bytes()));
    }
    for label in labels.into_iter().flatten() {
        add(label.digest_text().as_bytes());
    }
    for options in options.into_iter().flatten() {
        add(b"options");
        options.iter().for_each(|option| add(option.as_bytes()));
    }
    hex::encode(hash.finalize())
}
