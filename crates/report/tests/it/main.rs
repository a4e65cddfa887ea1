//! Pages of made-up runs: whole, safe, small, and right in every number.
//!
//! `SEPAL_WRITE_PAGES=FOLDER` keeps the pages for looking at.

mod broken;
mod fixture;
mod numbers;
mod whole;

use std::path::Path;

use scraper::{Html, Selector};
use sepal_report::Run;

use crate::fixture::Made;

/// Writes a run and reads it.
fn run(name: &str, made: &Made) -> Run {
    let parent = tempfile::tempdir().expect("a folder");
    Run::read(&made.write(parent.path(), name)).expect("a run")
}

/// Keeps a page where it is asked for.
fn keep(name: &str, page: &str) {
    if let Some(folder) = std::env::var_os("SEPAL_WRITE_PAGES") {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(Path::new(&folder).join(name), page).expect("written");
    }
}

/// The page, which a browser would have nothing to say against.
fn parse(page: &str) -> Html {
    let html = Html::parse_document(page);
    assert!(html.errors.is_empty(), "{:?}", html.errors);
    html
}

/// The texts of all elements that a CSS selector finds.
fn texts(html: &Html, selector: &str) -> Vec<String> {
    let selector = Selector::parse(selector).expect("a selector");
    html.select(&selector).map(plain).collect()
}

/// An element's text, with a space for each that does not break.
fn plain(element: scraper::ElementRef<'_>) -> String {
    element.text().collect::<String>().trim().replace('\u{a0}', " ")
}

/// The cells of the row that begins with `first`, in tables whose caption begins with `caption`.
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
