//! Helpers of unit tests.

use std::cell::Cell;
use std::fs;

use sepal_tokenize::{Input, Tokenizer, Truncation, Windows};

use crate::{BoxError, Encode, Format, Table, TableSpec, TokenRow};

pub(crate) fn texts(texts: &[&str]) -> Table {
    let rows: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
    read(&rows, |spec| spec)
}

/// Table with these labels, each written as JSON.
pub(crate) fn jsonl(labels: &[&str]) -> Table {
    let rows: Vec<String> = labels.iter().map(|label| format!("{{\"text\": \"x\", \"label\": {label}}}")).collect();
    read(&rows, |spec| spec.with_label("label"))
}

/// Table of these rows of JSON.
pub(crate) fn json_table(rows: &[&str], with: impl FnOnce(TableSpec) -> TableSpec) -> Table {
    let rows: Vec<String> = rows.iter().map(|&row| row.to_owned()).collect();
    read(&rows, with)
}

fn read(rows: &[String], with: impl FnOnce(TableSpec) -> TableSpec) -> Table {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), rows.join("\n")).expect("written");
    let spec = TableSpec { format: Some(Format::Jsonl), ..TableSpec::new(file.path(), "text") };
    Table::read(&with(spec)).expect("a table")
}

/// Tokenizer with one token per letter, none for a question mark, and an error for an exclamation mark.
#[derive(Debug)]
pub(crate) struct Letters {
    name: &'static str,
    calls: Cell<usize>,
    tokenizer: Tokenizer,
}

impl Default for Letters {
    fn default() -> Self {
        Self::named("letters")
    }
}

impl Letters {
    pub(crate) fn named(name: &'static str) -> Self {
        let vocab: serde_json::Map<_, _> = (0..128_u8).map(|code| (char::from(code).into(), code.into())).collect();
        let definition = serde_json::json!({
            "version": "1.0", "added_tokens": [],
            "normalizer": {"type": "Replace", "pattern": {"String": "?"}, "content": ""},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
            "model": {"type": "WordLevel", "unk_token": "#", "vocab": vocab},
        });
        let tokenizer = Tokenizer::from_bytes(definition.to_string().as_bytes()).expect("a definition");
        Self { name, calls: Cell::new(0), tokenizer }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.get()
    }
}

impl Encode for Letters {
    fn encode_batch(&self, rows: &[Input<'_>], truncation: Truncation) -> Result<Vec<TokenRow>, BoxError> {
        self.calls.set(self.calls.get() + 1);
        if rows.iter().any(|row| row.first().contains('!')) {
            return Err("an exclamation mark".into());
        }
        Encode::encode_batch(&self.tokenizer, rows, truncation)
    }

    fn encode_windows(
        &self,
        rows: &[Input<'_>],
        truncation: Truncation,
        windows: Windows,
    ) -> Result<Vec<Vec<TokenRow>>, BoxError> {
        Encode::encode_windows(&self.tokenizer, rows, truncation, windows)
    }

    fn digest(&self) -> &str {
        self.name
    }
}
