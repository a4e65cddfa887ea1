//! Labels of the parts of a row: its options and its words.

use std::borrow::Cow;

use sepal_core::{LabelKind, NameMatching, TokenText, nearest};

use super::cell::{Cell, read_detached};
use super::text_list::parse_list;
use super::value::{Value, normalized};
use super::{LabelError, LabelSet};
use crate::{RawLabel, RowLocation, Table};

impl LabelSet {
    /// Index of the right option of each row.
    pub(super) fn choices(&self, table: &Table, rows: &[RawLabel]) -> Result<Vec<i64>, LabelError> {
        let options = table.options().ok_or(LabelError::NoOptions)?;
        let locations = |row: usize| table.location(row);
        let choice = |(row, label): (usize, &RawLabel)| self.cell(&locations, row).choice(label, &options[row]);
        rows.iter().enumerate().map(choice).collect()
    }

    /// Class of each word of each row.
    pub(super) fn tags(&self, table: &Table, rows: &[RawLabel]) -> Result<Vec<Vec<i64>>, LabelError> {
        let locations = |row: usize| table.location(row);
        let tags = |(row, label): (usize, &RawLabel)| {
            let words = TokenText::words(&table.texts()[row]).count();
            self.cell(&locations, row).tags(label, words)
        };
        rows.iter().enumerate().map(tags).collect()
    }

    /// Labels in a cell of several labels. `None` if there are none, or labels of this kind are single.
    pub(crate) fn items_of<'a>(&self, label: &'a RawLabel, kind: LabelKind) -> Option<Cow<'a, [RawLabel]>> {
        match kind {
            LabelKind::Multi => read_detached(self, |cell| cell.items(label).ok()),
            LabelKind::Tags => read_detached(self, |cell| cell.tag_items(label).ok()),
            _ => None,
        }
    }

    fn cell<'a>(&'a self, locations: &'a dyn Fn(usize) -> RowLocation, row: usize) -> Cell<'a> {
        Cell { set: self, locations, row }
    }
}

impl Cell<'_> {
    /// Index of an option. A text is an index if it is an integer, else the option of this text.
    fn choice(&self, label: &RawLabel, options: &[String]) -> Result<i64, LabelError> {
        self.check_present(label)?;
        let number = Value::candidates(label).first().and_then(|value| value.number().to_integer());
        match (number, label) {
            (Some(number), _) if usize::try_from(number).is_ok_and(|index| index < options.len()) => Ok(number),
            (Some(number), _) => {
                Err(LabelError::OutOfRange { location: self.location(), number, known: options.to_vec() })
            }
            (None, RawLabel::Name(text)) => {
                let text = normalized(text);
                let index = options.iter().position(|option| normalized(option) == text);
                index.map(|index| index as i64).ok_or_else(|| LabelError::UnknownName {
                    location: self.location(),
                    name: text.to_string(),
                    known: options.to_vec(),
                    nearest: nearest(&text, options.iter().map(String::as_str), NameMatching::Data).map(str::to_owned),
                })
            }
            (None, _) => Err(self.expected(label, "the index of an option or its text")),
        }
    }

    /// Labels of the words of a row: a list, or a text of classes between blanks.
    fn tag_items<'a>(&self, label: &'a RawLabel) -> Result<Cow<'a, [RawLabel]>, LabelError> {
        match label {
            RawLabel::Many(items) => Ok(Cow::Borrowed(items)),
            RawLabel::Name(text) => {
                self.check_present(label)?;
                let split = || text.split_whitespace().map(|tag| RawLabel::Name(tag.to_owned())).collect();
                Ok(Cow::Owned(parse_list(text).unwrap_or_else(split)))
            }
            _ => Err(self.expected(label, "a list of classes, one for each word")),
        }
    }

    /// Classes of the words of a row.
    fn tags(&self, label: &RawLabel, words: usize) -> Result<Vec<i64>, LabelError> {
        let items = self.tag_items(label)?;
        if items.len() != words {
            return Err(LabelError::Words { location: self.location(), tags: items.len(), words });
        }
        items.iter().map(|item| Ok(self.class(item)? as i64)).collect()
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::{Labels, Task};

    use super::*;
    use crate::testing::{json_table, jsonl};

    fn choices(rows: &[&str]) -> Result<Labels, LabelError> {
        let table = json_table(rows, |spec| spec.with_options(["of"]).with_label("label"));
        LabelSet::of_task(&Task::new(LabelKind::Choice, Vec::new()))?.labels_as(&table, LabelKind::Choice)
    }

    fn tags(cells: &[&str]) -> Result<Labels, LabelError> {
        let names = ["O", "B-PER", "I-PER"].map(str::to_owned).to_vec();
        LabelSet::of_task(&Task::new(LabelKind::Tags, names))?.labels_as(&jsonl(cells), LabelKind::Tags)
    }

    #[test]
    fn choices_are_indices_or_texts_of_options() {
        let rows = [
            r#"{"text": "x", "of": ["a", "b"], "label": 1}"#,
            r#"{"text": "x", "of": ["a", "b", "c"], "label": "2"}"#,
            r#"{"text": "x", "of": ["a", "big"], "label": " big"}"#,
        ];
        assert_eq!(choices(&rows), Ok(Labels::Choice(vec![1, 2, 1])));
        let error = |row: &str| choices(&[row]).expect_err("no option").to_string();
        let text = error(r#"{"text": "x", "of": ["a", "b"], "label": 2}"#);
        assert!(text.contains("the label 2 is out of range; expected 0 to 1 for a, b"), "{text}");
        let text = error(r#"{"text": "x", "of": ["a", "bigger"], "label": "biger"}"#);
        assert!(text.contains("row 1 of") && text.contains("did you mean `bigger`?"), "{text}");
    }

    #[test]
    fn tags_fit_the_words() {
        let expected = Labels::Tags(vec![vec![1], vec![0], vec![2]]);
        assert_eq!(tags(&["[\"B-PER\"]", "[0]", "\"I-PER\""]), Ok(expected));
        let text = tags(&["[0, 1]"]).expect_err("two tags for the word `x`").to_string();
        assert!(text.contains("2 labels for 1 word"), "{text}");
        let text = tags(&["[\"B-LOC\"]"]).expect_err("no such tag").to_string();
        assert!(text.contains("`B-LOC` is no label; the labels are O, B-PER, I-PER"), "{text}");
    }

    #[test]
    fn texts_are_answers_as_they_are() {
        let set = LabelSet::of_task(&Task::new(LabelKind::Text, Vec::new())).expect("no names");
        let expected = Labels::Text(vec!["yes".to_owned(), "7".to_owned()]);
        assert_eq!(set.labels_as(&jsonl(&["\"yes\"", "7"]), LabelKind::Text), Ok(expected));
    }
}
