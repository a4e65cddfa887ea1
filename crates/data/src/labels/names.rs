use std::collections::BTreeMap;

use sepal_core::Task;

use super::LabelError;
use super::value::{Value, normalized};

/// Names of a task's labels; the number of a class is the index of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    names: Vec<String>,
    texts: BTreeMap<String, usize>,
    values: Vec<Option<Value>>,
    layout: Option<ListLayout>,
}

/// Meaning of the items of a list of labels.
///
/// A column has one layout, which fits all of its lists. Lists of floating-point numbers are multi-hot vectors, and so are
/// vectors of numbers with a decimal point that are no names. Names in quotation marks are classes. Other lists
/// fit both layouts only with at most two names, as `[0, 1]` does. If all lists of a column fit both, they are multi-hot
/// vectors, as in scikit-learn and transformers, unless all are equal or one is empty: such a column is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListLayout {
    /// Each item is a class.
    Classes,
    /// Each item is the share, from 0 to 1, of the label at its index.
    MultiHot,
}

impl ListLayout {
    const ALL: [Self; 2] = [Self::Classes, Self::MultiHot];

    /// Name for [`ListLayout::from_name`].
    pub fn name(self) -> &'static str {
        match self {
            ListLayout::Classes => "classes",
            ListLayout::MultiHot => "multi-hot",
        }
    }

    /// Layout of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.name() == name)
    }
}

/// Words for `false` and `true`. Names of these words match truth values, but not numbers.
const TRUTHS: [[&str; 2]; 4] = [["no", "yes"], ["n", "y"], ["off", "on"], ["f", "t"]];

impl LabelSet {
    /// Creates a set of these names, in this order.
    ///
    /// # Errors
    /// [`LabelError::Names`] if there is none, one is empty, or two differ only in surrounding blanks or in their Unicode
    /// normal form.
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
        let values = names.iter().map(|name| Value::from_text(&normalized(name))).collect();
        Ok(Self { names, texts, values, layout: None })
    }

    /// Creates the set of a task's labels, which is empty for labels without names.
    ///
    /// # Errors
    /// [`LabelError::Names`] as [`LabelSet::new`].
    pub fn of_task(task: &Task) -> Result<Self, LabelError> {
        match task.labels() {
            [] => Ok(Self { names: Vec::new(), texts: BTreeMap::new(), values: Vec::new(), layout: None }),
            names => Self::new(names),
        }
    }

    /// Sets the layout of ambiguous lists.
    #[must_use]
    pub fn with_layout(self, layout: Option<ListLayout>) -> Self {
        Self { layout, ..self }
    }

    /// Layout of ambiguous lists.
    pub fn layout(&self) -> Option<ListLayout> {
        self.layout
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns true if numbers are indices of names, as no name is itself a number or truth value.
    pub fn takes_indices(&self) -> bool {
        self.first_value_name().is_none()
    }

    pub(super) fn by_text(&self, text: &str) -> Option<usize> {
        self.texts.get(&*normalized(text)).copied()
    }

    pub(super) fn by_value(&self, values: &[Value]) -> Vec<usize> {
        let is_equal = |name: &Option<Value>| name.as_ref().is_some_and(|name| values.contains(name));
        (0..self.names.len()).filter(|&i| is_equal(&self.values[i])).collect()
    }

    /// Index of the only name whose truth value equals this number, or whose number equals this truth value.
    pub(super) fn by_truth(&self, value: &Value) -> Option<usize> {
        let number = value.number();
        let is_equal =
            |name: &Value| name.number() == number && std::mem::discriminant(name) != std::mem::discriminant(value);
        let mut found = (0..self.names.len()).filter(|&i| self.values[i].as_ref().is_some_and(is_equal));
        found.next().filter(|_| found.next().is_none())
    }

    /// Index of the name that is a word for this truth value, if another name is the word for its opposite.
    pub(super) fn by_word(&self, truth: bool) -> Option<usize> {
        let index = |word: &str| self.names.iter().position(|name| name.trim().eq_ignore_ascii_case(word));
        TRUTHS.iter().find_map(|[no, yes]| {
            let (no, yes) = (index(no)?, index(yes)?);
            Some(if truth { yes } else { no })
        })
    }

    /// First name that is itself a number or truth value.
    pub(super) fn first_value_name(&self) -> Option<&str> {
        let index = self.values.iter().position(Option::is_some)?;
        Some(&self.names[index])
    }
}
