//! Drafts of pipeline files, with comments that give reasons.

use sepal_assets::Source;
use sepal_data::{Dialect, LabelKind};

/// Number of passes over the rows, within the limits on steps.
const PASSES: usize = 3;
/// Maximum number of steps: ten minutes or more on two processors with SmolLM2-135M.
const MOST_STEPS: usize = 300;
const LEAST_STEPS: usize = 100;
/// Maximum number of passes over few rows.
const MOST_PASSES: usize = 20;
const MOST_COUNTS: usize = 100;
/// Ratio of the largest to the smallest class above which accuracy is misleading.
const IMBALANCED: f64 = 3.0;

#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) model: Vec<Source>,
    pub(super) task: String,
    pub(super) train: String,
    pub(super) validation: Option<String>,
    pub(super) dialect: Dialect,
    pub(super) text: String,
    pub(super) pair: Option<String>,
    pub(super) label: String,
    pub(super) kind: LabelKind,
    pub(super) labels: Vec<Class>,
    pub(super) rows: usize,
    /// Notes about rows that a run refuses.
    pub(super) gaps: Vec<String>,
    pub(super) doubts: Vec<String>,
    pub(super) max_length: usize,
    pub(super) length_reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) name: String,
    pub(super) rows: Option<usize>,
}

impl Draft {
    fn train_rows(&self) -> usize {
        if self.validation.is_some() { self.rows } else { self.rows - self.rows / 10 }
    }

    /// Returns 32, or less if a pass would have fewer than ten batches.
    pub(super) fn batch_size(&self) -> usize {
        [32, 16, 8].into_iter().find(|size| self.train_rows() / size >= 10).unwrap_or(4)
    }

    fn steps_per_pass(&self) -> usize {
        (self.train_rows() / self.batch_size()).max(1)
    }

    pub(super) fn steps(&self) -> usize {
        let per_pass = self.steps_per_pass();
        (PASSES * per_pass).clamp(LEAST_STEPS, MOST_STEPS).min(MOST_PASSES * per_pass)
    }

    pub(super) fn steps_reason(&self) -> String {
        let (passes, steps) = (self.steps() as f64 / self.steps_per_pass() as f64, self.steps());
        let why = match steps {
            MOST_STEPS if passes < PASSES as f64 => "; raise it for more",
            LEAST_STEPS => ", as there are few rows",
            _ => "",
        };
        format!("{passes:.1} passes over {} rows{why}", self.train_rows())
    }

    fn warmup_steps(&self) -> usize {
        (self.steps() / 10).min(20)
    }

    /// Returns the template around the text. It ends before the label, which is the natural next word.
    pub(super) fn template(&self) -> String {
        let generic = ["label", "labels", "class", "classes", "target", "gold", "gold_label", "y"];
        let is_sentiment = self.labels.iter().any(|class| class.name.eq_ignore_ascii_case("positive"));
        let word = match self.label.to_lowercase().replace(['_', '-'], " ") {
            name if !generic.contains(&self.label.to_lowercase().as_str()) => name,
            _ if is_sentiment => "sentiment".to_owned(),
            _ => "label".to_owned(),
        };
        let mut letters = word.chars();
        let capital = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        // Braces would be placeholders for text.
        let word = format!("{capital}{}", letters.as_str()).replace(['{', '}'], "");
        match self.pair {
            Some(_) => format!("{{text}}\n{{text_pair}}\n{word}:"),
            None => format!("{{text}}\n{word}:"),
        }
    }

    pub(super) fn imbalance(&self) -> Option<String> {
        let counts: Vec<usize> = self.labels.iter().filter_map(|class| class.rows).collect();
        let (most, least) = (*counts.iter().max()?, *counts.iter().min()?);
        let ratio = most as f64 / least.max(1) as f64;
        let share = most as f64 / counts.iter().sum::<usize>().max(1) as f64 * 100.0;
        (ratio >= IMBALANCED).then(|| {
            format!(
                "the most frequent label has {ratio:.1} times the rows of the rarest: always guessing it is {share:.1} % \
                 accurate, so look at f1_macro rather than at accuracy"
            )
        })
    }

