//! How a ragged batch is laid out for attention, worked out once per call and shared by all its blocks.
//!
//! Rows are moved once, at the entry of the stack, into *slots*: the prefix first, then bins. A bin is one long
//! row, or several short rows side by side that a mask keeps apart. Bins of equal length lie together, so that a
//! group of them is a view `[bins, len, ..]` of the slots: attention neither gathers nor pads, and linear layers
//! see no padding either.

use std::collections::BTreeMap;

use sepal_core::{Ragged, Want};
use tch::{TchError, Tensor};

use crate::attention::Reach;
use crate::masks::{Masks, Scores};

/// Short rows are put together in bins of this many tokens: few, large kernel calls for a few masked scores more.
/// Measured best from 40 to 64 on 2 cores (sentences of 13 tokens, 9 heads of 64).
const BIN_TOKENS: usize = 64;

#[derive(Debug)]
pub(crate) struct Layout {
    /// Tokens of each group of bins; that of the prefix first, if there is one.
    pub(crate) sizes: Vec<i64>,
    pub(crate) groups: Vec<Group>,
    /// Positions of the slots in the sequence, `[n]`, i64.
    pub(crate) positions: Tensor,
    pub(crate) prefix_len: i64,
    /// `prefix_len`, or 0 where the prefix's keys and values were kept.
    pub(crate) prefix_slots: i64,
    pub(crate) pooled: Option<Pooled>,
    order: Option<Order>,
    /// Numbers of all masks.
    mask_numel: usize,
}

/// Bins of equal length.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) bins: i64,
    pub(crate) len: i64,
    /// Whether the prefix stands before each bin; not so for the prefix itself.
    pub(crate) after_prefix: bool,
    /// `[bins or 1, heads or 1, len * repeat, keys]`, added to the scores.
    pub(crate) mask: Mask,
}

/// What is added to the scores of blocks that see everything, and of those with a window where it hides something.
#[derive(Debug)]
pub(crate) struct Mask {
    all: Tensor,
    in_window: Option<Tensor>,
}

impl Mask {
    pub(crate) fn of(&self, reach: Reach) -> &Tensor {
        match reach {
            Reach::Window => self.in_window.as_ref().unwrap_or(&self.all),
            Reach::All => &self.all,
        }
    }
}

/// The last tokens of the rows.
#[derive(Debug)]
pub(crate) struct Pooled {
    /// Their slots, in the order of the rows, `[rows]`.
    pub(crate) slots: Tensor,
    /// Where each row's result lies among those of all groups, `[rows]`.
    pub(crate) results: Tensor,
    /// One for each group but the prefix.
    pub(crate) groups: Vec<PooledGroup>,
}

/// The last tokens of a group's rows: as many queries in each bin, the last one repeated where a bin has fewer.
#[derive(Debug)]
pub(crate) struct PooledGroup {
    pub(crate) per_bin: i64,
    /// The rows that ask, `[bins * per_bin]`.
    pub(crate) rows: Tensor,
    /// `[bins, heads or 1, per_bin * repeat, keys]`
    pub(crate) mask: Mask,
}

#[derive(Debug)]
struct Order {
    /// The caller's position of each slot.
    of_slots: Tensor,
    /// The slot of each of the caller's positions.
    of_positions: Tensor,
}

impl Layout {
    /// `kept`: the prefix's keys and values are there, and it has no slots.
    pub(crate) fn new(
        prefix_len: usize,
        kept: bool,
        rows: &Ragged,
        want: Want,
        scores: &Scores,
    ) -> Result<Self, TchError> {
        let prefix_slots = if kept { 0 } else { prefix_len };
        let plan = Plan::new(prefix_len, prefix_slots, rows);
        let masks = Both::new(scores, prefix_len, rows, &plan.bins)?;
        let mut layout = Self {
            sizes: Vec::new(),
            groups: Vec::new(),
            positions: scores.place(&plan.positions(rows))?,
            prefix_len: prefix_len as i64,
            prefix_slots: prefix_slots as i64,
            pooled: (want == Want::LastOfRows).then(|| Pooled::new(&plan, &masks, rows)).transpose()?,
            order: Order::new(&plan, rows, scores)?,
            mask_numel: 0,
        };
        if prefix_slots > 0 {
            layout.push(1, prefix_len, false, masks.mask(Masks::prefix)?);
        }
        for (&len, bins) in &plan.bins {
            layout.push(bins.len(), len, true, masks.mask(|masks| masks.group(len, bins))?);
        }
        layout.mask_numel = masks.numel();
        Ok(layout)
    }

    /// Where the blocks are.
    pub(crate) fn device(&self) -> tch::Device {
        self.positions.device()
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.mask_numel * size_of::<f32>() + self.positions.numel() * size_of::<i64>()
    }

    /// The groups of rows, by their place among all groups, with who asks in them.
    pub(crate) fn asking(&self) -> impl Iterator<Item = (usize, &PooledGroup)> {
        let rows = self.groups.iter().enumerate().filter(|(_, group)| group.after_prefix).map(|(i, _)| i);
        rows.zip(self.pooled.iter().flat_map(|pooled| &pooled.groups))
    }

