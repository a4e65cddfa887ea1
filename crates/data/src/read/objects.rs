//! Objects of a JSON file or of JSON lines, one at a time, each in one line.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};

use super::DecodeError;
use super::document;
use super::text::{LineCount, Lines, Text, broken, not_utf8};
use crate::json;

type Input = BufReader<Box<dyn Read + Send>>;

/// Objects in the order of the file.
pub(super) struct Objects {
    /// Objects that were read before, with their lines.
    pending: VecDeque<(usize, String)>,
    source: Source,
    object: String,
    /// Line in which the last object begins, from 1.
    line: usize,
}

enum Source {
    Lines(Lines<Input>),
    Elements(Elements),
    End,
}

impl Objects {
    /// One object to a line.
    pub(super) fn of_lines(text: Text) -> Self {
        Self::new(VecDeque::new(), Source::Lines(Lines::new(BufReader::new(text.reader))))
    }

    /// The elements of a list, the rows of an object of columns, or one object to a line.
    pub(super) fn of_document(text: Text) -> Result<Self, DecodeError> {
        let mut input = BufReader::new(text.reader);
        let mut lines = LineCount::default();
        match significant(&mut input, &mut lines)? {
            None => Ok(Self::new(VecDeque::new(), Source::End)),
            Some(b'[') => {
                consume(&mut input, &mut lines);
                let bytes = Vec::new();
                let elements = Elements { input, lines, start: 1, bytes, is_first: true, is_closed: false };
                Ok(Self::new(VecDeque::new(), Source::Elements(elements)))
            }
            Some(_) => Self::of_object(Lines::starting_at(input, lines.line())),
        }
    }

    /// Objects of a text that begins with one: one object to a line, if the first line is one and another line follows.
    fn of_object(mut lines: Lines<Input>) -> Result<Self, DecodeError> {
        let first = next_line(&mut lines)?.map(str::to_owned).unwrap_or_default();
        let first_line = lines.number;
        let second = next_line(&mut lines)?.map(str::to_owned);
        match second {
            Some(second) if json::members(&first).is_ok() => {
                let pending = VecDeque::from([(first_line, first), (lines.number, second)]);
                Ok(Self::new(pending, Source::Lines(lines)))
            }
            second => {
                let mut document = first;
                let mut next = second;
                while let Some(line) = next {
                    document.push('\n');
                    document.push_str(&line);
                    next = lines.next()?.map(str::to_owned);
                }
                let rows = document::rows(document)
                    .map_err(|(line, problem)| broken(first_line + line.saturating_sub(1), problem))?;
                Ok(Self::new(rows.into_iter().map(|row| (first_line, row)).collect(), Source::End))
            }
        }
    }

    fn new(pending: VecDeque<(usize, String)>, source: Source) -> Self {
        Self { pending, source, object: String::new(), line: 0 }
    }

    /// The next object; `None` at the end. It may be any text, unless it is an element of a list.
    pub(super) fn next(&mut self) -> Result<Option<&str>, DecodeError> {
        let next = match (self.pending.pop_front(), &mut self.source) {
            (Some((line, object)), _) => {
                (self.object, self.line) = (object, line);
                return Ok(Some(&self.object));
            }
            (None, Source::Lines(lines)) => next_line(lines)?.map(str::to_owned).map(|object| (lines.number, object)),
            (None, Source::Elements(elements)) => {
                elements.next()?.map(str::to_owned).map(|object| (elements.start, object))
            }
            (None, Source::End) => None,
        };
        let Some((line, object)) = next else { return Ok(None) };
        (self.object, self.line) = (object, line);
        Ok(Some(&self.object))
    }

    /// Returns objects to the front.
    pub(super) fn unread(&mut self, objects: VecDeque<(usize, String)>) {
        self.pending = objects.into_iter().chain(self.pending.drain(..)).collect();
    }

    /// The last object.
    pub(super) fn last(&self) -> &str {
        &self.object
    }

