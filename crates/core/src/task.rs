//! Description of a task: the layers that read rows, write predictions and answer requests ask it.

use crate::LabelKind;

/// Description of a task, which its head gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    kind: LabelKind,
    labels: Vec<String>,
}

/// Form in which a row of the data becomes token sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RowForm {
    /// One sequence of the text, or of both texts of a pair.
    #[default]
    Text,
    /// One sequence of the text, whose words have labels. The bytes of each token are known.
    Words,
    /// One sequence for each option of the row: the text with that option.
    Options,
    /// One sequence of the text and, after it, the label as an answer.
    Answer,
}

/// Type of the cells of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellKind {
    /// Text.
    Text,
    /// List of texts.
    Texts,
    /// Index from 0.
    Index,
    /// Single-precision number.
    Float32,
    /// Double-precision number.
    Float64,
    /// List of single-precision numbers.
    Floats,
}

/// Columns of the predictions of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Columns {
    /// Cells of `label`.
    pub label: CellKind,
    /// Cells of `predicted`.
    pub predicted: CellKind,
    /// Cells of `probability`; `None` without the column.
    pub probability: Option<CellKind>,
    /// True if each label of the task can have a column with its probability.
    pub has_label_columns: bool,
}

impl Task {
    /// Returns a task of this kind. `labels` are the names of its labels in the order of the logits; there are none for
    /// [`LabelKind::Choice`] and [`LabelKind::Text`], and one, the name of the number, for [`LabelKind::Value`].
    pub fn new(kind: LabelKind, labels: Vec<String>) -> Self {
        Self { kind, labels }
    }

    /// Kind of the labels of a row.
    pub fn kind(&self) -> LabelKind {
        self.kind
    }

    /// Names of the labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Form in which a row becomes token sequences.
    pub fn row_form(&self) -> RowForm {
        match self.kind {
            LabelKind::Class | LabelKind::Value | LabelKind::Multi => RowForm::Text,
            LabelKind::Choice => RowForm::Options,
            LabelKind::Tags => RowForm::Words,
            LabelKind::Text => RowForm::Answer,
        }
    }

    /// True if cells of labels may be lists in one of two layouts, which a column has in common.
    pub fn has_label_lists(&self) -> bool {
        self.kind == LabelKind::Multi
    }

    /// True if rows can be predicted without their labels.
    pub fn is_predictable(&self) -> bool {
        self.kind != LabelKind::Text
    }

    /// True if the probabilities of a row add up to one.
    pub fn is_normalized(&self) -> bool {
        matches!(self.kind, LabelKind::Class | LabelKind::Value | LabelKind::Choice)
    }

    /// Columns of the predictions.
    pub fn columns(&self) -> Columns {
        let columns = |label, predicted, probability, has_label_columns| Columns {
            label,
            predicted,
            probability,
            has_label_columns,
        };
        match self.kind {
            LabelKind::Class => columns(CellKind::Text, CellKind::Text, Some(CellKind::Float32), true),
            LabelKind::Value => columns(CellKind::Float64, CellKind::Float32, None, false),
            LabelKind::Multi => columns(CellKind::Texts, CellKind::Texts, Some(CellKind::Floats), true),
            LabelKind::Choice => columns(CellKind::Index, CellKind::Index, Some(CellKind::Float32), false),
            LabelKind::Tags => columns(CellKind::Texts, CellKind::Texts, Some(CellKind::Floats), false),
            LabelKind::Text => columns(CellKind::Text, CellKind::Text, None, false),
        }
    }

    /// Names of the usual metrics, the most important first. A metric that is undefined for some rows may be missing, and
    /// there may be values for single labels besides.
    pub fn metrics(&self) -> &'static [&'static str] {
        match self.kind {
            LabelKind::Class => {
                &["accuracy", "f1", "precision", "recall", "f1_macro", "f1_micro", "mcc", "auroc", "ece"]
            }
            LabelKind::Value => &["pearson", "spearman", "mse", "mae", "r2"],
            LabelKind::Multi => &["accuracy", "f1", "f1_macro", "exact_match", "auroc"],
            LabelKind::Choice => &["accuracy"],
            LabelKind::Tags => &["f1", "precision", "recall", "accuracy"],
            LabelKind::Text => &["perplexity", "token_accuracy", "exact_match"],
        }
    }

    /// Names of the usual metrics with those of single types of entities.
    pub fn metric_names(&self) -> Vec<String> {
        let types = self.labels.iter().filter(|_| self.kind == LabelKind::Tags);
        let of_types = types.filter_map(|tag| tag.strip_prefix("B-")).map(|kind| format!("f1/{kind}"));
        self.metrics().iter().map(|&name| name.to_owned()).chain(of_types).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_form_and_metrics() {
        for kind in LabelKind::ALL {
            let task = Task::new(kind, vec!["a".to_owned()]);
            assert_eq!((task.kind(), task.labels().len()), (kind, 1));
            assert!(!task.metrics().is_empty(), "{kind}");
            let is_sequence_for_each_row = task.row_form() != RowForm::Options;
            assert_eq!(is_sequence_for_each_row, kind != LabelKind::Choice, "{kind}");
            assert!(!task.columns().has_label_columns || task.columns().probability.is_some(), "{kind}");
        }
    }

    #[test]
    fn types_of_entities_have_metrics() {
        let tags = ["O", "B-PER", "I-PER", "B-LOC"].map(str::to_owned).to_vec();
        let names = Task::new(LabelKind::Tags, tags.clone()).metric_names();
        assert_eq!(names, ["f1", "precision", "recall", "accuracy", "f1/PER", "f1/LOC"]);
        assert_eq!(Task::new(LabelKind::Choice, Vec::new()).metric_names(), ["accuracy"]);
        assert!(!Task::new(LabelKind::Class, tags).metric_names().contains(&"f1/PER".to_owned()));
    }
}
