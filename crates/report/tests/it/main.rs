//! Pages of made-up runs: complete, safe, small, and with the right numbers.
//!
//! `SEPAL_WRITE_PAGES=FOLDER` saves the pages for inspection.

mod broken;
mod fixture;
mod numbers;
mod pages;
mod sweeps;

use std::path::Path;

use scraper::{Html, Selector};
use sepal_report::Run;

use crate::fixture::RunFixture;

fn run(name: &str, made: &RunFixture) -> Run {
    let parent = tempfile::tempdir().expect("a folder");
    Run::read(&made.write(parent.path(), name)).expect("a run")
}

/// Saves a page if requested.
fn save_page(name: &str, page: &str) {
    if let Some(folder) = std::env::var_os("SEPAL_WRITE_PAGES") {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(Path::new(&folder).join(name), page).expect("written");
    }
}

fn parse(page: &str) -> Html {
    let html = Html::parse_document(page);
    assert!(html.errors.is_empty(), "{:?}", html.errors);
    html
}

fn texts(html: &Html, selector: &str) -> Vec<String> {
    let selector = Selector::parse(selector).expect("a selector");
    html.select(&selector).map(plain).collect()
}

/// Text of an element with non-breaking spaces replaced.
fn plain(element: scraper::ElementRef<'_>) -> String {
    element.text().collect::<String>().trim().replace('\u{a0}', " ")
}

/// Cells of the row that begins with `first`, in tables whose caption begins with `caption`.
fn row(html: &Html, caption: &str, first: &str) -> Vec<String> {
    let (tables, captions) = (Selector::parse("table").expect("it"), Selector::parse("caption").expect("it"));
    let (rows, cells) = (Selector::parse("tbody tr").expect("it"), Selector::parse("th, td").expect("it"));
    let mut found = Vec::new();
    for table in html.select(&tables).filter(|table| table.select(&captions).any(|c| plain(c).starts_with(caption))) {
        let all = table.select(&rows).map(|row| row.select(&cells).map(plain).collect::<Vec<_>>());
        found.extend(all.filter(|row| row[0] == first));
    }
    assert_eq!(found.len(), 1, "one row of `{first}` in `{caption}`");
    found.remove(0)
}