    /// Line in which the last object begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Error about the last object.
    pub(super) fn broken(&self, error: &serde_json::Error) -> DecodeError {
        let problem = json::problem(error);
        match self.source {
            Source::Elements(_) => {
                broken(self.line, format!("the object that begins there is no valid JSON: {problem}"))
            }
            Source::Lines(_) | Source::End => broken(self.line, problem),
        }
    }
}

fn next_line(lines: &mut Lines<Input>) -> Result<Option<&str>, DecodeError> {
    while lines.next()?.is_some_and(|line| line.trim().is_empty()) {}
    Ok(lines.last())
}

/// Objects of a list.
struct Elements {
    input: Input,
    /// Lines before the next byte.
    lines: LineCount,
    /// Line in which the last object begins.
    start: usize,
    bytes: Vec<u8>,
    is_first: bool,
    is_closed: bool,
}

impl Elements {
    fn next(&mut self) -> Result<Option<&str>, DecodeError> {
        if self.is_closed || !self.advance()? {
            return Ok(None);
        }
        self.start = self.lines.line();
        self.bytes.clear();
        self.read_object()?;
        json::replace_line_ends(&mut self.bytes);
        let object = str::from_utf8(&self.bytes);
        Ok(Some(object.map_err(|error| not_utf8(self.start, &self.bytes, error))?))
    }

    /// Goes to the start of the next object. Returns false at the end of the list.
    fn advance(&mut self) -> Result<bool, DecodeError> {
        let is_first = std::mem::take(&mut self.is_first);
        let mut found = significant(&mut self.input, &mut self.lines)?;
        if found == Some(b']') {
            consume(&mut self.input, &mut self.lines);
            self.is_closed = true;
            return match significant(&mut self.input, &mut self.lines)? {
                None => Ok(false),
                Some(_) => Err(self.problem("text follows the end of the list")),
            };
        }
        if !is_first && found == Some(b',') {
            consume(&mut self.input, &mut self.lines);
            found = significant(&mut self.input, &mut self.lines)?;
        } else if !is_first && found.is_some() {
            return Err(self.problem("expected `,` or `]` after an object of the list"));
        }
        match found {
            Some(b'{') => Ok(true),
            Some(_) => Err(self.problem("expected an object in the list")),
            None => Err(self.problem("the list is not closed before the file ends")),
        }
    }

    /// Reads up to the brace that closes an object.
    fn read_object(&mut self) -> Result<(), DecodeError> {
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        loop {
            let buffer = fill(&mut self.input)?;
            if buffer.is_empty() {
                return Err(broken(self.start, "the object that begins there is not closed before the file ends"));
            }
            let mut end = None;
            for (i, &byte) in buffer.iter().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = quoted,
                    b'"' => quoted = !quoted,
                    b'{' | b'[' if !quoted => depth += 1,
                    b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if depth == 0 {
                    end = Some(i + 1);
                    break;
                }
            }
            let n = end.unwrap_or(buffer.len());
            self.bytes.extend_from_slice(&buffer[..n]);
            self.lines.advance(&buffer[..n]);
            self.input.consume(n);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn problem(&self, problem: &str) -> DecodeError {
        broken(self.lines.line(), problem)
    }
}

/// The next byte that is no white space, which is not consumed.
fn significant(input: &mut Input, lines: &mut LineCount) -> Result<Option<u8>, DecodeError> {
    loop {
        let buffer = fill(input)?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let found = buffer.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
        let n = found.unwrap_or(buffer.len());
        let byte = buffer.get(n).copied();
        lines.advance(&buffer[..n]);
        input.consume(n);
        if byte.is_some() {
            return Ok(byte);
        }
    }
}

/// Consumes a byte that [`significant`] returned.
fn consume(input: &mut Input, lines: &mut LineCount) {
    lines.advance(b" ");
    input.consume(1);
}

fn fill(input: &mut Input) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    Ok(input.buffer())
}
