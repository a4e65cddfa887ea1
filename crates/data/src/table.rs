use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{
    BadRow, BadRowPolicy, CellProblem, Format, Passthrough, RawLabel, ReadError, RowLocation, RowSpec, RowStream, Rows,
    TableSpec,
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
    digest: String,
}

impl Table {
    /// Reads the rows of one file.
    ///
    /// # Errors
    /// [`ReadError`] with the file, and with the row if one row is at fault.
    pub fn read(spec: &TableSpec) -> Result<Self, ReadError> {
        Self::read_files(spec, std::slice::from_ref(&spec.path))
    }

    /// Reads the rows of several files with the same columns, one after the other; `spec.path` is not used.
    ///
    /// # Errors
    /// [`ReadError`] as [`Table::read`].
    pub fn read_files(spec: &TableSpec, files: &[PathBuf]) -> Result<Self, ReadError> {
        let mut rows = TableBuilder::default();
        for (file, path) in files.iter().enumerate() {
            let format = ReadError::require_format(spec.format, path)?;
            let mut stream = RowStream::open(path, &row_spec(spec, format))?;
            for chunk in &mut stream {
                rows.append(chunk?, spec, file)?;
            }
            rows.read += stream.read();
            rows.has_columns |= stream.text_column().is_some();
        }
        if rows.texts.is_empty() {
            let conditions: Vec<String> =
                spec.filter.iter().map(|(column, value)| format!("{column} = {value}")).collect();
            let path = files.first().unwrap_or(&spec.path).clone();
            let filter = (!conditions.is_empty()).then(|| conditions.join(" and "));
            return Err(match rows.read {
                0 => ReadError::no_rows(&path, rows.has_columns),
                read => ReadError::NoRows { path, read, filter },
            });
        }
        let pairs = spec.text_pair.is_some().then_some(rows.pairs);
        let labels = spec.label.is_some().then_some(rows.labels);
        let options = (!spec.options.is_empty()).then_some(rows.options);
        let (texts, files, origins) = (rows.texts, files.into(), rows.origins);
        Ok(Self { texts, pairs, labels, options, files, origins, digest: String::new() }.with_digest())
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

    /// Hexadecimal sha256 of texts, second texts, labels and options, but not of their locations.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Table of these rows, in this order.
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
            digest: String::new(),
        };
        table.with_digest()
    }
}

fn picked<T: Clone>(all: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|&row| all[row].clone()).collect()
}

/// Row spec for training: a row without a text is an error.
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
        passthrough: Passthrough::None,
        bad_rows: BadRowPolicy::Fail,
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
    read: usize,
    has_columns: bool,
}

impl TableBuilder {
    fn append(&mut self, chunk: Rows, spec: &TableSpec, file: usize) -> Result<(), ReadError> {
        for (row, label) in chunk.labels.iter().flatten().enumerate() {
            let null = || BadRow {
                location: chunk.location(row),
                column: spec.label.clone().unwrap_or_default(),
                problem: CellProblem::Null,
            };
            self.labels.push(label.clone().ok_or_else(|| ReadError::BadRow(null()))?);
        }
        self.origins.extend(chunk.numbers.iter().map(|&number| (file, number)));
        self.texts.extend(chunk.texts);
        self.pairs.extend(chunk.pairs.into_iter().flatten());
        self.options.extend(chunk.options.into_iter().flatten());
        Ok(())
    }
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
