//! Decides if quotation marks in a tsv file quote cells, as pandas and spreadsheets write them, or are text, as in the files
//! of GLUE.

use std::io::{self, Read};

use crate::dialect::Delimiter;
use crate::read::MAX_COLUMNS;

const BUFFER: usize = 1 << 16;

/// Scan of a text, in memory that does not grow with it.
///
/// Marks are text if a cell that begins with one is no well-formed quoted cell: a mark ends it before a delimiter or a line
/// end, and marks in it are doubled. Otherwise marks quote cells if one of these holds:
/// - Each cell of some column, with its name in the header, is in marks.
/// - A quoted cell has a doubled mark, and none has a delimiter or line break.
/// - A quoted cell has a delimiter or line break, and without quoting rows would differ in their number of cells from the
///   header.
/// - The header is one cell, of which any line is a row, and quoted cells have a line break and a doubled mark.
#[derive(Debug)]
pub(super) struct QuoteScan {
    delimiter: u8,
    position: Position,
    /// Facts about the cell that is not complete yet.
    cell: Evidence,
    /// Facts about all complete cells.
    cells: Evidence,
    /// For each cell of the header, true if all cells of its column are in marks so far.
    marked: Vec<bool>,
    in_header: bool,
    /// Cells of the current row before the current one.
    column: usize,
    lines: PlainLines,
    /// True if a cell begins with a mark.
    has_marks: bool,
    /// True if such a cell is in a complete row, or in the header before one.
    has_marked_row: bool,
    is_text: bool,
}

/// Position in a row whose cells may be quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    CellStart,
    Plain,
    Quoted,
    /// After a mark in a quoted cell, which ends the cell or is the first of a doubled one.
    Mark,
}

#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    doubled: bool,
    /// A delimiter or line break in a quoted cell.
    separated: bool,
}

impl QuoteScan {
    pub(super) fn new(delimiter: Delimiter) -> Self {
        Self {
            delimiter: delimiter.byte(),
            position: Position::CellStart,
            cell: Evidence::default(),
            cells: Evidence::default(),
            marked: Vec::new(),
            in_header: true,
            column: 0,
            lines: PlainLines::default(),
            has_marks: false,
            has_marked_row: false,
            is_text: false,
        }
    }

    /// Adds a text up to its end, or to where it is known that marks are text.
    pub(super) fn read(&mut self, reader: &mut dyn Read) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        while !self.is_text {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.add(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.is_text {
                return;
            }
            self.lines.add(byte, self.delimiter);
            self.add_byte(byte);
        }
    }

    /// Adds a text up to the end of the first row that [decides](Self::is_decided).
    pub(super) fn add_undecided(&mut self, bytes: &[u8]) {
        for byte in bytes.chunks(1) {
            if self.is_decided() {
                return;
            }
            self.add(byte);
        }
    }

    /// Returns true if marks quote cells in a text that is complete.
    pub(super) fn finish(&mut self) -> bool {
        // The last line may have no end.
        self.add(b"\n");
        self.position == Position::CellStart && self.is_quoted_so_far()
    }

    /// Returns true if a cell begins with a mark.
    pub(super) fn has_marks(&self) -> bool {
        self.has_marks
    }

    /// Returns true if marks are text, or if a complete row below the header shows what they are.
    pub(super) fn is_decided(&self) -> bool {
        self.is_text || self.has_marked_row
    }

    /// Returns true if marks quote cells in a text that may continue.
    pub(super) fn is_quoted_so_far(&self) -> bool {
        let Evidence { doubled, separated } = self.cells;
        let by_cells = if separated { self.lines.differ || (doubled && self.marked.len() == 1) } else { doubled };
        !self.is_text && (by_cells || self.marked.contains(&true))
    }

    fn add_byte(&mut self, byte: u8) {
        let is_line_end = matches!(byte, b'\n' | b'\r');
        let is_end = is_line_end || byte == self.delimiter;
        self.position = match (self.position, byte) {
            (Position::CellStart | Position::Mark, b'"') => {
                self.cell.doubled |= self.position == Position::Mark;
                self.has_marks = true;
                Position::Quoted
            }
            (Position::Quoted, b'"') => Position::Mark,
            (Position::Quoted, _) => {
                self.cell.separated |= is_end;
                Position::Quoted
            }
            // An empty line is no row.
            (Position::CellStart, _) if is_line_end && self.column == 0 => Position::CellStart,
            (position, _) if is_end => {
                self.end_cell(position == Position::Mark);
                if is_line_end {
                    self.end_row();
                }
                Position::CellStart
            }
            (Position::Mark, _) => {
                self.is_text = true;
                Position::Plain
            }
            (Position::CellStart | Position::Plain, _) => Position::Plain,
        };
    }

