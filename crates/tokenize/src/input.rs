use std::borrow::Cow;
use std::ops::Range;

/// One sequence of text, or a pair of sequences, as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input<'a> {
    first: Vec<Piece<'a>>,
    second: Option<&'a str>,
}

/// A part of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Words around a text, such as those of a template. They are never truncated.
    Fixed(&'a str),
    /// A text, which truncation may shorten.
    Text(&'a str),
}

impl<'a> Input<'a> {
    /// A text, and the text that it is paired with, if any.
    pub fn new(text: &'a str, pair: Option<&'a str>) -> Self {
        Self { first: vec![Piece::Text(text)], second: pair }
    }

    /// A first sequence made of pieces, and a second sequence, if any.
    pub fn of_pieces(first: Vec<Piece<'a>>, second: Option<&'a str>) -> Self {
        Self { first, second }
    }

    /// The first sequence in one string.
    pub fn first(&self) -> Cow<'a, str> {
        match self.first[..] {
            [piece] => Cow::Borrowed(piece.text()),
            _ => Cow::Owned(self.first.iter().map(|piece| piece.text()).collect()),
        }
    }

    /// True if the first sequence is a text without fixed words.
    pub(crate) fn is_text_alone(&self) -> bool {
        matches!(self.first[..], [Piece::Text(_)])
    }

    /// The second sequence.
    pub fn second(&self) -> Option<&'a str> {
        self.second
    }

    /// The texts of the first sequence, as byte ranges of [`Input::first`].
    pub(crate) fn spans(&self) -> Vec<Range<usize>> {
        let (mut end, mut spans) = (0, Vec::new());
        for piece in &self.first {
            let start = end;
            end += piece.text().len();
            if let Piece::Text(_) = piece {
                spans.push(start..end);
            }
        }
        spans
    }
}

impl<'a> Piece<'a> {
    fn text(self) -> &'a str {
        match self {
            Piece::Fixed(text) | Piece::Text(text) => text,
        }
    }
}
