//! Rows that are left out because they are empty.

use crate::labels::{LabelSet, is_missing};
use crate::{BadRow, CellProblem, LabelKind, RawLabel, ReadError, Table};

/// Number of the rows that were left out of a table, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SkippedRows {
    /// Number of rows.
    pub rows: usize,
    /// The first one.
    pub first: Option<BadRow>,
}

impl SkippedRows {
    pub(crate) fn add(&mut self, bad: BadRow) {
        self.rows += 1;
        self.first.get_or_insert(bad);
    }

    /// Sum with the rows left out of another table.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self { rows: self.rows + other.rows, first: self.first.or_else(|| other.first.clone()) }
    }
}

impl LabelSet {
    /// Leaves out the rows of a table without a label, where labels of this kind cannot be missing, and adds them to the
    /// [skipped](Table::skipped) ones. `column` is the name of the column of labels.
    ///
    /// # Errors
    /// [`ReadError::NoRows`] if no row is left.
    pub fn skip_unlabelled(&self, table: Table, column: &str, kind: LabelKind) -> Result<Table, ReadError> {
        let Some(labels) = table.labels() else { return Ok(table) };
        let (missing, labelled): (Vec<usize>, Vec<usize>) =
            (0..labels.len()).partition(|&row| self.lacks_label(&labels[row], kind));
        if missing.is_empty() {
            return Ok(table);
        }
        if labelled.is_empty() {
            let path = table.location(0).path;
            let filter = Some(format!("a label in `{column}`"));
            return Err(ReadError::NoRows { path, read: table.len(), filter, found: None });
        }
        let problem = CellProblem::Empty;
        let bad = |row: &usize| BadRow { location: table.location(*row), column: column.to_owned(), problem };
        let SkippedRows { rows, first } = table.skipped().clone();
        let first = first.into_iter().chain(missing.first().map(bad)).min_by_key(|bad| table.position(&bad.location));
        let skipped = SkippedRows { rows: rows + missing.len(), first };
        Ok(table.select(&labelled).with_skipped(skipped))
    }

    /// Returns true if a label is missing, or one of several, as in a list that holds null. So are all labels that are refused
    /// as [missing](crate::LabelError::Missing).
    fn lacks_label(&self, label: &RawLabel, kind: LabelKind) -> bool {
        let is_class = || matches!(kind, LabelKind::Class | LabelKind::Multi) && self.class_of(label).is_some();
        let is_empty = match label {
            RawLabel::Float(number) => number.is_nan(),
            // An empty cell is an empty list.
            RawLabel::Name(text) if text.trim().is_empty() => return kind != LabelKind::Multi,
            RawLabel::Name(text) => kind != LabelKind::Text && is_missing(text) && !is_class(),
            RawLabel::Bool(_) | RawLabel::Int(_) | RawLabel::Quoted(_) | RawLabel::Many(_) => false,
        };
        let lacks = |item: &RawLabel| !matches!(item, RawLabel::Many(_)) && self.lacks_label(item, LabelKind::Class);
        is_empty || self.items_of(label, kind).is_some_and(|items| items.iter().any(lacks))
    }
}

#[cfg(test)]
mod tests {
    use crate::{LabelKind, LabelSet, Remedy, Table, TableSpec};

    fn table(name: &str, content: &str) -> Table {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        Table::read(&TableSpec::new(path, "text").with_label("label").skipping_empty()).expect("a table")
    }

    #[test]
    fn empty_rows_are_left_out_and_counted() {
        let csv = table("x.csv", "text,label\ngood,1\n,0\n  ,1\nbad,\n,\nfine,1\n");
        assert_eq!((csv.texts(), csv.skipped().rows), (&["good", "bad", "fine"].map(str::to_owned)[..], 3));
        assert_eq!(csv.skipped().first.as_ref().expect("a row").location.row, 2);
        let set = LabelSet::new(["no", "yes"]).expect("names");
        let class = set.skip_unlabelled(csv.clone(), "label", LabelKind::Class).expect("rows");
        assert_eq!((class.texts(), class.skipped().rows), (&["good", "fine"].map(str::to_owned)[..], 4));
        assert_eq!(class.location(1).row, 6);
        let several = set.skip_unlabelled(csv, "label", LabelKind::Multi).expect("rows");
        assert_eq!((several.len(), several.skipped().rows), (3, 3), "an empty cell has no label of several");

        let lines = "{\"text\": \"a\", \"label\": 1}\n{\"text\": null, \"label\": 0}\n{\"text\": \"b\", \"label\": NaN}\n{\"text\": \"c\"}\n";
        let jsonl = table("x.jsonl", lines);
        assert_eq!((jsonl.texts(), jsonl.skipped().rows), (&["a".to_owned()][..], 3));
    }

