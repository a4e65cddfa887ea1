use std::collections::BTreeMap;

use sepal_core::Ragged;

/// Tokens up to which short rows share a bin: few large kernel calls at the cost of a few masked scores.
/// Values from 40 to 64 were fastest on 2 cores (sentences of 13 tokens, 9 heads of 64).
pub(crate) const BIN_TOKENS: usize = 64;

/// Rows that lie side by side in a bin.
pub(crate) type Bin = Vec<usize>;

/// Rows in bins, the bins by their number of tokens.
#[derive(Debug)]
pub(crate) struct Bins(pub(crate) BTreeMap<usize, Vec<Bin>>);

impl Bins {
    /// Packs the longest rows first, each into the first bin with room. A row of [`BIN_TOKENS`] or more has its own bin.
    /// Rows of a bin keep the caller's order.
    pub(crate) fn pack(rows: &Ragged) -> Self {
        let mut by_length: Vec<usize> = (0..rows.len()).collect();
        by_length.sort_by_key(|&row| std::cmp::Reverse(rows.row_len(row)));
        let mut open: Vec<(usize, Bin)> = Vec::new();
        for row in by_length {
            let len = rows.row_len(row);
            match open.iter_mut().find(|(filled, _)| filled + len <= BIN_TOKENS) {
                Some((filled, bin)) => {
                    *filled += len;
                    bin.push(row);
                }
                None => open.push((len, vec![row])),
            }
        }
        let mut bins: BTreeMap<usize, Vec<Bin>> = BTreeMap::new();
        for (filled, mut bin) in open {
            bin.sort_unstable();
            bins.entry(filled).or_default().push(bin);
        }
        Self(bins)
    }

    /// Lengths of the rows that have a bin of their own, each once.
    pub(crate) fn lengths_of_single_rows(&self) -> impl Iterator<Item = usize> {
        self.0.iter().filter(|(_, bins)| bins.iter().any(|bin| bin.len() == 1)).map(|(&len, _)| len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_shares_bins_among_short_rows_only() {
        let rows = Ragged::from_lengths([100, 24, 40, 70, 30, 34, 100]).expect("rows");
        let bins = Bins::pack(&rows);
        assert_eq!(bins.lengths_of_single_rows().collect::<Vec<_>>(), [70, 100]);
        let Bins(bins) = bins;
        assert_eq!(bins[&64], [vec![1, 2], vec![4, 5]]);
        assert_eq!(bins[&100], [vec![0], vec![6]]);
        assert_eq!(bins[&70], [vec![3]]);
    }
}
