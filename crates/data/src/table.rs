use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use sha2::{Digest, Sha256};

use crate::columns;
use crate::read::{ReadError, read};
use crate::{Format, TableSpec};

/// Texts with their labels, in file order. At least one row; no text is empty.
#[derive(Debug, Clone)]
pub struct Table {
    texts: Vec<String>,
    pairs: Option<Vec<String>>,
    labels: Option<Vec<RawLabel>>,
    files: Arc<[PathBuf]>,
    /// The file and the data row, from 1, of each row.
    origins: Vec<(usize, usize)>,
    digest: String,
}

/// A label as the file has it. What a csv or jsonl file holds is a name, digits included.
#[derive(Debug, Clone, PartialEq)]
pub enum RawLabel {
    /// A whole number, or a boolean as 0 or 1.
    Int(i64),
    /// A text.
    Name(String),
    /// A number.
    Float(f64),
    /// A list.
    Many(Vec<RawLabel>),
}

/// A row of a file, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The data row, from 1; a header does not count.
    pub row: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of {}", self.row, self.path.display())
    }
}

impl Table {
    /// The rows of one file.
    ///
    /// # Errors
    /// [`ReadError`] with the file, and the row if it is a matter of one.
    pub fn read(spec: &TableSpec) -> Result<Self, ReadError> {
        Self::read_files(spec, std::slice::from_ref(&spec.path))
    }

    /// The rows of several files with the same columns, one after the other; `spec.path` is not used.
    ///
    /// # Errors
    /// [`ReadError`] as [`Table::read`].
    pub fn read_files(spec: &TableSpec, files: &[PathBuf]) -> Result<Self, ReadError> {
        let mut rows = Rows::default();
        for (file, path) in files.iter().enumerate() {
            let format = match spec.format {
                Some(format) => format,
                None => Format::of(path).ok_or_else(|| ReadError::UnknownFormat { path: path.clone() })?,
            };
            let reader = FileRows { spec, path, file };
            let mut number = 0;
            for batch in read(path, format, &wanted(spec))? {
                reader.append(&batch, &mut number, &mut rows)?;
            }
            rows.read += number;
        }
        if rows.texts.is_empty() {
            let conditions: Vec<String> =
                spec.filter.iter().map(|(column, value)| format!("{column} = {value}")).collect();
            let path = files.first().unwrap_or(&spec.path).clone();
            let filter = (!conditions.is_empty()).then(|| conditions.join(" and "));
            return Err(ReadError::NoRows { path, read: rows.read, filter });
        }
        let pairs = spec.text_pair.is_some().then_some(rows.pairs);
        let labels = spec.label.is_some().then_some(rows.labels);
        Ok(Self::new(rows.texts, pairs, labels, files.into(), rows.origins))
    }

    fn new(
        texts: Vec<String>,
        pairs: Option<Vec<String>>,
        labels: Option<Vec<RawLabel>>,
        files: Arc<[PathBuf]>,
        origins: Vec<(usize, usize)>,
    ) -> Self {
        let digest = digest(&texts, pairs.as_deref(), labels.as_deref());
        Self { texts, pairs, labels, files, origins, digest }
    }

    /// The number of rows.
    #[expect(clippy::len_without_is_empty, reason = "there is always a row")]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// The texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The second texts, if a column of them was named.
    pub fn pairs(&self) -> Option<&[String]> {
        self.pairs.as_deref()
    }

    /// The labels as the file has them, if a column of them was named.
    pub fn labels(&self) -> Option<&[RawLabel]> {
        self.labels.as_deref()
    }

    /// Where a row comes from.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn place(&self, row: usize) -> Place {
        let (file, number) = self.origins[row];
        Place { path: self.files[file].clone(), row: number }
    }

    /// The sha256, in hex, of texts, second texts and labels; not of where they come from.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// These rows, in this order.
    ///
    /// # Panics
    /// If a row does not exist or `rows` is empty.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "a table has at least one row");
        let pick = |texts: &Vec<String>| rows.iter().map(|&row| texts[row].clone()).collect::<Vec<_>>();
        let labels = self.labels.as_ref().map(|labels| rows.iter().map(|&row| labels[row].clone()).collect());
        let origins = rows.iter().map(|&row| self.origins[row]).collect();
        Self::new(pick(&self.texts), self.pairs.as_ref().map(pick), labels, self.files.clone(), origins)
    }
}

/// The columns that are used, first the text.
fn wanted(spec: &TableSpec) -> Vec<&str> {
    let mut names = vec![spec.text.as_str()];
    names.extend(spec.text_pair.as_deref());
    names.extend(spec.label.as_deref());
    names.extend(spec.filter.keys().map(String::as_str));
    names
}

