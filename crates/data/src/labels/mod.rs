//! Conversion of cells to labels.

mod cell;
mod digest;
mod error;
mod items;
mod lists;
mod names;
mod text_list;
mod value;

use std::collections::BTreeSet;

use sepal_core::{LabelKind, Labels};

use crate::{RawLabel, RowLocation, Table};

use cell::Cell;

pub use error::LabelError;
pub use names::{LabelSet, ListLayout};

pub(crate) use text_list::{OUTPUT_SEPARATOR, SEPARATORS, parse_list, split_parts};
pub(crate) use value::{Value, is_missing, normalized, share};

impl LabelSet {
    /// Kind of this task's labels: a number for a single name, several classes if the table has lists, one class otherwise.
    pub fn kind(&self, table: &Table) -> LabelKind {
        let has_list = |labels: &[RawLabel]| labels.iter().any(|label| matches!(label, RawLabel::Many(_)));
        match self.names().len() {
            _ if table.labels().is_some_and(has_list) => LabelKind::Multi,
            1 => LabelKind::Value,
            _ => LabelKind::Class,
        }
    }

    /// Labels of a table, of the kind that [`LabelSet::kind`] returns.
    ///
    /// # Errors
    /// [`LabelError`] with file and row of the first cell that is not a label.
    pub fn labels(&self, table: &Table) -> Result<Labels, LabelError> {
        self.labels_as(table, self.kind(table))
    }

    /// Labels of a table, of this kind.
    ///
    /// A class is a name of the set, found by its text or else by its value: `true` is `True`, and 1 is `1.0`. If no name
    /// is itself a number or truth value, a class may also be the index of a name, from 0. A value is a number. Several
    /// classes are a list of classes, a text that contains a list or joins classes by `|`, `;` or `,`, or a multi-hot
    /// vector: one number from 0 to 1 for each name. [`ListLayout`] describes the choice between lists of classes and
    /// multi-hot vectors. An option is its index from 0, or its text if that is no integer. The classes of words are a list
    /// of classes, or a text of classes between blanks. A text is the cell itself.
    ///
    /// # Errors
    /// [`LabelError`] with file and row of the first cell that is not a label, is missing, or is ambiguous.
    pub fn labels_as(&self, table: &Table, kind: LabelKind) -> Result<Labels, LabelError> {
        match (self.read_labels(table, kind), table.ended_by()) {
            // Rows that were not read might decide.
            (Ok(_) | Err(LabelError::Ambiguous { .. }), Some(bad)) => Err(LabelError::BadRow(bad.clone())),
            (labels, _) => labels,
        }
    }

    fn read_labels(&self, table: &Table, kind: LabelKind) -> Result<Labels, LabelError> {
        let rows = table.labels().ok_or(LabelError::NoColumn)?;
        match kind {
            LabelKind::Choice => Ok(Labels::Choice(self.choices(table, rows)?)),
            LabelKind::Tags => Ok(Labels::Tags(self.tags(table, rows)?)),
            LabelKind::Text => Ok(Labels::Text(rows.iter().map(RawLabel::to_string).collect())),
            kind => self.convert(rows, &|row| table.location(row), kind),
        }
    }

    fn convert(
        &self,
        labels: &[RawLabel],
        locations: &dyn Fn(usize) -> RowLocation,
        kind: LabelKind,
    ) -> Result<Labels, LabelError> {
        let rows = labels.iter().enumerate().map(|(row, label)| (Cell { set: self, locations, row }, label));
        Ok(match kind {
            LabelKind::Class => {
                Labels::Class(rows.map(|(cell, label)| Ok(cell.class(label)? as i64)).collect::<Result<_, _>>()?)
            }
            LabelKind::Choice | LabelKind::Tags | LabelKind::Text => return Err(LabelError::NoTable),
            LabelKind::Value => Labels::Value(rows.map(|(cell, label)| cell.value(label)).collect::<Result<_, _>>()?),
            LabelKind::Multi => {
                let lists: Vec<_> =
                    rows.map(|(cell, label)| Ok((cell, cell.items(label)?))).collect::<Result<_, _>>()?;
                let layout = self.list_layout(&lists)?;
                Labels::Multi(
                    lists.iter().map(|(cell, items)| cell.multi_hot(items, layout)).collect::<Result<_, _>>()?,
                )
            }
        })
    }
}

/// Checks that a training set has at least two classes. Labels of other kinds always pass.
///
/// # Errors
/// [`LabelError::OneClass`] if all rows have one class.
pub fn check_classes(labels: &Labels, set: &LabelSet) -> Result<(), LabelError> {
    let Labels::Class(rows) = labels else { return Ok(()) };
    let classes: BTreeSet<i64> = rows.iter().copied().collect();
    match (classes.len(), classes.first()) {
        (1, Some(&class)) => {
            let name = usize::try_from(class).ok().and_then(|i| set.names().get(i));
            let class = name.cloned().unwrap_or_else(|| class.to_string());
            Err(LabelError::OneClass { class, rows: rows.len() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
