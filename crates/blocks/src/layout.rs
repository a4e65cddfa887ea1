//! How a ragged batch is laid out for attention, worked out once per call and shared by all its blocks.
//!
//! Rows are moved once, at the entry of the stack, into *slots*: the prefix first, then bins. A bin is one long
//! row, or several short rows side by side that a mask keeps apart. Bins of equal length lie together, so that a
//! group of them is a view `[bins, len, ..]` of the slots: attention neither gathers nor pads, and linear layers
//! see no padding either.

use std::collections::BTreeMap;
use std::ops::Range;

use sepal_core::{Ragged, Want};
use tch::{TchError, Tensor};

/// Short rows are put together in bins of this many tokens: few, large kernel calls for a few masked scores more.
/// Measured best from 40 to 64 on 2 cores (sentences of 13 tokens, 9 heads of 64).
const BIN_TOKENS: usize = 64;

/// What a family's attention adds to the scores.
#[derive(Debug)]
pub(crate) struct Scores {
    /// Query heads that share one head of keys and values; their queries lie one after another.
    pub(crate) repeat: usize,
    /// Per head, what a score loses for each position between key and query (ALiBi); empty for none.
    pub(crate) slopes: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct Layout {
    /// Tokens of each group of bins; that of the prefix first, if there is one.
    pub(crate) sizes: Vec<i64>,
    pub(crate) groups: Vec<Group>,
    /// Positions of the slots in the sequence, `[n]`, i64.
    pub(crate) positions: Tensor,
    pub(crate) prefix_len: i64,
    /// `0..prefix_len`.
    pub(crate) prefix_slots: Tensor,
    pub(crate) pooled: Option<Pooled>,
    order: Option<Order>,
}

/// Bins of equal length.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) bins: i64,
    pub(crate) len: i64,
    /// Whether the prefix stands before each bin; not so for the prefix itself.
    pub(crate) after_prefix: bool,
    /// `[bins or 1, heads or 1, len * repeat, keys]`, added to the scores.
    pub(crate) mask: Tensor,
    pub(crate) pooled: Option<PooledGroup>,
}

/// The last tokens of the rows.
#[derive(Debug)]
pub(crate) struct Pooled {
    /// Their slots, in the order of the rows, `[rows]`.
    pub(crate) slots: Tensor,
    /// Where each row's result lies among those of all groups, `[rows]`.
    pub(crate) results: Tensor,
}

/// The last tokens of a group's rows: as many queries in each bin, the last one repeated where a bin has fewer.
#[derive(Debug)]
pub(crate) struct PooledGroup {
    pub(crate) per_bin: i64,
    /// The rows that ask, `[bins * per_bin]`.
    pub(crate) rows: Tensor,
    /// `[bins, heads or 1, per_bin * repeat, keys]`
    pub(crate) mask: Tensor,
}

#[derive(Debug)]
struct Order {
    /// The caller's position of each slot.
    of_slots: Tensor,
    /// The slot of each of the caller's positions.
    of_positions: Tensor,
}

impl Layout {
    pub(crate) fn new(prefix_len: usize, rows: &Ragged, want: Want, scores: &Scores) -> Result<Self, TchError> {
        let plan = Plan::new(prefix_len, rows);
        let pooled = want == Want::LastOfRows;
        let masks = Masks::new(&plan, scores)?;
        let mut layout = Self {
            sizes: Vec::new(),
            groups: Vec::new(),
            positions: Tensor::f_from_slice(&plan.positions(rows))?,
            prefix_len: prefix_len as i64,
            prefix_slots: Tensor::f_from_slice(&(0..prefix_len as i64).collect::<Vec<_>>())?,
            pooled: None,
            order: Order::new(&plan, rows)?,
        };
        if prefix_len > 0 {
            layout.push(1, prefix_len, false, masks.whole(0..prefix_len, prefix_len)?, None);
        }
        let mut results = vec![0; rows.len()];
        let mut n_results = 0;
        for (&len, bins) in &plan.bins {
            let group = if pooled { Some(masks.pooled_group(len, bins, &mut results, &mut n_results)?) } else { None };
            layout.push(bins.len(), len, true, masks.group(len, bins)?, group);
        }
        if pooled {
            layout.pooled = Some(Pooled {
                slots: Tensor::f_from_slice(&plan.last_slots(rows))?,
                results: Tensor::f_from_slice(&results)?,
            });
        }
        Ok(layout)
    }

