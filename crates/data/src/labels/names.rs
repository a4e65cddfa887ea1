use std::collections::BTreeMap;

use super::LabelError;
use super::lists::ListLayout;
use super::value::{Value, normalized};

/// The names of a task's labels; a label's number is its place among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    names: Vec<String>,
    /// Places by normalized texts.
    texts: BTreeMap<String, usize>,
    values: Vec<Option<Value>>,
    layout: Option<ListLayout>,
}

/// Words for `false` and `true`. As names they stand for the truth values, but for no numbers.
const TRUTHS: [[&str; 2]; 4] = [["no", "yes"], ["n", "y"], ["off", "on"], ["f", "t"]];

impl LabelSet {
    /// Labels of these names, in this order.
    ///
    /// # Errors
    /// [`LabelError::Names`] if there is none, one is empty, or two are the same but for blanks at their ends and their
    /// Unicode normal form.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, LabelError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let refused = |problem: String| Err(LabelError::Names { problem });
        if names.is_empty() {
            return refused("there is none".to_owned());
        }
        let mut texts = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            let text = normalized(name).into_owned();
            if text.is_empty() {
                return refused(format!("number {i} is empty"));
            }
            match texts.insert(text, i) {
                Some(first) if names[first] == *name => return refused(format!("`{name}` is there twice")),
                Some(first) => {
                    let other = &names[first];
                    return refused(format!(
                        "`{other}` and `{name}` differ only in white space or in their Unicode normal form"
                    ));
                }
                None => {}
            }
        }
        let values = names.iter().map(|name| Value::of_text(&normalized(name))).collect();
        Ok(Self { names, texts, values, layout: None })
    }

    /// These labels where lists that may be of either layout are of this one.
    #[must_use]
    pub fn with_layout(self, layout: Option<ListLayout>) -> Self {
        Self { layout, ..self }
    }

    /// The layout of lists that may be of either.
    pub fn layout(&self) -> Option<ListLayout> {
        self.layout
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Tests that numbers stand for the indices of names: no name is itself a number or truth value.
    pub fn takes_indices(&self) -> bool {
        self.valued().is_none()
    }

    /// The place of the name that is the same text.
    pub(super) fn by_text(&self, text: &str) -> Option<usize> {
        self.texts.get(&*normalized(text)).copied()
    }

    /// The places of the names that have one of these values.
    pub(super) fn by_value(&self, values: &[Value]) -> Vec<usize> {
        let is_equal = |own: &Option<Value>| own.as_ref().is_some_and(|own| values.contains(own));
        (0..self.names.len()).filter(|&i| is_equal(&self.values[i])).collect()
    }

    /// The place of the only name whose truth value is this number, or whose number is this truth value.
    pub(super) fn by_truth(&self, value: &Value) -> Option<usize> {
        let number = value.number();
        let is_equal =
            |own: &Value| own.number() == number && std::mem::discriminant(own) != std::mem::discriminant(value);
        let mut found = (0..self.names.len()).filter(|&i| self.values[i].as_ref().is_some_and(is_equal));
        found.next().filter(|_| found.next().is_none())
    }

    /// The place of the name that is a word for this truth value, where another is the word for its opposite.
    pub(super) fn by_word(&self, truth: bool) -> Option<usize> {
        let place = |word: &str| self.names.iter().position(|name| name.trim().eq_ignore_ascii_case(word));
        TRUTHS.iter().find_map(|[no, yes]| {
            let (no, yes) = (place(no)?, place(yes)?);
            Some(if truth { yes } else { no })
        })
    }

    /// The first name that is itself a number or truth value.
    pub(super) fn valued(&self) -> Option<&str> {
        let place = self.values.iter().position(Option::is_some)?;
        Some(&self.names[place])
    }
}
