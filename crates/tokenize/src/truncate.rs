//! Truncation of texts within templates and special tokens.

use std::ops::Range;

use crate::error::EncodeError;
use crate::input::Input;

/// Default of the largest number of windows of one text.
const DEFAULT_MAX_WINDOWS: usize = 1000;

/// Side of a text that truncation removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TruncationSide {
    /// The end is removed.
    #[default]
    Right,
    /// The beginning is removed.
    Left,
}

/// Limit on the tokens of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Greatest number of tokens, including special tokens and template.
    pub max_length: usize,
    /// Side of each text that is removed.
    pub side: TruncationSide,
}

/// Division of a long text into windows, instead of its truncation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Windows {
    /// Number of tokens of the text that neighbouring windows share, as in the crate `tokenizers`.
    pub stride: usize,
    /// Largest number of windows of one text. Each is a sequence of its own, and is found by a pass over the tokens of the
    /// text.
    pub max_windows: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self { stride: 0, max_windows: DEFAULT_MAX_WINDOWS }
    }
}

impl TruncationSide {
    /// `left` or `right`, as in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            TruncationSide::Right => "right",
            TruncationSide::Left => "left",
        }
    }
}

/// Index of the text that each token of an encoded input belongs to; none for special tokens and fixed words. The second
/// sequence is the last text.
pub(crate) fn text_indices(input: &Input<'_>, tokens: &tokenizers::Encoding) -> Vec<Option<usize>> {
    let (ranges, first) = (input.text_ranges(), input.first());
    let index_of = |(sequence, &(start, end)): (Option<usize>, &(usize, usize))| match sequence {
        None => None,
        Some(0) if input.is_plain_text() => Some(0),
        Some(0) => text_index(&ranges, &first, start..end),
        Some(_) => Some(ranges.len()),
    };
    tokens.get_sequence_ids().into_iter().zip(tokens.get_offsets()).map(index_of).collect()
}

/// Text that contains the bytes of a token, apart from blanks at the end of the fixed words before the text (`" film"` in
/// `Review: film`).
fn text_index(texts: &[Range<usize>], first: &str, token: Range<usize>) -> Option<usize> {
    let is_blank = |bytes: Range<usize>| first.get(bytes).is_some_and(|bytes| bytes.trim().is_empty());
    texts.iter().position(|text| {
        let begins = text.start <= token.start || text.start < token.end && is_blank(token.start..text.start);
        begins && token.end <= text.end
    })
}

/// Mask of the tokens that remain after truncation, which shortens the longest text first. `text_indices` come from
/// [`text_indices`].
///
/// # Errors
/// [`EncodeError::MaxLength`] if `truncation` is too small for one token of each text.
pub(crate) fn retained_tokens(
    text_indices: &[Option<usize>],
    truncation: Truncation,
) -> Result<Vec<bool>, EncodeError> {
    let lengths = TextLengths::new(text_indices, truncation.max_length)?;
    Ok(lengths.mask(text_indices, |text| lengths.first_retained(text, truncation.side)))
}

/// Masks of the tokens of each window over the longest text, from its start to its end, one at a time, as each has the length
/// of the input. The last window is as long as the others. Other texts are shortened as by [`retained_tokens`], and equal in
/// all windows.
///
/// # Errors
/// [`EncodeError::MaxLength`] if `truncation` is too small for one token of each text, [`EncodeError::Stride`] if a window
/// would not begin after the one before it, [`EncodeError::Windows`] if there would be more than `max_windows`.
pub(crate) fn window_tokens(
    text_indices: &[Option<usize>],
    truncation: Truncation,
    Windows { stride, max_windows }: Windows,
) -> Result<impl Iterator<Item = Vec<bool>>, EncodeError> {
    let lengths = TextLengths::new(text_indices, truncation.max_length)?;
    let longest = (0..lengths.counts.len()).max_by_key(|&text| lengths.counts[text]);
    let (count, room) = longest.map_or((0, 0), |text| (lengths.counts[text], lengths.limits[text]));
    if longest.is_some() && stride >= room {
        return Err(EncodeError::Stride { stride, room });
    }
    let last = count - room;
    let step = room.saturating_sub(stride).max(1);
    let n_windows = last.div_ceil(step) + 1;
    if n_windows > max_windows {
        return Err(EncodeError::Windows { n_windows, n_tokens: count, max_windows });
    }
    let starts = (0..last).step_by(step).chain([last]);
    Ok(starts.map(move |start| {
        let first =
            |text: usize| if longest == Some(text) { start } else { lengths.first_retained(text, truncation.side) };
        lengths.mask(text_indices, first)
    }))
}

