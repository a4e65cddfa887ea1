//! What a classifier is, and what it answers.

/// What is predicted for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of the labels.
    Class,
    /// Any number of the labels.
    Labels,
    /// A number.
    Value,
}

/// What clients are told of a classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// What it predicts.
    pub kind: Kind,
    /// The names of the labels, in the order of the probabilities; of a number, its name.
    pub labels: Vec<String>,
    /// Whether rows are pairs of texts.
    pub takes_pairs: bool,
    /// What else people may want to know: a name and a value each.
    pub facts: Vec<(String, String)>,
}

/// What was predicted for a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// One label.
    Class {
        /// The index of the label.
        class: usize,
        /// Of each label, `[n_labels]`; they add up to 1.
        probabilities: Vec<f32>,
    },
    /// Those labels whose probability is one half at least.
    Labels {
        /// Of each label for itself, `[n_labels]`.
        probabilities: Vec<f32>,
    },
    /// A number.
    Value(f32),
}

/// What is asked: one text, or two that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) pair: Option<String>,
}

impl About {
    /// A classifier of single texts, with nothing else to be said of it.
    pub fn new(name: impl Into<String>, kind: Kind, labels: &[impl AsRef<str>]) -> Self {
        let labels = labels.iter().map(|label| label.as_ref().to_owned()).collect();
        Self { name: name.into(), kind, labels, takes_pairs: false, facts: Vec::new() }
    }

    /// A row to try it with.
    pub(crate) fn example(&self) -> Row {
        Row { text: "a text to try it".into(), pair: self.takes_pairs.then(|| "a second text".into()) }
    }
}

impl Answer {
    /// Whether it has a number for each label, all of them finite.
    pub(crate) fn fits(&self, about: &About) -> bool {
        let are_fine = |probabilities: &[f32]| {
            probabilities.len() == about.labels.len() && probabilities.iter().all(|probability| probability.is_finite())
        };
        match self {
            Answer::Class { class, probabilities } => {
                about.kind == Kind::Class && *class < about.labels.len() && are_fine(probabilities)
            }
            Answer::Labels { probabilities } => about.kind == Kind::Labels && are_fine(probabilities),
            Answer::Value(value) => about.kind == Kind::Value && value.is_finite(),
        }
    }
}

impl Row {
    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len() + self.pair.as_ref().map_or(0, String::len)
    }
}
