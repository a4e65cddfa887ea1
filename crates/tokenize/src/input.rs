use std::borrow::Cow;
use std::ops::Range;

/// Input of a model: one sequence of text, or a pair of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input<'a> {
    first: Vec<Piece<'a>>,
    second: Option<&'a str>,
}

/// Part of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Words around a text, such as those of a template. They are never truncated.
    Fixed(&'a str),
    /// Text that truncation may shorten.
    Text(&'a str),
}

impl<'a> Input<'a> {
    /// Creates an input of a text, and of the second text of a pair, if there is one.
    pub fn new(text: &'a str, pair: Option<&'a str>) -> Self {
        Self { first: vec![Piece::Text(text)], second: pair }
    }

    /// Creates an input of the pieces of the first sequence, and of a second sequence, if there is one.
    pub fn from_pieces(first: Vec<Piece<'a>>, second: Option<&'a str>) -> Self {
        Self { first, second }
    }

    /// Adds pieces to the end of the first sequence.
    #[must_use]
    pub fn followed_by(mut self, pieces: impl IntoIterator<Item = Piece<'a>>) -> Self {
        self.first.extend(pieces);
        self
    }

    /// First sequence as one string.
    pub fn first(&self) -> Cow<'a, str> {
        match self.first[..] {
            [piece] => Cow::Borrowed(piece.text()),
            _ => Cow::Owned(self.first.iter().map(|piece| piece.text()).collect()),
        }
    }

    /// Returns true if the first sequence is a text without fixed words.
    pub(crate) fn is_plain_text(&self) -> bool {
        matches!(self.first[..], [Piece::Text(_)])
    }

    /// Second sequence.
    pub fn second(&self) -> Option<&'a str> {
        self.second
    }

    /// Byte ranges of the texts in [`Input::first`].
    pub(crate) fn text_ranges(&self) -> Vec<Range<usize>> {
        let (mut end, mut ranges) = (0, Vec::new());
        for piece in &self.first {
            let start = end;
            end += piece.text().len();
            if let Piece::Text(_) = piece {
                ranges.push(start..end);
            }
        }
        ranges
    }
}

impl<'a> Piece<'a> {
    fn text(self) -> &'a str {
        match self {
            Piece::Fixed(text) | Piece::Text(text) => text,
        }
    }
}
