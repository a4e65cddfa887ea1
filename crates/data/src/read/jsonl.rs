use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::json::ReaderBuilder;
use serde_json::{Map, Value};

use super::{Failure, project};

/// How many lines say which columns there are.
const PEEK: usize = 100;

pub(super) fn read(mut file: File, wanted: &[&str]) -> Result<Vec<RecordBatch>, Failure> {
    let found = peek(BufReader::new(&mut file))?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    file.rewind()?;
    let columns: Vec<String> = found.keys().cloned().collect();
    let fields: Vec<Field> = project(&columns, wanted)?
        .into_iter()
        .map(|index| {
            let name = &columns[index];
            let kind = match found[name] {
                Shape::Single => DataType::Utf8,
                Shape::List => DataType::new_list(DataType::Utf8, true),
                Shape::Floats => DataType::new_list(DataType::Float64, true),
            };
            Field::new(name, kind, true)
        })
        .collect();
    // Only these fields are decoded, and numbers as they are written.
    let builder = ReaderBuilder::new(Arc::new(Schema::new(fields))).with_coerce_primitive(true);
    Ok(builder.build(BufReader::new(file))?.collect::<Result<_, _>>()?)
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    Single,
    /// Lists of numbers with a decimal point.
    Floats,
    /// Lists of anything else.
    List,
}

impl Shape {
    fn of(value: &Value) -> Self {
        match value.as_array() {
            None => Shape::Single,
            Some(items) if items.iter().all(Value::is_f64) => Shape::Floats,
            Some(_) => Shape::List,
        }
    }
}

/// The columns of the first lines, each with the widest shape that it has in them.
fn peek(reader: impl BufRead) -> Result<BTreeMap<String, Shape>, Failure> {
    let mut found = BTreeMap::new();
    let mut objects = 0;
    for (number, line) in reader.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let object: Map<String, Value> = serde_json::from_str(&line)
            .map_err(|error| Failure::Broken(format!("line {}: {error}", number + 1).into()))?;
        for (name, value) in object {
            let shape = found.entry(name).or_insert(Shape::Single);
            *shape = Shape::of(&value).max(*shape);
        }
        objects += 1;
        if objects == PEEK {
            break;
        }
    }
    Ok(found)
}
