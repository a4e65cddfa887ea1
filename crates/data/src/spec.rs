use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Dialect;

/// File format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file (Feather) or stream, by its first bytes.
    Arrow,
    /// Comma-separated, with a header; quoted fields may hold commas and line breaks.
    Csv,
    /// Tab-separated, with a header. Quotation marks are ordinary characters, as in the files of GLUE.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// One text per line; the column is called `text`. It has no file ending.
    Lines,
}

impl Format {
    const ENDINGS: [(&'static str, Format); 7] = [
        ("parquet", Format::Parquet),
        ("arrow", Format::Arrow),
        ("feather", Format::Arrow),
        ("csv", Format::Csv),
        ("tsv", Format::Tsv),
        ("jsonl", Format::Jsonl),
        ("ndjson", Format::Jsonl),
    ];

    pub(crate) fn is_delimited(self) -> bool {
        matches!(self, Format::Csv | Format::Tsv)
    }

    /// Format by the file's ending, if it is known.
    pub fn from_path(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Self::ENDINGS.into_iter().find(|(known, _)| *known == ending).map(|(_, format)| format)
    }

    /// Name as serde writes it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Jsonl => "jsonl",
            Format::Lines => "lines",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// File and columns of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The file.
    pub path: PathBuf,
    /// Its format; by the file's ending if none.
    pub format: Option<Format>,
    /// Conventions of a text file that its format and its first bytes do not tell.
    pub dialect: Dialect,
    /// The column of texts.
    pub text: String,
    /// The column of second texts, for tasks on pairs.
    pub text_pair: Option<String>,
    /// The column of labels; none for rows without labels.
    pub label: Option<String>,
    /// The columns of the options of each row, or one column of lists of them; none for rows without options.
    pub options: Vec<String>,
    /// True if the column of texts may hold lists of words, which are joined by blanks.
    pub words: bool,
    /// Values by column; rows with other values are left out.
    pub filter: BTreeMap<String, String>,
}

impl TableSpec {
    /// Spec of the texts of a file, without labels.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            format: None,
            dialect: Dialect::default(),
            text: text.into(),
            text_pair: None,
            label: None,
            options: Vec::new(),
            words: false,
            filter: BTreeMap::new(),
        }
    }

    /// Sets the column of labels.
    #[must_use]
    pub fn with_label(mut self, column: impl Into<String>) -> Self {
        self.label = Some(column.into());
        self
    }

    /// Sets the column of second texts.
    #[must_use]
    pub fn with_pair(mut self, column: impl Into<String>) -> Self {
        self.text_pair = Some(column.into());
        self
    }

    /// Sets the columns of options.
    #[must_use]
    pub fn with_options(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.options = columns.into_iter().map(Into::into).collect();
        self
    }

    /// Reads lists of words in the column of texts.
    #[must_use]
    pub fn with_words(mut self) -> Self {
        self.words = true;
        self
    }

    /// Keeps only rows whose column `column` has the value `value`.
    #[must_use]
    pub fn with_filter(mut self, column: impl Into<String>, value: impl Into<String>) -> Self {
        self.filter.insert(column.into(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_follows_the_file_ending() {
        assert_eq!(Format::from_path(Path::new("a/b.c/Train.PARQUET")), Some(Format::Parquet));
        assert_eq!(Format::from_path(Path::new("x.feather")), Some(Format::Arrow));
        assert_eq!(Format::from_path(Path::new("x.txt")), None);
        assert_eq!(Format::from_path(Path::new("csv")), None);
    }
}
