//! What is added to attention scores: -inf where a query must not look, and ALiBi.

use std::cell::Cell;
use std::ops::Range;

use sepal_core::Ragged;
use tch::kind::Element;
use tch::{Device, TchError, Tensor};

use crate::layout::Bin;

/// What a family's attention does with its scores.
#[derive(Debug)]
pub(crate) struct Scores {
    /// Query heads that share one head of keys and values: their queries lie one after another.
    pub(crate) repeat: usize,
    pub(crate) alibi: Option<Alibi>,
    /// Positions that a query of a block with a window sees, its own included.
    pub(crate) window: Option<usize>,
    /// Where the blocks are.
    pub(crate) device: Device,
}

impl Scores {
    /// Numbers where the blocks are.
    pub(crate) fn place<T: Element>(&self, numbers: &[T]) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(numbers)?.f_to_device(self.device)
    }
}

/// What scores lose by distance (arXiv 2108.12409).
#[derive(Debug)]
pub(crate) struct Alibi {
    /// Of each head, for each position between key and query.
    slopes: Vec<f32>,
    /// Falcon's: slopes, positions and their products are rounded to bf16, and the products then have this factor.
    rounded: Option<f32>,
}

impl Alibi {
    /// Where the number of heads is no power of two, the heads beyond the last power take every other slope of the next.
    pub(crate) fn new(n_heads: usize) -> Self {
        let power = if n_heads.is_power_of_two() { n_heads } else { n_heads.next_power_of_two() / 2 };
        let slope = |heads: usize, i: usize| (-8.0 / heads as f64 * i as f64).exp2() as f32;
        let first = (1..=power).map(|i| slope(power, i));
        let rest = (0..n_heads - power).map(|i| slope(2 * power, 2 * i + 1));
        Self { slopes: first.chain(rest).collect(), rounded: None }
    }

    /// Falcon's, for heads of `head_dim`.
    pub(crate) fn rounded(n_heads: usize, head_dim: usize) -> Self {
        let Self { slopes, .. } = Self::new(n_heads);
        let slopes = slopes.into_iter().map(to_bf16).collect();
        Self { slopes, rounded: Some((head_dim as f32).sqrt().recip()) }
    }

    /// Number of heads.
    pub(crate) fn heads(&self) -> usize {
        self.slopes.len()
    }

    /// Added to the score of a query on a key.
    fn bias(&self, head: usize, query: usize, key: usize) -> f32 {
        let slope = self.slopes[head];
        match self.rounded {
            // Distances for positions: softmax does not see the difference, and large numbers lose digits.
            None => -slope * (query - key) as f32,
            Some(factor) => {
                let at = |position: usize| to_bf16(slope * to_bf16(position as f32));
                (at(key) - at(query)) * factor
            }
        }
    }
}

/// Rounded to the nearest number of bf16, ties to even.
fn to_bf16(number: f32) -> f32 {
    let bits = number.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

/// The masks of one call, each `[bins or 1, heads or 1, queries * repeat, keys]`.
pub(crate) struct Masks<'a> {
    scores: &'a Scores,
    window: Option<usize>,
    prefix_len: usize,
    rows: &'a Ragged,
    /// Causal over the prefix and the longest row with a bin of its own: `[1, heads or 1, n * repeat, n]`. The
    /// masks of lone rows are views of it, so that many different lengths do not take many masks.
    causal: Tensor,
    /// Numbers of the masks made so far.
    numel: Cell<usize>,
}

impl<'a> Masks<'a> {
    /// `longest` is the length of the longest row that has a bin of its own.
    pub(crate) fn new(
        scores: &'a Scores,
        window: Option<usize>,
        prefix_len: usize,
        rows: &'a Ragged,
        longest: usize,
    ) -> Result<Self, TchError> {
        let sequence: Vec<Place> = (0..prefix_len + longest).map(|position| Place { row: None, position }).collect();
        let causal = mask(scores, window, &[(sequence.clone(), sequence)])?;
        let numel = Cell::new(causal.numel());
        Ok(Self { scores, window, prefix_len, rows, causal, numel })
    }

