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
            return Err(ReadError::NoRows { path, read: table.len(), filter: Some(format!("a label in `{column}`")) });
        }
        let problem = CellProblem::Empty;
        let bad = |row: usize| BadRow { location: table.location(row), column: column.to_owned(), problem };
        let mut skipped = table.skipped().clone();
        missing.into_iter().for_each(|row| skipped.add(bad(row)));
        Ok(table.select(&labelled).with_skipped(skipped))
    }

    fn lacks_label(&self, label: &RawLabel, kind: LabelKind) -> bool {
        match label {
            RawLabel::Float(number) => number.is_nan(),
            // An empty cell is an empty list.
            RawLabel::Name(text) if text.trim().is_empty() => kind != LabelKind::Multi,
            RawLabel::Name(text) => kind != LabelKind::Text && is_missing(text) && self.class_of(label).is_none(),
            RawLabel::Bool(_) | RawLabel::Int(_) | RawLabel::Many(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{LabelKind, LabelSet, Table, TableSpec};

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