    fn push(&mut self, bins: usize, len: usize, after_prefix: bool, mask: Mask) {
        self.sizes.push((bins * len) as i64);
        self.groups.push(Group { bins: bins as i64, len: len as i64, after_prefix, mask });
    }

    /// Rows of the output.
    pub(crate) fn outputs(&self) -> i64 {
        self.pooled.as_ref().map_or(self.positions.size()[0], |pooled| pooled.slots.size()[0])
    }

    /// From the caller's order to slots.
    pub(crate) fn enter(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        match &self.order {
            Some(order) => hidden.f_index_select(0, &order.of_slots),
            None => Ok(hidden.shallow_clone()),
        }
    }

    /// From slots to the caller's order.
    pub(crate) fn leave(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        match &self.order {
            Some(order) => hidden.f_index_select(0, &order.of_positions),
            None => Ok(hidden.shallow_clone()),
        }
    }
}

impl Pooled {
    fn new(plan: &Plan, masks: &Both<'_>, rows: &Ragged) -> Result<Self, TchError> {
        let mut groups = Vec::with_capacity(plan.bins.len());
        let mut results = vec![0; rows.len()];
        let mut n_results = 0;
        for (&len, bins) in &plan.bins {
            let group = PooledGroup::new(masks, len, bins)?;
            group.number_results(bins, n_results, &mut results);
            n_results += group.per_bin * bins.len() as i64;
            groups.push(group);
        }
        let (slots, results) = (masks.scores().place(&plan.last_slots(rows))?, masks.scores().place(&results)?);
        Ok(Self { slots, results, groups })
    }
}

impl PooledGroup {
    fn new(masks: &Both<'_>, len: usize, bins: &[Bin]) -> Result<Self, TchError> {
        let per_bin = bins.iter().map(Vec::len).max().unwrap_or(0);
        let rows: Vec<i64> =
            bins.iter().flat_map(|bin| (0..per_bin).map(|i| bin[i.min(bin.len() - 1)] as i64)).collect();
        let mask = masks.mask(|masks| masks.pooled_group(len, bins, per_bin))?;
        Ok(Self { per_bin: per_bin as i64, rows: masks.scores().place(&rows)?, mask })
    }

    /// Where the results of the rows in `bins` lie, those of the group starting at `first`.
    fn number_results(&self, bins: &[Bin], first: i64, results: &mut [i64]) {
        for (bin_idx, bin) in bins.iter().enumerate() {
            for (i, &row) in bin.iter().enumerate() {
                results[row] = first + bin_idx as i64 * self.per_bin + i as i64;
            }
        }
    }
}

/// The masks without and with the window.
struct Both<'a> {
    all: Masks<'a>,
    in_window: Option<Masks<'a>>,
}

impl<'a> Both<'a> {
    fn new(
        scores: &'a Scores,
        prefix_len: usize,
        rows: &'a Ragged,
        bins: &BTreeMap<usize, Vec<Bin>>,
    ) -> Result<Self, TchError> {
        let new = |window| Masks::new(scores, window, prefix_len, rows, longest(bins));
        let window = scores.window.filter(|&window| window < prefix_len + longest_row(rows));
        Ok(Self { all: new(None)?, in_window: window.map(|window| new(Some(window))).transpose()? })
    }

    fn mask(&self, make: impl Fn(&Masks<'a>) -> Result<Tensor, TchError>) -> Result<Mask, TchError> {
        Ok(Mask { all: make(&self.all)?, in_window: self.in_window.as_ref().map(make).transpose()? })
    }

    fn scores(&self) -> &'a Scores {
        self.all.scores()
    }

    fn numel(&self) -> usize {
        self.all.numel() + self.in_window.as_ref().map_or(0, Masks::numel)
    }
}

/// What a layout takes beside the hidden states.
pub(crate) struct Cost {
    /// Scores that the masks cover, for one head and one query head per key head.
    pub(crate) mask_scores: usize,
}

impl Cost {
    pub(crate) fn new(prefix_len: usize, rows: &Ragged, window: Option<usize>) -> Self {
        let bins = pack(rows);
        let masks = if window.is_some_and(|window| window < prefix_len + longest_row(rows)) { 2 } else { 1 };
        let shared = bins.iter().filter(|(_, bins)| bins.iter().any(|bin| bin.len() > 1));
        let shared: usize = shared.map(|(len, bins)| bins.len() * len * (prefix_len + len)).sum();
        let lone = prefix_len + longest(&bins);
        Self { mask_scores: masks * (shared + lone * lone) }
    }
}

/// The rows that lie side by side in a bin.
pub(crate) type Bin = Vec<usize>;

/// Rows put into bins, the bins by length: the longest rows first, each into the first bin that has room. A row
/// of [`BIN_TOKENS`] or more has a bin of its own. Rows of a bin keep the caller's order.
fn pack(rows: &Ragged) -> BTreeMap<usize, Vec<Bin>> {
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
    bins
}

