//! What the tests of several modules need.

use std::cell::Cell;
use std::error::Error;
use std::fs;

use crate::{Encode, Format, Table, TableSpec};

/// A table of these texts.
pub(crate) fn texts(texts: &[&str]) -> Table {
    let rows: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
    read(&rows, |spec| spec)
}

/// A table with these labels, each written as JSON.
pub(crate) fn jsonl(labels: &[&str]) -> Table {
    let rows: Vec<String> = labels.iter().map(|label| format!("{{\"text\": \"x\", \"label\": {label}}}")).collect();
    read(&rows, |spec| spec.with_label("label"))
}

fn read(rows: &[String], with: impl FnOnce(TableSpec) -> TableSpec) -> Table {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), rows.join("\n")).expect("written");
    let spec = TableSpec { format: Some(Format::Jsonl), ..TableSpec::new(file.path(), "text") };
    Table::read(&with(spec)).expect("a table")
}

/// One token per letter; none for a question mark, and an error for an exclamation mark.
#[derive(Debug)]
pub(crate) struct Letters {
    name: &'static str,
    calls: Cell<usize>,
}

impl Default for Letters {
    fn default() -> Self {
        Self::named("letters")
    }
}

impl Letters {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, calls: Cell::new(0) }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.get()
    }
}

impl Encode for Letters {
    fn encode_batch(
        &self,
        texts: &[&str],
        pairs: Option<&[&str]>,
        max_length: usize,
    ) -> Result<Vec<Vec<u32>>, Box<dyn Error + Send + Sync>> {
        self.calls.set(self.calls.get() + 1);
        let encode = |(row, text): (usize, &&str)| {
            let pair = pairs.map_or("", |pairs| pairs[row]);
            let letters = text.chars().chain(pair.chars());
            if letters.clone().any(|letter| letter == '!') {
                return Err("an exclamation mark".into());
            }
            Ok(letters.filter(|letter| *letter != '?').map(u32::from).take(max_length).collect())
        };
        texts.iter().enumerate().map(encode).collect()
    }

    fn digest(&self) -> &str {
        self.name
    }
}
