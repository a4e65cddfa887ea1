use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Consecutive blocks `start..end`, never empty; written `start:end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// The blocks `start..end`.
    ///
    /// # Errors
    /// [`SpanError::Empty`] if `end <= start`.
    pub fn new(start: usize, end: usize) -> Result<Self, SpanError> {
        if start < end { Ok(Self { start, end }) } else { Err(SpanError::Empty { start, end }) }
    }

    /// First block.
    pub fn start(self) -> usize {
        self.start
    }

    /// One past the last block.
    pub fn end(self) -> usize {
        self.end
    }

    /// Number of blocks, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// Block indices.
    pub fn blocks(self) -> Range<usize> {
        self.start..self.end
    }

    /// True if `block_idx` is in the span.
    pub fn contains(self, block_idx: usize) -> bool {
        self.blocks().contains(&block_idx)
    }

    /// True if all of `other` is in the span.
    pub fn covers(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.start, self.end)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let bad = || SpanError::Syntax { text: text.to_owned() };
        let (start, end) = text.split_once(':').ok_or_else(bad)?;
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| bad());
        Self::new(number(start)?, number(end)?)
    }
}

string_conversions!(Span);

/// Error of an invalid span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum SpanError {
    /// The end is not after the start.
    #[error("span {start}:{end} is empty; the end must be greater than the start")]
    Empty { start: usize, end: usize },
    /// The text is not `START:END`.
    #[error("`{text}` is not a span; write START:END, for example 0:10")]
    Syntax { text: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let span: Span = "3:12".parse().expect("a span");
        assert_eq!((span.start(), span.end(), span.len()), (3, 12, 9));
        assert_eq!(span.to_string(), "3:12");
        assert!(span.covers(Span::new(4, 12).expect("a span")));
        assert!(!span.covers(Span::new(2, 5).expect("a span")));
    }

    #[test]
    fn invalid_text_is_refused() {
        for text in ["", "3", "3:3", "5:2", "a:b", "-1:2", "1:2:3"] {
            assert!(text.parse::<Span>().is_err(), "{text} was accepted as a span");
        }
    }
}
