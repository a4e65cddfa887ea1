//! The table of `docs/families.md`, made of what the goldens give.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sepal_core::Family;

use crate::gguf::distances;
use crate::goldens::{EXACT, Off, worst};
use crate::model::{Tiny, models};

const BEGIN: &str = "<!-- families: begin -->\n";
const END: &str = "<!-- families: end -->";

/// What is known of one family.
#[derive(Default)]
struct Row {
    models: Vec<String>,
    off: Off,
    /// Of its GGUF files, if there are any.
    gguf: Option<f64>,
}

/// One row for each family; `numbers` writes what was measured.
fn table(numbers: bool) -> String {
    let mut rows: BTreeMap<&str, Row> = Family::ALL.map(|family| (family.name(), Row::default())).into();
    for name in models() {
        let row = rows.entry(Tiny::open(&name).config.family.name()).or_default();
        row.off = row.off.or(worst(&name));
        row.models.push(name);
    }
    for (name, off) in distances() {
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
        let (logits, grads) = (verdict(row.off.logits), verdict(row.off.grads));
        text += &format!("| {family} | {} | {logits} | {grads} | {gguf} |\n", row.models.join(", "));
    }
    text
}

/// Numbers differ from machine to machine; what must not differ is which families are exact in what.
fn without_numbers(table: &str) -> String {
    let cell = |cell: &str| if cell.trim().parse::<f64>().is_ok() { " exact ".to_owned() } else { cell.to_owned() };
    let line = |line: &str| line.split('|').map(cell).collect::<Vec<_>>().join("|");
    table.lines().map(|text| line(text) + "\n").collect()
}

/// `SEPAL_WRITE_DOCS=1` writes the table anew.
#[test]
fn the_table_of_families_is_true() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/families.md"));
    let text = std::fs::read_to_string(&path).expect("docs/families.md");
    let (before, rest) = text.split_once(BEGIN).expect("the table begins");
    let (found, after) = rest.split_once(END).expect("the table ends");
    if std::env::var_os("SEPAL_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table(true))).expect("written");
        return;
    }
    let expected = table(false);
    assert_eq!(without_numbers(found), expected, "docs/families.md is old: run `just families`");
}
