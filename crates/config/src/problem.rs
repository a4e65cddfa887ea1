use std::fmt;

use crate::path::KeyPath;
use crate::positions::Position;

/// Most problems in a message.
const SHOWN: usize = 100;

/// Problem of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Origin of the value.
    pub origin: Origin,
    /// Key; empty for the whole pipeline.
    pub key: KeyPath,
    /// Expected and found value.
    pub message: String,
    /// Most similar valid name.
    pub suggestion: Option<String>,
}

/// Origin of a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Pipeline file.
    File {
        /// Name of the file.
        name: String,
        /// Position in the file, if known.
        position: Option<Position>,
    },
    /// Environment variable.
    Env {
        /// Name of the variable.
        name: String,
    },
    /// Option `--set` of the command line.
    Set {
        /// Text after `--set`.
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

/// Problems of a pipeline: at least one, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts the problems by origin; `Ok` if there are none.
    pub(crate) fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
        problems.dedup();
        Err(Self(problems))
    }

    /// A single problem, of the whole pipeline `name`.
    pub(crate) fn of_pipeline(name: &str, message: String) -> Self {
        let origin = Origin::File { name: name.to_owned(), position: None };
        Self(vec![Problem { origin, key: KeyPath::root(), message, suggestion: None }])
    }

    /// The problems, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "understand the pipeline: {count} problem{}", if count == 1 { "" } else { "s" })?;
        self.0.iter().take(SHOWN).try_for_each(|problem| write!(f, "\n  {problem}"))?;
        match count.saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_first_of_many_problems() {
        let problem = |number: usize| Problem {
            origin: Origin::Env { name: "SEPAL__A".to_owned() },
            key: KeyPath::root(),
            message: format!("problem {number}"),
            suggestion: None,
        };
        let problems = Problems::check((0..SHOWN + 7).map(problem).collect()).expect_err("problems");
        let text = problems.to_string();
        assert!(text.contains("107 problems") && text.ends_with("and 7 more"), "{text}");
        assert_eq!(text.lines().count(), SHOWN + 2);
    }
}
