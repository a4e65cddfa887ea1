use std::collections::{BTreeMap, HashSet};

use crate::RawLabel;
use crate::labels::{SEPARATORS, normalized, share, split_parts};

const MAX_VALUES: usize = 1000;
const MAX_LABEL_CHARS: usize = 100;

/// Distinct values with their counts, if there are few. Spellings of one label count as one value, with the spelling that
/// comes first.
#[derive(Debug)]
pub(super) struct ValueCounts(Option<BTreeMap<String, (String, usize)>>);

impl Default for ValueCounts {
    fn default() -> Self {
        Self(Some(BTreeMap::new()))
    }
}

impl ValueCounts {
    pub(super) fn add(&mut self, value: &str) {
        let Some(values) = &mut self.0 else { return };
        let text = normalized(value);
        let is_truth = text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false");
        let key = if is_truth { text.to_ascii_lowercase() } else { canonical_number(&text) };
        if let Some((_, count)) = values.get_mut(&key) {
            *count += 1;
        } else if values.len() < MAX_VALUES && key.chars().count() <= MAX_LABEL_CHARS {
            let value = if is_truth { text.into_owned() } else { key.clone() };
            values.insert(key, (value, 1));
        } else {
            self.0 = None;
        }
    }

    /// Values with their counts, in alphabetic order; none if there are too many.
    pub(super) fn counts(&self) -> Option<Vec<(&str, usize)>> {
        Some(self.0.as_ref()?.values().map(|(value, count)| (value.as_str(), *count)).collect())
    }
}

/// Spelling of a class that is a number: 1 for 1.0.
fn canonical_number(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(number) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{}", number + 0.0),
        _ => text.to_owned(),
    }
}

/// Statistics of cells that are split into several labels in one way.
#[derive(Debug, Default)]
pub(super) struct SplitTally {
    /// Number of cells that contain the separator or a list.
    pub(super) cells: usize,
    pub(super) values: ValueCounts,
    /// Least and greatest number of labels of a cell.
    lengths: Option<(usize, usize)>,
}

impl SplitTally {
    /// Returns true if cells have different numbers of labels, unlike the parts of one name.
    pub(super) fn varies(&self) -> bool {
        self.lengths.is_some_and(|(least, most)| least < most)
    }
}

/// Statistics of texts that are split at each group of separators.
#[derive(Debug, Default)]
pub(super) struct SeparatorTallies([SplitTally; SEPARATORS.len()]);

impl SeparatorTallies {
    pub(super) fn add(&mut self, cell: &str) {
        for (split, separators) in self.0.iter_mut().zip(SEPARATORS) {
            split.cells += usize::from(cell.contains(separators));
            let mut length = 0;
            for part in split_parts(cell, separators) {
                split.values.add(part);
                length += 1;
            }
            let (least, most) = split.lengths.unwrap_or((length, length));
            split.lengths = Some((least.min(length), most.max(length)));
        }
    }

    /// Splits by separators that occur, the most reliable first.
    pub(super) fn occurring(&self) -> impl Iterator<Item = (char, &SplitTally)> {
        let all = SEPARATORS.iter().zip(&self.0);
        all.filter(|(_, split)| split.cells > 0).map(|(separators, split)| (separators[0], split))
    }
}

/// Statistics of lists, including texts that contain lists.
#[derive(Debug, Default)]
pub(super) struct ListTally {
    pub(super) split: SplitTally,
    /// True if an item is neither a number from 0 to 1 nor a truth value.
    has_other: bool,
    has_float: bool,
    has_empty: bool,
    has_repeats: bool,
    /// Number of items of all non-empty lists, if it is the same.
    length: Option<usize>,
    /// True if two non-empty lists differ.
    has_different: bool,
    first: Option<String>,
    /// Number of rows with at least one half, for each index.
    hot: Vec<usize>,
}

impl ListTally {
    pub(super) fn add(&mut self, items: &[RawLabel]) {
        self.split.cells += 1;
        if items.is_empty() {
            self.has_empty = true;
            return;
        }
        let shares: Vec<Option<f32>> = items.iter().map(share).collect();
        self.has_other |= shares.iter().any(Option::is_none);
        self.has_float |= items.iter().any(|item| matches!(item, RawLabel::Float(_)));
        self.length = if self.first.is_none() { Some(items.len()) } else { self.length.filter(|n| *n == items.len()) };
        let texts: Vec<String> = items.iter().map(RawLabel::to_string).collect();
        let mut distinct = HashSet::new();
        self.has_repeats |= !texts.iter().all(|text| distinct.insert(text));
        let shown = texts.join(",");
        self.has_different |= *self.first.get_or_insert_with(|| shown.clone()) != shown;
        if self.length.is_some() {
            self.hot.resize(items.len(), 0);
            for (hot, share) in self.hot.iter_mut().zip(&shares) {
                *hot += usize::from(share.is_some_and(|share| share >= 0.5));
            }
        }
        texts.iter().for_each(|text| self.split.values.add(text));
    }

    /// Number of rows of each label, if the lists are multi-hot vectors. As for labels, vectors of two integers must differ,
    /// and longer vectors must be unambiguous.
    pub(super) fn multi_hot(&self) -> Option<&[usize]> {
        let length = self.length.filter(|_| !self.has_other)?;
        let is_sure = self.has_float || self.has_repeats || (length == 2 && self.has_different && !self.has_empty);
        is_sure.then_some(self.hot.as_slice())
    }
}
