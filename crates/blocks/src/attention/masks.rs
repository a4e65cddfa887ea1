//! Saved masks, added to attention scores: -inf for hidden keys, and the bias of ALiBi.

use std::cell::Cell;

use sepal_core::{ModelConfig, Ragged};
use tch::kind::Element;
use tch::{Device, TchError, Tensor};

use crate::attention::alibi::Alibi;
use crate::attention::bins::{Bin, Bins};
use crate::attention::methods::{Limits, Method, MethodKind, Methods};

/// Rule for attention scores, and for the masks that are saved.
#[derive(Debug, Clone)]
pub(crate) struct MaskConfig {
    /// Number of query heads per head of keys and values; their queries are adjacent.
    pub(crate) repeat: usize,
    pub(crate) alibi: Option<Alibi>,
    /// Number of positions that a query of a windowed block attends to, its own included.
    pub(crate) window: Option<usize>,
    /// True if scores have a soft cap.
    pub(crate) is_capped: bool,
    pub(crate) device: Device,
    pub(crate) limits: Limits,
}

impl MaskConfig {
    /// `rounds_alibi`: ALiBi's biases are rounded to bf16.
    pub(crate) fn new(config: &ModelConfig, rounds_alibi: bool, device: Device) -> Self {
        let scores = &config.scores;
        let alibi = scores.alibi.then(|| match rounds_alibi {
            true => Alibi::rounded(config.n_heads, config.head_dim),
            false => Alibi::new(config.n_heads),
        });
        Self {
            repeat: config.n_heads / config.n_kv_heads,
            alibi,
            window: scores.window.as_ref().map(|window| window.size),
            is_capped: scores.cap.is_some(),
            device,
            limits: Limits::on(device),
        }
    }

    pub(crate) fn to_device<T: Element>(&self, numbers: &[T]) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(numbers)?.f_to_device(self.device)
    }

    /// The window, if it hides something from some query.
    fn effective_window(&self, prefix_len: usize, rows: &Ragged) -> Option<usize> {
        self.window.filter(|&window| window < prefix_len + rows.lengths().max().unwrap_or(0))
    }

    /// Numbers of masks for each query and key.
    pub(crate) fn masks_per_score(&self) -> usize {
        self.repeat * self.alibi.as_ref().map_or(1, Alibi::n_heads)
    }

    /// Positions of the longest row with a mask, the prefix included; at least those of the prefix, if it has a mask.
    fn longest_masked(&self, prefix_len: usize, bins: &Bins) -> usize {
        let rows = bins.lengths_of_single_rows().map(|len| prefix_len + len);
        rows.chain([prefix_len]).filter(|&positions| self.has_mask(positions)).max().unwrap_or(0)
    }

    /// Numbers of the masks that a layout of `rows` behind a prefix saves, without those of last tokens.
    pub(crate) fn saved_masks_numel(&self, prefix_len: usize, rows: &Ragged) -> usize {
        let bins = Bins::pack(rows);
        let causal = self.longest_masked(prefix_len, &bins).pow(2);
        let n_scores = |window: Option<usize>| {
            let shared = bins.0.iter().filter(|(_, bins)| !are_single_rows(bins));
            let shared = shared.map(|(&len, bins)| match self.method_of_bins(prefix_len, len, window) {
                MethodKind::Masked => bins.len() * len * (prefix_len + len),
                MethodKind::Split => bins.len() * len * len,
                MethodKind::Causal | MethodKind::Blocks => 0,
            });
            causal + shared.sum::<usize>()
        };
        let windowed = self.effective_window(prefix_len, rows).map_or(0, |window| n_scores(Some(window)));
        self.masks_per_score() * (n_scores(None) + windowed)
    }
}

