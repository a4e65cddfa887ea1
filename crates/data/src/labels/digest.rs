use sha2::{Digest, Sha256};

use super::value::Value;
use super::{LabelSet, Labels};
use crate::{RawLabel, Table};

impl LabelSet {
    /// The digest of a table that was read as these labels.
    ///
    /// It is [`Table::digest`] where each label is the name of the same text or else an index, as all were read once: what
    /// began with a table goes on with it. Where values or the layout of lists decide otherwise, the labels count, too.
    pub fn digest(&self, table: &Table, labels: &Labels) -> String {
        let cells = table.labels().unwrap_or_default();
        let is_same = match labels {
            Labels::Class(classes) => {
                let is_same =
                    |(cell, class): (&RawLabel, &i64)| self.by_index(cell).is_none_or(|index| index as i64 == *class);
                cells.iter().zip(classes).all(is_same)
            }
            Labels::Value(_) => true,
            Labels::Multi(rows) => {
                cells.iter().zip(rows).all(|(cell, hot)| self.as_classes(cell).is_none_or(|old| old == *hot))
            }
        };
        match is_same {
            true => table.digest().to_owned(),
            false => hex::encode(Sha256::digest(format!("{} {labels:?}", table.digest()))),
        }
    }

    /// The place of the name of the same text, or else that which a number is.
    fn by_index(&self, cell: &RawLabel) -> Option<usize> {
        let by_text = |text: &str| self.names().iter().position(|name| name == text);
        if let RawLabel::Name(text) = cell
            && let Some(place) = by_text(text.trim())
        {
            return Some(place);
        }
        let number = Value::of_cell(cell).first()?.number().whole()?;
        by_text(&number.to_string())
            .or_else(|| usize::try_from(number).ok())
            .filter(|place| *place < self.names().len())
    }

    /// A list other than of floating-point numbers as one of classes.
    fn as_classes(&self, cell: &RawLabel) -> Option<Vec<f32>> {
        let RawLabel::Many(items) = cell else { return None };
        if !items.is_empty() && items.iter().all(|item| matches!(item, RawLabel::Float(_))) {
            return None;
        }
        let mut hot = vec![0.0; self.names().len()];
        for item in items {
            hot[self.by_index(item)?] += 1.0;
        }
        hot.iter().all(|n| *n <= 1.0).then_some(hot)
    }
}
