use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::text::{self, Lines};
use super::{Decode, Decoded, Failure, Keys, Projection, Source};
use crate::dialect::{Dialect, Encoding};
use crate::json::{self, Member};

/// No more lines of a stream say which keys there are.
const PEEK: usize = 100;

type Input = Lines<BufReader<Box<dyn Read + Send>>>;

/// One object to a line. A cell is the JSON of its value as it is written, null where that is null or missing.
struct Jsonl {
    /// Lines that were looked at, with their numbers.
    seen: VecDeque<(usize, String)>,
    lines: Input,
    encoding: Encoding,
    schema: SchemaRef,
}

pub(super) fn open(source: Source, encoding: Option<Encoding>, keys: Keys) -> Result<Box<dyn Decode>, Failure> {
    let mut seen = VecDeque::new();
    let mut names = Names::default();
    let (lines, encoding) = match (source, keys) {
        (Source::File(mut file), Keys::All) => {
            all_names(file.try_clone()?, encoding, &mut names)?;
            file.rewind()?;
            input(Box::new(file), encoding)?
        }
        (source, keys) => {
            let (mut lines, encoding) = input(source.into_read(), encoding)?;
            let most = match keys {
                Keys::All => PEEK,
                Keys::First(lines) => lines.clamp(1, PEEK),
            };
            while seen.len() < most
                && let Some(line) = next(&mut lines)?.map(str::to_owned)
            {
                names.add(&line).map_err(|error| lines.broken(json::problem(&error)))?;
                seen.push_back((lines.number, line));
            }
            (lines, encoding)
        }
    };
    let fields = names.ordered.into_iter().map(|name| Field::new(name, DataType::Utf8, true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    Ok(Box::new(Jsonl { seen, lines, encoding, schema }))
}

fn input(reader: Box<dyn Read + Send>, encoding: Option<Encoding>) -> Result<(Input, Encoding), Failure> {
    let text = text::open(reader, encoding)?;
    Ok((Lines::new(BufReader::new(text.reader)), text.encoding))
}

/// The next line that is not empty.
fn next(lines: &mut Input) -> Result<Option<&str>, Failure> {
    while lines.next()?.is_some_and(|line| line.trim().is_empty()) {}
    Ok(lines.last())
}

/// Adds the names of a whole file, all of whose lines are objects then.
fn all_names(file: File, encoding: Option<Encoding>, names: &mut Names) -> Result<(), Failure> {
    let (mut lines, _) = input(Box::new(file), encoding)?;
    while let Some(line) = next(&mut lines)? {
        let added = names.add(line);
        added.map_err(|error| lines.broken(json::problem(&error)))?;
    }
    Ok(())
}

/// The names of members, in the order in which they are met.
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

impl Decode for Jsonl {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn dialect(&self) -> Dialect {
        Dialect { delimiter: None, encoding: Some(self.encoding).filter(|encoding| *encoding != Encoding::UTF_8) }
    }

    fn batches(mut self: Box<Self>, wanted: Projection, rows: usize) -> Result<Decoded, Failure> {
        if self.schema.fields().is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let mut fields = self.schema.project(&wanted.columns)?.fields().to_vec();
        if wanted.objects {
            fields.push(Arc::new(Field::new("", DataType::Utf8, false)));
        }
        let schema = Arc::new(Schema::new(fields));
        Ok(Box::new(std::iter::from_fn(move || self.batch(&schema, wanted.objects, rows).transpose())))
    }
}

impl Jsonl {
    fn batch(&mut self, schema: &SchemaRef, objects: bool, rows: usize) -> Result<Option<RecordBatch>, Failure> {
        let mut columns: Vec<StringBuilder> = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        let mut n = 0;
        while n < rows && self.append(schema, objects, &mut columns)? {
            n += 1;
        }
        if n == 0 {
            return Ok(None);
        }
        let columns = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(n));
        Ok(Some(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?))
    }

    /// Appends the next object; whether there is one.
    fn append(&mut self, schema: &Schema, objects: bool, columns: &mut [StringBuilder]) -> Result<bool, Failure> {
        if let Some((number, line)) = self.seen.pop_front() {
            let added = cells(&line, schema, objects, columns);
            return added.map(|()| true).map_err(|error| text::broken(number, json::problem(&error)));
        }
        let Some(line) = next(&mut self.lines)? else { return Ok(false) };
        let added = cells(line, schema, objects, columns);
        added.map(|()| true).map_err(|error| self.lines.broken(json::problem(&error)))
    }
}

/// Appends the cells of a line, and the whole of it behind them if `objects` are wanted.
fn cells(line: &str, schema: &Schema, objects: bool, columns: &mut [StringBuilder]) -> Result<(), serde_json::Error> {
    // Of members with the same name the last one counts, as in Python.
    let members: HashMap<Cow<'_, str>, Member<'_>> =
        json::members(line)?.into_iter().map(|member| (member.name(), member)).collect();
    let n = columns.len() - usize::from(objects);
    for (field, column) in schema.fields().iter().zip(&mut columns[..n]) {
        column.append_option(members.get(field.name().as_str()).and_then(|member| member.cell()));
    }
    columns[n..].iter_mut().for_each(|column| column.append_value(line.trim()));
    Ok(())
}