    pub(crate) fn scores(&self) -> &'a Scores {
        self.scores
    }

    /// Numbers of all masks made so far.
    pub(crate) fn numel(&self) -> usize {
        self.numel.get()
    }

    /// The prefix on itself.
    pub(crate) fn prefix(&self) -> Result<Tensor, TchError> {
        self.lone(0..self.prefix_len, self.prefix_len)
    }

    /// Bins of `len` tokens, on the prefix and themselves.
    pub(crate) fn group(&self, len: usize, bins: &[Bin]) -> Result<Tensor, TchError> {
        let end = self.prefix_len + len;
        if all_lone(bins) {
            return self.lone(self.prefix_len..end, end);
        }
        let bins: Vec<_> = bins
            .iter()
            .map(|bin| {
                let keys = self.places(bin);
                (keys[self.prefix_len..].to_vec(), keys)
            })
            .collect();
        self.counted(&bins)
    }

    /// The last tokens of the rows in such bins, `per_bin` in each; the last row is repeated in bins with fewer.
    pub(crate) fn pooled_group(&self, len: usize, bins: &[Bin], per_bin: usize) -> Result<Tensor, TchError> {
        let end = self.prefix_len + len;
        if all_lone(bins) {
            return self.lone(end - 1..end, end);
        }
        let last = |row: usize| Place { row: Some(row), position: self.prefix_len + self.rows.row_len(row) - 1 };
        let bins: Vec<_> = bins
            .iter()
            .map(|bin| ((0..per_bin).map(|i| last(bin[i.min(bin.len() - 1)])).collect(), self.places(bin)))
            .collect();
        self.counted(&bins)
    }

    fn counted(&self, bins: &[(Vec<Place>, Vec<Place>)]) -> Result<Tensor, TchError> {
        let mask = mask(self.scores, self.window, bins)?;
        self.numel.set(self.numel.get() + mask.numel());
        Ok(mask)
    }

    /// The queries at `queries` of a lone row with its prefix, on its first `keys` positions.
    fn lone(&self, queries: Range<usize>, keys: usize) -> Result<Tensor, TchError> {
        let repeat = self.scores.repeat;
        let (start, len) = (queries.start * repeat, queries.len() * repeat);
        self.causal.f_narrow(2, start as i64, len as i64)?.f_narrow(3, 0, keys as i64)
    }

    /// The prefix, then the tokens of the bin's rows.
    fn places(&self, bin: &Bin) -> Vec<Place> {
        let prefix = (0..self.prefix_len).map(|position| Place { row: None, position });
        let text = bin.iter().flat_map(|&row| {
            (0..self.rows.row_len(row)).map(move |i| Place { row: Some(row), position: self.prefix_len + i })
        });
        prefix.chain(text).collect()
    }
}

fn all_lone(bins: &[Bin]) -> bool {
    bins.iter().all(|bin| bin.len() == 1)
}

/// A key or a query: its row and where it stands in the sequence.
#[derive(Clone, Copy)]
struct Place {
    /// `None` for a key that every row may see.
    row: Option<usize>,
    position: usize,
}

impl Place {
    /// Whether the query `self` sees `key`.
    fn sees(self, key: Place, window: Option<usize>) -> bool {
        let is_near = || window.is_none_or(|window| self.position - key.position < window);
        key.position <= self.position && (key.row.is_none() || key.row == self.row) && is_near()
    }
}

