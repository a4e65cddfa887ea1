use std::io::{self, BufRead};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::Cells;
use super::quotes::{Flaw, flaw};
use crate::read::Failure;
use crate::read::text::{LineCount, broken};

/// The records of a csv or tsv file, one at a time. Empty lines are none.
pub(super) struct Records<R> {
    reader: Reader,
    input: R,
    cells: Cells,
    lines: LineCount,
    /// The last record as it stands in the file.
    raw: Vec<u8>,
    /// Its cells, one behind the other, and where they end.
    output: Vec<u8>,
    ends: Vec<usize>,
    ended: bool,
}

/// One record.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    /// The line on which it begins.
    line: usize,
    output: &'a [u8],
    ends: &'a [usize],
}

impl Record<'_> {
    /// The number of its cells.
    pub(super) fn len(self) -> usize {
        self.ends.len()
    }

    /// A problem of this record.
    pub(super) fn broken(self, problem: String) -> Failure {
        broken(self.line, problem)
    }
}

impl<'a> Record<'a> {
    /// A cell without its quotation marks.
    pub(super) fn cell(self, index: usize) -> &'a [u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.output[start..self.ends[index]]
    }
}

impl<R: BufRead> Records<R> {
    pub(super) fn new(input: R, cells: Cells) -> Self {
        let reader = ReaderBuilder::new().delimiter(cells.delimiter.byte()).quoting(cells.quoted).build();
        Self {
            reader,
            input,
            cells,
            lines: LineCount::default(),
            raw: Vec::new(),
            output: vec![0; 1024],
            ends: vec![0; 32],
            ended: false,
        }
    }

    /// The next record.
    pub(super) fn next(&mut self) -> Result<Option<Record<'_>>, Failure> {
        self.skip_empty_lines()?;
        let line = self.lines.line();
        self.raw.clear();
        let Some((size, cells)) = self.read(line)? else { return Ok(None) };
        // The last line may have no end.
        if self.lines.line() > line + usize::from(!self.ended) {
            self.check_quotes(line)?;
        }
        Ok(Some(Record { line, output: &self.output[..size], ends: &self.ends[..cells] }))
    }

    /// The size of the next record and the number of its cells.
    fn read(&mut self, line: usize) -> Result<Option<(usize, usize)>, Failure> {
        let (mut size, mut cells) = (0, 0);
        while !self.ended {
            let input = fill(&mut self.input)?;
            self.ended = input.is_empty();
            // The end of the last line, where the file has none. In quotation marks it ends nothing.
            let bytes = if self.ended { &b"\n"[..] } else { input };
            let (result, read, written, found) =
                self.reader.read_record(bytes, &mut self.output[size..], &mut self.ends[cells..]);
            self.raw.extend_from_slice(&bytes[..read]);
            if !self.ended {
                self.lines.pass(&bytes[..read]);
                self.input.consume(read);
            }
            (size, cells) = (size + written, cells + found);
            match result {
                ReadRecordResult::Record => return Ok(Some((size, cells))),
                ReadRecordResult::InputEmpty if self.ended && (size, cells) != (0, 0) => {
                    self.check_quotes(line)?;
                    return Err(broken(line, "the file ends within this row"));
                }
                ReadRecordResult::InputEmpty | ReadRecordResult::End => {}
                ReadRecordResult::OutputFull => self.output.resize(2 * self.output.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
            }
            // The line end that was added is read in one piece, or again with more room.
            self.ended &= !matches!(result, ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull);
        }
        Ok(None)
    }

    /// Goes to the first line that has a byte.
    fn skip_empty_lines(&mut self) -> Result<(), Failure> {
        loop {
            let input = fill(&mut self.input)?;
            let empty = input.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
            if empty == 0 {
                return Ok(());
            }
            self.lines.pass(&input[..empty]);
            self.input.consume(empty);
        }
    }

    /// Errors if the quotation marks of a record that begins on `line` make one of several rows, as far as can be told.
    fn check_quotes(&self, line: usize) -> Result<(), Failure> {
        let line_at = |at: usize| {
            let mut lines = LineCount::default();
            lines.pass(&self.raw[..at]);
            line + lines.line() - 1
        };
        match flaw(&self.raw, self.cells) {
            None => Ok(()),
            Some(Flaw::Open { at }) => {
                let problem = "the quotation mark that opens a cell there is not closed before the file ends";
                Err(broken(line_at(at), problem))
            }
            Some(Flaw::Reopened { at }) => {
                let problem = "the quotation mark that opens a cell there is closed on a later line, with text behind it; close \
                               it before, or write quotation marks in a cell twice";
                Err(broken(line_at(at), problem))
            }
        }
    }
}

fn fill<R: BufRead>(input: &mut R) -> io::Result<&[u8]> {
    // Twice, because a borrow that is returned in a loop lasts for all of it.
    while let Err(error) = input.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    input.fill_buf()
}
