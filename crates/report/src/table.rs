//! Tables with headers.

use askama::Template;

/// A table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// What it shows, for its caption.
    pub(crate) caption: String,
    /// Headers of the columns.
    pub(crate) head: Vec<Cell>,
    /// Rows of as many cells; the first of each is its header.
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    /// What it says.
    pub(crate) text: String,
    /// More of it, shown when pointed at.
    pub(crate) title: String,
    /// `n` for numbers, `best` for what is best of its column.
    pub(crate) class: &'static str,
}

impl Cell {
    /// A number, or what stands for one.
    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: "n", ..Self::default() }
    }

    /// Words.
    pub(crate) fn words(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Words of which only the first `limit` characters are shown.
    pub(crate) fn cut(text: &str, limit: usize) -> Self {
        let shown = crate::text::cut(text, limit);
        let title = if shown == text { String::new() } else { crate::text::cut(text, 120) };
        Self { text: shown, title, class: "" }
    }
}

#[derive(Template)]
#[template(path = "table.html")]
struct Markup<'a> {
    table: &'a Table,
}

impl Table {
    /// A table of columns with words first and numbers after.
    pub(crate) fn new(caption: impl Into<String>, head: &[&str]) -> Self {
        let first = head.iter().take(1).map(|&name| Cell::words(name));
        let head = first.chain(head.iter().skip(1).map(|&name| Cell::number(name))).collect();
        Self { caption: caption.into(), head, rows: Vec::new() }
    }

    /// The table as HTML; nothing without rows.
    pub(crate) fn html(&self) -> String {
        if self.rows.is_empty() { String::new() } else { crate::page::render(&Markup { table: self }) }
    }
}
