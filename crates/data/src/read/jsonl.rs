use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Seek};
use std::sync::Arc;

use arrow::array::StringBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::objects::Objects;
use super::text;
use super::text_batch::{next_batch, schema_of};
use super::{BatchIter, DecodeError, Decoder, KeyScan, Projection, Source, check_columns};
use crate::dialect::{Dialect, Encoding};
use crate::json::{self, Member};

/// Greatest number of lines of a stream that are searched for keys.
const MAX_SCANNED_LINES: usize = 100;

/// Layout of the objects in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One object to a line.
    Lines,
    /// Any JSON that holds a table.
    Document,
}

/// Objects as rows. A cell is the JSON of its value as it is written, null if that is null or missing.
struct Jsonl {
    objects: Objects,
    encoding: Encoding,
    schema: SchemaRef,
}

pub(super) fn open(
    source: Source,
    encoding: Option<Encoding>,
    keys: KeyScan,
    layout: Layout,
) -> Result<Box<dyn Decoder>, DecodeError> {
    let input = |reader: Box<dyn Read + Send>| input(reader, encoding, layout);
    let mut names = Names::default();
    let (objects, encoding) = match (source, keys) {
        (Source::File(mut file), KeyScan::All) => {
            let (mut objects, _) = input(Box::new(file.try_clone()?))?;
            names.scan(&mut objects, usize::MAX, |_, _| {})?;
            file.rewind()?;
            input(Box::new(file))?
        }
        (source, keys) => {
            let (mut objects, encoding) = input(source.into_read())?;
            let limit = match keys {
                KeyScan::All => MAX_SCANNED_LINES,
                KeyScan::First(lines) => lines.clamp(1, MAX_SCANNED_LINES),
            };
            let mut scanned = VecDeque::new();
            names.scan(&mut objects, limit, |line, object| scanned.push_back((line, object.to_owned())))?;
            objects.unread(scanned);
            (objects, encoding)
        }
    };
    Ok(Box::new(Jsonl { objects, encoding, schema: schema_of(names.ordered) }))
}

fn input(
    reader: Box<dyn Read + Send>,
    encoding: Option<Encoding>,
    layout: Layout,
) -> Result<(Objects, Encoding), DecodeError> {
    let text = text::open(reader, encoding)?;
    let encoding = text.encoding;
    let objects = match layout {
        Layout::Lines => Objects::of_lines(text),
        Layout::Document => Objects::of_document(text)?,
    };
    Ok((objects, encoding))
}

#[derive(Default)]
struct Names {
    ordered: Vec<String>,
    known: HashSet<String>,
}

impl Names {
    /// Adds the keys of at most `limit` objects, and passes each object with its line to `visit`.
    fn scan(
        &mut self,
        objects: &mut Objects,
        limit: usize,
        mut visit: impl FnMut(usize, &str),
    ) -> Result<(), DecodeError> {
        for _ in 0..limit {
            let Some(object) = objects.next()? else { break };
            if let Err(error) = self.add(object) {
                return Err(objects.broken(&error));
            }
            check_columns(self.ordered.len())?;
            visit(objects.line(), objects.last());
        }
        Ok(())
    }

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
        let Some(object) = self.objects.next()? else { return Ok(false) };
        let added = cells(object, schema, objects, columns);
        added.map(|()| true).map_err(|error| self.objects.broken(&error))
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
