use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;

use crate::metrics::parquet_bytes;
use crate::write::{float_lists, text_lists};
use crate::{LabelKind, Labels, Table, WriteError};

/// Predictions for the rows of a table, in its order. Parts that a kind of labels does not have are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct PredictionRef<'a> {
    /// The index of the most probable label or option of each row.
    pub class: &'a [i64],
    /// Logits, `[rows][n_labels]`; of options, of the tags of words, or of the tokens of an answer.
    pub logits: &'a [Vec<f32>],
    /// Probabilities, in the same order.
    pub probabilities: &'a [Vec<f32>],
    /// The tag of each word, `[rows][words]`.
    pub items: &'a [Vec<i64>],
    /// Texts, `[rows]`.
    pub texts: &'a [String],
    /// Least probability of each predicted label, `[n_labels]`, if there are several; empty for one half.
    pub thresholds: &'a [f32],
}

impl<'a> PredictionRef<'a> {
    /// Joins predictions of labels or options.
    pub fn new(class: &'a [i64], logits: &'a [Vec<f32>], probabilities: &'a [Vec<f32>]) -> Self {
        Self { class, logits, probabilities, ..Self::default() }
    }

    /// Each probability of a row with true if the label is predicted.
    pub(crate) fn with_decisions(self, row: &'a [f32]) -> impl Iterator<Item = (f32, bool)> + 'a {
        let thresholds = self.thresholds.iter().copied().chain(std::iter::repeat(0.5));
        row.iter().zip(thresholds).map(|(&probability, threshold)| (probability, probability >= threshold))
    }
}

/// Parquet file with the columns `text`, `text_pair` (for pairs), `options` (for options), `label`, `predicted`, `logits`
/// and `probabilities`, a row for each row of the table. Classes and tags are written by name, options by index, numbers
/// as fp32, and several labels, logits and probabilities as lists of fixed size, one entry for each name. With options,
/// tags and texts, logits and probabilities are lists of any length.
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
    let n_predicted = match labels.kind() {
        LabelKind::Tags => predicted.items.len(),
        LabelKind::Text => predicted.texts.len(),
        LabelKind::Class | LabelKind::Value | LabelKind::Multi | LabelKind::Choice => predicted.class.len(),
    };
    for predictions in [n_predicted, predicted.logits.len(), predicted.probabilities.len(), labels.len()] {
        if predictions != rows {
            return Err(WriteError::Rows { predictions, rows, unit: "rows" });
        }
    }
    let (label, prediction) = label_columns(labels, names, predicted)?;
    let mut columns: Vec<(&str, ArrayRef)> = vec![("text", strings(table.texts().iter().map(String::as_str)))];
    if let Some(pairs) = table.pairs() {
        columns.push(("text_pair", strings(pairs.iter().map(String::as_str))));
    }
    if let Some(options) = table.options() {
        columns.push(("options", text_lists(options.iter().map(|row| row.iter().map(String::as_str).collect()))));
    }
    columns.extend([("label", label), ("predicted", prediction)]);
    let numbers = |rows: &[Vec<f32>]| match labels.kind() {
        LabelKind::Choice | LabelKind::Tags | LabelKind::Text => Ok(float_lists(rows)),
        LabelKind::Class | LabelKind::Value | LabelKind::Multi => lists(rows, names.len()),
    };
    columns.push(("logits", numbers(predicted.logits)?));
    columns.push(("probabilities", numbers(predicted.probabilities)?));
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
            let multi_hot = |row: &Vec<f32>| -> Vec<f32> {
                predicted.with_decisions(row).map(|(_, is_predicted)| f32::from(u8::from(is_predicted))).collect()
            };
            let predictions: Vec<Vec<f32>> = predicted.probabilities.iter().map(multi_hot).collect();
            (lists(hot, names.len())?, lists(&predictions, names.len())?)
        }
        Labels::Choice(options) => {
            (Arc::new(Int64Array::from(options.clone())), Arc::new(Int64Array::from(predicted.class.to_vec())))
        }
        Labels::Tags(rows) => {
            let tags = |rows: &[Vec<i64>]| text_lists(rows.iter().map(|row| row.iter().map(name).collect()));
            (tags(rows), tags(predicted.items))
        }
        Labels::Text(texts) => {
            (strings(texts.iter().map(String::as_str)), strings(predicted.texts.iter().map(String::as_str)))
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
        let predicted = PredictionRef::new(&[1, 0], &logits, &probabilities);
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
        let (logits, probabilities) = ([vec![0.0]], [vec![1.0]]);
        let predicted = PredictionRef::new(&[1], &logits, &probabilities);
        let error = predictions_parquet(&table(), &Labels::Value(vec![0.0, 1.0]), &["score".to_owned()], predicted)
            .expect_err("one prediction for two rows");
        assert_eq!(error.to_string(), "write predictions: 1 for 2 rows");
    }
}
