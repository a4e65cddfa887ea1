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
}

impl fmt::Display for LabelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LabelKind::Class => "one class per row",
            LabelKind::Value => "one number per row",
            LabelKind::Multi => "any number of labels per row",
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
}

impl Labels {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Labels::Class(rows) => rows.len(),
            Labels::Value(rows) => rows.len(),
            Labels::Multi(rows) => rows.len(),
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
        }
    }

    /// Returns the labels of these rows, in this order.
    ///
    /// # Panics
    /// If a row does not exist.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        match self {
            Labels::Class(all) => Labels::Class(rows.iter().map(|&row| all[row]).collect()),
            Labels::Value(all) => Labels::Value(rows.iter().map(|&row| all[row]).collect()),
            Labels::Multi(all) => Labels::Multi(rows.iter().map(|&row| all[row].clone()).collect()),
        }
    }
}
