use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::sync::Arc;

use arrow::array::StringBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::text::{self, Lines};
use super::text_batch::{next_batch, schema_of};
use super::{BatchIter, DecodeError, Decoder, KeyScan, Projection, Source};
use crate::dialect::{Dialect, Encoding};
use crate::json::{self, Member};

/// Greatest number of lines of a stream that are searched for keys.
const MAX_SCANNED_LINES: usize = 100;

type Input = Lines<BufReader<Box<dyn Read + Send>>>;

/// One object to a line. A cell is the JSON of its value as it is written, null if that is null or missing.
struct Jsonl {
    /// Lines that were searched for keys and are not decoded yet, with their numbers.
    scanned: VecDeque<(usize, String)>,
    lines: Input,
    encoding: Encoding,
    schema: SchemaRef,
}

pub(super) fn open(source: Source, encoding: Option<Encoding>, keys: KeyScan) -> Result<Box<dyn Decoder>, DecodeError> {
    let mut scanned = VecDeque::new();
    let mut names = Names::default();
    let (lines, encoding) = match (source, keys) {
        (Source::File(mut file), KeyScan::All) => {
            scan_file(file.try_clone()?, encoding, &mut names)?;
            file.rewind()?;
            input(Box::new(file), encoding)?
        }
        (source, keys) => {
            let (mut lines, encoding) = input(source.into_read(), encoding)?;
            let limit = match keys {
                KeyScan::All => MAX_SCANNED_LINES,
                KeyScan::First(lines) => lines.clamp(1, MAX_SCANNED_LINES),
            };
            while scanned.len() < limit
                && let Some(line) = next_object(&mut lines)?.map(str::to_owned)
            {
                names.add(&line).map_err(|error| lines.broken(json::problem(&error)))?;
                scanned.push_back((lines.number, line));
            }
            (lines, encoding)
        }
    };
    Ok(Box::new(Jsonl { scanned, lines, encoding, schema: schema_of(names.ordered) }))
}

fn input(reader: Box<dyn Read + Send>, encoding: Option<Encoding>) -> Result<(Input, Encoding), DecodeError> {
    let text = text::open(reader, encoding)?;
    Ok((Lines::new(BufReader::new(text.reader)), text.encoding))
}

fn next_object(lines: &mut Input) -> Result<Option<&str>, DecodeError> {
    while lines.next()?.is_some_and(|line| line.trim().is_empty()) {}
    Ok(lines.last())
}

fn scan_file(file: File, encoding: Option<Encoding>, names: &mut Names) -> Result<(), DecodeError> {
    let (mut lines, _) = input(Box::new(file), encoding)?;
    while let Some(line) = next_object(&mut lines)? {
        let added = names.add(line);
        added.map_err(|error| lines.broken(json::problem(&error)))?;
    }
    Ok(())
}

#[derive(Default)]
struct Names {
    ordered: Vec<String>,
    known: HashSet<String>,
}

impl Names {
    fn add(&mut self, line: &str) -> Result<(), serde_json::Error> {
        for member in json::members(line)? {
            let name = member.name();
            if !self.known.contains(&*name) {
                self.known.insert(name.to_string());
                self.ordered.push(name.into_owned());
            }
        }
        Ok(())
    }
}

impl Decoder for Jsonl {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn dialect(&self) -> Dialect {
        Dialect { delimiter: None, encoding: self.encoding.unless_utf8() }
    }

    fn batches(mut self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError> {
        if self.schema.fields().is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let mut fields = self.schema.project(&projection.columns)?.fields().to_vec();
        if projection.objects {
            fields.push(Arc::new(Field::new("", DataType::Utf8, false)));
        }
        let schema = Arc::new(Schema::new(fields));
        let mut batch = move || next_batch(&schema, rows, |columns| self.append(&schema, projection.objects, columns));
        Ok(Box::new(std::iter::from_fn(move || batch().transpose())))
    }
}

impl Jsonl {
    fn append(&mut self, schema: &Schema, objects: bool, columns: &mut [StringBuilder]) -> Result<bool, DecodeError> {
        if let Some((number, line)) = self.scanned.pop_front() {
            let added = cells(&line, schema, objects, columns);
            return added.map(|()| true).map_err(|error| text::broken(number, json::problem(&error)));
        }
        let Some(line) = next_object(&mut self.lines)? else { return Ok(false) };
        let added = cells(line, schema, objects, columns);
        added.map(|()| true).map_err(|error| self.lines.broken(json::problem(&error)))
    }
}

/// Appends the cells of a line, and the whole line after them if `objects` is set.
fn cells(line: &str, schema: &Schema, objects: bool, columns: &mut [StringBuilder]) -> Result<(), serde_json::Error> {
    // The last one of members with the same name counts, as in Python.
    let members: HashMap<Cow<'_, str>, Member<'_>> =
        json::members(line)?.into_iter().map(|member| (member.name(), member)).collect();
    let n = columns.len() - usize::from(objects);
    for (field, column) in schema.fields().iter().zip(&mut columns[..n]) {
        column.append_option(members.get(field.name().as_str()).and_then(|member| member.cell()));
    }
    columns[n..].iter_mut().for_each(|column| column.append_value(line.trim()));
    Ok(())
}
