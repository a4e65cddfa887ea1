use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Int64Type};

use crate::read;
use crate::{Dialect, Format, ReadError};

/// Content of a `predictions.parquet`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// First texts.
    pub texts: Vec<String>,
    /// Second texts, if rows are pairs.
    pub pairs: Option<Vec<String>>,
    /// Labels and predictions.
    pub outcomes: Outcomes,
    /// Logits, `[rows][n_labels]`.
    pub logits: Vec<Vec<f32>>,
    /// Probabilities, `[rows][n_labels]`.
    pub probabilities: Vec<Vec<f32>>,
}

/// Labels and predictions.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcomes {
    /// Names of one class per row, `[rows]`.
    Class {
        /// The true names.
        label: Vec<String>,
        /// The most probable names.
        predicted: Vec<String>,
    },
    /// One number per row, `[rows]`.
    Value {
        /// The true numbers.
        label: Vec<f32>,
        /// The predicted numbers.
        predicted: Vec<f32>,
    },
    /// Any number of classes per row, `[rows][n_labels]`.
    Multi {
        /// From 0 to 1.
        label: Vec<Vec<f32>>,
        /// 0 or 1.
        predicted: Vec<Vec<f32>>,
    },
    /// One of the row's options, by index, `[rows]`.
    Choice {
        /// The right options.
        label: Vec<i64>,
        /// The most probable options.
        predicted: Vec<i64>,
        /// The options, `[rows][options]`.
        options: Vec<Vec<String>>,
    },
    /// Names of the tags of words, `[rows][words]`.
    Tags {
        /// The true tags.
        label: Vec<Vec<String>>,
        /// The most probable tags.
        predicted: Vec<Vec<String>>,
    },
    /// Texts, `[rows]`, whose tokens have the logits.
    Text {
        /// The true texts.
        label: Vec<String>,
        /// The most probable token at each position.
        predicted: Vec<String>,
    },
}

const COLUMNS: [&str; 5] = ["text", "label", "predicted", "logits", "probabilities"];
const OPTIONAL_COLUMNS: [&str; 2] = ["text_pair", "options"];