/// Numbers of tokens of the texts of an input.
struct TextLengths {
    counts: Vec<usize>,
    /// Numbers of tokens that fit.
    limits: Vec<usize>,
}

impl TextLengths {
    fn new(text_indices: &[Option<usize>], max_length: usize) -> Result<Self, EncodeError> {
        let n_texts = text_indices.iter().flatten().max().map_or(0, |last| last + 1);
        let mut counts = vec![0; n_texts];
        text_indices.iter().flatten().for_each(|&text| counts[text] += 1);
        let n_fixed = text_indices.iter().filter(|index| index.is_none()).count();
        let least = n_fixed + counts.iter().filter(|&&count| count > 0).count();
        if max_length < least {
            return Err(EncodeError::MaxLength { max_length, least });
        }
        let limits = longest_first(&counts, max_length - n_fixed);
        Ok(Self { counts, limits })
    }

    /// First retained token of a text, counted from its start.
    fn first_retained(&self, text: usize, side: TruncationSide) -> usize {
        match side {
            TruncationSide::Right => 0,
            TruncationSide::Left => self.counts[text] - self.limits[text],
        }
    }

    /// Mask of the fixed tokens and, of each text, of the tokens from `first` on that fit.
    fn mask(&self, text_indices: &[Option<usize>], first: impl Fn(usize) -> usize) -> Vec<bool> {
        let mut seen = vec![0; self.counts.len()];
        let remains = |index: &Option<usize>| {
            let Some(text) = *index else { return true };
            let token = seen[text];
            seen[text] += 1;
            (first(text)..first(text) + self.limits[text]).contains(&token)
        };
        text_indices.iter().map(remains).collect()
    }
}

