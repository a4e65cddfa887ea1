//! Rows of the runs of a sweep. Runs with the same settings of the data have the same rows, also after a resume.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sepal_config::{Spec, Sweep};
use sepal_track::{DataFacts, Manifest, MemberState, SweepRecord};
use sepal_train::{has_checkpoint, row_digests};
use serde_json::{Value, json};

use crate::error::{CountedRows, RowsError};

/// Keys of the rows in a pipeline file.
const TRAIN: &str = "data.train";
const VALIDATION: &str = "data.validation";

/// Rows of the runs that have begun, by the names of their folders.
#[derive(Debug, Default)]
pub(crate) struct KnownRows(Mutex<BTreeMap<String, RunRows>>);

impl KnownRows {
    /// Rows of the runs in the folder of a sweep whose results stay: complete ones, and those with a checkpoint.
    pub(super) fn new(sweep: &Sweep, folder: &Path, record: &SweepRecord) -> Self {
        let runs = record.runs.iter().zip(&sweep.members).filter_map(|(run, member)| {
            let path = folder.join(&run.folder);
            let is_over = matches!(run.state, MemberState::Finished | MemberState::Stopped);
            let rows = if is_over || has_checkpoint(&path) { RunRows::read(&member.spec, &path) } else { None };
            Some((run.folder.clone(), rows?))
        });
        Self(Mutex::new(runs.collect()))
    }

    /// Adds the rows of a run.
    ///
    /// # Errors
    /// [`RowsError`] if another run, or this run before, has other rows with the same settings of the data.
    pub(crate) fn add(&self, run: &str, spec: &Spec, facts: &DataFacts) -> Result<(), Box<RowsError>> {
        let rows = RunRows::new(spec, facts);
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let difference = runs.iter().find_map(|(other, known)| Some((other, rows.difference(known)?)));
        if let Some((other, [found, expected])) = difference {
            return Err(Box::new(RowsError {
                run: run.to_owned(),
                other: other.clone(),
                part: found.name,
                key: found.key,
                origin: found.origin.clone(),
                found: found.rows.clone(),
                expected: expected.rows.clone(),
            }));
        }
        runs.insert(run.to_owned(), rows);
        Ok(())
    }
}

/// Rows of one run in parts, of which each is compared with that of other runs.
#[derive(Debug)]
struct RunRows([Part; 3]);

#[derive(Debug)]
struct Part {
    name: &'static str,
    /// Key of the rows in a pipeline file.
    key: &'static str,
    /// Source of the rows; empty if it is not known.
    origin: String,
    /// Settings that decide the rows.
    settings: String,
    rows: CountedRows,
}

impl RunRows {
    fn new(spec: &Spec, facts: &DataFacts) -> Self {
        let sources: Vec<Value> = spec.data.sources().map(source).collect();
        let task = serde_json::to_value(&spec.task).unwrap_or_default();
        let is_split = spec.data.sources().any(|rows| rows.validation_split.is_some());
        let split_seed = is_split.then_some(spec.train.seed);
        let few = spec.data.few_shot.as_ref();
        let few = few.map(|few| json!([few.per_class, few.seed.unwrap_or(spec.train.seed)]));
        let counted =
            |digest: &String, count: usize| CountedRows { count: (count > 0).then_some(count), digest: digest.clone() };
        let training = |name, settings: Value, rows| Part {
            name,
            key: TRAIN,
            origin: facts.train.clone(),
            settings: settings.to_string(),
            rows,
        };
        let split_settings = json!([sources, task, split_seed]);
        let validation =
            training("validation rows", split_settings, counted(&facts.validation_digest, facts.validation_rows));
        let validation = if is_split {
            validation
        } else {
            Part { key: VALIDATION, origin: facts.validation.clone(), ..validation }
        };
        Self([
            training(
                "training rows",
                json!([sources, task, split_seed, few]),
                counted(&facts.train_digest, facts.train_rows),
            ),
            validation,
            // The same for each seed.
            training("training data", json!(sources), counted(&facts.source_digest, 0)),
        ])
    }

    /// Rows of the run in a folder, of its manifest or else of its checkpoint.
    fn read(spec: &Spec, folder: &Path) -> Option<Self> {
        if let Ok(manifest) = Manifest::read(folder) {
            return Some(Self::new(spec, &manifest.data));
        }
        let [train_digest, validation_digest] = row_digests(folder)?;
        Some(Self::new(spec, &DataFacts { train_digest, validation_digest, ..DataFacts::default() }))
    }

