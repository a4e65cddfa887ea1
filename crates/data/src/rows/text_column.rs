use std::path::Path;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::Schema;

use super::TextColumnOrigin;
use crate::{Format, ReadError, columns};

/// Common names of text columns, the most reliable first.
pub(crate) const TEXT_NAMES: &str = "text sentence review content review_text review_body tweet comment comment_text \
    body message document utterance query question description headline title passage premise sentence1 text_a";

/// Column among `candidates` with a common name of text columns, or the only candidate.
pub(super) fn by_name(schema: &Schema, candidates: &[usize]) -> Option<(usize, TextColumnOrigin)> {
    let is_usable = |index: &usize| columns::is_textual(schema.field(*index).data_type());
    let usable: Vec<usize> = candidates.iter().copied().filter(is_usable).collect();
    let is_named = |index: usize, name: &str| schema.field(index).name().trim().eq_ignore_ascii_case(name);
    let named = |name: &str| usable.iter().copied().find(|&index| is_named(index, name));
    match TEXT_NAMES.split(' ').find_map(named) {
        Some(index) => Some((index, TextColumnOrigin::CommonName)),
        None => <[usize; 1]>::try_from(candidates).ok().map(|[index]| (index, TextColumnOrigin::OnlyCandidate)),
    }
}

/// The only column of texts by the content of the first batch: texts other than numbers, or else texts of several words.
pub(super) fn by_content(
    schema: &Schema,
    candidates: &[usize],
    first: Option<&RecordBatch>,
    format: Format,
    path: &Path,
) -> Result<usize, ReadError> {
    let unclear = |problem: String| ReadError::NoText {
        path: path.to_owned(),
        problem,
        columns: schema.fields().iter().map(|field| field.name().clone()).collect(),
    };
    let Some(first) = first else {
        return Err(unclear("there is no row to tell it by, and none was named".to_owned()));
    };
    let contents: Vec<(usize, TextContent)> =
        candidates.iter().map(|&index| (index, TextContent::of_column(first.column(index), format))).collect();
    for least in [TextContent::Words, TextContent::Word] {
        let found: Vec<usize> =
            contents.iter().filter(|(_, content)| *content >= least).map(|(index, _)| *index).collect();
        match found[..] {
            [] => {}
            [index] => return Ok(index),
            _ => {
                let names: Vec<&str> = found.iter().map(|&index| schema.field(index).name().as_str()).collect();
                return Err(unclear(format!("{} may all be it, and none was named", names.join(", "))));
            }
        }
    }
    Err(unclear("none holds texts".to_owned()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TextContent {
    Other,
    Word,
    Words,
}

impl TextContent {
    fn of_column(column: &ArrayRef, format: Format) -> Self {
        let Some(texts) = columns::texts(column, format) else { return Self::Other };
        let cells: Vec<&str> = texts.iter().flatten().map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let numbers = cells.iter().filter(|cell| is_number(cell)).count();
        let several = cells.iter().filter(|cell| cell.contains(char::is_whitespace)).count();
        match () {
            () if cells.is_empty() || numbers * 2 > cells.len() => Self::Other,
            () if several * 2 >= cells.len() => Self::Words,
            () => Self::Word,
        }
    }
}

fn is_number(cell: &str) -> bool {
    cell.parse::<f64>().is_ok() || cell.parse::<bool>().is_ok()
}
