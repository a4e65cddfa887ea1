//! Names of labels from the `config.json` of transformers, as PEFT does not save them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use crate::adapter::placeholders;

const MODEL_CONFIG: &str = "config.json";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelNames {
    /// Names in the order of the logits, if all labels are named.
    pub(crate) labels: Option<Vec<String>>,
    /// True if any number of labels may apply to a text.
    pub(crate) multi_label: bool,
}

#[derive(Debug, Default, Deserialize)]
struct ModelConfig {
    id2label: Option<BTreeMap<String, String>>,
    problem_type: Option<String>,
}

/// Reads the names of `n_labels` labels from the `config.json` in `folder`, if the file is present and valid.
pub(crate) fn read_label_names(folder: &Path, n_labels: usize) -> LabelNames {
    let text = sepal_machine::regular::read(&folder.join(MODEL_CONFIG)).unwrap_or_default();
    let ModelConfig { id2label, problem_type } = serde_json::from_slice(&text).unwrap_or_default();
    let labels = id2label.and_then(|by_id| in_order(&by_id, n_labels));
    LabelNames { labels, multi_label: problem_type.as_deref() == Some("multi_label_classification") }
}

/// Returns one name per logit, if the names are not placeholders.
fn in_order(by_id: &BTreeMap<String, String>, n_labels: usize) -> Option<Vec<String>> {
    let names: Option<Vec<String>> = (0..n_labels).map(|id| by_id.get(&id.to_string()).cloned()).collect();
    let is_name = |name: &String| !name.trim().is_empty();
    let are_names = |names: &Vec<String>| {
        let distinct: HashSet<&String> = names.iter().collect();
        by_id.len() == n_labels
            && distinct.len() == n_labels
            && names.iter().all(is_name)
            && *names != placeholders(n_labels)
    };
    names.filter(are_names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &str, labels: Option<&[&str]>, multi_label: bool) {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(MODEL_CONFIG), config).expect("written");
        let labels = labels.map(|labels| labels.iter().map(|&label| label.to_owned()).collect());
        assert_eq!(read_label_names(folder.path(), 2), LabelNames { labels, multi_label }, "{config}");
    }

    #[test]
    fn labels_need_a_name_for_every_index() {
        check(r#"{"id2label": {"1": "good", "0": "bad"}, "problem_type": null}"#, Some(&["bad", "good"]), false);
        check(
            r#"{"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}"#,
            Some(&["a", "b"]),
            true,
        );
        check(r#"{"id2label": {"0": "a/é", "1": "b\n\u001b[2J"}}"#, Some(&["a/é", "b\n\u{1b}[2J"]), false);
        for unnamed in [
            "",
            "[]",
            "{}",
            r#"{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}"#,
            r#"{"id2label": {"0": "a"}}"#,
            r#"{"id2label": {"0": "a", "1": "b", "2": "c"}}"#,
            r#"{"id2label": {"0": "a", "1": "a"}}"#,
            r#"{"id2label": {"0": "a", "1": " \n"}}"#,
            r#"{"id2label": {"0": 1, "1": 2}}"#,
        ] {
            check(unnamed, None, false);
        }
        assert_eq!(read_label_names(Path::new("/nowhere"), 2), LabelNames { labels: None, multi_label: false });
    }
}