    pub(super) fn to_yaml(&self) -> String {
        [self.head(), self.model(), self.task(), self.data(), self.training()].concat()
    }

    fn head(&self) -> String {
        format!(
            "# Written by `sepal init` from {}; every value may be changed.\nname: {}\n",
            one_line(&self.train),
            quoted(&self.name)
        )
    }

    fn model(&self) -> String {
        let sources: String =
            self.model.iter().map(|source| format!("    - {}\n", quoted(&source.to_string()))).collect();
        format!(
            "model:\n  # The first of these that can be had is used.\n  source:\n{sources}swarm:\n  # In this process; `sepal serve` and `use: static` take the blocks elsewhere.\n  use: embedded\n"
        )
    }

    fn task(&self) -> String {
        let names: Vec<String> = self.labels.iter().map(|class| quoted(&class.name)).collect();
        let multi = if self.kind == LabelKind::Multi { "    multi_label: true\n" } else { "" };
        let comment = match self.kind {
            LabelKind::Value => "    # One name: the label is a number to be predicted.\n".to_owned(),
            _ => self.labels_comment(),
        };
        format!(
            "task:\n  use: {}\n  with:\n{comment}    labels: [{}]\n{multi}tuning:\n  use: deep-ptune\n  with:\n    pre_seq_len: 16\n",
            quoted(&self.task),
            names.join(", ")
        )
    }

    fn labels_comment(&self) -> String {
        let counts: Vec<String> = self.labels.iter().filter_map(|class| Some(class.rows?.to_string())).collect();
        let mut comment = match counts.as_slice() {
            [] => String::new(),
            counts if counts.len() > MOST_COUNTS => String::new(),
            counts => format!("    # In this order they have {} rows.\n", counts.join(", ")),
        };
        if let Some(warning) = self.imbalance() {
            comment.push_str(&format!("    # Note: {warning}.\n"));
        }
        comment.extend(self.doubts.iter().map(|doubt| format!("    # Question: {}\n", one_line(doubt))));
        comment
    }

    fn data(&self) -> String {
        let validation = match &self.validation {
            Some(path) => format!("  validation: {}\n", quoted(path)),
            None => {
                "  # A tenth of the rows is kept aside, chosen by `train.seed`.\n  validation_split: 0.1\n".to_owned()
            }
        };
        let pair = self.pair.as_ref().map(|pair| format!("  text_pair: {}\n", quoted(pair))).unwrap_or_default();
        let gaps: String = self.gaps.iter().map(|gap| format!("  # Note: {}.\n", one_line(gap))).collect();
        format!(
            "data:\n{gaps}  train: {}\n{validation}{}  text: {}\n{pair}  label: {}\n  template: {}\n  # {}.\n  max_length: {}\n",
            quoted(&self.train),
            self.dialect(),
            quoted(&self.text),
            quoted(&self.label),
            quoted(&self.template()),
            self.length_reason,
            self.max_length
        )
    }

    fn dialect(&self) -> String {
        let Dialect { delimiter, encoding } = self.dialect;
        let delimiter = delimiter.map(|delimiter| format!("  delimiter: {}\n", quoted(&delimiter.to_string())));
        let encoding = encoding.map(|encoding| format!("  encoding: {}\n", quoted(&encoding.to_string())));
        [delimiter, encoding].into_iter().flatten().collect()
    }

    fn training(&self) -> String {
        let drop_last = self.train_rows() >= self.batch_size();
        format!(
            "loader:\n  batch_size: {}\n  drop_last: {drop_last}\n  shuffle: true\n\
             optimizer:\n  use: adamw\n  with:\n    lr: 3.0e-3\n    weight_decay: 0.0\n\
             schedule:\n  use: linear\n  with:\n    warmup_steps: {}\n\
             train:\n  # {}.\n  max_steps: {}\n  clip_norm: 1.0\n  seed: 42\nevaluate:\n  every: end\n",
            self.batch_size(),
            self.warmup_steps(),
            self.steps_reason(),
            self.steps()
        )
    }
}

