use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Decode, Decoded, Failure, Lines};

/// No more lines say which columns there are.
const PEEK: usize = 100;

/// One object to a line. A cell is the JSON of its value as it is written, null where that is null or missing.
struct Jsonl {
    /// The lines that were looked at, with their numbers.
    seen: VecDeque<(usize, String)>,
    lines: Lines<BufReader<Box<dyn Read + Send>>>,
    schema: SchemaRef,
}

pub(super) fn open(reader: Box<dyn Read + Send>, peek: usize) -> Result<Box<dyn Decode>, Failure> {
    let mut lines = Lines::new(BufReader::new(reader));
    let mut seen = VecDeque::new();
    let mut columns = Map::new();
    while seen.len() < peek.clamp(1, PEEK) {
        let Some(line) = lines.next()?.map(str::to_owned) else { break };
        if line.trim().is_empty() {
            continue;
        }
        let object: Map<String, Value> = serde_json::from_str(&line).map_err(|error| lines.broken(error))?;
        columns.extend(object);
        seen.push_back((lines.number, line));
    }
    let fields: Vec<Field> = columns.keys().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    Ok(Box::new(Jsonl { seen, lines, schema: Arc::new(Schema::new(fields)) }))
}

impl Decode for Jsonl {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn batches(mut self: Box<Self>, indices: Vec<usize>, rows: usize) -> Result<Decoded, Failure> {
        let schema = Arc::new(self.schema.project(&indices)?);
        if schema.fields().is_empty() && self.schema.fields().is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        Ok(Box::new(std::iter::from_fn(move || self.batch(&schema, rows).transpose())))
    }
}

impl Jsonl {
    fn batch(&mut self, schema: &SchemaRef, rows: usize) -> Result<Option<RecordBatch>, Failure> {
        let mut columns: Vec<StringBuilder> = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        let mut n = 0;
        while n < rows && self.append(schema, &mut columns)? {
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
    fn append(&mut self, schema: &Schema, columns: &mut [StringBuilder]) -> Result<bool, Failure> {
        if let Some((number, line)) = self.seen.pop_front() {
            cells(&line, schema, columns).map_err(|error| Failure::Broken(format!("line {number}: {error}").into()))?;
            return Ok(true);
        }
        loop {
            let Some(line) = self.lines.next()? else { return Ok(false) };
            if !line.trim().is_empty() {
                let result = cells(line, schema, columns);
                return result.map(|()| true).map_err(|error| self.lines.broken(error));
            }
        }
    }
}

fn cells(line: &str, schema: &Schema, columns: &mut [StringBuilder]) -> Result<(), serde_json::Error> {
    let object: HashMap<String, &RawValue> = serde_json::from_str(line)?;
    for (field, column) in schema.fields().iter().zip(columns) {
        column.append_option(object.get(field.name()).map(|value| value.get()).filter(|value| *value != "null"));
    }
    Ok(())
}
