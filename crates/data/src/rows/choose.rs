use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;

use super::Chosen;
use crate::{ReadError, columns};

/// What columns of texts are often called, the surest first.
pub(crate) const TEXT_NAMES: [&str; 22] = [
    "text",
    "sentence",
    "review",
    "content",
    "review_text",
    "review_body",
    "tweet",
    "comment",
    "comment_text",
    "body",
    "message",
    "document",
    "utterance",
    "query",
    "question",
    "description",
    "headline",
    "title",
    "passage",
    "premise",
    "sentence1",
    "text_a",
];

/// The column among `among` whose name is that of a column of texts, or that is the only one.
pub(super) fn by_name(schema: &Schema, among: &[usize]) -> Option<(usize, Chosen)> {
    let usable = |index: &usize| columns::is_textual(schema.field(*index).data_type());
    let named = |name: &&str| {
        among.iter().copied().filter(usable).find(|&index| schema.field(index).name().trim().eq_ignore_ascii_case(name))
    };
    match TEXT_NAMES.iter().find_map(named) {
        Some(index) => Some((index, Chosen::Usual)),
        None => <[usize; 1]>::try_from(among).ok().map(|[index]| (index, Chosen::Only)),
    }
}

/// The only column of texts by what stands in the first batch: not of numbers, and if there are several, of several
/// words.
pub(super) fn by_content(
    schema: &Schema,
    among: &[usize],
    first: Option<&RecordBatch>,
    json: bool,
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
    let looks: Vec<(usize, Look)> = among.iter().map(|&index| (index, Look::of(first, index, json))).collect();
    let all = |look: Look| looks.iter().filter(move |(_, found)| *found >= look).map(|(index, _)| *index);
    for look in [Look::Words, Look::Word] {
        let found: Vec<usize> = all(look).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(one),
            _ => {
                let names: Vec<&str> = found.iter().map(|&index| schema.field(index).name().as_str()).collect();
                return Err(unclear(format!("{} may all be it, and none was named", names.join(", "))));
            }
        }
    }
    Err(unclear("none holds texts".to_owned()))
}

/// What most cells of a column look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    Other,
    Word,
    Words,
}

impl Look {
    fn of(batch: &RecordBatch, index: usize, json: bool) -> Self {
        let column = batch.column(index);
        let texts = if json { columns::json_texts(column) } else { columns::texts(column) };
        let Some(texts) = texts else { return Look::Other };
        let cells: Vec<&str> = texts.iter().flatten().map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let numbers = cells.iter().filter(|cell| is_number(cell)).count();
        let several = cells.iter().filter(|cell| cell.contains(char::is_whitespace)).count();
        match () {
            () if cells.is_empty() || numbers * 2 > cells.len() => Look::Other,
            () if several * 2 >= cells.len() => Look::Words,
            () => Look::Word,
        }
    }
}

fn is_number(cell: &str) -> bool {
    cell.parse::<f64>().is_ok() || cell.parse::<bool>().is_ok()
}