/// Masks of one call, each `[bins or 1, heads or 1, queries * repeat, keys]`.
pub(crate) struct Masks<'a> {
    config: &'a MaskConfig,
    /// The window, if it hides something.
    window: Option<usize>,
    prefix_len: usize,
    rows: &'a Ragged,
    /// Causal masks of the prefix and the longest row that has one, `[1, heads or 1, n * repeat, n]`: without a window,
    /// and with one if it hides something. The masks of single rows are views of them, which saves memory if there are
    /// many different lengths.
    causal: [Option<Tensor>; 2],
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
        let window = config.effective_window(prefix_len, rows);
        let sequence: Vec<Token> = (0..config.longest_masked(prefix_len, bins)).map(Token::shared).collect();
        let tokens = [MaskTokens { queries: sequence.clone(), keys: sequence }];
        let windowed = window.map(|window| mask(config, Some(window), &tokens)).transpose()?;
        let causal = [Some(mask(config, None, &tokens)?), windowed];
        let numel = Cell::new(causal.iter().flatten().map(Tensor::numel).sum());
        Ok(Self { config, window, prefix_len, rows, causal, numel })
    }

    pub(crate) fn config(&self) -> &'a MaskConfig {
        self.config
    }

    /// Numbers of the masks built so far.
    pub(crate) fn numel(&self) -> usize {
        self.numel.get()
    }

    /// Methods of the prefix on itself.
    pub(crate) fn prefix(&self) -> Result<Methods, TchError> {
        self.single_rows(0, self.prefix_len)
    }

    /// Methods of bins of `len` tokens on the prefix and themselves.
    pub(crate) fn group(&self, len: usize, bins: &[Bin]) -> Result<Methods, TchError> {
        if are_single_rows(bins) {
            return self.single_rows(self.prefix_len, len);
        }
        self.shared_bins(len, bins, |bin| self.text(bin).collect())
    }

    /// Methods of the last tokens of the rows in such bins, `per_bin` for each; a bin with fewer rows repeats the last one.
    pub(crate) fn pooled_group(&self, len: usize, bins: &[Bin], per_bin: usize) -> Result<Methods, TchError> {
        if are_single_rows(bins) {
            return self.last_tokens(self.prefix_len + len);
        }
        let last = |row: usize| Token { row: Some(row), position: self.prefix_len + self.rows.row_len(row) - 1 };
        self.shared_bins(len, bins, |bin| (0..per_bin).map(|i| last(bin[i.min(bin.len() - 1)])).collect())
    }

    /// Methods of bins with the tokens of each bin that `queries` selects.
    fn shared_bins(&self, len: usize, bins: &[Bin], queries: impl Fn(&Bin) -> Vec<Token>) -> Result<Methods, TchError> {
        Methods::build(self.window, |window| {
            let kind = self.config.method_of_bins(self.prefix_len, len, window);
            let prefix_len = match kind {
                MethodKind::Masked => self.prefix_len,
                MethodKind::Split => 0,
                MethodKind::Causal | MethodKind::Blocks => return Ok(Method::Blocks),
            };
            let tokens = bins.iter().map(|bin| {
                let keys = (0..prefix_len).map(Token::shared).chain(self.text(bin)).collect();
                MaskTokens { queries: queries(bin), keys }
            });
            let mask = self.counted(mask(self.config, window, &tokens.collect::<Vec<_>>())?);
            Ok(if kind == MethodKind::Split { Method::Split(mask) } else { Method::Masked(mask) })
        })
    }

    /// Methods of rows of `len` tokens behind `prefix_len` positions.
    fn single_rows(&self, prefix_len: usize, len: usize) -> Result<Methods, TchError> {
        let repeat = self.config.repeat;
        let (start, n_queries) = ((prefix_len * repeat) as i64, (len * repeat) as i64);
        let n_keys = (prefix_len + len) as i64;
        Methods::build(self.window, |window| {
            let [full, windowed] = &self.causal;
            let causal = if window.is_some() { windowed } else { full };
            match (self.config.method_of_rows(prefix_len, len, window), causal) {
                (MethodKind::Masked, Some(causal)) => {
                    Ok(Method::Masked(causal.f_narrow(2, start, n_queries)?.f_narrow(3, 0, n_keys)?))
                }
                (MethodKind::Causal, _) => Ok(Method::Causal),
                _ => Ok(Method::Blocks),
            }
        })
    }

    /// Methods of the last of so many positions of a row.
    fn last_tokens(&self, positions: usize) -> Result<Methods, TchError> {
        Methods::build(self.window, |window| {
            if self.config.alibi.is_none() && window.is_none_or(|window| window >= positions) {
                return Ok(Method::Unmasked);
            }
            let keys: Vec<Token> = (0..positions).map(Token::shared).collect();
            let queries = keys.last().copied().into_iter().collect();
            Ok(Method::Masked(self.counted(mask(self.config, window, &[MaskTokens { queries, keys }])?)))
        })
    }

    fn counted(&self, mask: Tensor) -> Tensor {
        self.numel.set(self.numel.get() + mask.numel());
        mask
    }

    /// Tokens of the bin's rows.
    fn text(&self, bin: &Bin) -> impl Iterator<Item = Token> {
        bin.iter().flat_map(move |&row| {
            (0..self.rows.row_len(row)).map(move |i| Token { row: Some(row), position: self.prefix_len + i })
        })
    }
}