/// Quotes text for YAML as a JSON string; plain words need no quotes.
fn quoted(text: &str) -> String {
    let is_word = text.chars().next().is_some_and(|first| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./:=@".contains(c))
        && !text.ends_with(':');
    // Words that YAML reads as other types.
    let is_special = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"]
        .contains(&text.to_lowercase().as_str());
    if is_word && !is_special { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use sepal_config::Layers;

    use super::*;

    fn draft(rows: &[usize]) -> Draft {
        let class = |(i, &rows): (usize, &usize)| Class { name: format!("label_{i}"), rows: Some(rows) };
        Draft {
            name: "reviews".to_owned(),
            model: vec!["models/tiny".parse().expect("a source")],
            task: "sequence-classification".to_owned(),
            train: "data/my reviews: #1.csv".to_owned(),
            validation: None,
            dialect: Dialect::default(),
            text: "The Text".to_owned(),
            pair: None,
            label: "on".to_owned(),
            kind: LabelKind::Class,
            labels: rows.iter().enumerate().map(class).collect(),
            rows: rows.iter().sum(),
            doubts: vec!["is `a\nb` a label?".to_owned()],
            gaps: vec!["1 row has no text in `a\nb`".to_owned()],
            max_length: 32,
            length_reason: "because".to_owned(),
        }
    }

    #[test]
    fn every_draft_is_a_valid_pipeline() {
        let catalog = crate::catalog().expect("options");
        let plain = draft(&[500, 500]);
        let drafts = [
            Draft { pair: Some("other: text".to_owned()), ..plain.clone() },
            Draft { kind: LabelKind::Multi, ..plain.clone() },
            Draft {
                dialect: Dialect { delimiter: ";".parse().ok(), encoding: "latin-1".parse().ok() },
                ..plain.clone()
            },
            Draft { dialect: Dialect { delimiter: "tab".parse().ok(), encoding: None }, ..plain.clone() },
            Draft {
                kind: LabelKind::Value,
                labels: vec![Class { name: "true".to_owned(), rows: None }],
                ..plain.clone()
            },
            Draft { validation: Some("dev.csv".to_owned()), label: "{odd}".to_owned(), ..plain.clone() },
            draft(&[900, 3]),
            draft(&[2, 1]),
            plain,
        ];
        for draft in drafts {
            let yaml = draft.to_yaml();
            let loaded = Layers::text("draft.yaml", yaml.as_str()).load(&catalog);
            let spec = loaded.unwrap_or_else(|problems| panic!("{problems}\n{yaml}")).spec;
            assert_eq!(spec.data.rows.dialect(), draft.dialect);
            assert_eq!((spec.data.rows.label, spec.data.rows.text), (draft.label, draft.text));
            assert_eq!(spec.train.max_steps, Some(spec.train.max_steps.expect("steps").clamp(1, 300)));
        }
    }

    #[test]
    fn steps_and_batches_fit_the_rows() {
        let check = |rows: usize, batch_size: usize, steps: usize| {
            let draft = draft(&[rows / 2, rows - rows / 2]);
            assert_eq!((draft.batch_size(), draft.steps()), (batch_size, steps), "{rows} rows");
        };
        check(100_000, 32, 300);
        check(2000, 32, 168);
        check(400, 32, 100);
        check(100, 8, 100);
        check(20, 4, 80);
    }

    #[test]
    fn imbalance_comment_needs_rare_classes() {
        assert_eq!(draft(&[100, 50]).imbalance(), None);
        assert!(
            draft(&[900, 100]).imbalance().is_some_and(|text| text.contains("9.0 times") && text.contains("90.0 %"))
        );
    }

    #[test]
    fn template_ends_with_the_label_column() {
        let template = |label: &str, pair: Option<&str>| {
            Draft { label: label.to_owned(), pair: pair.map(str::to_owned), ..draft(&[1, 1]) }.template()
        };
        assert_eq!(template("topic_name", None), "{text}\nTopic name:");
        assert_eq!(template("label", Some("hypothesis")), "{text}\n{text_pair}\nLabel:");
    }
}
