//! Tasks of GLUE, their reported metrics (Wang et al. 2018, <https://gluebenchmark.com>), and their recognition in data
//! sources.

/// Task of GLUE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Name of its folder on the hub: `sst2`, `stsb`.
    pub name: &'static str,
    /// Names of its metrics in [`METRICS`](crate::METRICS), the headline first.
    pub metrics: &'static [&'static str],
}

/// Tasks of GLUE with labels to measure by.
pub const TASKS: &[Task] = &[
    Task { name: "cola", metrics: &["mcc"] },
    Task { name: "sst2", metrics: &["accuracy"] },
    Task { name: "mrpc", metrics: &["f1", "accuracy"] },
    Task { name: "qqp", metrics: &["f1", "accuracy"] },
    Task { name: "stsb", metrics: &["pearson", "spearman"] },
    Task { name: "mnli", metrics: &["accuracy"] },
    Task { name: "qnli", metrics: &["accuracy"] },
    Task { name: "rte", metrics: &["accuracy"] },
    Task { name: "wnli", metrics: &["accuracy"] },
];

impl Task {
    /// Returns the task of a data source or name: `hub:nyu-mll/glue/sst2`, `hub:stanfordnlp/sst2`,
    /// `glue_data/SST-2/train.tsv`, `mrpc`, `STS-B`, `mnli_mismatched`.
    ///
    /// A part of the path names a task if it consists of the name and words for splits only. It is the last part that
    /// is not about a split, or any part below a folder `glue`; the owner of a repository never counts. So
    /// `hub:cola/reviews`, `sst2-german` and `party.csv` are none.
    ///
    /// ```
    /// use sepal_metrics::glue::Task;
    ///
    /// assert_eq!(Task::find("hub:nyu-mll/glue/mrpc").map(|task| task.metrics), Some(&["f1", "accuracy"][..]));
    /// assert_eq!(Task::find("hub:fancyzhx/ag_news"), None);
    /// ```
    pub fn find(text: &str) -> Option<&'static Task> {
        let parts: Vec<Vec<String>> = parts(text).map(words).filter(|words| !words.is_empty()).collect();
        if let Some(glue) = parts.iter().position(|words| is_glue(words)) {
            return parts[glue + 1..].iter().find_map(|words| named(words));
        }
        parts.iter().rfind(|words| !words.iter().all(|word| is_split_word(word))).and_then(|words| named(words))
    }
}

/// Parts of a path, without the owner and revision of a repository and file endings.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let (path, skipped) = match text.strip_prefix("hub:") {
        Some(path) => (path, usize::from(path.contains('/'))),
        None => (text, 0),
    };
    let name = |part| str::split(part, ['.', '@']).next().unwrap_or_default();
    path.split(['/', '\\']).skip(skipped).map(name)
}

/// Lower-case words of `SST-2_train`.
fn words(part: &str) -> Vec<String> {
    part.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

fn is_glue(words: &[String]) -> bool {
    matches!(words.iter().map(String::as_str).collect::<Vec<_>>()[..], ["glue"] | ["glue", "data"])
}

/// Task that one part of a path names: `sst2`, `sst_2`, `glue-sst2-train`.
fn named(words: &[String]) -> Option<&'static Task> {
    let words = words.strip_prefix(&["glue".to_owned()]).unwrap_or(words);
    (1..=words.len().min(2)).find_map(|n| {
        let name = words[..n].concat();
        let task = TASKS.iter().find(|task| task.name == name)?;
        words[n..].iter().all(|word| is_split_word(word)).then_some(task)
    })
}

/// Returns true if a word names a split or a folder of splits.
fn is_split_word(word: &str) -> bool {
    const SPLITS: [&str; 7] = ["train", "training", "dev", "valid", "validation", "val", "test"];
    const PARTS: [&str; 5] = ["matched", "mismatched", "m", "mm", "of"];
    const FOLDERS: [&str; 5] = ["data", "refs", "convert", "parquet", "default"];
    [&SPLITS[..], &PARTS, &FOLDERS].iter().any(|words| words.contains(&word))
        || word.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metric;

    fn check(expected: Option<&str>, texts: &str) {
        for text in texts.split(' ') {
            assert_eq!(Task::find(text).map(|task| task.name), expected, "{text}");
        }
    }

    #[test]
    fn find_recognizes_paths_and_names() {
        let sst2 = "hub:nyu-mll/glue/sst2 hub:stanfordnlp/sst2 glue/sst2 glue_data/SST-2/train.tsv \
            ./data/sst2_train.csv C:\\data\\SST-2\\dev.tsv SST-2 sst2 glue-sst2 \
            hub:nyu-mll/glue/sst2/train-00000-of-00001.parquet \
            hub:stanfordnlp/sst2@v1.0/data/train-00000-of-00001.parquet \
            hub:stanfordnlp/sst2@refs/convert/parquet/default/train/0000.parquet \
            hub:nyu-mll/glue@refs/convert/parquet/sst2/train/0000.parquet";
        check(Some("sst2"), sst2);
        check(Some("mrpc"), "glue/mrpc glue_data/MRPC/msr_paraphrase_train.txt mrpc");
        check(Some("mnli"), "mnli mnli_mismatched hub:nyu-mll/glue/mnli_matched MNLI-mm/test.jsonl");
        check(Some("stsb"), "STS-B stsb sts_b hub:sentence-transformers/stsb");
        check(Some("cola"), "CoLA hub:nyu-mll/glue/cola");
        check(Some("qqp"), "../qqp/");
        check(Some("qnli"), "hub:SetFit/qnli");
        check(Some("rte"), "hub:nyu-mll/glue/rte");
        check(Some("wnli"), "wnli.jsonl");
    }

    #[test]
    fn find_unrelated_text_is_none() {
        check(None, "");
        let others = "hub:nyu-mll/glue hub:cola/reviews hub:glue/reviews hub:fancyzhx/ag_news hub:stanfordnlp/snli \
            hub:AI-Secure/adv_glue/adv_sst2 sst2-german hub:me/partex forte/train.csv data/cola/flavours/train.csv \
            chocolate.tsv train.tsv glue";
        check(None, others);
    }

    #[test]
    fn task_metrics_are_known() {
        for task in TASKS {
            assert!(!task.metrics.is_empty());
            for name in task.metrics {
                assert!(Metric::find(name).is_ok_and(|metric| metric.larger_is_better), "{}: {name}", task.name);
            }
            check(Some(task.name), task.name);
        }
    }
}
