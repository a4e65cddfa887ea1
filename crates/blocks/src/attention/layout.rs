//! Layout of a ragged batch for attention, computed once per call and shared by all its blocks.
//!
//! Rows are moved once, before the first block, into *slots*: the prefix first, then bins. A bin is one long row, or
//! several short rows side by side, separated by a mask. Bins of equal length are adjacent, so that a group of them is a
//! view `[bins, len, ..]` of the slots. Attention neither gathers nor pads, and linear layers see no padding either.

use sepal_core::{Ragged, Want};
use tch::{TchError, Tensor};

use crate::attention::bins::{Bin, Bins};
use crate::attention::masks::{MaskConfig, Masks, are_single_rows};
use crate::attention::methods::Methods;
use crate::attention::outputs::RowMeans;

#[derive(Debug)]
pub(crate) struct Layout {
    /// Tokens of each group of bins. The group of the prefix comes first, if there is one.
    pub(crate) sizes: Vec<i64>,
    pub(crate) groups: Vec<Group>,
    /// Position of each slot in its sequence, `[n]`, i64.
    pub(crate) positions: Tensor,
    pub(crate) prefix_len: i64,
    /// `prefix_len`, or 0 with a cached prefix.
    pub(crate) prefix_slots: i64,
    pub(crate) pooled: Option<Pooled>,
    /// Rows of the tokens, with [`Want::MeanOfRows`].
    pub(crate) means: Option<RowMeans>,
    /// Rule for scores, for the masks that are not saved.
    pub(crate) config: MaskConfig,
    permutation: Option<Permutation>,
    mask_numel: usize,
}

/// Bins of equal length.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) bins: i64,
    pub(crate) len: i64,
    /// True if the prefix precedes each bin; false for the prefix itself.
    pub(crate) after_prefix: bool,
    /// True if each bin is one row, or the prefix.
    pub(crate) has_single_rows: bool,
    /// Methods for queries of all tokens.
    pub(crate) methods: Methods,
}

/// Last tokens of the rows.
#[derive(Debug)]
pub(crate) struct Pooled {
    /// Slots of the last tokens, in the order of the rows, `[rows]`.
    pub(crate) slots: Tensor,
    /// Index of each row's result among those of all groups, `[rows]`.
    pub(crate) results: Tensor,
    /// One entry for each group but the prefix.
    pub(crate) groups: Vec<PooledGroup>,
}

/// Last tokens of a group's rows, the same number of queries for each bin: a bin with fewer rows repeats its last query.
#[derive(Debug)]
pub(crate) struct PooledGroup {
    pub(crate) per_bin: i64,
    /// Rows of the queries, `[bins * per_bin]`.
    pub(crate) rows: Tensor,
    pub(crate) methods: Methods,
}

#[derive(Debug)]
struct Permutation {
    /// The caller's position of each slot.
    to_slots: Tensor,
    /// The slot of each of the caller's positions.
    from_slots: Tensor,
}

impl Layout {
    /// Lays out `rows` behind a prefix, which has no slots if it `is_cached`.
    pub(crate) fn new(
        prefix_len: usize,
        is_cached: bool,
        rows: &Ragged,
        want: Want,
        config: &MaskConfig,
    ) -> Result<Self, TchError> {
        let prefix_slots = if is_cached { 0 } else { prefix_len };
        let plan = SlotPlan::new(prefix_len, prefix_slots, rows);
        let masks = Masks::new(config, prefix_len, rows, &plan.bins)?;
        let mut layout = Self {
            sizes: Vec::new(),
            groups: Vec::new(),
            positions: config.to_device(&plan.positions(rows))?,
            prefix_len: prefix_len as i64,
            prefix_slots: prefix_slots as i64,
            pooled: (want == Want::LastOfRows).then(|| Pooled::new(&plan, &masks, rows)).transpose()?,
            means: (want == Want::MeanOfRows).then(|| plan.means(rows, config)).transpose()?,
            config: config.clone(),
            permutation: Permutation::new(&plan, rows, config)?,
            mask_numel: 0,
        };
        if prefix_slots > 0 {
            let (bins, len, methods) = (1, prefix_len as i64, masks.prefix()?);
            layout.push_group(Group { bins, len, after_prefix: false, has_single_rows: true, methods });
        }
        for (&len, bins) in &plan.bins.0 {
            let (methods, has_single_rows) = (masks.group(len, bins)?, are_single_rows(bins));
            let (bins, len) = (bins.len() as i64, len as i64);
            layout.push_group(Group { bins, len, after_prefix: true, has_single_rows, methods });
        }
        layout.mask_numel = masks.numel();
        Ok(layout)
    }