    /// First part that differs from that of an earlier run although the settings are the same, and the earlier part.
    fn difference<'a>(&'a self, known: &'a Self) -> Option<[&'a Part; 2]> {
        let is_other = |(own, known): &(&Part, &Part)| {
            own.settings == known.settings
                && own.rows.digest != known.rows.digest
                && !own.rows.digest.is_empty()
                && !known.rows.digest.is_empty()
        };
        let (own, known) = self.0.iter().zip(&known.0).find(is_other)?;
        Some([own, known])
    }
}

/// Settings of a source of rows, without its template, which changes only their tokens.
fn source(rows: &sepal_config::spec::RowsSpec) -> Value {
    let mut value = serde_json::to_value(rows).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.shift_remove("template");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn facts(train: &str, train_rows: usize, validation: &str, source: &str) -> DataFacts {
        DataFacts {
            train: "train.csv".to_owned(),
            validation: "validation.csv".to_owned(),
            train_digest: train.to_owned(),
            train_rows,
            validation_digest: validation.to_owned(),
            validation_rows: 8,
            source_digest: source.to_owned(),
            ..DataFacts::default()
        }
    }

    #[test]
    fn runs_with_the_same_settings_of_the_data_need_the_same_rows() {
        let known = KnownRows::default();
        let seed = |seed: u64| spec(&[&format!("train.seed={seed}")]);
        known.add("001", &seed(1), &facts("aaaa", 19, "vvvv", "aaaa")).expect("the first");
        known.add("002", &seed(2), &facts("aaaa", 19, "vvvv", "aaaa")).expect("the same rows");
        let error = known.add("003", &seed(3), &facts("bbbb", 39, "vvvv", "bbbb")).expect_err("other rows");
        let rows = |digest: &str, count| CountedRows { count: Some(count), digest: digest.to_owned() };
        assert_eq!([&error.found, &error.expected], [&rows("bbbb", 39), &rows("aaaa", 19)]);
        assert_eq!(
            error.to_string(),
            "use the training rows of 003 (`data.train`: train.csv): found 39 rows (bbbb), but run 001 has 19 rows (aaaa) \
             with the same settings of the data; restore the data, or begin a new sweep without `--resume`"
        );
        let error = known.add("003", &seed(3), &facts("aaaa", 19, "wwww", "aaaa")).expect_err("other rows").to_string();
        assert!(error.contains("the validation rows of 003 (`data.validation`: validation.csv)"), "{error}");
        assert!(error.contains("found 8 rows (wwww), but run 001 has 8 rows (vvvv) with"), "{error}");
        let error = known.add("001", &seed(1), &facts("bbbb", 1, "vvvv", "")).expect_err("other rows").to_string();
        assert!(error.contains("found 1 row (bbbb), but it was begun with 19 rows (aaaa) with"), "{error}");
        known.add("003", &spec(&["data.train=other.csv"]), &facts("bbbb", 39, "vvvv", "bbbb")).expect("other settings");
    }

    #[test]
    fn rows_that_a_seed_draws_differ_and_their_source_does_not() {
        let known = KnownRows::default();
        for (run, sets) in [
            ("few", ["data.few_shot={per_class: 8}", "train.seed=1"]),
            ("split", ["data={validation: null, validation_split: 0.1}", "train.seed=1"]),
        ] {
            known.add(run, &spec(&sets), &facts("aaaa", 16, "vvvv", "ssss")).expect("the first");
            let next = spec(&[sets[0], "train.seed=2"]);
            // Validation rows of their own are those of the file for each seed.
            let validation = if run == "split" { "wwww" } else { "vvvv" };
            known.add("002", &next, &facts("bbbb", 16, validation, "ssss")).expect("another draw");
            let error = known.add("003", &spec(&[sets[0], "train.seed=3"]), &facts("cccc", 16, "", "tttt"));
            let error = error.expect_err("another source").to_string();
            assert!(error.contains("the training data of 003 (`data.train`: train.csv)"), "{error}");
            assert!(error.contains("found rows (tttt), but run ") && error.contains(" has rows (ssss)"), "{error}");
        }
        // Validation rows that are split off come from the training data.
        let split = spec(&["data={validation: null, validation_split: 0.1}", "train.seed=1"]);
        let error =
            known.add("004", &split, &facts("aaaa", 16, "xxxx", "ssss")).expect_err("another split").to_string();
        let expected = "004 (`data.train`: train.csv): found 8 rows (xxxx), but run split has 8 rows (vvvv)";
        assert!(error.contains(&format!("the validation rows of {expected}")), "{error}");
    }
}
