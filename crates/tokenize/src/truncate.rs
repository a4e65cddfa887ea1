//! Truncation of texts inside of what surrounds them.

use std::ops::Range;

use crate::input::Input;

/// The end of a text that truncation removes.
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
    /// Greatest number of tokens, special tokens and template included.
    pub max_length: usize,
    /// Side of each text that gives way.
    pub side: TruncationSide,
}

impl TruncationSide {
    /// `left` or `right`, as configuration files write it.
    pub fn name(self) -> &'static str {
        match self {
            TruncationSide::Right => "right",
            TruncationSide::Left => "left",
        }
    }
}

/// The text that each token of an encoded input belongs to, by index: none for special tokens and fixed words. The second
/// sequence is the last text.
pub(crate) fn owners(input: &Input<'_>, tokens: &tokenizers::Encoding) -> Vec<Option<usize>> {
    let (spans, first) = (input.spans(), input.first());
    let owner = |(sequence, &(start, end)): (Option<usize>, &(usize, usize))| match sequence {
        None => None,
        Some(0) if input.is_text_alone() => Some(0),
        Some(0) => owner(&spans, &first, start..end),
        Some(_) => Some(spans.len()),
    };
    tokens.get_sequence_ids().into_iter().zip(tokens.get_offsets()).map(owner).collect()
}

/// The text that holds the bytes of a token, but for blanks that the token takes from the fixed words before the text
/// (`" film"` in `Review: film`).
fn owner(texts: &[Range<usize>], first: &str, token: Range<usize>) -> Option<usize> {
    let is_blank = |bytes: Range<usize>| first.get(bytes).is_some_and(|bytes| bytes.trim().is_empty());
    texts.iter().position(|text| {
        let begins = text.start <= token.start || text.start < token.end && is_blank(token.start..text.start);
        begins && token.end <= text.end
    })
}

/// Marks the tokens that stay when texts are shortened to fit, the longer first. `owners` is as [`owners`] gives it.
///
/// # Errors
/// The least limit that works, if `truncation` leaves no token to some text.
pub(crate) fn kept(owners: &[Option<usize>], truncation: Truncation) -> Result<Vec<bool>, usize> {
    let n_texts = owners.iter().flatten().max().map_or(0, |last| last + 1);
    let mut counts = vec![0; n_texts];
    owners.iter().flatten().for_each(|&text| counts[text] += 1);
    let n_fixed = owners.iter().filter(|owner| owner.is_none()).count();
    let least = n_fixed + counts.iter().filter(|&&count| count > 0).count();
    if truncation.max_length < least {
        return Err(least);
    }
    let limits = longest_first(&counts, truncation.max_length - n_fixed);
    let mut seen = vec![0; n_texts];
    let stays = |owner: &Option<usize>| {
        let Some(text) = *owner else { return true };
        seen[text] += 1;
        match truncation.side {
            TruncationSide::Right => seen[text] <= limits[text],
            TruncationSide::Left => seen[text] > counts[text] - limits[text],
        }
    };
    Ok(owners.iter().map(stays).collect())
}

/// Numbers of tokens, `room` in all at most, to which texts of `counts` tokens are shortened. For two texts they are
/// those of `longest_first` in the `tokenizers` library: of an odd number the longer text gets one more, of equals the
/// second.
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
    fn token_over_a_border_belongs_to_the_fixed_words() {
        let pieces = vec![Piece::Fixed("Review: "), Piece::Text("a film\n"), Piece::Fixed("\nSo:"), Piece::Text("b")];
        let input = Input::of_pieces(pieces, None);
        let (spans, first) = (input.spans(), input.first());
        assert_eq!(spans, [8..15, 19..20]);
        let check = |token: Range<usize>, expected| {
            assert_eq!(owner(&spans, &first, token.clone()), expected, "{token:?}: {:?}", &first[token.clone()]);
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
        let owners = [None, Some(0), Some(0), Some(2), None];
        let kept = |max_length, side| kept(&owners, Truncation { max_length, side });
        assert_eq!(kept(3, TruncationSide::Right), Err(4), "text 1 has no token and asks for none");
        assert_eq!(kept(4, TruncationSide::Right), Ok(vec![true, true, false, true, true]));
        assert_eq!(kept(4, TruncationSide::Left), Ok(vec![true, false, true, true, true]));
    }

    proptest! {
        #[test]
        fn pairs_are_shortened_as_the_library_does(first in 1_usize..40, second in 1_usize..40, room in 2_usize..60) {
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
        fn limits_fill_the_room(counts in prop::collection::vec(0_usize..30, 1..5), room in 5_usize..60) {
            let limits = longest_first(&counts, room);
            let total: usize = counts.iter().sum();
            prop_assert_eq!(limits.iter().sum::<usize>(), total.min(room));
            let level = limits.iter().copied().max().unwrap_or(0);
            for (limit, count) in limits.into_iter().zip(counts) {
                prop_assert!(limit == count || limit + 1 >= level, "a shorter text gave way before a longer one");
            }
        }
    }
}
