use std::borrow::Cow;
use std::collections::BTreeSet;

use super::cell::{Cell, read_detached};
use super::value::share;
use super::{LabelError, LabelSet, ListLayout};
use crate::{RawLabel, Table};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayoutFit {
    One(ListLayout),
    /// Both layouts fit, and the lists differ as multi-hot vectors do.
    LikelyMultiHot,
    /// Both layouts fit, and texts in quotation marks are spelled as names.
    LikelyClasses,
    /// Both layouts fit, with different meanings.
    Ambiguous,
    /// Both layouts fit, with the same meaning.
    Either,
}

impl LabelSet {
    /// Sets the layout that the lists of all these tables together imply, for tables of one origin such as training and
    /// validation rows.
    #[must_use]
    pub fn with_inferred_layout<'a>(self, tables: impl IntoIterator<Item = &'a Table>) -> Self {
        let labels = tables.into_iter().filter_map(Table::labels).flatten();
        // Invalid lists are reported when their table is read.
        let lists: Vec<_> = labels.filter_map(|label| read_detached(&self, |cell| cell.items(label).ok())).collect();
        let layout = match self.layout_fit(lists.iter().map(|items| &**items)) {
            LayoutFit::One(layout) => Some(layout),
            LayoutFit::LikelyMultiHot => Some(ListLayout::MultiHot),
            LayoutFit::LikelyClasses => Some(ListLayout::Classes),
            LayoutFit::Ambiguous | LayoutFit::Either => None,
        };
        self.with_layout(layout)
    }

    /// Layout of all lists of a column.
    pub(super) fn list_layout(&self, lists: &[(Cell<'_>, Cow<'_, [RawLabel]>)]) -> Result<ListLayout, LabelError> {
        match (self.layout_fit(lists.iter().map(|(_, items)| &**items)), self.layout()) {
            (LayoutFit::One(layout), _)
            | (LayoutFit::LikelyMultiHot | LayoutFit::LikelyClasses | LayoutFit::Ambiguous, Some(layout)) => Ok(layout),
            (LayoutFit::Either, _) | (LayoutFit::LikelyClasses, None) => Ok(ListLayout::Classes),
            (LayoutFit::LikelyMultiHot, None) => Ok(ListLayout::MultiHot),
            (LayoutFit::Ambiguous, None) => {
                let first = lists.iter().find(|(_, items)| !items.is_empty());
                first.map_or(Ok(ListLayout::Classes), |(cell, items)| Err(self.ambiguous_list(cell, items)))
            }
        }
    }

    /// Layout of a single list without its column, if it is unambiguous.
    fn single_list_layout(&self, items: &[RawLabel]) -> Option<ListLayout> {
        match self.layout_fit(std::iter::once(items)) {
            LayoutFit::One(layout) => Some(layout),
            LayoutFit::Either => Some(ListLayout::Classes),
            LayoutFit::LikelyClasses => Some(self.layout().unwrap_or(ListLayout::Classes)),
            LayoutFit::LikelyMultiHot | LayoutFit::Ambiguous => self.layout(),
        }
    }

    /// Names of the labels in one cell, without its column. In a multi-hot vector, those of at least `threshold`. `None` if
    /// the cell has no labels.
    pub(crate) fn names_of(&self, label: &RawLabel, threshold: f32) -> Option<Vec<&str>> {
        let hot = read_detached(self, |cell| {
            let items = cell.items(label).ok()?;
            cell.multi_hot(&items, self.single_list_layout(&items)?).ok()
        })?;
        let applies = |(_, share): &(&String, f32)| *share >= threshold;
        Some(self.names().iter().zip(hot).filter(applies).map(|(name, _)| name.as_str()).collect())
    }

    fn layout_fit<'a>(&self, lists: impl Iterator<Item = &'a [RawLabel]>) -> LayoutFit {
        let (mut are_classes, mut are_hot) = (true, true);
        let (mut has_items, mut has_empty, mut has_spelled_names) = (false, false, false);
        let mut different: BTreeSet<String> = BTreeSet::new();
        for items in lists {
            if items.is_empty() {
                has_empty = true;
                continue;
            }
            has_items = true;
            if items.iter().all(|item| matches!(item, RawLabel::Float(_))) {
                return LayoutFit::One(ListLayout::MultiHot);
            }
            let (fit_classes, fit_hot) = (self.are_classes(items), self.is_multi_hot(items));
            are_classes = are_classes && fit_classes && !(fit_hot && self.are_spelled_as_shares(items));
            are_hot = are_hot && fit_hot;
            has_spelled_names |= self.are_spelled_as_names(items);
            if !are_classes && !are_hot {
                return LayoutFit::One(ListLayout::Classes);
            }
            if are_classes && are_hot && different.len() < 2 {
                different.insert(format!("{items:?}"));
            }
        }
        match (are_classes, are_hot) {
            _ if !has_items => LayoutFit::Either,
            (false, true) => LayoutFit::One(ListLayout::MultiHot),
            (_, false) => LayoutFit::One(ListLayout::Classes),
            (true, true) if has_spelled_names => LayoutFit::LikelyClasses,
            // An empty list is no multi-hot vector: that has zeros.
            (true, true) if different.len() > 1 && !has_empty => LayoutFit::LikelyMultiHot,
            (true, true) => LayoutFit::Ambiguous,
        }
    }

    fn are_classes(&self, items: &[RawLabel]) -> bool {
        let mut seen = BTreeSet::new();
        items.iter().all(|item| self.class_of(item).is_some_and(|class| seen.insert(class)))
    }

    fn is_multi_hot(&self, items: &[RawLabel]) -> bool {
        items.len() == self.names().len() && items.iter().all(|item| share(item).is_some())
    }

    /// Returns true for texts in quotation marks that are the names of labels.
    fn are_spelled_as_names(&self, items: &[RawLabel]) -> bool {
        items.iter().all(|item| matches!(item, RawLabel::Quoted(text) if self.by_text(text).is_some()))
    }

    /// Returns true for numbers with a decimal point that are not the names of labels.
    fn are_spelled_as_shares(&self, items: &[RawLabel]) -> bool {
        items
            .iter()
            .all(|item| matches!(item, RawLabel::Name(text) if text.contains('.') && self.by_text(text).is_none()))
    }

    fn ambiguous_list(&self, cell: &Cell<'_>, items: &[RawLabel]) -> LabelError {
        let joined_names = |indices: Vec<usize>| match indices.as_slice() {
            [] => "no label".to_owned(),
            indices => {
                indices.iter().map(|&index| format!("`{}`", self.names()[index])).collect::<Vec<_>>().join(" and ")
            }
        };
        let hot = (0..items.len()).filter(|&i| share(&items[i]) == Some(1.0)).collect();
        LabelError::Ambiguous {
            location: cell.location(),
            found: RawLabel::Many(items.to_vec()).to_string(),
            first: format!("{} as a multi-hot vector", joined_names(hot)),
            second: format!(
                "{} as a list of labels",
                joined_names(items.iter().filter_map(|item| self.class_of(item)).collect())
            ),
            remedy: match self.takes_indices() {
                true => "write 1.0 and 0.0 for multi-hot vectors, or the names of labels",
                false => {
                    "write [1.0, 0.0] for multi-hot vectors, or lists with the names in quotation marks, such as [\"0\", \"1\"], \
                     which may also be the text of a cell"
                }
            },
        }
    }
}