    pub(crate) fn device(&self) -> tch::Device {
        self.positions.device()
    }

    /// Memory of saved masks and positions, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.mask_numel * size_of::<f32>() + self.positions.numel() * size_of::<i64>()
    }

    /// Groups of last tokens, each with the index of its group among [`groups`](Self::groups).
    pub(crate) fn pooled_groups(&self) -> impl Iterator<Item = (usize, &PooledGroup)> {
        let indices = self.groups.iter().enumerate().filter(|(_, group)| group.after_prefix).map(|(i, _)| i);
        indices.zip(self.pooled.iter().flat_map(|pooled| &pooled.groups))
    }

    fn push_group(&mut self, group: Group) {
        self.sizes.push(group.bins * group.len);
        self.groups.push(group);
    }

    pub(crate) fn n_slots(&self) -> i64 {
        self.positions.size()[0]
    }

    /// Number of rows with a pooled output; 0 without pooling.
    pub(crate) fn n_pooled(&self) -> i64 {
        self.pooled.as_ref().map_or(0, |pooled| pooled.slots.size()[0])
    }

    pub(crate) fn to_slots(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        permuted(hidden, self.permutation.as_ref().map(|permutation| &permutation.to_slots))
    }

    pub(crate) fn to_caller_order(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        permuted(hidden, self.permutation.as_ref().map(|permutation| &permutation.from_slots))
    }
}

fn permuted(hidden: &Tensor, indices: Option<&Tensor>) -> Result<Tensor, TchError> {
    indices.map_or_else(|| Ok(hidden.shallow_clone()), |indices| hidden.f_index_select(0, indices))
}

impl Pooled {
    fn new(plan: &SlotPlan, masks: &Masks<'_>, rows: &Ragged) -> Result<Self, TchError> {
        let mut groups = Vec::with_capacity(plan.bins.0.len());
        let mut results = vec![0; rows.len()];
        let mut n_results = 0;
        for (&len, bins) in &plan.bins.0 {
            let group = PooledGroup::new(masks, len, bins)?;
            group.number_results(bins, n_results, &mut results);
            n_results += group.per_bin * bins.len() as i64;
            groups.push(group);
        }
        let config = masks.config();
        Ok(Self { slots: config.to_device(&plan.last_slots(rows))?, results: config.to_device(&results)?, groups })
    }
}

impl PooledGroup {
    fn new(masks: &Masks<'_>, len: usize, bins: &[Bin]) -> Result<Self, TchError> {
        let per_bin = bins.iter().map(Vec::len).max().unwrap_or(0);
        let rows: Vec<i64> =
            bins.iter().flat_map(|bin| (0..per_bin).map(|i| bin[i.min(bin.len() - 1)] as i64)).collect();
        let methods = masks.pooled_group(len, bins, per_bin)?;
        Ok(Self { per_bin: per_bin as i64, rows: masks.config().to_device(&rows)?, methods })
    }

    /// Writes the index of each row's result into `results`; the group's results start at `start`.
    fn number_results(&self, bins: &[Bin], start: i64, results: &mut [i64]) {
        for (bin_idx, bin) in bins.iter().enumerate() {
            for (i, &row) in bin.iter().enumerate() {
                results[row] = start + bin_idx as i64 * self.per_bin + i as i64;
            }
        }
    }
}

struct SlotPlan {
    prefix_len: usize,
    prefix_slots: usize,
    bins: Bins,
    /// First slot of each row.
    starts: Vec<usize>,
    /// Rows in the order of their slots.
    rows: Vec<usize>,
}