/// The longest row that has a bin of its own; 0 if there is none.
fn longest(bins: &BTreeMap<usize, Vec<Bin>>) -> usize {
    let alone = bins.iter().filter(|(_, bins)| bins.iter().any(|bin| bin.len() == 1));
    alone.map(|(&len, _)| len).max().unwrap_or(0)
}

fn longest_row(rows: &Ragged) -> usize {
    rows.lengths().max().unwrap_or(0)
}

struct Plan {
    prefix_len: usize,
    prefix_slots: usize,
    bins: BTreeMap<usize, Vec<Bin>>,
    /// The first slot of each row.
    starts: Vec<usize>,
    /// The rows in the order of their slots.
    rows: Vec<usize>,
}

impl Plan {
    fn new(prefix_len: usize, prefix_slots: usize, rows: &Ragged) -> Self {
        let bins = pack(rows);
        let order: Vec<usize> = bins.values().flatten().flatten().copied().collect();
        let mut starts = vec![0; rows.len()];
        let mut slot = prefix_slots;
        for &row in &order {
            starts[row] = slot;
            slot += rows.row_len(row);
        }
        Self { prefix_len, prefix_slots, bins, starts, rows: order }
    }

    /// The position in the sequence of each slot.
    fn positions(&self, rows: &Ragged) -> Vec<i64> {
        let text = self.rows.iter().flat_map(|&row| self.prefix_len..self.prefix_len + rows.row_len(row));
        (0..self.prefix_slots).chain(text).map(|position| position as i64).collect()
    }

    fn last_slots(&self, rows: &Ragged) -> Vec<i64> {
        self.starts.iter().zip(rows.lengths()).map(|(start, len)| (start + len - 1) as i64).collect()
    }
}

impl Order {
    /// `None` if the caller's order is that of the slots.
    fn new(plan: &Plan, rows: &Ragged, scores: &Scores) -> Result<Option<Self>, TchError> {
        if plan.rows.is_sorted() {
            return Ok(None);
        }
        let text = plan.rows.iter().flat_map(|&row| rows.range(row).map(|token| plan.prefix_slots + token));
        let of_slots: Vec<i64> = (0..plan.prefix_slots).chain(text).map(|position| position as i64).collect();
        let mut of_positions = vec![0; of_slots.len()];
        for (slot, &position) in of_slots.iter().enumerate() {
            of_positions[position as usize] = slot as i64;
        }
        let (of_slots, of_positions) = (scores.place(&of_slots)?, scores.place(&of_positions)?);
        Ok(Some(Self { of_slots, of_positions }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Scores = Scores { repeat: 1, alibi: None, window: None, device: tch::Device::Cpu };

    proptest! {
        #[test]
        fn bins_hold_each_row_once_without_a_gap(
            lengths in prop::collection::vec(1_usize..90, 1..50),
            prefix_len in 0_usize..9,
        ) {
            let rows = Ragged::from_lengths(lengths.clone()).expect("rows");
            let layout = Layout::new(prefix_len, false, &rows, Want::LastOfRows, &PLAIN).expect("a layout");
            let n = prefix_len + rows.n_tokens();
            prop_assert_eq!(layout.sizes.iter().sum::<i64>(), n as i64);
            for (&len, bins) in &pack(&rows) {
                for bin in bins {
                    prop_assert_eq!(bin.iter().map(|&row| lengths[row]).sum::<usize>(), len);
                    prop_assert!(bin.len() == 1 || len <= BIN_TOKENS);
                }
            }
            let hidden = Tensor::arange(n as i64, (tch::Kind::Float, tch::Device::Cpu)).unsqueeze(1);
            let slots = layout.enter(&hidden).expect("slots");
            prop_assert_eq!(layout.leave(&slots).expect("positions"), hidden);
            // The last slot of a row holds its last token.
            let last = slots.squeeze_dim(1).index_select(0, &layout.pooled.expect("pooled").slots);
            let expected: Vec<f32> = (0..rows.len()).map(|row| (prefix_len + rows.range(row).end - 1) as f32).collect();
            prop_assert_eq!(Vec::<f32>::try_from(last).expect("numbers"), expected);
        }
    }

    #[test]
    fn short_rows_share_bins_and_long_rows_do_not() {
        let rows = Ragged::from_lengths([100, 24, 40, 70, 30, 34, 100]).expect("rows");
        let bins = pack(&rows);
        assert_eq!(bins[&64], [vec![1, 2], vec![4, 5]]);
        assert_eq!(bins[&100], [vec![0], vec![6]]);
        assert_eq!(bins[&70], [vec![3]]);
        let scores = 2 * 64 * 67 + 103 * 103;
        assert_eq!(Cost::new(3, &rows, None).mask_scores, scores);
        assert_eq!(Cost::new(3, &rows, Some(103)).mask_scores, scores);
        assert_eq!(Cost::new(3, &rows, Some(102)).mask_scores, 2 * scores);
    }
}
