use std::io::{self, BufRead};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::CellSyntax;
use super::quotes::{QuoteProblem, quote_problem};
use crate::read::DecodeError;
use crate::read::text::{LineCount, broken};

/// Records of a csv or tsv file, one at a time. Empty lines are skipped.
pub(super) struct Records<R> {
    reader: Reader,
    input: R,
    syntax: CellSyntax,
    lines: LineCount,
    /// Bytes of the last record in the file.
    raw: Vec<u8>,
    /// Its cells, concatenated, and their ends.
    output: Vec<u8>,
    ends: Vec<usize>,
    ended: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) line: usize,
    output: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Record<'a> {
    pub(super) fn len(self) -> usize {
        self.ends.len()
    }

    pub(super) fn cell(self, index: usize) -> &'a [u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.output[start..self.ends[index]]
    }
}

impl<R: BufRead> Records<R> {
    pub(super) fn new(input: R, syntax: CellSyntax) -> Self {
        let reader = ReaderBuilder::new().delimiter(syntax.delimiter.byte()).quoting(syntax.quoted).build();
        Self {
            reader,
            input,
            syntax,
            lines: LineCount::default(),
            raw: Vec::new(),
            output: vec![0; 1024],
            ends: vec![0; 32],
            ended: false,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Record<'_>>, DecodeError> {
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

    /// Reads the next record; returns its size and the number of its cells.
    fn read(&mut self, line: usize) -> Result<Option<(usize, usize)>, DecodeError> {
        let (mut size, mut cells) = (0, 0);
        while !self.ended {
            let input = fill(&mut self.input)?;
            self.ended = input.is_empty();
            // The last line may lack its end. In quotation marks a line end ends nothing.
            let bytes = if self.ended { &b"\n"[..] } else { input };
            let (result, read, written, found) =
                self.reader.read_record(bytes, &mut self.output[size..], &mut self.ends[cells..]);
            self.raw.extend_from_slice(&bytes[..read]);
            if !self.ended {
                self.lines.advance(&bytes[..read]);
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
            // The added line end is read at once, or again with more room.
            self.ended &= !matches!(result, ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull);
        }
        Ok(None)
    }

    /// Skips the rest of a line, which counts as a line of the file.
    pub(super) fn skip_line(&mut self) -> Result<(), DecodeError> {
        loop {
            let input = fill(&mut self.input)?;
            let end = input.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (n, is_skipped) = (end.map_or(input.len(), |end| end + 1), end.is_some() || input.is_empty());
            self.lines.advance(&input[..n]);
            self.input.consume(n);
            if is_skipped {
                return Ok(());
            }
        }
    }

    fn skip_empty_lines(&mut self) -> Result<(), DecodeError> {
        loop {
            let input = fill(&mut self.input)?;
            let empty = input.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
            if empty == 0 {
                return Ok(());
            }
            self.lines.advance(&input[..empty]);
            self.input.consume(empty);
        }
    }

    /// Error if quotation marks join several rows into the record that begins on `line`, as far as that is visible.
    fn check_quotes(&self, line: usize) -> Result<(), DecodeError> {
        let line_at = |offset: usize| {
            let mut lines = LineCount::default();
            lines.advance(&self.raw[..offset]);
            line + lines.line() - 1
        };
        match quote_problem(&self.raw, self.syntax) {
            None => Ok(()),
            Some(QuoteProblem::Unclosed { offset }) => {
                let problem = "the quotation mark that opens a cell there is not closed before the file ends";
                Err(broken(line_at(offset), problem))
            }
            Some(QuoteProblem::TextAfterClose { offset }) => {
                let problem = "the quotation mark that opens a cell there is closed on a later line, with text behind it; close \
                               it before, or write quotation marks in a cell twice";
                Err(broken(line_at(offset), problem))
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