impl SlotPlan {
    fn new(prefix_len: usize, prefix_slots: usize, rows: &Ragged) -> Self {
        let bins = Bins::pack(rows);
        let order: Vec<usize> = bins.0.values().flatten().flatten().copied().collect();
        let mut starts = vec![0; rows.len()];
        let mut slot = prefix_slots;
        for &row in &order {
            starts[row] = slot;
            slot += rows.row_len(row);
        }
        Self { prefix_len, prefix_slots, bins, starts, rows: order }
    }

    /// Position in its sequence of each slot.
    fn positions(&self, rows: &Ragged) -> Vec<i64> {
        let text = self.rows.iter().flat_map(|&row| self.prefix_len..self.prefix_len + rows.row_len(row));
        (0..self.prefix_slots).chain(text).map(|position| position as i64).collect()
    }

    fn means(&self, rows: &Ragged, config: &MaskConfig) -> Result<RowMeans, TchError> {
        let of_tokens: Vec<i64> =
            self.rows.iter().flat_map(|&row| std::iter::repeat_n(row as i64, rows.row_len(row))).collect();
        let lengths: Vec<f32> = rows.lengths().map(|len| len as f32).collect();
        let lengths = Tensor::f_from_slice(&lengths)?.f_unsqueeze(1)?.f_to_device(config.device)?;
        Ok(RowMeans { rows: config.to_device(&of_tokens)?, lengths })
    }

    fn last_slots(&self, rows: &Ragged) -> Vec<i64> {
        self.starts.iter().zip(rows.lengths()).map(|(start, len)| (start + len - 1) as i64).collect()
    }
}

impl Permutation {
    /// `None` if the caller's order is that of the slots.
    fn new(plan: &SlotPlan, rows: &Ragged, config: &MaskConfig) -> Result<Option<Self>, TchError> {
        if plan.rows.is_sorted() {
            return Ok(None);
        }
        let text = plan.rows.iter().flat_map(|&row| rows.range(row).map(|token| plan.prefix_slots + token));
        let to_slots: Vec<i64> = (0..plan.prefix_slots).chain(text).map(|position| position as i64).collect();
        let mut from_slots = vec![0; to_slots.len()];
        for (slot, &position) in to_slots.iter().enumerate() {
            from_slots[position as usize] = slot as i64;
        }
        Ok(Some(Self { to_slots: config.to_device(&to_slots)?, from_slots: config.to_device(&from_slots)? }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention::bins::BIN_TOKENS;
    use crate::attention::methods::Limits;

    const CONFIG: MaskConfig = MaskConfig {
        repeat: 1,
        alibi: None,
        window: None,
        is_capped: false,
        device: tch::Device::Cpu,
        limits: Limits::CPU,
    };

    proptest! {
        #[test]
        fn layout_holds_each_row_once_without_gaps(
            lengths in prop::collection::vec(1_usize..90, 1..50),
            prefix_len in 0_usize..9,
        ) {
            let rows = Ragged::from_lengths(lengths.clone()).expect("rows");
            let layout = Layout::new(prefix_len, false, &rows, Want::LastOfRows, &CONFIG).expect("a layout");
            let n = prefix_len + rows.n_tokens();
            prop_assert_eq!(layout.sizes.iter().sum::<i64>(), n as i64);
            for (&len, bins) in &Bins::pack(&rows).0 {
                for bin in bins {
                    prop_assert_eq!(bin.iter().map(|&row| lengths[row]).sum::<usize>(), len);
                    prop_assert!(bin.len() == 1 || len <= BIN_TOKENS);
                }
            }
            let hidden = Tensor::arange(n as i64, (tch::Kind::Float, tch::Device::Cpu)).unsqueeze(1);
            let slots = layout.to_slots(&hidden).expect("slots");
            prop_assert_eq!(layout.to_caller_order(&slots).expect("positions"), hidden);
            // The last slot of a row holds its last token.
            let last = slots.squeeze_dim(1).index_select(0, &layout.pooled.expect("pooled").slots);
            let expected: Vec<f32> = (0..rows.len()).map(|row| (prefix_len + rows.range(row).end - 1) as f32).collect();
            prop_assert_eq!(Vec::<f32>::try_from(last).expect("numbers"), expected);
        }
    }
}
