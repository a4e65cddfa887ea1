use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use serde_json::{Map, Value};

use crate::BoxError;

/// Parquet file of the lines of a `metrics.jsonl`, one JSON object each: a row for each line, texts as texts and numbers as
/// fp64, null for missing members. Nested objects become columns `outer.inner`. An incomplete last line, which a full disk
/// leaves, is ignored.
///
/// # Errors
/// Error if the file cannot be read, or a line is not an object.
pub fn metrics_parquet(path: &Path) -> Result<Vec<u8>, BoxError> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let rows = lines.map(|line| Ok(flatten(serde_json::from_str(line)?))).collect::<Result<Vec<_>, BoxError>>()?;
    let mut names: Vec<&String> = Vec::new();
    for name in rows.iter().flat_map(Map::keys) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let columns = names.into_iter().map(|name| (name.clone(), column(&rows, name)));
    // A file without lines has no columns, and a batch needs one.
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
    Ok(batch.map_or(Ok(Vec::new()), |batch| parquet_bytes(&batch))?)
}

pub(crate) fn parquet_bytes(batch: &RecordBatch) -> Result<Vec<u8>, ParquetError> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None)?;
    writer.write(batch)?;
    writer.close()?;
    Ok(bytes)
}

fn flatten(fields: Map<String, Value>) -> Map<String, Value> {
    let mut row = Map::new();
    for (name, value) in fields {
        match value {
            Value::Object(inner) => {
                row.extend(flatten(inner).into_iter().map(|(below, v)| (format!("{name}.{below}"), v)))
            }
            value => drop(row.insert(name, value)),
        }
    }
    row
}

fn column(rows: &[Map<String, Value>], name: &str) -> ArrayRef {
    let values = || rows.iter().map(|row| row.get(name));
    if values().flatten().any(Value::is_string) {
        return Arc::new(StringArray::from_iter(values().map(|value| value.and_then(Value::as_str))));
    }
    Arc::new(Float64Array::from_iter(values().map(|value| value.and_then(Value::as_f64))))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Float64Type;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    #[test]
    fn metrics_lines_become_rows_with_flat_columns() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let lines = "{\"kind\":\"step\",\"loss\":0.5}\n{\"kind\":\"evaluation\",\"metrics\":{\"f1\":0.25}}\n";
        std::fs::write(&path, lines).expect("written");
        let bytes = metrics_parquet(&path).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).expect("parquet");
        let batch = reader.build().expect("a reader").next().expect("a batch").expect("rows");
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["kind", "loss", "metrics.f1"]);
        assert_eq!(batch.column(0).as_string::<i32>().value(1), "evaluation");
        let f1 = batch.column(2).as_primitive::<Float64Type>();
        assert!(f1.is_null(0) && f1.value(1) == 0.25);
    }

    #[test]
    fn empty_metrics_make_an_empty_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "").expect("written");
        assert!(metrics_parquet(&path).expect("nothing").is_empty());
    }
}