impl Predictions {
    /// Reads a file that [`predictions_parquet`](crate::predictions_parquet) wrote.
    ///
    /// # Errors
    /// [`ReadError`] if the file is missing, damaged, or has other columns.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let batches = batches(path)?;
        let file = PredictionsFile { path, batches: &batches };
        Ok(Self {
            texts: file.strings("text")?,
            pairs: if file.kind("text_pair").is_some() { Some(file.strings("text_pair")?) } else { None },
            outcomes: file.outcomes()?,
            logits: file.lists("logits")?,
            probabilities: file.lists("probabilities")?,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns true if there is no row.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

fn batches(path: &Path) -> Result<Vec<RecordBatch>, ReadError> {
    let options = read::OpenOptions { dialect: Dialect::default(), keys: read::KeyScan::First(1) };
    let opened = read::open(read::Source::open(path)?, path, Format::Parquet, options)?;
    let mut columns = COLUMNS.iter().map(|name| opened.find(name)).collect::<Result<Vec<_>, _>>()?;
    columns.extend(OPTIONAL_COLUMNS.iter().filter_map(|name| opened.find(name).ok()));
    opened.batches(read::Projection { columns, objects: false }, usize::MAX)?.collect()
}

struct PredictionsFile<'a> {
    path: &'a Path,
    batches: &'a [RecordBatch],
}

impl PredictionsFile<'_> {
    fn outcomes(&self) -> Result<Outcomes, ReadError> {
        Ok(match self.kind("label") {
            Some(DataType::Float32) => {
                Outcomes::Value { label: self.numbers("label")?, predicted: self.numbers("predicted")? }
            }
            Some(DataType::FixedSizeList(..)) => {
                Outcomes::Multi { label: self.lists("label")?, predicted: self.lists("predicted")? }
            }
            Some(DataType::Int64) => Outcomes::Choice {
                label: self.indices("label")?,
                predicted: self.indices("predicted")?,
                options: self.text_lists("options")?,
            },
            Some(DataType::List(_)) => {
                Outcomes::Tags { label: self.text_lists("label")?, predicted: self.text_lists("predicted")? }
            }
            _ if matches!(self.kind("logits"), Some(DataType::List(_))) => {
                Outcomes::Text { label: self.strings("label")?, predicted: self.strings("predicted")? }
            }
            _ => Outcomes::Class { label: self.strings("label")?, predicted: self.strings("predicted")? },
        })
    }

    fn kind(&self, column: &str) -> Option<&DataType> {
        Some(self.batches.first()?.column_by_name(column)?.data_type())
    }

    fn strings(&self, column: &'static str) -> Result<Vec<String>, ReadError> {
        self.rows(column, "texts", |array| {
            let texts = array.as_string_opt::<i32>()?;
            Some(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
        })
    }

    fn numbers(&self, column: &'static str) -> Result<Vec<f32>, ReadError> {
        self.rows(column, "fp32 numbers", floats)
    }

    fn lists(&self, column: &'static str) -> Result<Vec<Vec<f32>>, ReadError> {
        let numbers = |list: Option<ArrayRef>| list.map_or(Some(Vec::new()), |list| floats(&*list));
        self.rows(column, "lists of fp32 numbers", |array| match array.as_fixed_size_list_opt() {
            Some(lists) => lists.iter().map(numbers).collect(),
            None => array.as_list_opt::<i32>()?.iter().map(numbers).collect(),
        })
    }

    fn indices(&self, column: &'static str) -> Result<Vec<i64>, ReadError> {
        self.rows(column, "int64 numbers", |array| Some(array.as_primitive_opt::<Int64Type>()?.values().to_vec()))
    }

    fn text_lists(&self, column: &'static str) -> Result<Vec<Vec<String>>, ReadError> {
        let texts = |list: Option<ArrayRef>| {
            let Some(list) = list else { return Some(Vec::new()) };
            let texts = list.as_string_opt::<i32>()?;
            Some(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
        };
        self.rows(column, "lists of texts", |array| array.as_list_opt::<i32>()?.iter().map(texts).collect())
    }

    fn rows<T>(
        &self,
        column: &'static str,
        expected: &'static str,
        take: impl Fn(&dyn Array) -> Option<Vec<T>>,
    ) -> Result<Vec<T>, ReadError> {
        let mut rows = Vec::new();
        for batch in self.batches {
            let array = batch.column_by_name(column);
            rows.extend(array.and_then(|array| take(&**array)).ok_or_else(|| ReadError::ColumnType {
                path: self.path.to_owned(),
                column: column.to_owned(),
                expected,
                found: array.map_or_else(|| "nothing".to_owned(), |array| array.data_type().to_string()),
            })?);
        }
        Ok(rows)
    }
}

/// Numbers of a column, with NaN for null.
fn floats(array: &dyn Array) -> Option<Vec<f32>> {
    let numbers = array.as_primitive_opt::<Float32Type>()?;
    Some(numbers.iter().map(|number| number.unwrap_or(f32::NAN)).collect())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::testing::json_table;
    use crate::{Labels, PredictionRef, Table, TableSpec, predictions_parquet};

    fn round_trip(pairs: bool, labels: &Labels, names: &[&str], class: &[i64], numbers: &[Vec<f32>; 2]) -> Predictions {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = folder.path().join("rows.tsv");
        std::fs::write(&rows, "text\tother\tlabel\ngood film\tyes\t1\nbad film\tno\t0\n").expect("written");
        let spec = TableSpec::new(rows, "text").with_label("label");
        let spec = if pairs { spec.with_pair("other") } else { spec };
        let table = Table::read(&spec).expect("a table");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let predicted = PredictionRef::new(class, numbers, numbers);
        let bytes = predictions_parquet(&table, labels, &names, predicted).expect("a file");
        let path = folder.path().join("predictions.parquet");
        std::fs::write(&path, bytes).expect("written");
        Predictions::read(&path).expect("read")
    }

    #[test]
    fn class_predictions_survive_by_name() {
        let numbers = [vec![0.25, 0.75], vec![0.5, 0.5]];
        let found = round_trip(true, &Labels::Class(vec![1, 1]), &["bad", "good"], &[1, 0], &numbers);
        assert_eq!(found.texts, ["good film", "bad film"]);
        assert_eq!(found.pairs.as_deref(), Some(&["yes".to_owned(), "no".to_owned()][..]));
        let owned = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let expected = Outcomes::Class { label: owned(["good", "good"]), predicted: owned(["good", "bad"]) };
        assert_eq!(found.outcomes, expected);
        assert_eq!((found.logits, found.probabilities, found.texts.len()), (numbers.to_vec(), numbers.to_vec(), 2));
    }

    #[test]
    fn value_and_multi_label_predictions_survive() {
        let found =
            round_trip(false, &Labels::Value(vec![0.5, 2.0]), &["score"], &[0, 0], &[vec![f32::INFINITY], vec![1.5]]);
        let expected = Outcomes::Value { label: vec![0.5, 2.0], predicted: vec![f32::INFINITY, 1.5] };
        assert_eq!((found.outcomes, found.pairs), (expected, None));
        let hot = Labels::Multi(vec![vec![1.0, 0.0], vec![0.0, 0.0]]);
        let found = round_trip(false, &hot, &["a", "b"], &[0, 0], &[vec![0.25, 0.75], vec![0.5, 0.1]]);
        let label = vec![vec![1.0, 0.0], vec![0.0, 0.0]];
        assert_eq!(found.outcomes, Outcomes::Multi { label, predicted: vec![vec![0.0, 1.0], vec![1.0, 0.0]] });
    }

    fn read_back(rows: &[&str], labels: &Labels, names: &[&str], predicted: PredictionRef<'_>) -> Predictions {
        let table = json_table(rows, |spec| match labels {
            Labels::Choice(_) => spec.with_options(["of"]),
            _ => spec,
        });
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("predictions.parquet");
        std::fs::write(&path, predictions_parquet(&table, labels, &names, predicted).expect("a file"))
            .expect("written");
        Predictions::read(&path).expect("read")
    }

    #[test]
    fn predictions_of_options_tags_and_texts_survive() {
        let rows = [r#"{"text": "x", "of": ["a", "b"]}"#, r#"{"text": "y z", "of": ["c", "d", "e"]}"#];
        let numbers = [vec![0.25, 0.75], vec![0.5, 0.25, 0.25]];
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let predicted = PredictionRef::new(&[1, 0], &numbers, &numbers);
        let found = read_back(&rows, &Labels::Choice(vec![1, 2]), &[], predicted);
        let options = vec![owned(&["a", "b"]), owned(&["c", "d", "e"])];
        assert_eq!(found.outcomes, Outcomes::Choice { label: vec![1, 2], predicted: vec![1, 0], options });
        assert_eq!(found.probabilities, numbers);

        let numbers = [vec![0.5], vec![0.75, 1.0]];
        let items = [vec![0], vec![1, 0]];
        let predicted = PredictionRef { items: &items, ..PredictionRef::new(&[], &numbers, &numbers) };
        let found = read_back(&rows, &Labels::Tags(vec![vec![1], vec![1, 1]]), &["O", "B-X"], predicted);
        let label = vec![owned(&["B-X"]), owned(&["B-X", "B-X"])];
        assert_eq!(found.outcomes, Outcomes::Tags { label, predicted: vec![owned(&["O"]), owned(&["B-X", "O"])] });

        let texts = owned(&["yes", "so"]);
        let predicted = PredictionRef { texts: &texts, ..PredictionRef::new(&[], &numbers, &numbers) };
        let found = read_back(&rows, &Labels::Text(owned(&["yes", "no"])), &[], predicted);
        assert_eq!(found.outcomes, Outcomes::Text { label: owned(&["yes", "no"]), predicted: owned(&["yes", "so"]) });
        assert_eq!(found.logits, numbers);
    }

    #[test]
    fn other_files_are_refused_as_predictions() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("predictions.parquet");
        assert!(matches!(Predictions::read(&path), Err(ReadError::Open { .. })));
        std::fs::write(&path, "PAR1 and no more").expect("written");
        assert!(matches!(Predictions::read(&path), Err(ReadError::Corrupt { .. })));
        let folder = Predictions::read(&PathBuf::from("/"));
        assert!(matches!(folder, Err(ReadError::Corrupt { .. } | ReadError::Open { .. })));
    }
}