/// What has been read so far.
#[derive(Default)]
struct Rows {
    texts: Vec<String>,
    pairs: Vec<String>,
    labels: Vec<RawLabel>,
    origins: Vec<(usize, usize)>,
    read: usize,
}

/// One file on its way into a table.
struct FileRows<'a> {
    spec: &'a TableSpec,
    path: &'a Path,
    file: usize,
}

impl FileRows<'_> {
    fn append(&self, batch: &RecordBatch, number: &mut usize, rows: &mut Rows) -> Result<(), ReadError> {
        let texts = self.texts(batch, &self.spec.text)?;
        let pairs = self.spec.text_pair.as_deref().map(|name| Ok((name, self.texts(batch, name)?))).transpose()?;
        let labels = self.spec.label.as_deref().map(|name| Ok((name, self.labels(batch, name)?))).transpose()?;
        let conditions = self
            .spec
            .filter
            .iter()
            .map(|(column, value)| Ok((self.texts(batch, column)?, value)))
            .collect::<Result<Vec<_>, ReadError>>()?;
        for row in 0..batch.num_rows() {
            *number += 1;
            if !conditions.iter().all(|(column, value)| column.is_valid(row) && column.value(row) == value.as_str()) {
                continue;
            }
            rows.texts.push(self.text(&texts, &self.spec.text, row, *number)?);
            if let Some((name, pairs)) = &pairs {
                rows.pairs.push(self.text(pairs, name, row, *number)?);
            }
            if let Some((name, labels)) = &labels {
                rows.labels.push(labels[row].clone().ok_or_else(|| self.null(name, *number))?);
            }
            rows.origins.push((self.file, *number));
        }
        Ok(())
    }

    fn text(&self, column: &StringArray, name: &str, row: usize, number: usize) -> Result<String, ReadError> {
        if column.is_null(row) {
            return Err(self.null(name, number));
        }
        let text = column.value(row);
        if text.trim().is_empty() {
            return Err(ReadError::EmptyText { place: self.place(number), column: name.to_owned() });
        }
        Ok(text.to_owned())
    }

    fn texts(&self, batch: &RecordBatch, name: &str) -> Result<StringArray, ReadError> {
        let column = self.column(batch, name)?;
        columns::texts(column).ok_or_else(|| self.wrong_type(column, name, "texts"))
    }

    fn labels(&self, batch: &RecordBatch, name: &str) -> Result<Vec<Option<RawLabel>>, ReadError> {
        let column = self.column(batch, name)?;
        columns::labels(column).ok_or_else(|| self.wrong_type(column, name, "numbers, names or lists of them"))
    }

    fn column<'b>(&self, batch: &'b RecordBatch, name: &str) -> Result<&'b ArrayRef, ReadError> {
        batch.column_by_name(name).ok_or_else(|| ReadError::MissingColumn {
            path: self.path.to_owned(),
            column: name.to_owned(),
            columns: batch.schema().fields().iter().map(|field| field.name().clone()).collect(),
            nearest: None,
        })
    }

    fn wrong_type(&self, column: &ArrayRef, name: &str, expected: &'static str) -> ReadError {
        let found = column.data_type().to_string();
        ReadError::ColumnType { path: self.path.to_owned(), column: name.to_owned(), expected, found }
    }

    /// In csv and tsv files an empty cell is a null.
    fn null(&self, name: &str, number: usize) -> ReadError {
        let (place, column) = (self.place(number), name.to_owned());
        let format = self.spec.format.or_else(|| Format::of(self.path));
        let is_text = Some(name) != self.spec.label.as_deref();
        match format {
            Some(Format::Csv | Format::Tsv) if is_text => ReadError::EmptyText { place, column },
            _ => ReadError::Null { place, column },
        }
    }

    fn place(&self, number: usize) -> Place {
        Place { path: self.path.to_owned(), row: number }
    }
}

fn digest(texts: &[String], pairs: Option<&[String]>, labels: Option<&[RawLabel]>) -> String {
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
        // Debug tells all values and all kinds apart.
        add(format!("{label:?}").as_bytes());
    }
    hex::encode(hash.finalize())
}

impl fmt::Display for RawLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RawLabel::Int(number) => write!(f, "{number}"),
            RawLabel::Name(name) => f.write_str(name),
            RawLabel::Float(number) => write!(f, "{number}"),
            RawLabel::Many(items) => {
                let items: Vec<String> = items.iter().map(RawLabel::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
        }
    }
}
