use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{Carry, Format, OnBadRow, ReadError, RowSpec, RowStream, Rows, TableSpec};

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
    /// A truth value.
    Bool(bool),
    /// A whole number.
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
        let mut rows = Read::default();
        for (file, path) in files.iter().enumerate() {
            let format = spec.format.or_else(|| Format::of(path));
            let format = format.ok_or_else(|| ReadError::unknown_format(path))?;
            let mut stream = RowStream::open(path, &wanted(spec, format))?;
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

/// As training reads: no row may be without a text.
fn wanted(spec: &TableSpec, format: Format) -> RowSpec {
    RowSpec {
        format: Some(format),
        dialect: spec.dialect,
        text: Some(spec.text.clone()),
        text_pair: spec.text_pair.clone(),
        label: spec.label.clone(),
        filter: spec.filter.clone(),
        carry: Carry::Nothing,
        on_bad_row: OnBadRow::Error,
        chunk_rows: usize::MAX,
    }
}

/// What has been read so far.
#[derive(Default)]
struct Read {
    texts: Vec<String>,
    pairs: Vec<String>,
    labels: Vec<RawLabel>,
    origins: Vec<(usize, usize)>,
    read: usize,
    has_columns: bool,
}

impl Read {
    fn append(&mut self, chunk: Rows, spec: &TableSpec, file: usize) -> Result<(), ReadError> {
        for (row, label) in chunk.labels.iter().flatten().enumerate() {
            let column = || spec.label.clone().unwrap_or_default();
            let label = label.clone().ok_or_else(|| ReadError::Null { place: chunk.place(row), column: column() })?;
            self.labels.push(label);
        }
        self.origins.extend(chunk.numbers.iter().map(|&number| (file, number)));
        self.texts.extend(chunk.texts);
        self.pairs.extend(chunk.pairs.into_iter().flatten());
        Ok(())
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
        add(hashed(label).as_bytes());
    }
    hex::encode(hash.finalize())
}

/// A text that tells all values and all kinds apart. A truth value has that of the number that stood for it when digests
/// were first made, so that they stay as they were.
fn hashed(label: &RawLabel) -> String {
    match label {
        RawLabel::Bool(truth) => hashed(&RawLabel::Int(i64::from(*truth))),
        RawLabel::Many(items) => format!("Many([{}])", items.iter().map(hashed).collect::<Vec<_>>().join(", ")),
        other => format!("{other:?}"),
    }
}

impl fmt::Display for RawLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RawLabel::Bool(truth) => write!(f, "{truth}"),
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
