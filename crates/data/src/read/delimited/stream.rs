//! Tsv streams, which are read once: bytes pass until a cell begins with a quotation mark, and its row decides if marks quote
//! cells.

use std::io::{self, Read};

use super::PEEK_BYTES;
use super::quoting::QuoteScan;
use crate::dialect::Delimiter;

/// Reader of a tsv stream as one in which marks quote cells: where they are text, cells that begin with one are quoted.
pub(super) struct QuotedStream<R> {
    input: Parts<R>,
    delimiter: u8,
    marks: Marks,
    position: Position,
    /// Bytes for the caller, and the number of those that it has.
    ready: Vec<u8>,
    n_taken: usize,
}

enum Marks {
    /// No cell has begun with one.
    None(QuoteScan),
    Quote,
    Text,
}

/// Position of the next byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    CellStart,
    Cell,
    /// In a cell that begins with a mark.
    MarkedCell,
}

impl<R: Read> QuotedStream<R> {
    pub(super) fn new(input: R, delimiter: Delimiter) -> Self {
        Self {
            input: Parts { input, buffer: vec![0; PEEK_BYTES] },
            delimiter: delimiter.byte(),
            marks: Marks::None(QuoteScan::new(delimiter)),
            position: Position::CellStart,
            ready: Vec::new(),
            n_taken: 0,
        }
    }

    /// Reads the next bytes, of which there are none at the end of the stream.
    fn advance(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.input.append_to(&mut bytes)?;
        if let Marks::None(scan) = &mut self.marks {
            match decide(scan, &mut self.input, &mut bytes)? {
                Some(true) => self.marks = Marks::Quote,
                Some(false) => self.marks = Marks::Text,
                None => {}
            }
        }
        self.ready = if matches!(self.marks, Marks::Text) { self.quoted(&bytes) } else { bytes };
        self.n_taken = 0;
        if let (Marks::None(_), Some(last)) = (&self.marks, self.ready.last()) {
            self.position = if self.is_end(*last) { Position::CellStart } else { Position::Cell };
        }
        Ok(())
    }

    /// Bytes whose marks are text as bytes whose marks quote cells. No bytes end the last cell.
    fn quoted(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut quoted = Vec::with_capacity(bytes.len() + 2);
        for &byte in bytes {
            let is_end = self.is_end(byte);
            match (self.position, byte) {
                (Position::CellStart, b'"') => {
                    quoted.extend(b"\"\"");
                    self.position = Position::MarkedCell;
                }
                (Position::MarkedCell, b'"') => quoted.push(b'"'),
                (Position::MarkedCell, _) if is_end => quoted.push(b'"'),
                _ => {}
            }
            quoted.push(byte);
            match self.position {
                _ if is_end => self.position = Position::CellStart,
                Position::CellStart => self.position = Position::Cell,
                Position::Cell | Position::MarkedCell => {}
            }
        }
        if bytes.is_empty() && std::mem::replace(&mut self.position, Position::CellStart) == Position::MarkedCell {
            quoted.push(b'"');
        }
        quoted
    }

    fn is_end(&self, byte: u8) -> bool {
        byte == self.delimiter || matches!(byte, b'\n' | b'\r')
    }
}

impl<R: Read> Read for QuotedStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.n_taken == self.ready.len() {
            self.advance()?;
        }
        let n = buffer.len().min(self.ready.len() - self.n_taken);
        buffer[..n].copy_from_slice(&self.ready[self.n_taken..self.n_taken + n]);
        self.n_taken += n;
        Ok(n)
    }
}

/// Decides if marks quote cells once a cell begins with one: by the rows up to its own, so that it does not matter which bytes have arrived.
/// Reads on until this row is complete, and a row below the header, but at most [`PEEK_BYTES`].
fn decide(scan: &mut QuoteScan, input: &mut Parts<impl Read>, bytes: &mut Vec<u8>) -> io::Result<Option<bool>> {
    scan.add_undecided(bytes);
    let most = bytes.len() + PEEK_BYTES;
    while scan.has_marks() && !scan.is_decided() && bytes.len() < most {
        let before = bytes.len();
        input.append_to(bytes)?;
        if bytes.len() == before {
            return Ok(Some(scan.finish()));
        }
        scan.add_undecided(&bytes[before..]);
    }
    Ok(scan.has_marks().then(|| scan.is_quoted_so_far()))
}

/// Input that is read in parts of any size.
struct Parts<R> {
    input: R,
    buffer: Vec<u8>,
}

impl<R: Read> Parts<R> {
    /// Appends what one read returns.
    fn append_to(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        loop {
            match self.input.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(n) => {
                    bytes.extend_from_slice(&self.buffer[..n]);
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::records::{Record, Records};
    use super::super::{CellSyntax, TABS};
    use super::*;

    /// Reader that returns a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buffer.len()).min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    /// Cells of all rows.
    fn cells(text: &[u8], quoted: bool) -> Vec<Vec<String>> {
        let mut records = Records::new(text, CellSyntax { quoted, ..TABS });
        let of =
            |record: Record<'_>| (0..record.len()).map(|i| String::from_utf8_lossy(record.cell(i)).into()).collect();
        std::iter::from_fn(|| records.next().expect("a record").map(of)).collect()
    }

    fn streamed(content: &str, n_bytes: usize) -> Vec<Vec<String>> {
        let mut bytes = Vec::new();
        let mut stream = QuotedStream::new(Slow(content.as_bytes(), n_bytes), Delimiter::TAB);
        stream.read_to_end(&mut bytes).expect("read");
        cells(&bytes, true)
    }

    #[test]
    fn first_marked_row_decides() {
        let rows = "plain\t1\n".repeat(20_000);
        for (content, quoted) in [
            ("text\tlabel\n\"say \"\"hi\"\" film\"\t1\n", true),
            ("text\tlabel\n\"say \"\"hi\"\" film\"\t1", true),
            ("text\tlabel\n\"two\nlines\"\t1\n\"a\"\t0\n", true),
            ("\"text\"\t\"label\"\n\"good\"\t\"1\"\n", true),
            ("text\tlabel\n\"unbalanced\t1\nend\"\t0\n", false),
            ("text\tlabel\n\"whole\"\t1\n\"a \"\"b\"\"\"\t0\n", false),
            ("\"text\"\tlabel\nwhole\t1\n", false),
            ("text\tlabel\nend\t\"", false),
            ("text\t\"", false),
        ] {
            let late = content.replacen('\n', &format!("\n{rows}"), usize::from(!content.starts_with('"')));
            for content in [content, &late] {
                let expected = cells(content.as_bytes(), quoted);
                for n_bytes in [1, 7, 1 << 16] {
                    assert!(streamed(content, n_bytes) == expected, "{} by {n_bytes}", &content[content.len() - 20..]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn text_of_marks_is_kept(content in "([a\"]{0,3}[\t\n\r]?){0,8}") {
            let mut stream = QuotedStream::new(Slow(content.as_bytes(), 3), Delimiter::TAB);
            stream.marks = Marks::Text;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("read");
            prop_assert_eq!(cells(&bytes, true), cells(content.as_bytes(), false));
        }
    }
}
