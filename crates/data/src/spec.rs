use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Dialect, FilterValue};

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
    /// Tab-separated, with a header. Quotation marks are text, as in the files of GLUE, or quote cells, as pandas writes them.
    Tsv,
    /// JSON: a list of objects, an object of columns, an object with one list of objects, or one object per line.
    Json,
    /// One JSON object per line.
    Jsonl,
    /// One text per line; the column is called `text`. It has no file ending.
    Lines,
}

impl Format {
    const ENDINGS: [(&'static str, Format); 8] = [
        ("parquet", Format::Parquet),
        ("arrow", Format::Arrow),
        ("feather", Format::Arrow),
        ("csv", Format::Csv),
        ("tsv", Format::Tsv),
        ("json", Format::Json),
        ("jsonl", Format::Jsonl),
        ("ndjson", Format::Jsonl),
    ];

    pub(crate) fn is_delimited(self) -> bool {
        matches!(self, Format::Csv | Format::Tsv)
    }

    /// Returns true if cells are the JSON of their values.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Format::Json | Format::Jsonl)
    }

    /// Format by the file's ending, if it is known. An ending `.gz` is ignored.
    pub fn from_path(path: &Path) -> Option<Self> {
        let name = uncompressed(path);
        let ending = name.extension()?.to_str()?.to_ascii_lowercase();
        Self::ENDINGS.into_iter().find(|(known, _)| *known == ending).map(|(_, format)| format)
    }

    /// File name without the endings of its format and of compression.
    pub fn stem(path: &Path) -> Option<&OsStr> {
        uncompressed(path).file_stem()
    }

    /// Name as serde writes it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
            Format::Lines => "lines",
        }
    }
}

/// File name without the ending `.gz`.
pub(crate) fn uncompressed(path: &Path) -> &Path {
    let is_compressed = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
    let name = if is_compressed { path.file_stem() } else { path.file_name() };
    Path::new(name.unwrap_or_default())
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
    pub filter: BTreeMap<String, FilterValue>,
    /// True if rows without a text are left out and counted; otherwise they are an error.
    pub skip_empty: bool,
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
            skip_empty: false,
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

    /// Leaves out rows without a text.
    #[must_use]
    pub fn skipping_empty(mut self) -> Self {
        self.skip_empty = true;
        self
    }

    /// Keeps only rows whose column `column` has the value `value`.
    #[must_use]
    pub fn with_filter(mut self, column: impl Into<String>, value: impl Into<FilterValue>) -> Self {
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
        assert_eq!(Format::from_path(Path::new("a.parquet/x.json.gz")), Some(Format::Json));
        assert_eq!(Format::from_path(Path::new("x.TSV.GZ")), Some(Format::Tsv));
        for none in ["x.gz", "csv.gz", ".gz", "", "x.csv.zip"] {
            assert_eq!(Format::from_path(Path::new(none)), None, "{none}");
        }
    }

    #[test]
    fn stem_has_no_ending_of_the_format() {
        let stem = |path: &str| Format::stem(Path::new(path)).map(|stem| stem.to_string_lossy().into_owned());
        assert_eq!(stem("a/reviews.csv.gz").as_deref(), Some("reviews"));
        assert_eq!(stem("my.reviews.csv").as_deref(), Some("my.reviews"));
        assert_eq!(stem("/"), None);
    }
}
