use std::collections::BTreeMap;

use crate::RawLabel;
use crate::labels::{SEPARATORS, normalized, parts, share};

/// No more different values are counted one by one.
const MAX_VALUES: usize = 1000;
/// A longer text is no label.
const MAX_VALUE: usize = 100;

/// Different values with their counts, while there are few. Values that labels take for one are one, by the spelling that
/// comes first.
#[derive(Debug)]
pub(super) struct Values(Option<BTreeMap<String, (String, usize)>>);

impl Default for Values {
    fn default() -> Self {
        Self(Some(BTreeMap::new()))
    }
}

impl Values {
    pub(super) fn add(&mut self, value: &str) {
        let Some(values) = &mut self.0 else { return };
        let text = normalized(value);
        let is_truth = text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false");
        let key = if is_truth { text.to_ascii_lowercase() } else { spelled(&text) };
        if let Some((_, count)) = values.get_mut(&key) {
            *count += 1;
        } else if values.len() < MAX_VALUES && key.chars().count() <= MAX_VALUE {
            let value = if is_truth { text.into_owned() } else { key.clone() };
            values.insert(key, (value, 1));
        } else {
            self.0 = None;
        }
    }

    /// The values with their counts, by the alphabet; nothing if there were too many.
    pub(super) fn counts(&self) -> Option<Vec<(&str, usize)>> {
        Some(self.0.as_ref()?.values().map(|(value, count)| (value.as_str(), *count)).collect())
    }
}

/// A class is called 1 and not 1.0, as it is when it is read.
fn spelled(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(number) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{}", number + 0.0),
        _ => text.to_owned(),
    }
}

/// Cells as they are taken for several labels each, in one way.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Cells of several labels at least, or of a list.
    pub(super) cells: usize,
    pub(super) values: Values,
    /// Least and greatest number of labels of a cell.
    lengths: Option<(usize, usize)>,
}

impl Split {
    /// True if cells have different numbers of labels, as the parts of one name do not.
    pub(super) fn varies(&self) -> bool {
        self.lengths.is_some_and(|(least, most)| least < most)
    }
}

/// Texts taken for several labels between separators, in each way.
#[derive(Debug, Default)]
pub(super) struct Separated([Split; SEPARATORS.len()]);

impl Separated {
    pub(super) fn add(&mut self, cell: &str) {
        for (split, separators) in self.0.iter_mut().zip(SEPARATORS) {
            split.cells += usize::from(cell.contains(separators));
            let mut length = 0;
            for part in parts(cell, separators) {
                split.values.add(part);
                length += 1;
            }
            let (least, most) = split.lengths.unwrap_or((length, length));
            split.lengths = Some((least.min(length), most.max(length)));
        }
    }

    /// The ways that some cells have signs of, with their separators, the surest first.
    pub(super) fn found(&self) -> impl Iterator<Item = (char, &Split)> {
        let all = SEPARATORS.iter().zip(&self.0);
        all.filter(|(_, split)| split.cells > 0).map(|(separators, split)| (separators[0], split))
    }
}

/// Lists, also those that are written into texts.
#[derive(Debug)]
pub(super) struct Lists {
    pub(super) split: Split,
    /// Each is of numbers from 0 to 1, or of truth values.
    are_shares: bool,
    /// An item is a floating-point number.
    has_float: bool,
    has_empty: bool,
    /// One has an item twice.
    repeats: bool,
    /// The number of items of each that has any, if it is one number.
    length: Option<usize>,
    /// Two that have items differ.
    differ: bool,
    first: Option<String>,
    /// For how many rows each place has more than a half.
    hot: Vec<usize>,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            split: Split::default(),
            are_shares: true,
            has_float: false,
            has_empty: false,
            repeats: false,
            length: None,
            differ: false,
            first: None,
            hot: Vec::new(),
        }
    }
}

impl Lists {
    pub(super) fn add(&mut self, items: &[RawLabel]) {
        self.split.cells += 1;
        if items.is_empty() {
            self.has_empty = true;
            return;
        }
        let shares: Vec<Option<f32>> = items.iter().map(share).collect();
        self.are_shares &= shares.iter().all(Option::is_some);
        self.has_float |= items.iter().any(|item| matches!(item, RawLabel::Float(_)));
        self.length = if self.first.is_none() { Some(items.len()) } else { self.length.filter(|n| *n == items.len()) };
        let texts: Vec<String> = items.iter().map(RawLabel::to_string).collect();
        self.repeats |= (1..texts.len()).any(|i| texts[..i].contains(&texts[i]));
        let shown = texts.join(",");
        self.differ |= *self.first.get_or_insert_with(|| shown.clone()) != shown;
        if self.length.is_some() {
            self.hot.resize(items.len(), 0);
            self.hot
                .iter_mut()
                .zip(&shares)
                .for_each(|(hot, share)| *hot += usize::from(share.is_some_and(|s| s >= 0.5)));
        }
        texts.iter().for_each(|text| self.split.values.add(text));
    }

    /// If the lists are multi-hot vectors, for how many rows each label applies. As labels are read: vectors of two
    /// whole numbers only if they differ, and longer ones if they can be nothing else.
    pub(super) fn multi_hot(&self) -> Option<&[usize]> {
        let length = self.length.filter(|_| self.are_shares)?;
        let is_sure = self.has_float || self.repeats || (length == 2 && self.differ && !self.has_empty);
        is_sure.then_some(self.hot.as_slice())
    }
}
