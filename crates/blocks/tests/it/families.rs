//! The table of `docs/families.md`, generated from the goldens.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sepal_core::Family;

use crate::gguf::relative_errors;
use crate::goldens::{EXACT, Errors, largest_errors};
use crate::model::{Tiny, models};

const BEGIN: &str = "<!-- families: begin -->\n";
const END: &str = "<!-- families: end -->";

#[derive(Default)]
struct Row {
    models: Vec<String>,
    errors: Errors,
    /// Largest error of its GGUF files, if there are any.
    gguf: Option<f64>,
}

/// Returns one row for each family, with the measured numbers if `numbers`.
fn table(numbers: bool) -> String {
    let mut rows: BTreeMap<&str, Row> = Family::ALL.map(|family| (family.name(), Row::default())).into();
    for name in models() {
        let row = rows.entry(Tiny::open(&name).config.family.name()).or_default();
        row.errors = row.errors.max(largest_errors(&name));
        row.models.push(name);
    }
    for (name, off) in relative_errors() {
        let row = rows.entry(Tiny::open(&name).config.family.name()).or_default();
        row.gguf = Some(row.gguf.unwrap_or(0.0).max(off));
    }
    let mut text =
        "| `model_type` | tiny models | logits off by | gradients off by | GGUF |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    let verdict = |off: f64| {
        assert!(off < EXACT);
        if numbers { format!("{off:.0e}") } else { "exact".to_owned() }
    };
    for (family, row) in rows {
        assert!(!row.models.is_empty(), "{family} has no golden: make_goldens.py makes one");
        let gguf = row.gguf.map_or_else(|| "-".to_owned(), verdict);
        let (logits, grads) = (verdict(row.errors.logits), verdict(row.errors.grads));
        text += &format!("| {family} | {} | {logits} | {grads} | {gguf} |\n", row.models.join(", "));
    }
    text
}

/// Replaces measured numbers, which differ from machine to machine.
fn without_numbers(table: &str) -> String {
    let cell = |cell: &str| if cell.trim().parse::<f64>().is_ok() { " exact ".to_owned() } else { cell.to_owned() };
    let line = |line: &str| line.split('|').map(cell).collect::<Vec<_>>().join("|");
    table.lines().map(|text| line(text) + "\n").collect()
}

/// `SEPAL_WRITE_DOCS=1` rewrites the table.
#[test]
fn documented_table_of_families_is_current() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/families.md"));
    let text = std::fs::read_to_string(&path).expect("docs/families.md");
    let (before, text) = text.split_once(BEGIN).expect("the table begins");
    let (found, after) = text.split_once(END).expect("the table ends");
    if std::env::var_os("SEPAL_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table(true))).expect("written");
        return;
    }
    let expected = table(false);
    assert_eq!(without_numbers(found), expected, "docs/families.md is old: run `just families`");
}
