use std::fmt;

use crate::path::KeyPath;
use crate::positions::Position;

/// One thing wrong with a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the wrong value was written.
    pub origin: Origin,
    /// The key it is about; empty if it is about the whole.
    pub key: KeyPath,
    /// What was expected and what was found.
    pub message: String,
    /// The right name that is nearest to a wrong one.
    pub suggestion: Option<String>,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the pipeline file.
    File {
        /// The file as it was named.
        name: String,
        /// The place in it, if one is to be blamed.
        position: Option<Position>,
    },
    /// In an environment variable.
    Env {
        /// The variable.
        name: String,
    },
    /// In a `--set` of the command line.
    Set {
        /// What follows `--set`.
        text: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, position: None } => f.write_str(name),
            Origin::File { name, position: Some(Position { line, column }) } => write!(f, "{name}:{line}:{column}"),
            Origin::Env { name } => write!(f, "{name}"),
            Origin::Set { text } => write!(f, "--set {text}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if self.key != KeyPath::root() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(name) => write!(f, "; did you mean `{name}`?"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a pipeline; at least one problem, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorted by where they come from; `Ok` if there are none.
    pub(crate) fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
        problems.dedup();
        Err(Self(problems))
    }

    /// A single one.
    pub(crate) fn one(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// Each of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "understand the pipeline: {count} problem{}", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}
