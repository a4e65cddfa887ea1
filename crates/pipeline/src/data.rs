//! Rows of a run beside its batches: calibration texts and files of predictions.

use sepal_core::{Labels, RowForm, Task, TokenBatch};
use sepal_data::{EncodedRow, RowEncoder, RowTexts, Table, Template};
use sepal_plugin::{Prediction, TaskHead};
use sepal_prepare::PreparedData;
use sepal_tokenize::{Tokenizer, Truncation};
use sepal_track::RunFolder;

use crate::error::{BoxError, DataError, RecordError};

/// Writes `predictions.parquet`: the validation rows in order, with their predictions.
pub(crate) fn write_predictions(
    data: &PreparedData,
    folder: &RunFolder,
    task: &Task,
    tokenizer: &Tokenizer,
    prediction: &Prediction,
) -> Result<(), RecordError> {
    let Some((table, labels)) = &data.rows else { return Ok(()) };
    let bytes = predictions_file(table, labels, task, tokenizer, prediction);
    let bytes = bytes.map_err(|source| RecordError::Predictions(source.into()))?;
    folder.write("predictions.parquet", &bytes).map_err(RecordError::Write)
}

/// Contents of `predictions.parquet` for these rows.
pub(crate) fn predictions_file(
    table: &Table,
    labels: &Labels,
    task: &Task,
    tokenizer: &Tokenizer,
    prediction: &Prediction,
) -> Result<Vec<u8>, sepal_data::WriteError> {
    let texts = answer_texts(task, tokenizer, prediction);
    sepal_data::predictions_parquet(table, labels, task.labels(), prediction_ref(prediction, &texts))
}

/// Predictions in the form of a writer.
pub(crate) fn prediction_ref<'a>(prediction: &'a Prediction, texts: &'a [String]) -> sepal_data::PredictionRef<'a> {
    let Prediction { class, probabilities, logits, items, thresholds, .. } = prediction;
    sepal_data::PredictionRef { class, logits, probabilities, items, texts, thresholds }
}

/// Predicted tokens of answers as texts; none for other tasks.
fn answer_texts(task: &Task, tokenizer: &Tokenizer, prediction: &Prediction) -> Vec<String> {
    if task.row_form() != RowForm::Answer {
        return Vec::new();
    }
    let text = |ids: &Vec<i64>| {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        tokenizer.decode(&ids).unwrap_or_default()
    };
    prediction.items.iter().map(text).collect()
}

/// Texts without content that calibrate the head, with the template of the rows.
pub(crate) fn calibration_batch(
    head: &dyn TaskHead,
    template: Option<&Template>,
    tokenizer: &Tokenizer,
    truncation: Truncation,
) -> Result<Option<TokenBatch>, DataError> {
    let texts: Vec<&str> = head.calibration_texts().iter().map(String::as_str).collect();
    if texts.is_empty() {
        return Ok(None);
    }
    let pairs = template.filter(|template| template.takes_pair()).map(|_| texts.clone());
    let rows = RowTexts { texts: &texts, pairs: pairs.as_deref(), ..RowTexts::default() };
    let encoder = RowEncoder { form: RowForm::Text, template, truncation, windows: None, encoder: tokenizer };
    let encoded = encoder.encode(rows).map_err(calibration_error)?;
    let batch = EncodedRow::batch(&encoded.iter().collect::<Vec<_>>()).map_err(calibration_error)?;
    Ok(Some(batch))
}

fn calibration_error(source: impl Into<BoxError>) -> DataError {
    DataError::Rows { split: "calibration", source: source.into() }
}
