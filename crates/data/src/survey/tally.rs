use std::collections::BTreeMap;

use super::sketch::{Distinct, Histogram};
use super::{ColumnKind, ColumnSurvey, Count};
use crate::RawLabel;

/// No more different values are counted one by one.
const MAX_VALUES: usize = 1000;
/// A longer text is no label.
const MAX_VALUE: usize = 100;
/// How many hashes all columns together keep.
const HASHES: usize = 1 << 20;
const EXAMPLES: usize = 3;
const EXAMPLE: usize = 80;

/// A cell of any format.
#[derive(Debug)]
pub(super) enum Cell<'a> {
    Missing,
    Text(&'a str),
    List(&'a [RawLabel]),
    Other,
}

/// What is known of a column while it is read.
#[derive(Debug)]
pub(super) struct Tally {
    missing: usize,
    empty: usize,
    /// The row, from 1, of the first cell with nothing in it.
    first_bare: Option<usize>,
    integers: usize,
    numbers: usize,
    booleans: usize,
    texts: usize,
    lists: usize,
    others: usize,
    range: Option<(f64, f64)>,
    words: Histogram,
    distinct: Distinct,
    /// Values, or items of lists, with their counts, while there are few.
    values: Option<BTreeMap<String, usize>>,
    /// Whether each list is of floating-point numbers from 0 to 1.
    multi_hot: bool,
    examples: Vec<String>,
}

impl Tally {
    /// For one of so many columns.
    pub(super) fn new(columns: usize) -> Self {
        Self {
            missing: 0,
            empty: 0,
            first_bare: None,
            integers: 0,
            numbers: 0,
            booleans: 0,
            texts: 0,
            lists: 0,
            others: 0,
            range: None,
            words: Histogram::default(),
            distinct: Distinct::new((HASHES / columns.max(1)).clamp(1 << 10, 1 << 18)),
            values: Some(BTreeMap::new()),
            multi_hot: true,
            examples: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Missing => {
                self.bare();
                self.missing += 1;
            }
            Cell::Other => self.others += 1,
            Cell::Text(text) if text.trim().is_empty() => {
                self.bare();
                self.empty += 1;
            }
            Cell::Text(text) => self.text(text),
            Cell::List(items) => {
                self.lists += 1;
                let share = |item: &RawLabel| matches!(item, RawLabel::Float(p) if (0.0..=1.0).contains(p));
                self.multi_hot &= items.iter().all(share);
                let shown = RawLabel::Many(items.to_vec()).to_string();
                self.distinct.add(shown.as_bytes());
                self.example(&shown);
                items.iter().for_each(|item| self.value(&item.to_string()));
            }
        }
    }

    /// Notes the row of a cell that is not counted yet.
    fn bare(&mut self) {
        let row = self.missing + self.empty + self.filled() + 1;
        self.first_bare.get_or_insert(row);
    }

    fn text(&mut self, text: &str) {
        let cell = text.trim();
        match cell.parse::<f64>() {
            // "nan" and "inf" are words as well.
            Ok(number) if number.is_finite() => {
                let whole = number.fract() == 0.0;
                *(if whole { &mut self.integers } else { &mut self.numbers }) += 1;
                let (least, greatest) = self.range.unwrap_or((number, number));
                self.range = Some((least.min(number), greatest.max(number)));
            }
            _ if cell.eq_ignore_ascii_case("true") || cell.eq_ignore_ascii_case("false") => self.booleans += 1,
            _ => self.texts += 1,
        }
        self.words.add(cell.split_whitespace().count());
        self.distinct.add(text.as_bytes());
        self.example(text);
        // A class is called 1 and not 1.0, as it is when it is read.
        match cell.parse::<f64>() {
            Ok(number) if number.fract() == 0.0 && number.abs() < 1e15 => self.value(&format!("{number}")),
            _ => self.value(cell),
        }
    }

    fn value(&mut self, value: &str) {
        let Some(values) = &mut self.values else { return };
        if let Some(count) = values.get_mut(value) {
            *count += 1;
        } else if values.len() < MAX_VALUES && value.chars().count() <= MAX_VALUE {
            values.insert(value.to_owned(), 1);
        } else {
            self.values = None;
        }
    }

    fn example(&mut self, value: &str) {
        if self.examples.len() == EXAMPLES {
            return;
        }
        let cut = match value.char_indices().nth(EXAMPLE) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value.to_owned(),
        };
        if !self.examples.contains(&cut) {
            self.examples.push(cut);
        }
    }

    /// Cells with something in them.
    pub(super) fn filled(&self) -> usize {
        self.integers + self.numbers + self.booleans + self.texts + self.lists + self.others
    }

    /// Values, or items of lists, with their counts, if there are few.
    pub(super) fn values(&self) -> Option<&BTreeMap<String, usize>> {
        self.values.as_ref()
    }

    /// Whether the column is of multi-hot vectors.
    pub(super) fn multi_hot(&self) -> bool {
        self.lists > 0 && self.multi_hot
    }

    /// The least and the greatest number.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        self.range
    }

    /// A few texts among numbers make a column of texts, a few numbers among texts do not make one of numbers.
    fn kind(&self) -> ColumnKind {
        let filled = self.filled();
        let all = |n: usize| n == filled;
        match () {
            () if filled == 0 => ColumnKind::Empty,
            () if all(self.integers) => ColumnKind::Integer,
            () if all(self.integers + self.numbers) => ColumnKind::Number,
            () if all(self.booleans) => ColumnKind::Boolean,
            () if all(self.lists) => ColumnKind::List,
            () if self.others + self.lists > 0 => ColumnKind::Other,
            () => ColumnKind::Text,
        }
    }

    pub(super) fn survey(&self, name: &str) -> ColumnSurvey {
        let distinct = self.distinct.count();
        // An estimate may exceed what there is.
        let distinct = Count { n: distinct.n.min(self.filled() - self.others), ..distinct };
        ColumnSurvey {
            name: name.to_owned(),
            kind: self.kind(),
            missing: self.missing,
            empty: self.empty,
            first_bare: self.first_bare,
            distinct,
            duplicates: Count { n: self.filled() - self.others - distinct.n, ..distinct },
            examples: self.examples.clone(),
            words: self.words.lengths(),
        }
    }
}
