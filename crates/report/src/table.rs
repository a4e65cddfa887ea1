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
    /// Whether the columns are what the rows of another table are.
    turned: bool,
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
        Self { caption: caption.into(), head, rows: Vec::new(), turned: false }
    }

    /// The same with a column for each row.
    pub(crate) fn turned(self) -> Self {
        let mut columns: Vec<_> = std::iter::once(self.head).chain(self.rows).map(Vec::into_iter).collect();
        let mut row = || columns.iter_mut().map_while(Iterator::next).collect::<Vec<_>>();
        let head = row();
        let first = |mut row: Vec<Cell>| {
            row.iter_mut().take(1).for_each(|cell| cell.class = "");
            row
        };
        let rows = std::iter::from_fn(|| Some(row()).filter(|row| !row.is_empty())).map(first).collect();
        Self { caption: self.caption, head, rows, turned: !self.turned }
    }

    /// The table as HTML; nothing without rows.
    pub(crate) fn html(&self) -> String {
        if self.rows.is_empty() { String::new() } else { crate::page::render(&Markup { table: self }) }
    }
}