/// The mask of bins that are as large as each other, each with its queries and its keys.
fn mask(scores: &Scores, window: Option<usize>, bins: &[(Vec<Place>, Vec<Place>)]) -> Result<Tensor, TchError> {
    let Scores { repeat, alibi, .. } = scores;
    let heads = alibi.as_ref().map_or(1, Alibi::heads);
    let (n_queries, n_keys) = bins.first().map_or((0, 0), |(queries, keys)| (queries.len(), keys.len()));
    let mut numbers = Vec::with_capacity(bins.len() * heads * n_queries * repeat * n_keys);
    for (queries, keys) in bins {
        for head in 0..heads {
            for query in queries {
                let start = numbers.len();
                let bias = |key: &Place| match alibi {
                    _ if !query.sees(*key, window) => f32::NEG_INFINITY,
                    Some(alibi) => alibi.bias(head, query.position, key.position),
                    None => 0.0,
                };
                numbers.extend(keys.iter().map(bias));
                for _ in 1..*repeat {
                    numbers.extend_from_within(start..start + n_keys);
                }
            }
        }
    }
    let shape = [bins.len(), heads, n_queries * repeat, n_keys].map(|dim| dim as i64);
    scores.place(&numbers)?.f_view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;

    fn check(mask: &Tensor, shape: [i64; 4], expected: &[f32]) {
        assert_eq!(mask.size(), shape);
        assert_eq!(Vec::<f32>::try_from(mask.flatten(0, -1)).expect("numbers"), expected);
    }

    #[test]
    fn rows_of_a_bin_do_not_see_each_other() {
        let rows = Ragged::from_lengths([2, 1]).expect("rows");
        let scores = Scores { repeat: 2, alibi: None, window: None, device: Device::Cpu };
        let masks = Masks::new(&scores, None, 1, &rows, 0).expect("masks");
        check(&masks.prefix().expect("a mask"), [1, 1, 2, 1], &[0.0, 0.0]);
        #[rustfmt::skip]
        let expected = [
            0.0, 0.0, NO, NO,   0.0, 0.0, NO, NO,
            0.0, 0.0, 0.0, NO,  0.0, 0.0, 0.0, NO,
            0.0, NO, NO, 0.0,   0.0, NO, NO, 0.0,
        ];
        check(&masks.group(3, &[vec![0, 1]]).expect("a mask"), [1, 1, 6, 4], &expected);
        let last: Vec<f32> = expected[8..].to_vec();
        check(&masks.pooled_group(3, &[vec![0, 1]], 2).expect("a mask"), [1, 1, 4, 4], &last);
    }

    #[test]
    fn a_lone_row_sees_the_prefix_and_its_past_less_by_distance() {
        let rows = Ragged::from_lengths([2]).expect("rows");
        let alibi = Alibi { slopes: vec![0.5, 0.25], rounded: None };
        let scores = Scores { repeat: 1, alibi: Some(alibi), window: None, device: Device::Cpu };
        let masks = Masks::new(&scores, None, 1, &rows, 2).expect("masks");
        #[rustfmt::skip]
        let expected = [
            -0.5, 0.0, NO,   -1.0, -0.5, 0.0,
            -0.25, 0.0, NO,  -0.5, -0.25, 0.0,
        ];
        check(&masks.group(2, &[vec![0]]).expect("a mask"), [1, 2, 2, 3], &expected);
        let last = [-1.0, -0.5, 0.0, -0.5, -0.25, 0.0];
        check(&masks.pooled_group(2, &[vec![0]], 1).expect("a mask"), [1, 2, 1, 3], &last);
    }

    #[test]
    fn a_window_hides_what_is_far() {
        let rows = Ragged::from_lengths([3]).expect("rows");
        let scores = Scores { repeat: 1, alibi: None, window: Some(2), device: Device::Cpu };
        let masks = Masks::new(&scores, scores.window, 1, &rows, 3).expect("masks");
        #[rustfmt::skip]
        let expected = [
            0.0, 0.0, NO, NO,
            NO, 0.0, 0.0, NO,
            NO, NO, 0.0, 0.0,
        ];
        check(&masks.group(3, &[vec![0]]).expect("a mask"), [1, 1, 3, 4], &expected);
    }

    #[test]
    fn slopes_of_powers_of_two_and_others() {
        assert_eq!(Alibi::new(4).slopes, [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(Alibi::new(6).slopes, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(Alibi::new(1).slopes, [0.00390625]);
        assert_eq!(Alibi::new(3).slopes.len(), 3);
    }

    #[test]
    fn rounding_to_bf16() {
        // 8 bits of fraction: 257 lies between 256 and 258, and goes to the even one.
        assert_eq!([1.0, 257.0, 259.0, -257.0].map(to_bf16), [1.0, 256.0, 260.0, -256.0]);
        assert_eq!(to_bf16(3.0), 3.0);
        // The position is rounded before the product: 257 is 256, and half of it 128.
        let alibi = Alibi { slopes: vec![0.5], rounded: Some(1.0) };
        assert_eq!(alibi.bias(0, 257, 0), -128.0);
    }
}
