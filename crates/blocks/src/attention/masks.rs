//! Masks added to attention scores: -inf for hidden keys, and the bias of ALiBi.

use std::cell::Cell;
use std::ops::Range;

use sepal_core::{ModelConfig, Ragged};
use tch::kind::Element;
use tch::{Device, TchError, Tensor};

use crate::attention::alibi::Alibi;
use crate::attention::bins::{Bin, Bins, is_window_effective};
use crate::attention::heads::AttentionRange;

#[derive(Debug)]
pub(crate) struct MaskConfig {
    /// Number of query heads per head of keys and values; their queries are adjacent.
    pub(crate) repeat: usize,
    pub(crate) alibi: Option<Alibi>,
    /// Number of positions that a query of a windowed block attends to, its own included.
    pub(crate) window: Option<usize>,
    pub(crate) device: Device,
}

impl MaskConfig {
    /// `rounds_alibi`: ALiBi's biases are rounded to bf16.
    pub(crate) fn new(config: &ModelConfig, rounds_alibi: bool, device: Device) -> Self {
        let alibi = config.scores.alibi.then(|| match rounds_alibi {
            true => Alibi::rounded(config.n_heads, config.head_dim),
            false => Alibi::new(config.n_heads),
        });
        let window = config.scores.window.as_ref().map(|window| window.size);
        Self { repeat: config.n_heads / config.n_kv_heads, alibi, window, device }
    }

    pub(crate) fn to_device<T: Element>(&self, numbers: &[T]) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(numbers)?.f_to_device(self.device)
    }
}

/// Mask of blocks without a window, and of those with one if it hides something.
#[derive(Debug)]
pub(crate) struct Mask {
    full: Tensor,
    windowed: Option<Tensor>,
}

impl Mask {
    fn build(
        window: Option<usize>,
        build: impl Fn(Option<usize>) -> Result<Tensor, TchError>,
    ) -> Result<Self, TchError> {
        Ok(Self { full: build(None)?, windowed: window.map(|window| build(Some(window))).transpose()? })
    }

    pub(crate) fn get(&self, range: AttentionRange) -> &Tensor {
        match range {
            AttentionRange::Windowed => self.windowed.as_ref().unwrap_or(&self.full),
            AttentionRange::Full => &self.full,
        }
    }

    fn numel(&self) -> usize {
        self.full.numel() + self.windowed.as_ref().map_or(0, Tensor::numel)
    }
}

/// Masks of one call, each `[bins or 1, heads or 1, queries * repeat, keys]`.
pub(crate) struct Masks<'a> {
    config: &'a MaskConfig,
    /// The window, if it hides something.
    window: Option<usize>,
    prefix_len: usize,
    rows: &'a Ragged,
    /// Causal mask of the prefix and the longest row with a bin of its own: `[1, heads or 1, n * repeat, n]`. The masks
    /// of single rows are views of it, which saves memory if there are many different lengths.
    causal: Mask,
    /// Numbers of the masks built so far.
    numel: Cell<usize>,
}

impl<'a> Masks<'a> {
    pub(crate) fn new(
        config: &'a MaskConfig,
        prefix_len: usize,
        rows: &'a Ragged,
        bins: &Bins,
    ) -> Result<Self, TchError> {
        let window = config.window.filter(|&window| is_window_effective(window, prefix_len, rows));
        let sequence: Vec<Token> = (0..prefix_len + bins.longest_single_row()).map(Token::shared).collect();
        let tokens = [MaskTokens { queries: sequence.clone(), keys: sequence }];
        let causal = Mask::build(window, |window| mask(config, window, &tokens))?;
        let numel = Cell::new(causal.numel());
        Ok(Self { config, window, prefix_len, rows, causal, numel })
    }

    pub(crate) fn config(&self) -> &'a MaskConfig {
        self.config
    }

    /// Numbers of the masks built so far.
    pub(crate) fn numel(&self) -> usize {
        self.numel.get()
    }

    /// Mask of the prefix on itself.
    pub(crate) fn prefix(&self) -> Result<Mask, TchError> {
        self.single_row(0..self.prefix_len, self.prefix_len)
    }

    /// Mask of bins of `len` tokens on the prefix and themselves.
    pub(crate) fn group(&self, len: usize, bins: &[Bin]) -> Result<Mask, TchError> {
        let end = self.prefix_len + len;
        if are_single_rows(bins) {
            return self.single_row(self.prefix_len..end, end);
        }
        self.shared_bins(bins, |_, keys| keys[self.prefix_len..].to_vec())
    }

    /// Mask of the last tokens of the rows in such bins, `per_bin` for each; a bin with fewer rows repeats the last one.
    pub(crate) fn pooled_group(&self, len: usize, bins: &[Bin], per_bin: usize) -> Result<Mask, TchError> {
        let end = self.prefix_len + len;
        if are_single_rows(bins) {
            return self.single_row(end - 1..end, end);
        }
        let last = |row: usize| Token { row: Some(row), position: self.prefix_len + self.rows.row_len(row) - 1 };
        self.shared_bins(bins, |bin, _| (0..per_bin).map(|i| last(bin[i.min(bin.len() - 1)])).collect())
    }

    /// Mask of bins with the tokens that `queries` selects, given a bin and its keys.
    fn shared_bins(&self, bins: &[Bin], queries: impl Fn(&Bin, &[Token]) -> Vec<Token>) -> Result<Mask, TchError> {
        let tokens = bins.iter().map(|bin| {
            let keys = self.keys(bin);
            MaskTokens { queries: queries(bin, &keys), keys }
        });
        let tokens: Vec<MaskTokens> = tokens.collect();
        let mask = Mask::build(self.window, |window| mask(self.config, window, &tokens))?;
        self.numel.set(self.numel.get() + mask.numel());
        Ok(mask)
    }

    /// Mask of a single row with its prefix: the positions `queries` on the first `n_keys` positions.
    fn single_row(&self, queries: Range<usize>, n_keys: usize) -> Result<Mask, TchError> {
        let repeat = self.config.repeat;
        let (start, len) = ((queries.start * repeat) as i64, (queries.len() * repeat) as i64);
        let narrow = |causal: &Tensor| causal.f_narrow(2, start, len)?.f_narrow(3, 0, n_keys as i64);
        let Mask { full, windowed } = &self.causal;
        Ok(Mask { full: narrow(full)?, windowed: windowed.as_ref().map(narrow).transpose()? })
    }

    /// The prefix, then the tokens of the bin's rows.
    fn keys(&self, bin: &Bin) -> Vec<Token> {
        let text = bin.iter().flat_map(|&row| {
            (0..self.rows.row_len(row)).map(move |i| Token { row: Some(row), position: self.prefix_len + i })
        });
        (0..self.prefix_len).map(Token::shared).chain(text).collect()
    }
}