/// True if each bin is one row.
pub(crate) fn are_single_rows(bins: &[Bin]) -> bool {
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
    use crate::attention::heads::AttentionRange;

    const NO: f32 = f32::NEG_INFINITY;
    const CONFIG: MaskConfig =
        MaskConfig { repeat: 1, alibi: None, window: None, is_capped: false, device: Device::Cpu, limits: Limits::CPU };

    fn check(methods: &Methods, shape: [i64; 4], expected: &[f32]) {
        let (Method::Masked(mask) | Method::Split(mask)) = methods.get(AttentionRange::Windowed) else {
            panic!("no mask: {methods:?}")
        };
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

    #[test]
    fn group_behind_a_long_prefix_has_masks_of_own_keys_only() {
        let rows = Ragged::from_lengths([2, 1, 70]).expect("rows");
        let limits = Limits { masked_prefix: 4, ..Limits::CPU };
        let methods = |config: &MaskConfig| {
            let masks = Masks::new(config, 5, &rows, &Bins::pack(&rows)).expect("masks");
            let bins = [vec![0, 1]];
            [masks.group(3, &bins), masks.pooled_group(3, &bins, 2)].map(|methods| methods.expect("methods"))
        };
        let [group, pooled] = methods(&MaskConfig { limits, ..CONFIG });
        #[rustfmt::skip]
        let expected = [
            0.0, NO, NO,
            0.0, 0.0, NO,
            NO, NO, 0.0,
        ];
        check(&group, [1, 1, 3, 3], &expected);
        check(&pooled, [1, 1, 2, 3], &expected[3..]);
        for config in [
            MaskConfig { limits, alibi: Some(Alibi::new(1)), ..CONFIG },
            MaskConfig { limits, window: Some(7), ..CONFIG },
            MaskConfig { limits, is_capped: true, ..CONFIG },
            MaskConfig { limits, device: Device::Cuda(0), ..CONFIG },
        ] {
            assert_eq!(config.method_of_bins(5, 3, config.window), MethodKind::Blocks, "{config:?}");
        }
        // The window is as long as the bin with its prefix.
        let config = MaskConfig { limits, window: Some(8), ..CONFIG };
        assert_eq!(config.method_of_bins(5, 3, config.window), MethodKind::Split);
    }

    #[test]
    fn rows_beyond_the_limits_have_no_masks() {
        let config = MaskConfig { repeat: 2, window: Some(700), ..CONFIG };
        assert_eq!(config.method_of_rows(12, 500, None), MethodKind::Masked);
        assert_eq!(config.method_of_rows(12, 501, None), MethodKind::Causal);
        assert_eq!(config.method_of_rows(12, 688, config.window), MethodKind::Causal);
        assert_eq!(config.method_of_rows(12, 689, config.window), MethodKind::Blocks);
        let alibi = MaskConfig { alibi: Some(Alibi::new(32)), ..CONFIG };
        assert_eq!(alibi.method_of_rows(0, 256, None), MethodKind::Masked);
        assert_eq!(alibi.method_of_rows(0, 257, None), MethodKind::Blocks);
        let rows = Ragged::from_lengths([8000, 8000]).expect("rows");
        let masks = Masks::new(&config, 12, &rows, &Bins::pack(&rows)).expect("masks");
        let bins = [vec![0], vec![1]];
        let group = masks.group(8000, &bins).expect("methods");
        assert!(matches!(group.get(AttentionRange::Full), Method::Causal), "{group:?}");
        assert!(matches!(group.get(AttentionRange::Windowed), Method::Blocks), "{group:?}");
        let pooled = masks.pooled_group(8000, &bins, 1).expect("methods");
        assert!(matches!(pooled.get(AttentionRange::Full), Method::Unmasked), "{pooled:?}");
        // The masks of the prefix, without and with a window, and that of last tokens in a window.
        assert_eq!(masks.numel(), 2 * 2 * 12 * 12 + 2 * 8012);
    }

    #[test]
    fn saved_masks_numel_counts_the_masks_of_groups() {
        let rows = Ragged::from_lengths([100, 24, 40, 70, 30, 34, 100]).expect("rows");
        let numel = |config: &MaskConfig| {
            let bins = Bins::pack(&rows);
            let masks = Masks::new(config, 3, &rows, &bins).expect("masks");
            let groups: Vec<Methods> =
                bins.0.iter().map(|(&len, bins)| masks.group(len, bins).expect("a group")).collect();
            assert_eq!(config.saved_masks_numel(3, &rows), masks.numel(), "{config:?}: {groups:?}");
            masks.numel()
        };
        let scores = 2 * 64 * 67 + 103 * 103;
        assert_eq!(numel(&CONFIG), scores);
        assert_eq!(numel(&MaskConfig { window: Some(103), ..CONFIG }), scores);
        assert_eq!(numel(&MaskConfig { window: Some(102), ..CONFIG }), 2 * scores);
        assert_eq!(numel(&MaskConfig { repeat: 3, ..CONFIG }), 3 * scores);
        let limits = Limits { masked_positions: 80, masked_prefix: 2, ..Limits::CPU };
        assert_eq!(numel(&MaskConfig { limits, ..CONFIG }), 2 * 64 * 64 + 73 * 73);
        let limits = Limits { masked_positions: 2, ..Limits::CPU };
        assert_eq!(numel(&MaskConfig { limits, ..CONFIG }), 2 * 64 * 67);
    }
}
