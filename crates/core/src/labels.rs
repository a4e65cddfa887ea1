use std::fmt;

/// Kind of a task's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LabelKind {
    /// One class per row.
    Class,
    /// One number per row.
    Value,
    /// Any number of classes per row.
    Multi,
    /// One of the row's own options.
    Choice,
    /// One class per word.
    Tags,
    /// A text per row.
    Text,
}

impl LabelKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Class, Self::Value, Self::Multi, Self::Choice, Self::Tags, Self::Text];
}

impl fmt::Display for LabelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LabelKind::Class => "one class per row",
            LabelKind::Value => "one number per row",
            LabelKind::Multi => "any number of labels per row",
            LabelKind::Choice => "one of the options of each row",
            LabelKind::Tags => "one class per word",
            LabelKind::Text => "one text per row",
        })
    }
}

/// Labels of rows, ready to train on.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// Class indices, `[rows]`.
    Class(Vec<i64>),
    /// Numbers, `[rows]`.
    Value(Vec<f32>),
    /// Multi-hot vectors, `[rows][n_labels]`.
    Multi(Vec<Vec<f32>>),
    /// Indices of the right options, `[rows]`.
    Choice(Vec<i64>),
    /// Class indices, `[rows][words]`.
    Tags(Vec<Vec<i64>>),
    /// Texts, `[rows]`.
    Text(Vec<String>),
}

impl Labels {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Labels::Class(rows) | Labels::Choice(rows) => rows.len(),
            Labels::Value(rows) => rows.len(),
            Labels::Multi(rows) => rows.len(),
            Labels::Tags(rows) => rows.len(),
            Labels::Text(rows) => rows.len(),
        }
    }

    /// Returns true if there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns their kind.
    pub fn kind(&self) -> LabelKind {
        match self {
            Labels::Class(_) => LabelKind::Class,
            Labels::Value(_) => LabelKind::Value,
            Labels::Multi(_) => LabelKind::Multi,
            Labels::Choice(_) => LabelKind::Choice,
            Labels::Tags(_) => LabelKind::Tags,
            Labels::Text(_) => LabelKind::Text,
        }
    }

    /// Returns the labels of these rows, in this order.
    ///
    /// # Panics
    /// If a row does not exist.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        match self {
            Labels::Class(all) => Labels::Class(picked(all, rows)),
            Labels::Value(all) => Labels::Value(picked(all, rows)),
            Labels::Multi(all) => Labels::Multi(picked(all, rows)),
            Labels::Choice(all) => Labels::Choice(picked(all, rows)),
            Labels::Tags(all) => Labels::Tags(picked(all, rows)),
            Labels::Text(all) => Labels::Text(picked(all, rows)),
        }
    }
}

fn picked<T: Clone>(all: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|&row| all[row].clone()).collect()
}
