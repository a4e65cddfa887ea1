//! HTML tables with headers.

use askama::Template;

#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) caption: String,
    pub(crate) head: Vec<Cell>,
    /// Rows; the first cell of each is its header.
    pub(crate) rows: Vec<Vec<Cell>>,
    /// True for a transposed table.
    is_transposed: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    /// Longer text, shown on hover.
    pub(crate) title: String,
    /// Class of the style sheet: `n` for numbers, `best` for the best of a column.
    pub(crate) class: &'static str,
}

impl Cell {
    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: "n", ..Self::default() }
    }

    pub(crate) fn words(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Text truncated to `limit` characters.
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
    /// Table with text in the first column and numbers in the others.
    pub(crate) fn new(caption: impl Into<String>, head: &[impl AsRef<str>]) -> Self {
        let first = head.iter().take(1).map(|name| Cell::words(name.as_ref()));
        let head = first.chain(head.iter().skip(1).map(|name| Cell::number(name.as_ref()))).collect();
        Self { caption: caption.into(), head, rows: Vec::new(), is_transposed: false }
    }

    pub(crate) fn transposed(self) -> Self {
        let mut columns: Vec<_> = std::iter::once(self.head).chain(self.rows).map(Vec::into_iter).collect();
        let mut row = || columns.iter_mut().map_while(Iterator::next).collect::<Vec<_>>();
        let head = row();
        let first = |mut row: Vec<Cell>| {
            row.iter_mut().take(1).for_each(|cell| cell.class = "");
            row
        };
        let rows = std::iter::from_fn(|| Some(row()).filter(|row| !row.is_empty())).map(first).collect();
        Self { caption: self.caption, head, rows, is_transposed: !self.is_transposed }
    }

    /// Returns the table as HTML; empty without rows.
    pub(crate) fn html(&self) -> String {
        if self.rows.is_empty() { String::new() } else { crate::page::render(&Markup { table: self }) }
    }
}