    /// First empty row by its number and the rows that are left, of labels of this kind.
    fn first_skipped(name: &str, content: &str, kind: LabelKind) -> (usize, usize, usize) {
        let set = LabelSet::new(["no", "yes"]).expect("names");
        let table = set.skip_unlabelled(table(name, content), "label", kind).expect("rows");
        let skipped = table.skipped();
        (skipped.first.as_ref().expect("a row").location.row, skipped.rows, table.len())
    }

    #[test]
    fn first_empty_row_is_the_first_of_any_kind() {
        let lines = |rows: &[&str]| rows.iter().map(|row| format!("{{{row}}}\n")).collect::<String>();
        let labels = |labels: &[&str]| {
            let rows: Vec<String> = labels.iter().map(|label| format!("\"text\": \"a\", \"label\": {label}")).collect();
            lines(&rows.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let class = LabelKind::Class;
        assert_eq!(first_skipped("x.jsonl", &labels(&["0", "1", "\" \"", "null", "1", "0"]), class), (3, 2, 4));
        assert_eq!(first_skipped("x.jsonl", &labels(&["0", "1", "null", "\" \"", "1", "0"]), class), (3, 2, 4));
        assert_eq!(first_skipped("x.csv", "text,label\na,0\nb,\n,1\n", class), (2, 2, 1));
        let texts = lines(&[
            r#""text": "a", "label": 0"#,
            r#""text": "b", "label": 1"#,
            r#""text": " ", "label": 1"#,
            r#""text": null, "label": 1"#,
        ]);
        assert_eq!(first_skipped("x.jsonl", &texts, class), (3, 2, 2));
    }

    #[test]
    fn refused_row_is_the_first_of_any_kind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.csv");
        std::fs::write(&path, "text,label\na,0\nb,\n,1\n").expect("written");
        let table = Table::read(&TableSpec::new(&path, "text").with_label("label")).expect("rows before the third");
        let set = LabelSet::new(["no", "yes"]).expect("names");
        let error = set.labels_as(&table, LabelKind::Class).expect_err("no label");
        assert!(error.to_string().starts_with("use row 2 of "), "{error}");
        assert_eq!(Remedy::find(&error), Some(Remedy::SkipEmpty));
        let error = set.labels_as(&table.select(&[0]), LabelKind::Multi).expect_err("no text");
        assert!(error.to_string().starts_with("use row 3 of "), "an empty cell of several labels is no label: {error}");
        assert_eq!(Remedy::find(&error), Some(Remedy::SkipEmpty));
        for label in ["1", "my nan said so"] {
            std::fs::write(&path, format!("text,label\na,0\nb,{label}\n,1\n")).expect("written");
            let error = Table::read(&TableSpec::new(&path, "text").with_label("label")).expect_err("no text");
            assert!(error.to_string().starts_with("use row 3 of "), "{error}");
        }
    }

    #[test]
    fn list_with_an_empty_item_is_an_empty_label() {
        let lines: String = ["[\"no\"]", "[\"\"]", "[\"no\", \" \"]", "[null]", "\"no|nan\"", "[]", "\"\""]
            .iter()
            .map(|label| format!("{{\"text\": \"a\", \"label\": {label}}}\n"))
            .collect();
        assert_eq!(first_skipped("x.jsonl", &lines, LabelKind::Multi), (2, 4, 3));
        let set = LabelSet::new(["no", "yes"]).expect("names");
        let left = set.skip_unlabelled(table("x.jsonl", &lines), "label", LabelKind::Multi).expect("rows");
        set.labels_as(&left, LabelKind::Multi).expect("no label is missing");
    }

    #[test]
    fn rows_of_another_kind_are_no_empty_rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, "{\"text\": \"a\"}\n{\"text\": {}}\n").expect("written");
        let error = Table::read(&TableSpec::new(path, "text").skipping_empty()).expect_err("an object");
        assert!(error.to_string().contains("holds a list or an object"), "{error}");
    }

    #[test]
    fn table_of_empty_rows_is_refused() {
        let set = LabelSet::new(["no", "yes"]).expect("names");
        let error = set.skip_unlabelled(table("x.csv", "text,label\na,\nb,\n"), "label", LabelKind::Class);
        assert!(error.expect_err("no rows").to_string().contains("has 2, and none with a label in `label`"));
    }
}