    fn push(&mut self, bins: usize, len: usize, after_prefix: bool, mask: Tensor, pooled: Option<PooledGroup>) {
        self.sizes.push((bins * len) as i64);
        self.groups.push(Group { bins: bins as i64, len: len as i64, after_prefix, mask, pooled });
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

/// How many tokens the bins hold, and how many bins there are: what the keys and values take up.
pub(crate) fn n_bins(rows: &Ragged) -> usize {
    pack(rows).values().map(Vec::len).sum()
}

type Bin = Vec<usize>;

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

struct Plan {
    prefix_len: usize,
    bins: BTreeMap<usize, Vec<Bin>>,
    /// The first slot of each row.
    starts: Vec<usize>,
    /// The rows in the order of their slots.
    rows: Vec<usize>,
}

impl Plan {
    fn new(prefix_len: usize, rows: &Ragged) -> Self {
        let bins = pack(rows);
        let order: Vec<usize> = bins.values().flatten().flatten().copied().collect();
        let mut starts = vec![0; rows.len()];
        let mut slot = prefix_len;
        for &row in &order {
            starts[row] = slot;
            slot += rows.row_len(row);
        }
        Self { prefix_len, bins, starts, rows: order }
    }

    /// The position in the sequence of each slot.
    fn positions(&self, rows: &Ragged) -> Vec<i64> {
        let text = self.rows.iter().flat_map(|&row| self.prefix_len..self.prefix_len + rows.row_len(row));
        (0..self.prefix_len).chain(text).map(|position| position as i64).collect()
    }

    fn last_slots(&self, rows: &Ragged) -> Vec<i64> {
        self.starts.iter().zip(rows.lengths()).map(|(start, len)| (start + len - 1) as i64).collect()
    }
}

impl Order {
    /// `None` if the caller's order is that of the slots.
    fn new(plan: &Plan, rows: &Ragged) -> Result<Option<Self>, TchError> {
        if plan.rows.is_sorted() {
            return Ok(None);
        }
        let text = plan.rows.iter().flat_map(|&row| rows.range(row).map(|token| plan.prefix_len + token));
        let of_slots: Vec<i64> = (0..plan.prefix_len).chain(text).map(|position| position as i64).collect();
        let mut of_positions = vec![0; of_slots.len()];
        for (slot, &position) in of_slots.iter().enumerate() {
            of_positions[position as usize] = slot as i64;
        }
        let (of_slots, of_positions) = (Tensor::f_from_slice(&of_slots)?, Tensor::f_from_slice(&of_positions)?);
        Ok(Some(Self { of_slots, of_positions }))
    }
}

/// A key or a query: which row it belongs to and where it stands in the sequence.
#[derive(Clone, Copy)]
struct Place {
    /// `None` in the prefix, which every row sees.
    row: Option<usize>,
    position: usize,
}

impl Place {
    /// What is added to the score of the query `self` on `key`; a key that it must not see gets -inf.
    fn bias(self, key: Place, slope: f32) -> f32 {
        if key.position > self.position || (key.row.is_some() && key.row != self.row) {
            f32::NEG_INFINITY
        } else {
            // Distances instead of positions: softmax does not see the difference, and large numbers lose digits.
            -slope * (self.position - key.position) as f32
        }
    }
}

struct Masks<'a> {
    scores: &'a Scores,
    prefix_len: usize,
    lengths: Vec<usize>,
    /// Causal over the prefix and the longest row that has a bin of its own: `[1, heads or 1, n * repeat, n]`.
    /// The masks of single rows are views of it, so that many lengths do not take many masks.
    causal: Tensor,
}

impl<'a> Masks<'a> {
    fn new(plan: &Plan, scores: &'a Scores) -> Result<Self, TchError> {
        let mut lengths = vec![0; plan.starts.len()];
        let mut longest = 0;
        for (&len, bins) in &plan.bins {
            for bin in bins.iter().filter(|bin| bin.len() == 1) {
                lengths[bin[0]] = len;
                longest = longest.max(len);
            }
        }
        let places: Vec<Place> =
            (0..plan.prefix_len + longest).map(|position| Place { row: None, position }).collect();
        let causal = mask(scores, &[(places.clone(), places)])?;
        Ok(Self { scores, prefix_len: plan.prefix_len, lengths, causal })
    }

    /// The queries at `queries` on the first `keys` positions of a single row with its prefix.
    fn whole(&self, queries: Range<usize>, keys: usize) -> Result<Tensor, TchError> {
        let repeat = self.scores.repeat;
        let (start, len) = ((queries.start * repeat) as i64, (queries.len() * repeat) as i64);
        self.causal.f_narrow(2, start, len)?.f_narrow(3, 0, keys as i64)
    }

    fn group(&self, len: usize, bins: &[Bin]) -> Result<Tensor, TchError> {
        todo_remove(self, len, bins)
    }
}
