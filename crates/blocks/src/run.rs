//! What several callers' batches need when they go through the blocks together.

use sepal_autograd::fused::{self, Turn};
use tch::{TchError, Tensor};

use crate::attention::{Heads, Reach};
use crate::layout::Layout;
use crate::rope::{Rotaries, Rotations};

/// Rows of a matrix that belong to one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) first: i64,
    pub(crate) n: i64,
}

impl Share {
    /// The same where each row is as many rows.
    pub(crate) fn times(self, rows: i64) -> Self {
        Self { first: self.first * rows, n: self.n * rows }
    }

    /// As many rows from the first on.
    pub(crate) fn at_start(self) -> Self {
        Self { first: 0, n: self.n }
    }
}

/// The rows of `share`.
pub(crate) fn of(matrix: &Tensor, share: Share) -> Result<Tensor, TchError> {
    matrix.f_narrow(0, share.first, share.n)
}

/// Batches that go through the blocks together: their slots lie one part after another, and linear layers see them
/// all at once. Only attention goes part by part.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// How each part's slots lie.
    pub(crate) layouts: Vec<&'a Layout>,
    /// Slots of all parts.
    pub(crate) n: i64,
    /// The parts' slots.
    pub(crate) slots: Vec<Share>,
    /// The parts' rows, where there is one entry for each row.
    pub(crate) rows: Vec<Share>,
    /// The parts' prefixes, where there are only these.
    pub(crate) prefixes: Vec<Share>,
    rotations: Option<Rotations>,
    /// Of blocks with a window, where they are others.
    in_window: Option<Rotations>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(layouts: &[&'a Layout], rotaries: &Rotaries) -> Result<Self, TchError> {
        let positions: Vec<&Tensor> = layouts.iter().map(|layout| &layout.positions).collect();
        let positions = Tensor::f_cat(&positions, 0)?;
        let [rotations, in_window] = [&rotaries.all, &rotaries.in_window]
            .map(|rotary| rotary.as_ref().map(|rotary| rotary.rotations(&positions)).transpose());
        let slots = shares(layouts.iter().map(|layout| layout.positions.size()[0]));
        let pooled = layouts.iter().map(|layout| layout.pooled.as_ref().map_or(0, |pooled| pooled.slots.size()[0]));
        Ok(Self {
            n: slots.last().map_or(0, |last| last.first + last.n),
            slots,
            rows: shares(pooled),
            prefixes: shares(layouts.iter().map(|layout| layout.prefix_slots)),
            rotations: rotations?,
            in_window: in_window?,
            layouts: layouts.to_vec(),
        })
    }

    /// Of each part the slots of its prefix, which come first.
    pub(crate) fn prefix_shares(&self) -> impl Iterator<Item = Share> {
        self.slots.iter().zip(&self.prefixes).map(|(slots, prefix)| Share { first: slots.first, n: prefix.n })
    }

    /// The rows of all prefixes, of a matrix with a row for each slot.
    pub(crate) fn prefixes_of(&self, matrix: &Tensor) -> Result<Tensor, TchError> {
        let parts: Vec<Tensor> = self.prefix_shares().map(|prefix| of(matrix, prefix)).collect::<Result<_, _>>()?;
        Tensor::f_cat(&parts, 0)
    }

    /// The slots of the last tokens of all rows, part by part in the caller's order.
    pub(crate) fn pooled_slots(&self) -> Result<Tensor, TchError> {
        let pooled =
            self.layouts.iter().zip(&self.slots).filter_map(|(layout, slots)| {
                layout.pooled.as_ref().map(|pooled| pooled.slots.f_add_scalar(slots.first))
            });
        Tensor::f_cat(&pooled.collect::<Result<Vec<_>, _>>()?, 0)
    }

    /// Turns `heads` of `x [n, heads * head_dim]` to their positions or back, in place; nothing without rotations.
    pub(crate) fn turn(&self, x: &mut Tensor, heads: Heads, turn: Turn) -> Result<(), TchError> {
        match self.rotations(heads.reach) {
            Some(Rotations { cos, sin }) => fused::rotate(x, cos, sin, heads.dim, turn),
            None => Ok(()),
        }
    }

    /// As [`turn`](Self::turn), of the slots `pooled` alone.
    pub(crate) fn turn_pooled(
        &self,
        x: &mut Tensor,
        pooled: &Tensor,
        heads: Heads,
        turn: Turn,
    ) -> Result<(), TchError> {
        match self.rotations(heads.reach) {
            Some(Rotations { cos, sin }) => {
                fused::rotate(x, &cos.f_index_select(0, pooled)?, &sin.f_index_select(0, pooled)?, heads.dim, turn)
            }
            None => Ok(()),
        }
    }

    fn rotations(&self, reach: Reach) -> Option<&Rotations> {
        match reach {
            Reach::Window => self.in_window.as_ref().or(self.rotations.as_ref()),
            Reach::All => self.rotations.as_ref(),
        }
    }
}

fn shares(sizes: impl Iterator<Item = i64>) -> Vec<Share> {
    let mut first = 0;
    sizes
        .map(|n| {
            let share = Share { first, n };
            first += n;
            share
        })
        .collect()
}
