//! Tables of text.

use std::io::IsTerminal;

/// Lines of a name and a value, under headings.
#[derive(Debug, Default)]
pub struct Table(String);

impl Table {
    /// Adds a heading, after an empty line if it is not the first.
    pub fn heading(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(&styled("1", text));
        self.0.push('\n');
    }

    /// Adds a name and its value.
    pub fn line(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push_str(format!("  {name:<14} {}", value.as_ref()).trim_end());
        self.0.push('\n');
    }

    /// Adds aligned cells: the first column to the left, the others to the right.
    pub fn rows(&mut self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in rows {
            let mut line = String::from(" ");
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let cell = if column == 0 { format!(" {cell:<width$}") } else { format!("  {cell:>width$}") };
                line.push_str(&cell);
            }
            self.0.push_str(line.trim_end());
            self.0.push('\n');
        }
    }

    /// The table without the last line break.
    pub fn text(&self) -> &str {
        self.0.trim_end()
    }
}

/// Escape sequences of the styles bold, red, green and yellow.
pub(crate) static STYLES: [&str; 4] = ["\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"];
/// Escape sequence that ends a style.
pub(crate) const STYLE_END: &str = "\x1b[0m";

/// Applies a terminal style (`1` bold, `31` red, `32` green, `33` yellow) if standard output may have colours.
pub fn styled(code: &str, text: &str) -> String {
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !is_plain {
        format!("\x1b[{code}m{text}{STYLE_END}")
    } else {
        text.to_owned()
    }
}