/// Numbers of tokens, at most `room` together, to which texts of `counts` tokens are shortened. For two texts they equal
/// those of `longest_first` in the crate `tokenizers`: the longer text, or the second of equals, gets an odd token.
fn longest_first(counts: &[usize], room: usize) -> Vec<usize> {
    let mut shortest_first: Vec<usize> = (0..counts.len()).collect();
    shortest_first.sort_by_key(|&text| counts[text]);
    let (mut limits, mut room) = (vec![0; counts.len()], room);
    for (i, &text) in shortest_first.iter().enumerate() {
        limits[text] = counts[text].min(room / (counts.len() - i));
        room -= limits[text];
    }
    limits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{Encoding, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings};

    use super::*;
    use crate::input::Piece;

    #[test]
    fn token_across_a_border_belongs_to_the_fixed_words() {
        let pieces = vec![Piece::Fixed("Review: "), Piece::Text("a film\n"), Piece::Fixed("\nSo:"), Piece::Text("b")];
        let input = Input::from_pieces(pieces, None);
        let (ranges, first) = (input.text_ranges(), input.first());
        assert_eq!(ranges, [8..15, 19..20]);
        let check = |token: Range<usize>, expected| {
            assert_eq!(text_index(&ranges, &first, token.clone()), expected, "{token:?}: {:?}", &first[token.clone()]);
        };
        check(0..6, None);
        check(7..9, Some(0));
        check(6..9, None);
        check(7..8, None);
        check(9..14, Some(0));
        check(14..16, None);
        check(14..15, Some(0));
        check(16..18, None);
        check(0..0, None);
        check(9..9, Some(0));
        check(18..20, None);
        check(19..20, Some(1));
    }

    #[test]
    fn limit_below_the_fixed_tokens_is_refused() {
        let indices = [None, Some(0), Some(0), Some(2), None];
        let retained = |max_length, side| retained_tokens(&indices, Truncation { max_length, side });
        let error = retained(3, TruncationSide::Right).expect_err("text 1 has no token and needs none");
        assert!(matches!(error, EncodeError::MaxLength { max_length: 3, least: 4 }), "{error}");
        let mask = |side| retained(4, side).expect("there is room");
        assert_eq!(mask(TruncationSide::Right), [true, true, false, true, true]);
        assert_eq!(mask(TruncationSide::Left), [true, false, true, true, true]);
    }

    /// Tokens of each window, by their positions.
    fn windows(indices: &[Option<usize>], max_length: usize, stride: usize) -> Result<Vec<Vec<usize>>, EncodeError> {
        let truncation = Truncation { max_length, side: TruncationSide::Left };
        let masks = window_tokens(indices, truncation, Windows { stride, ..Windows::default() })?;
        let positions = |mask: Vec<bool>| (0..mask.len()).filter(|&token| mask[token]).collect();
        Ok(masks.map(positions).collect())
    }

    #[test]
    fn windows_cover_the_longest_text_and_keep_fixed_words() {
        let indices = [None, Some(0), Some(0), Some(0), Some(0), Some(0), None];
        assert_eq!(windows(&indices, 4, 0).expect("windows"), [[0, 1, 2, 6], [0, 3, 4, 6], [0, 4, 5, 6]]);
        assert_eq!(windows(&indices, 5, 2).expect("windows"), [[0, 1, 2, 3, 6], [0, 2, 3, 4, 6], [0, 3, 4, 5, 6]]);
        assert_eq!(windows(&indices, 6, 1).expect("windows"), [[0, 1, 2, 3, 4, 6], [0, 2, 3, 4, 5, 6]]);
        let error = windows(&indices, 4, 2).expect_err("no progress");
        assert!(matches!(error, EncodeError::Stride { stride: 2, room: 2 }), "{error}");
        assert!(matches!(windows(&indices, 2, 0), Err(EncodeError::MaxLength { least: 3, .. })));
        let pair = [Some(0), Some(0), Some(1), Some(1), Some(1), Some(1)];
        assert_eq!(windows(&pair, 4, 0).expect("windows"), [[0, 1, 2, 3], [0, 1, 4, 5]]);
        assert_eq!(windows(&pair, 3, 1).expect("windows"), [[1, 2, 3], [1, 3, 4], [1, 4, 5]]);
    }

    proptest! {
        #[test]
        fn windows_hold_each_token_and_share_the_stride(count in 2_usize..60, room in 1_usize..20, stride in 0_usize..19) {
            prop_assume!(room < count && stride < room);
            let found = windows(&vec![Some(0); count], room, stride).expect("windows");
            prop_assert!(found.iter().all(|window| window.len() == room));
            prop_assert_eq!((found[0][0], found[found.len() - 1][room - 1]), (0, count - 1));
            for pair in found.windows(2) {
                let shared = pair[0][room - 1] + 1 - pair[1][0];
                let is_last = pair[1][room - 1] == count - 1;
                prop_assert!(shared == stride || is_last && shared > stride && shared < room, "{} of {}", shared, room);
            }
        }

        #[test]
        fn pair_truncation_matches_the_library(first in 1_usize..40, second in 1_usize..40, room in 2_usize..60) {
            let tokens = |n: usize| Encoding::from_tokens(vec![tokenizers::Token::new(0, "a".into(), (0, 1)); n], 0);
            let params = TruncationParams {
                direction: TruncationDirection::Right,
                max_length: room,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            };
            let (a, b) = truncate_encodings(tokens(first), Some(tokens(second)), &params).expect("truncates");
            prop_assert_eq!(longest_first(&[first, second], room), [a.len(), b.expect("a pair").len()]);
        }

        #[test]
        fn truncation_limits_fill_the_room(counts in prop::collection::vec(0_usize..30, 1..5), room in 5_usize..60) {
            let limits = longest_first(&counts, room);
            let total: usize = counts.iter().sum();
            prop_assert_eq!(limits.iter().sum::<usize>(), total.min(room));
            let level = limits.iter().copied().max().unwrap_or(0);
            for (limit, count) in limits.into_iter().zip(counts) {
                prop_assert!(limit == count || limit + 1 >= level, "a shorter text was shortened before a longer one");
            }
        }
    }
}
