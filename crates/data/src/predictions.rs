use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;

use crate::metrics::parquet_bytes;
use crate::{Labels, Table, WriteError};

/// Predictions for the rows of a table, in its order.
#[derive(Debug, Clone, Copy)]
pub struct PredictionRef<'a> {
    /// The index of the most probable label of each row.
    pub class: &'a [i64],
    /// Logits, `[rows][n_labels]`.
    pub logits: &'a [Vec<f32>],
    /// Probabilities, `[rows][n_labels]`.
    pub probabilities: &'a [Vec<f32>],
}

/// Parquet file with the columns `text`, `text_pair` (for pairs), `label`, `predicted`, `logits` and `probabilities`, a row
/// for each row of the table. Classes are written by name, numbers as fp32, and several labels, logits and probabilities
/// as lists of fixed size, one entry for each name.
///
/// # Errors
/// [`WriteError`] if the predictions are not of these rows.
pub fn predictions_parquet(
    table: &Table,
    labels: &Labels,
    names: &[String],
    predicted: PredictionRef<'_>,
) -> Result<Vec<u8>, WriteError> {
    let rows = table.len();
    for predictions in [predicted.class.len(), predicted.logits.len(), predicted.probabilities.len(), labels.len()] {
        if predictions != rows {
            return Err(WriteError::Rows { predictions, rows, unit: "rows" });
        }
    }
    let (label, prediction) = label_columns(labels, names, predicted)?;
    let mut columns: Vec<(&str, ArrayRef)> = vec![("text", strings(table.texts().iter().map(String::as_str)))];
    if let Some(pairs) = table.pairs() {
        columns.push(("text_pair", strings(pairs.iter().map(String::as_str))));
    }
    columns.extend([("label", label), ("predicted", prediction)]);
    columns.push(("logits", lists(predicted.logits, names.len())?));
    columns.push(("probabilities", lists(predicted.probabilities, names.len())?));
    Ok(parquet_bytes(&RecordBatch::try_from_iter(columns)?)?)
}

fn label_columns(
    labels: &Labels,
    names: &[String],
    predicted: PredictionRef<'_>,
) -> Result<(ArrayRef, ArrayRef), ArrowError> {
    let name = |&class: &i64| usize::try_from(class).ok().and_then(|class| names.get(class)).map_or("", String::as_str);
    Ok(match labels {
        Labels::Class(classes) => (strings(classes.iter().map(name)), strings(predicted.class.iter().map(name))),
        Labels::Value(values) => {
            let predictions = predicted.logits.iter().map(|row| row.first().copied().unwrap_or(f32::NAN));
            (Arc::new(Float32Array::from(values.clone())), Arc::new(Float32Array::from_iter_values(predictions)))
        }
        Labels::Multi(hot) => {
            let is_predicted = |row: &Vec<f32>| row.iter().map(|&p| f32::from(u8::from(p >= 0.5))).collect();
            let predictions: Vec<Vec<f32>> = predicted.probabilities.iter().map(is_predicted).collect();
            (lists(hot, names.len())?, lists(&predictions, names.len())?)
        }
    })
}

fn strings<'a>(texts: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(texts))
}

fn lists(rows: &[Vec<f32>], size: usize) -> Result<ArrayRef, ArrowError> {
    let field = Arc::new(Field::new("item", DataType::Float32, false));
    let numbers = Arc::new(Float32Array::from(rows.concat()));
    let size = i32::try_from(size).map_err(|_| ArrowError::InvalidArgumentError("too many labels".to_owned()))?;
    Ok(Arc::new(FixedSizeListArray::try_new(field, size, numbers, None)?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Float32Type;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::TableSpec;

    fn table() -> Table {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.tsv");
        std::fs::write(&path, "text\tlabel\ngood film\t1\nbad film\t0\n").expect("written");
        Table::read(&TableSpec::new(path, "text").with_label("label")).expect("a table")
    }

    #[test]
    fn predictions_keep_row_order() {
        let names = ["negative".to_owned(), "positive".to_owned()];
        let logits = [vec![0.5, 1.5], vec![2.0, -1.0]];
        let probabilities = [vec![0.25, 0.75], vec![0.95, 0.05]];
        let predicted = PredictionRef { class: &[1, 0], logits: &logits, probabilities: &probabilities };
        let labels = Labels::Class(vec![1, 1]);
        let bytes = predictions_parquet(&table(), &labels, &names, predicted).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).expect("parquet");
        let batch = reader.build().expect("a reader").next().expect("a batch").expect("rows");
        let texts = |name: &str| -> Vec<String> {
            let column = batch.column_by_name(name).expect("a column").as_string::<i32>();
            column.iter().map(|text| text.expect("not null").to_owned()).collect()
        };
        assert_eq!(texts("text"), ["good film", "bad film"]);
        assert_eq!(texts("label"), ["positive", "positive"]);
        assert_eq!(texts("predicted"), ["positive", "negative"]);
        let found = batch.column_by_name("probabilities").expect("a column").as_fixed_size_list();
        assert_eq!((found.value_length(), found.len()), (2, 2));
        assert_eq!(found.value(1).as_primitive::<Float32Type>().values(), &[0.95, 0.05]);
    }

    #[test]
    fn missing_prediction_is_refused() {
        let predicted = PredictionRef { class: &[1], logits: &[vec![0.0]], probabilities: &[vec![1.0]] };
        let error = predictions_parquet(&table(), &Labels::Value(vec![0.0, 1.0]), &["score".to_owned()], predicted)
            .expect_err("one prediction for two rows");
        assert_eq!(error.to_string(), "write predictions: 1 for 2 rows");
    }
}
