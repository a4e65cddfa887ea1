use sepal_autograd::fused::Rotate;
use tch::{TchError, Tensor};

use crate::attention::heads::{AttentionRange, Heads};
use crate::attention::layout::Layout;
use crate::layers::rope::{Rotaries, Rotations};
use crate::segment::Segment;

/// Batches of several callers that pass through the blocks together. Their slots lie one batch after another: linear
/// layers process all at once, attention each batch on its own.
#[derive(Debug)]
pub(crate) struct PackedBatch<'a> {
    pub(crate) layouts: Vec<&'a Layout>,
    /// Number of slots of all batches.
    pub(crate) n_slots: i64,
    pub(crate) slots: Vec<Segment>,
    /// Rows of each batch, in a matrix with one entry per row.
    pub(crate) rows: Vec<Segment>,
    /// Prefix of each batch, in a matrix of prefixes only.
    pub(crate) prefixes: Vec<Segment>,
    /// Prefix of each batch, which comes first among its slots.
    pub(crate) prefix_slots: Vec<Segment>,
    rotations: Option<Rotations>,
    /// Rotations of blocks with a window, if they differ.
    windowed: Option<Rotations>,
}

impl<'a> PackedBatch<'a> {
    pub(crate) fn new(layouts: Vec<&'a Layout>, rotaries: &Rotaries) -> Result<Self, TchError> {
        let positions: Vec<&Tensor> = layouts.iter().map(|layout| &layout.positions).collect();
        let positions = Tensor::f_cat(&positions, 0)?;
        let [rotations, windowed] = [&rotaries.full, &rotaries.windowed]
            .map(|rotary| rotary.as_ref().map(|rotary| rotary.rotations(&positions)).transpose());
        let segments = |len: fn(&Layout) -> i64| Segment::consecutive(layouts.iter().map(|layout| len(layout)));
        let slots = segments(Layout::n_slots);
        let prefixes = segments(|layout| layout.prefix_slots);
        let prefix_slot = |(slots, prefix): (&Segment, &Segment)| Segment { start: slots.start, len: prefix.len };
        Ok(Self {
            n_slots: slots.last().map_or(0, |last| last.start + last.len),
            prefix_slots: slots.iter().zip(&prefixes).map(prefix_slot).collect(),
            slots,
            rows: segments(Layout::n_pooled),
            prefixes,
            rotations: rotations?,
            windowed: windowed?,
            layouts,
        })
    }

    /// Copies the rows of all prefixes out of a matrix with a row for each slot.
    pub(crate) fn gather_prefixes(&self, matrix: &Tensor) -> Result<Tensor, TchError> {
        let prefixes = self.prefix_slots.iter().map(|prefix| prefix.narrow(matrix));
        Tensor::f_cat(&prefixes.collect::<Result<Vec<_>, _>>()?, 0)
    }

    /// Segments of the batches' queries: all slots, or one for each row.
    pub(crate) fn queries(&self, is_pooled: bool) -> &[Segment] {
        if is_pooled { &self.rows } else { &self.slots }
    }

    /// Slots of the last tokens of all rows, batch by batch in the caller's order.
    pub(crate) fn pooled_slots(&self) -> Result<Tensor, TchError> {
        let pooled =
            self.layouts.iter().zip(&self.slots).filter_map(|(layout, slots)| {
                layout.pooled.as_ref().map(|pooled| pooled.slots.f_add_scalar(slots.start))
            });
        Tensor::f_cat(&pooled.collect::<Result<Vec<_>, _>>()?, 0)
    }

    /// Rotates the heads of `x [n, heads * head_dim]` in place; has no effect without rotary embedding of the model or of the
    /// block. The rows of `x` are those of `slots`, by default all.
    pub(crate) fn rotate(
        &self,
        x: &mut Tensor,
        slots: Option<&Tensor>,
        heads: Heads,
        direction: Rotate,
    ) -> Result<(), TchError> {
        let Some(rotations) = self.rotations(heads) else { return Ok(()) };
        match slots {
            None => rotations.rotate(x, heads, direction),
            Some(slots) => rotations.select(slots)?.rotate(x, heads, direction),
        }
    }

    fn rotations(&self, heads: Heads) -> Option<&Rotations> {
        match heads.range {
            _ if !heads.is_rotated => None,
            AttentionRange::Windowed => self.windowed.as_ref().or(self.rotations.as_ref()),
            AttentionRange::Full => self.rotations.as_ref(),
        }
    }
}
