use std::borrow::Cow;
use std::collections::BTreeSet;

use super::cell::{Cell, alone};
use super::value::Value;
use super::{LabelError, LabelSet};
use crate::{RawLabel, Table};

/// Meaning of the items of a list of labels.
///
/// A column has one layout, which fits all of its lists. Lists of floating-point numbers are multi-hot vectors. Other lists
/// fit both layouts only where there are two names at most, as `[0, 1]` does. If all lists of a column do, they are
/// multi-hot vectors, as in scikit-learn and transformers, unless all are the same or one is empty: such a column is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListLayout {
    /// Each is a class.
    Classes,
    /// Each is the share, from 0 to 1, of the label at its place.
    MultiHot,
}

/// The layouts that fit lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    One(ListLayout),
    /// Both, and whether there are several lists that differ.
    Both(bool),
    /// It makes no difference.
    Either,
}

impl ListLayout {
    const ALL: [Self; 2] = [Self::Classes, Self::MultiHot];

    /// The name by which [`ListLayout::named`] finds it.
    pub fn name(self) -> &'static str {
        match self {
            ListLayout::Classes => "classes",
            ListLayout::MultiHot => "multi-hot",
        }
    }

    /// The layout of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.name() == name)
    }
}

impl LabelSet {
    /// These labels with the layout that the lists of all these tables together show; for tables that are read alike,
    /// such as those of training and validation.
    #[must_use]
    pub fn with_layout_of<'a>(self, tables: impl IntoIterator<Item = &'a Table>) -> Self {
        let labels = tables.into_iter().filter_map(Table::labels).flatten();
        // An error in one is reported where it is read.
        let lists: Vec<_> = labels.filter_map(|label| alone(&self, |cell| cell.items(label).ok())).collect();
        let layout = match self.fit(lists.iter().map(|items| &**items)) {
            Fit::One(layout) => Some(layout),
            Fit::Both(true) => Some(ListLayout::MultiHot),
            Fit::Both(false) | Fit::Either => None,
        };
        self.with_layout(layout)
    }

    /// The layout of lists, which are all of a column or some.
    pub(super) fn decide(
        &self,
        lists: &[(Cell<'_>, Cow<'_, [RawLabel]>)],
        is_whole: bool,
    ) -> Result<ListLayout, LabelError> {
        match (self.fit(lists.iter().map(|(_, items)| &**items)), self.layout()) {
            (Fit::One(layout), _) | (Fit::Both(_), Some(layout)) => Ok(layout),
            (Fit::Either, _) => Ok(ListLayout::Classes),
            (Fit::Both(true), None) if is_whole => Ok(ListLayout::MultiHot),
            (Fit::Both(_), None) => {
                let first = lists.iter().find(|(_, items)| !items.is_empty());
                first.map_or(Ok(ListLayout::Classes), |(cell, items)| Err(self.two_readings(cell, items)))
            }
        }
    }

    /// The layout of a single list whose column is not known, where it shows.
    pub(super) fn layout_of(&self, items: &[RawLabel]) -> Option<ListLayout> {
        match self.fit(std::iter::once(items)) {
            Fit::One(layout) => Some(layout),
            Fit::Either => Some(ListLayout::Classes),
            Fit::Both(_) => self.layout(),
        }
    }

    fn fit<'a>(&self, lists: impl Iterator<Item = &'a [RawLabel]>) -> Fit {
        let (mut are_classes, mut are_hot) = (true, true);
        let (mut has_items, mut has_empty) = (false, false);
        let mut different: BTreeSet<String> = BTreeSet::new();
        for items in lists {
            if items.is_empty() {
                has_empty = true;
                continue;
            }
            has_items = true;
            if items.iter().all(|item| matches!(item, RawLabel::Float(_))) {
                return Fit::One(ListLayout::MultiHot);
            }
            are_classes = are_classes && self.are_classes(items);
            are_hot = are_hot && self.is_hot(items);
            if !are_classes && !are_hot {
                return Fit::One(ListLayout::Classes);
            }
            if are_classes && are_hot && different.len() < 2 {
                different.insert(format!("{items:?}"));
            }
        }
        match (are_classes, are_hot) {
            _ if !has_items => Fit::Either,
            (false, true) => Fit::One(ListLayout::MultiHot),
            (_, false) => Fit::One(ListLayout::Classes),
            // A multi-hot vector of no label is one of zeros.
            (true, true) => Fit::Both(different.len() > 1 && !has_empty),
        }
    }

    fn are_classes(&self, items: &[RawLabel]) -> bool {
        let mut seen = BTreeSet::new();
        items.iter().all(|item| self.class_of(item).is_some_and(|class| seen.insert(class)))
    }

    fn is_hot(&self, items: &[RawLabel]) -> bool {
        items.len() == self.names().len() && items.iter().all(|item| share(item).is_some())
    }

    fn two_readings(&self, cell: &Cell<'_>, items: &[RawLabel]) -> LabelError {
        let joined = |places: Vec<usize>| match places.as_slice() {
            [] => "no label".to_owned(),
            places => {
                places.iter().map(|&place| format!("`{}`", self.names()[place])).collect::<Vec<_>>().join(" and ")
            }
        };
        let hot = (0..items.len()).filter(|&i| share(&items[i]) == Some(1.0)).collect();
        LabelError::Ambiguous {
            place: cell.place(),
            found: RawLabel::Many(items.to_vec()).to_string(),
            first: format!("{} as a multi-hot vector", joined(hot)),
            second: format!(
                "{} as a list of labels",
                joined(items.iter().filter_map(|item| self.class_of(item)).collect())
            ),
            remedy: "write 1.0 and 0.0 for multi-hot vectors, or the names of labels",
        }
    }
}

/// The share of a label, from 0 to 1, by an item of a multi-hot vector.
pub(crate) fn share(item: &RawLabel) -> Option<f32> {
    let share = match item {
        RawLabel::Float(share) => *share,
        other => Value::of_cell(other).first()?.number().float(),
    };
    (0.0..=1.0).contains(&share).then_some(share as f32)
}
