use std::fmt;
use std::path::PathBuf;

/// File and row, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLocation {
    /// The file.
    pub path: PathBuf,
    /// The data row, from 1; a header does not count.
    pub row: usize,
}

impl fmt::Display for RowLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of {}", self.row, self.path.display())
    }
}

/// A row without a usable text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: `{column}` is {problem}")]
pub struct BadRow {
    /// File and row.
    pub location: RowLocation,
    /// The column.
    pub column: String,
    /// The problem of the cell.
    pub problem: CellProblem,
}

/// Problem of a cell that should hold a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CellProblem {
    /// It has no character; in csv and tsv files, the cell is empty.
    #[error("empty")]
    Empty,
    /// It is null or missing.
    #[error("null")]
    Null,
    /// It is a list or an object.
    #[error("no text")]
    NotText,
    /// It is no list of words, or has a word that is empty or contains a blank.
    #[error("no list of words without blanks")]
    NotWords,
    /// It is no list of at least two options.
    #[error("no list of at least two options")]
    NoOptions,
    /// It yields no token, as blanks do with some tokenizers.
    #[error("without a token that the tokenizer knows")]
    NoToken,
}

impl CellProblem {
    /// Returns true if nothing stands in the cell.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, CellProblem::Empty | CellProblem::Null)
    }
}

impl BadRow {
    /// The problem as a clause of an error text.
    pub(crate) fn problem_text(&self) -> String {
        let column = &self.column;
        match self.problem {
            CellProblem::Empty => format!("the text in the column `{column}` is empty"),
            CellProblem::Null => format!("the column `{column}` is null there"),
            CellProblem::NotText => {
                format!("the column `{column}` holds a list or an object there, expected a text")
            }
            CellProblem::NotWords => {
                format!("the column `{column}` holds no words there, expected a list of words without blanks")
            }
            CellProblem::NoOptions => {
                format!("the column `{column}` holds no options there, expected a list of at least two texts")
            }
            CellProblem::NoToken => format!("the text in the column `{column}` yields no token"),
        }
    }
}
