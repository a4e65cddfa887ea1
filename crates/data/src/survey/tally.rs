use super::sketch::{DistinctCounter, Histogram};
use super::tags::{ListTally, SeparatorTallies, ValueCounts};
use super::{ColumnKind, ColumnSurvey, Count};
use crate::RawLabel;
use crate::labels::{is_missing, parse_list};

/// Number of hashes in memory for all columns together.
const HASHES: usize = 1 << 20;
const MAX_EXAMPLES: usize = 3;
const MAX_EXAMPLE_CHARS: usize = 80;

#[derive(Debug)]
pub(super) enum Cell<'a> {
    Missing,
    Text(&'a str),
    List(&'a [RawLabel]),
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    missing: usize,
    empty: usize,
    /// Number of blank cells among the empty ones.
    blank: usize,
    /// Row, from 1, of the first missing cell or empty text.
    first_empty: Option<usize>,
    integers: usize,
    numbers: usize,
    booleans: usize,
    texts: usize,
    lists: usize,
    others: usize,
    /// Number of NaN cells, which are texts but not labels.
    nans: usize,
    first_nan: Option<usize>,
    pub(super) range: Option<(f64, f64)>,
    words: Histogram,
    distinct: DistinctCounter,
    pub(super) values: ValueCounts,
    /// Texts as several labels each.
    pub(super) separated: SeparatorTallies,
    /// Lists, including texts that contain lists.
    listed: ListTally,
    examples: Vec<String>,
}

impl Tally {
    pub(super) fn new(n_columns: usize) -> Self {
        let distinct = DistinctCounter::new((HASHES / n_columns.max(1)).clamp(1 << 10, 1 << 18));
        Self { distinct, ..Self::default() }
    }

    pub(super) fn add(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Missing => {
                self.note_first_empty();
                self.missing += 1;
            }
            Cell::Other => self.others += 1,
            Cell::Text("") => {
                self.note_first_empty();
                self.empty += 1;
            }
            Cell::Text(text) if text.trim().is_empty() => {
                self.empty += 1;
                self.blank += 1;
            }
            Cell::Text(text) if is_missing(text) => {
                let row = self.next_row();
                self.first_nan.get_or_insert(row);
                self.nans += 1;
                self.words.add(1);
            }
            Cell::Text(text) => self.add_text(text),
            Cell::List(items) => {
                self.lists += 1;
                self.listed.add(items);
                let shown = RawLabel::Many(items.to_vec()).to_string();
                self.distinct.add(shown.as_bytes());
                self.add_example(&shown);
            }
        }
    }

    fn note_first_empty(&mut self) {
        let row = self.next_row();
        self.first_empty.get_or_insert(row);
    }

    fn next_row(&self) -> usize {
        self.missing + self.empty + self.nans + self.filled() + 1
    }

    fn add_text(&mut self, text: &str) {
        let cell = text.trim();
        match cell.parse::<f64>() {
            // Infinities are words.
            Ok(number) if number.is_finite() => {
                let is_integer = number.fract() == 0.0;
                *(if is_integer { &mut self.integers } else { &mut self.numbers }) += 1;
                let (least, greatest) = self.range.unwrap_or((number, number));
                self.range = Some((least.min(number), greatest.max(number)));
            }
            _ if cell.eq_ignore_ascii_case("true") || cell.eq_ignore_ascii_case("false") => self.booleans += 1,
            _ => self.texts += 1,
        }
        self.words.add(cell.split_whitespace().count());
        self.distinct.add(text.as_bytes());
        self.add_example(text);
        self.values.add(cell);
        self.separated.add(cell);
        if let Some(items) = parse_list(cell) {
            self.listed.add(&items);
        }
    }

    fn add_example(&mut self, value: &str) {
        if self.examples.len() == MAX_EXAMPLES {
            return;
        }
        let cut = match value.char_indices().nth(MAX_EXAMPLE_CHARS) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value.to_owned(),
        };
        if !self.examples.contains(&cut) {
            self.examples.push(cut);
        }
    }

    pub(super) fn filled(&self) -> usize {
        self.integers + self.numbers + self.booleans + self.texts + self.lists + self.others
    }

    /// The cells as lists, if all are lists.
    pub(super) fn lists(&self) -> Option<&ListTally> {
        Some(&self.listed).filter(|listed| listed.split.cells > 0 && listed.split.cells == self.filled())
    }

    /// Row, from 1, of the first cell without a label.
    pub(super) fn first_missing(&self) -> Option<usize> {
        self.first_empty.into_iter().chain(self.first_nan).min()
    }

    /// Kind of the column. Any text makes it a column of texts.
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
        // An estimate may exceed the number of cells.
        let distinct = Count { n: distinct.n.min(self.filled() - self.others), ..distinct };
        ColumnSurvey {
            name: name.to_owned(),
            kind: self.kind(),
            missing: self.missing,
            empty: self.empty,
            blank: self.blank,
            first_empty: self.first_empty,
            distinct,
            duplicates: Count { n: self.filled() - self.others - distinct.n, ..distinct },
            examples: self.examples.clone(),
            words: self.words.lengths(),
        }
    }
}