fn are_single_rows(bins: &[Bin]) -> bool {
    bins.iter().all(|bin| bin.len() == 1)
}

/// Key or query: its row and its position in the sequence.
#[derive(Clone, Copy)]
struct Token {
    /// `None` for a key that every row attends to.
    row: Option<usize>,
    position: usize,
}

impl Token {
    fn shared(position: usize) -> Self {
        Self { row: None, position }
    }

    fn attends_to(self, key: Token, window: Option<usize>) -> bool {
        let is_near = || window.is_none_or(|window| self.position - key.position < window);
        key.position <= self.position && (key.row.is_none() || key.row == self.row) && is_near()
    }
}

struct MaskTokens {
    queries: Vec<Token>,
    keys: Vec<Token>,
}

/// Builds the mask of bins with equal numbers of queries and of keys.
fn mask(config: &MaskConfig, window: Option<usize>, bins: &[MaskTokens]) -> Result<Tensor, TchError> {
    let MaskConfig { repeat, alibi, .. } = config;
    let heads = alibi.as_ref().map_or(1, Alibi::n_heads);
    let (n_queries, n_keys) = bins.first().map_or((0, 0), |bin| (bin.queries.len(), bin.keys.len()));
    let mut numbers = Vec::with_capacity(bins.len() * heads * n_queries * repeat * n_keys);
    for MaskTokens { queries, keys } in bins {
        for head in 0..heads {
            for query in queries {
                let start = numbers.len();
                let bias = |key: &Token| match alibi {
                    _ if !query.attends_to(*key, window) => f32::NEG_INFINITY,
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
    config.to_device(&numbers)?.f_view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;
    const CONFIG: MaskConfig = MaskConfig { repeat: 1, alibi: None, window: None, device: Device::Cpu };

    fn check(mask: &Mask, shape: [i64; 4], expected: &[f32]) {
        let mask = mask.get(AttentionRange::Windowed);
        assert_eq!(mask.size(), shape);
        assert_eq!(Vec::<f32>::try_from(mask.flatten(0, -1)).expect("numbers"), expected);
    }

    #[test]
    fn group_hides_other_rows_of_the_bin() {
        let rows = Ragged::from_lengths([2, 1]).expect("rows");
        let config = MaskConfig { repeat: 2, ..CONFIG };
        let masks = Masks::new(&config, 1, &rows, &Bins::pack(&rows)).expect("masks");
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
    fn group_with_alibi_penalizes_distance() {
        let rows = Ragged::from_lengths([2]).expect("rows");
        // Slopes of 1/16 and 1/256.
        let config = MaskConfig { alibi: Some(Alibi::new(2)), ..CONFIG };
        let masks = Masks::new(&config, 1, &rows, &Bins::pack(&rows)).expect("masks");
        let [near, far] = [1.0 / 16.0, 1.0 / 256.0];
        #[rustfmt::skip]
        let expected = [
            -near, 0.0, NO,  -2.0 * near, -near, 0.0,
            -far, 0.0, NO,   -2.0 * far, -far, 0.0,
        ];
        check(&masks.group(2, &[vec![0]]).expect("a mask"), [1, 2, 2, 3], &expected);
        let last = [-2.0 * near, -near, 0.0, -2.0 * far, -far, 0.0];
        check(&masks.pooled_group(2, &[vec![0]], 1).expect("a mask"), [1, 2, 1, 3], &last);
    }

    #[test]
    fn group_with_window_hides_distant_keys() {
        let rows = Ragged::from_lengths([3]).expect("rows");
        let config = MaskConfig { window: Some(2), ..CONFIG };
        let masks = Masks::new(&config, 1, &rows, &Bins::pack(&rows)).expect("masks");
        #[rustfmt::skip]
        let expected = [
            0.0, 0.0, NO, NO,
            NO, 0.0, 0.0, NO,
            NO, NO, 0.0, 0.0,
        ];
        check(&masks.group(3, &[vec![0]]).expect("a mask"), [1, 1, 3, 4], &expected);
    }
}
