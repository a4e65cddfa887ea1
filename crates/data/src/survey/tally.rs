use super::sketch::{Distinct, Histogram};
use super::tags::{Lists, Separated, Split, Values};
use super::{ColumnKind, ColumnSurvey, Count};
use crate::RawLabel;
use crate::labels::{is_missing, list};

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
    /// Of these, cells that hold blanks.
    blank: usize,
    /// The row, from 1, of the first cell with nothing in it.
    first_bare: Option<usize>,
    integers: usize,
    numbers: usize,
    booleans: usize,
    texts: usize,
    lists: usize,
    others: usize,
    /// Cells that are NaN: no label, but perhaps a text.
    nans: usize,
    first_nan: Option<usize>,
    range: Option<(f64, f64)>,
    words: Histogram,
    distinct: Distinct,
    values: Values,
    /// The texts as several labels each.
    separated: Separated,
    /// The lists, and the texts that are lists.
    listed: Lists,
    examples: Vec<String>,
}

impl Tally {
    /// For one of so many columns.
    pub(super) fn new(columns: usize) -> Self {
        Self {
            missing: 0,
            empty: 0,
            blank: 0,
            first_bare: None,
            integers: 0,
            numbers: 0,
            booleans: 0,
            texts: 0,
            lists: 0,
            others: 0,
            nans: 0,
            first_nan: None,
            range: None,
            words: Histogram::default(),
            distinct: Distinct::new((HASHES / columns.max(1)).clamp(1 << 10, 1 << 18)),
            values: Values::default(),
            separated: Separated::default(),
            listed: Lists::default(),
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
            Cell::Text("") => {
                self.bare();
                self.empty += 1;
            }
            Cell::Text(text) if text.trim().is_empty() => {
                self.empty += 1;
                self.blank += 1;
            }
            Cell::Text(text) if is_missing(text) => {
                let row = self.row();
                self.first_nan.get_or_insert(row);
                self.nans += 1;
                self.words.add(1);
            }
            Cell::Text(text) => self.text(text),
            Cell::List(items) => {
                self.lists += 1;
                self.listed.add(items);
                let shown = RawLabel::Many(items.to_vec()).to_string();
                self.distinct.add(shown.as_bytes());
                self.example(&shown);
            }
        }
    }

    /// Notes the row of a cell that is not counted yet.
    fn bare(&mut self) {
        let row = self.row();
        self.first_bare.get_or_insert(row);
    }

    /// The row, from 1, of a cell that is not counted yet.
    fn row(&self) -> usize {
        self.missing + self.empty + self.nans + self.filled() + 1
    }

    fn text(&mut self, text: &str) {
        let cell = text.trim();
        match cell.parse::<f64>() {
            // "inf" is a word as well.
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
        self.values.add(cell);
        self.separated.add(cell);
        if let Some(items) = list(cell) {
            self.listed.add(&items);
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

    /// Cells with a value in them.
    pub(super) fn filled(&self) -> usize {
        self.integers + self.numbers + self.booleans + self.texts + self.lists + self.others
    }

    /// Values with their counts, if there are few.
    pub(super) fn values(&self) -> Option<Vec<(&str, usize)>> {
        self.values.counts()
    }

    /// The ways to take texts for several labels between separators.
    pub(super) fn separated(&self) -> impl Iterator<Item = (char, &Split)> {
        self.separated.found()
    }

    /// The cells as lists, if all are.
    pub(super) fn lists(&self) -> Option<&Lists> {
        Some(&self.listed).filter(|listed| listed.split.cells > 0 && listed.split.cells == self.filled())
    }

    /// The row, from 1, of the first cell that is no label.
    pub(super) fn first_missing(&self) -> Option<usize> {
        self.first_bare.into_iter().chain(self.first_nan).min()
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
            blank: self.blank,
            first_bare: self.first_bare,
            distinct,
            duplicates: Count { n: self.filled() - self.others - distinct.n, ..distinct },
            examples: self.examples.clone(),
            words: self.words.lengths(),
        }
    }
}
