use std::collections::BTreeMap;

use schemars::JsonSchema;
use sepal_catalog::{OptionProblem, Options, PluginKind};
use sepal_core::{LabelKind, Task, TrainedTensor};
use serde::{Deserialize, Serialize};

use crate::{HeadOptions, OptionError, Tokenize, label_words};

/// Gives each text one label, by words that the frozen language model scores as the next one.
///
/// The template has to lead to such a word, for example `{text}\nSentiment:`. Gemma's cap of the final logits is not applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerbalizerConfig {
    /// Names of the labels, in the order of their indices in the data.
    #[schemars(length(min = 2), inner(length(min = 1)), extend("uniqueItems" = true))]
    pub labels: Vec<String>,
    /// Words of each label, by its name; a label without an entry has its name as its word. Each word must be a single
    /// token after a blank; a word with a blank before it is taken as it is written.
    #[serde(default)]
    pub words: BTreeMap<String, Vec<String>>,
    /// Logit of a label with several words.
    #[serde(default)]
    pub aggregate: Aggregate,
    /// Texts without content, such as `N/A`. If there are any, the probabilities of the labels are divided by their mean
    /// probabilities for these texts, and normalized again (contextual calibration; Zhao et al., arXiv 2102.09690).
    #[serde(default)]
    pub calibrate: Vec<String>,
}

/// Logit of a label with several words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// Mean of the logits of its words, the logarithm of the geometric mean of their probabilities.
    #[default]
    Mean,
    /// Logarithm of the sum of the probabilities of its words.
    Sum,
}

impl Options for VerbalizerConfig {
    const KIND: PluginKind = PluginKind::Head;
    const NAME: &'static str = "verbalizer";

    fn example() -> Self {
        let words = [("negative", ["bad", "terrible"]), ("positive", ["good", "great"])];
        let owned = |words: [&str; 2]| words.map(str::to_owned).to_vec();
        Self {
            labels: words.map(|(label, _)| label.to_owned()).to_vec(),
            words: words.map(|(label, words)| (label.to_owned(), owned(words))).into(),
            aggregate: Aggregate::Mean,
            calibrate: vec!["N/A".to_owned()],
        }
    }

    fn check(&self) -> Vec<OptionProblem> {
        let problem = |message: String| OptionProblem { key: "words".to_owned(), message };
        let unknown = self.words.keys().filter(|label| !self.labels.contains(label));
        let unknown = unknown.map(|label| problem(format!("expected words of the labels, found words of `{label}`")));
        let empty = self.words.iter().filter(|(_, words)| words.is_empty());
        let empty = empty.map(|(label, _)| problem(format!("expected at least one word of `{label}`")));
        unknown.chain(empty).collect()
    }
}

impl VerbalizerConfig {
    /// Returns the tokens of the words of each label, `[labels][words]`.
    ///
    /// # Errors
    /// [`OptionError`] if a word is not one token, or two labels have a token in common.
    pub fn tokens(&self, tokenize: &Tokenize<'_>) -> Result<Vec<Vec<i64>>, OptionError> {
        let words_of = |label: &String| self.words.get(label).cloned().unwrap_or_else(|| vec![label.clone()]);
        let words: Vec<Vec<String>> = self.labels.iter().map(words_of).collect();
        label_words("words", &self.labels, &words, tokenize)
    }
}

impl HeadOptions for VerbalizerConfig {
    fn task(&self) -> Result<Task, OptionError> {
        Ok(Task::new(LabelKind::Class, self.labels.clone()))
    }

    fn tensors(&self, _: usize) -> Vec<TrainedTensor> {
        Vec::new()
    }

    fn check_words(&self, tokenize: &Tokenize<'_>) -> Result<(), OptionError> {
        self.tokens(tokenize).map(drop)
    }
}
