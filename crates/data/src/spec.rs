use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dialect::{Delimiter, Dialect};
use crate::{json, read};

/// The file formats that tables are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream, which it is, the file itself says; Feather is the former.
    Arrow,
    /// Comma-separated, with a header; quoted fields may hold commas and line breaks.
    Csv,
    /// Tab-separated, with a header. A quotation mark is a character like any other, as in the files of GLUE.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// One text per line; the column is called `text`. No ending means this format.
    Lines,
}

impl Format {
    /// The formats and their file endings.
    const ENDINGS: [(&'static str, Format); 7] = [
        ("parquet", Format::Parquet),
        ("arrow", Format::Arrow),
        ("feather", Format::Arrow),
        ("csv", Format::Csv),
        ("tsv", Format::Tsv),
        ("jsonl", Format::Jsonl),
        ("ndjson", Format::Jsonl),
    ];

    /// The format by the file's ending, if it is known.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Self::ENDINGS.into_iter().find(|(known, _)| *known == ending).map(|(_, format)| format)
    }

    /// The format of a stream that begins with the line `first`, if that is of a table: csv or tsv, if `column` and another
    /// one are among its cells; jsonl, if it is an object that has `column`.
    pub fn by_first_line(first: &str, column: &str) -> Option<Self> {
        let [semicolon, _, bar] = Delimiter::OTHERS;
        let dialects = [
            (Format::Csv, Delimiter::COMMA),
            (Format::Csv, semicolon),
            (Format::Csv, bar),
            (Format::Tsv, Delimiter::TAB),
        ];
        let is_header = |(format, delimiter): &(Format, Delimiter)| {
            let names = read::header(first, *format, Some(*delimiter));
            names.len() > 1 && names.iter().any(|name| name == column)
        };
        let is_object = json::members(first).is_ok_and(|members| members.iter().any(|member| member.name() == column));
        let by_cells = || dialects.into_iter().find(is_header).map(|(format, _)| format);
        if is_object { Some(Format::Jsonl) } else { by_cells() }
    }

    /// The name as it is written in a pipeline file.
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

/// Which file and which of its columns make a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The file.
    pub path: PathBuf,
    /// Its format; by the file's ending if not given.
    pub format: Option<Format>,
    /// The conventions of a text file that its format and its first bytes do not tell.
    pub dialect: Dialect,
    /// The column of texts.
    pub text: String,
    /// The column of second texts, for tasks on pairs.
    pub text_pair: Option<String>,
    /// The column of labels; none when there is only something to predict.
    pub label: Option<String>,
    /// Only rows whose column has this value are used.
    pub filter: BTreeMap<String, String>,
}

impl TableSpec {
    /// The texts of a file, without labels.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        Self {
            path,
            format: None,
            dialect: Dialect::default(),
            text,
            text_pair: None,
            label: None,
            filter: BTreeMap::new(),
        }
    }

    /// With this column of labels.
    #[must_use]
    pub fn with_label(mut self, column: impl Into<String>) -> Self {
        self.label = Some(column.into());
        self
    }

    /// With this column of second texts.
    #[must_use]
    pub fn with_pair(mut self, column: impl Into<String>) -> Self {
        self.text_pair = Some(column.into());
        self
    }

    /// With only the rows whose column `column` has the value `value`.
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
    fn the_ending_tells_the_format() {
        assert_eq!(Format::of(Path::new("a/b.c/Train.PARQUET")), Some(Format::Parquet));
        assert_eq!(Format::of(Path::new("x.feather")), Some(Format::Arrow));
        assert_eq!(Format::of(Path::new("x.txt")), None);
        assert_eq!(Format::of(Path::new("csv")), None);
    }

    #[test]
    fn a_table_is_told_from_a_text() {
        let check = |line: &str, expected| assert_eq!(Format::by_first_line(line, "review"), expected, "{line}");
        check("id,\"review\",sentiment\n", Some(Format::Csv));
        check("\u{feff}review,id\r\n", Some(Format::Csv));
        check("id\treview", Some(Format::Tsv));
        check("id;review", Some(Format::Csv));
        check("{\"id\": 1, \"review\": \"good\"}\n", Some(Format::Jsonl));
        for text in ["review", "a review, and a long one", "id,text", "", "\"review, id", "{\"text\": 1}", "{review}"] {
            check(text, None);
        }
    }
}