    fn end_cell(&mut self, is_marked: bool) {
        let Evidence { doubled, separated } = std::mem::take(&mut self.cell);
        self.cells.doubled |= doubled;
        self.cells.separated |= separated;
        if !self.in_header {
            if let Some(marked) = self.marked.get_mut(self.column) {
                *marked &= is_marked;
            }
        } else if self.marked.len() <= MAX_COLUMNS {
            self.marked.push(is_marked);
        }
        self.column += 1;
    }

    fn end_row(&mut self) {
        self.has_marked_row |= self.has_marks && !self.in_header;
        self.in_header = false;
        self.column = 0;
    }
}

/// Numbers of cells in the lines of a text without quoting.
#[derive(Debug, Default)]
struct PlainLines {
    /// Number of delimiters in the first line that is not empty.
    in_header: Option<usize>,
    delimiters: usize,
    has_bytes: bool,
    /// True if a line has another number than the first.
    differ: bool,
}

impl PlainLines {
    fn add(&mut self, byte: u8, delimiter: u8) {
        if !matches!(byte, b'\n' | b'\r') {
            self.has_bytes = true;
            self.delimiters += usize::from(byte == delimiter);
        } else if std::mem::take(&mut self.has_bytes) {
            let delimiters = std::mem::take(&mut self.delimiters);
            self.differ |= *self.in_header.get_or_insert(delimiters) != delimiters;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decisions on a complete text and on the start of a longer one.
    fn decided(content: &str) -> (bool, bool) {
        let scan = |content: &str| {
            let mut scan = QuoteScan::new(Delimiter::TAB);
            // One byte at a time: a decision is independent of the parts.
            content.as_bytes().chunks(1).for_each(|part| scan.add(part));
            scan
        };
        (scan(content).finish(), scan(content).is_quoted_so_far())
    }

    #[test]
    fn quoted_cells_of_pandas_are_found() {
        for content in [
            "text\tlabel\n\"say \"\"hi\"\" film\"\tpositive\n",
            "text\tlabel\r\nplain\t1\r\n\"two\r\nlines\"\t0\r\n",
            "text\tlabel\n\"a\tb\"\t1\n\n\"c\"\t0\n",
            "label\ttext\n1\t\"\"\"whole\"\"\"\n",
            "label\ttext\n1\t\"a\nb\"\n0\t\"c\n\nd\te\"\n",
            "text\n\"two \"\"big\"\"\nlines\"\n",
            "text\n\"two\nlines\"\n\"a \"\"b\"\"\"\n",
            "\"text\"\n\"two\nlines\"\n\"one\"\n",
            // quoting=QUOTE_ALL and QUOTE_NONNUMERIC
            "\"text\"\t\"label\"\n\"good\"\t\"1\"\n\"\"\t\"0\"\n",
            "\"text\"\t\"label\"\n\"good\"\t1\n\"bad\"\t0\n",
            "\"text\"\t\"label\"\n",
        ] {
            assert_eq!(decided(content), (true, true), "{content:?}");
        }
        assert!(decided("label\ttext\n1\t\"a \"\"b\"\"\"").0, "a last line without an end");
    }

    #[test]
    fn marks_of_glue_are_text() {
        for content in [
            "",
            "text\tlabel\n",
            "text\tlabel\n\"unbalanced , and fine \t1\n\"whole\"\t0\n",
            "text\tlabel\n\"whole\"\t0\nhe said \"\"no\"\"\t1\n",
            "text\tlabel\n\"open\t1\nhe said so\"\t0\n",
            "text\tlabel\n\"open\t1\nsay \"\"hi\"\"\t0\nend\"\t1\n",
            "text\tlabel\n\"say \"\"hi\"\" film\"\t1\n\"a\" word\t0\n",
            "\"text\"\tlabel\n\"whole\"\t1\nnone\t0\n",
            "text\n\"Good film.\nI liked it.\"\nfine\n",
            "text\n\"two\nlines\"\n\"one\"\n",
            "\"text\"\n\"two\nlines\"\nfine\n",
            "text\tlabel\n\"\"\t1\n\"\"twice\"\"\t0\n",
        ] {
            assert_eq!(decided(content), (false, false), "{content:?}");
        }
        assert!(!decided("text\tlabel\n\"a \"\"b\"\"\"\t1\n\"open\t0\n").0, "a mark that nothing closes");
    }

    #[test]
    fn incomplete_cell_decides_nothing() {
        assert_eq!(decided("text\tlabel\nplain\t1\n\"two \"\"big\"\"\nli"), (false, false));
        assert_eq!(decided("text\tlabel\n\"a \"\"b\"\"\"\t1\n\"two"), (false, true));
    }

    #[test]
    fn scan_ends_where_marks_are_text() {
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                assert!(self.0 < 3, "it goes on");
                buffer.fill(b'x');
                buffer[0] = b'"';
                buffer[1] = b'"';
                Ok(buffer.len())
            }
        }
        let mut scan = QuoteScan::new(Delimiter::TAB);
        scan.read(&mut Endless(0)).expect("read");
        assert!(!scan.finish());
    }
}
