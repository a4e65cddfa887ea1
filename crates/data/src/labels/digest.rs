use sha2::{Digest, Sha256};

use super::value::Value;
use super::{LabelSet, Labels};
use crate::{RawLabel, Table};

impl LabelSet {
    /// Digest of a table with these labels.
    ///
    /// It is [`Table::digest`] if each label is the name of the same text or else an index, as in earlier versions, whose runs
    /// stay resumable. If values or the layout of lists lead to other labels, the digest includes the labels.
    pub fn digest(&self, table: &Table, labels: &Labels) -> String {
        let cells = table.labels().unwrap_or_default();
        let is_same = match labels {
            Labels::Class(classes) => {
                let is_same =
                    |(cell, class): (&RawLabel, &i64)| self.index_of(cell).is_none_or(|index| index as i64 == *class);
                cells.iter().zip(classes).all(is_same)
            }
            Labels::Value(_) | Labels::Choice(_) | Labels::Tags(_) | Labels::Text(_) => true,
            Labels::Multi(rows) => {
                cells.iter().zip(rows).all(|(cell, hot)| self.as_classes(cell).is_none_or(|old| old == *hot))
            }
        };
        match is_same {
            true => table.digest().to_owned(),
            false => hex::encode(Sha256::digest(format!("{} {labels:?}", table.digest()))),
        }
    }

    /// Index of the name of the same text, or else a number as an index.
    fn index_of(&self, cell: &RawLabel) -> Option<usize> {
        let by_text = |text: &str| self.names().iter().position(|name| name == text);
        if let RawLabel::Name(text) | RawLabel::Quoted(text) = cell
            && let Some(index) = by_text(text.trim())
        {
            return Some(index);
        }
        let number = Value::candidates(cell).first()?.number().to_integer()?;
        by_text(&number.to_string())
            .or_else(|| usize::try_from(number).ok())
            .filter(|index| *index < self.names().len())
    }

    /// Multi-hot vector of a list of classes; none for lists of floating-point numbers.
    fn as_classes(&self, cell: &RawLabel) -> Option<Vec<f32>> {
        let RawLabel::Many(items) = cell else { return None };
        if !items.is_empty() && items.iter().all(|item| matches!(item, RawLabel::Float(_))) {
            return None;
        }
        let mut hot = vec![0.0; self.names().len()];
        for item in items {
            hot[self.index_of(item)?] += 1.0;
        }
        hot.iter().all(|n| *n <= 1.0).then_some(hot)
    }
}
