//! Selection of the last block's outputs, and the gradient in the opposite direction.

use sepal_core::Want;
use tch::{Kind, TchError, Tensor};

use crate::attention::layout::Layout;

/// Rows of the tokens, for means over them.
#[derive(Debug)]
pub(crate) struct RowMeans {
    /// Row of each slot behind the prefix, `[n_tokens]`.
    pub(crate) rows: Tensor,
    /// Lengths of the rows, `[rows, 1]`, fp32.
    pub(crate) lengths: Tensor,
}

impl Layout {
    /// Number of positions of the output that `want` selects.
    pub(crate) fn n_outputs(&self, want: Want) -> i64 {
        match want {
            Want::All => self.n_slots(),
            Want::LastOfRows => self.n_pooled(),
            Want::Tokens => self.n_slots() - self.prefix_slots,
            Want::MeanOfRows => self.means.as_ref().map_or(0, |means| means.lengths.size()[0]),
        }
    }

    /// Returns the output that `want` selects, in the caller's order, from the last block's hidden states: of last tokens
    /// for [`Want::LastOfRows`], else of all slots.
    pub(crate) fn select_output(&self, hidden: &Tensor, want: Want) -> Result<Tensor, TchError> {
        match (want, &self.means) {
            (Want::LastOfRows, _) => Ok(hidden.shallow_clone()),
            (Want::MeanOfRows, Some(means)) => {
                let size = [means.lengths.size()[0], hidden.size()[1]];
                let sums = hidden.f_new_zeros(size, (hidden.kind(), hidden.device()))?;
                sums.f_index_add(0, &means.rows, &self.tokens(hidden)?)?.f_div_(&means.lengths)
            }
            (Want::Tokens, _) => self.tokens(&self.to_caller_order(hidden)?),
            (Want::All | Want::MeanOfRows, _) => self.to_caller_order(hidden),
        }
    }

    /// Returns the gradient of the last block's hidden states, given that of the selected output.
    pub(crate) fn output_grad(&self, grad: &Tensor, want: Want) -> Result<Tensor, TchError> {
        match (want, &self.means) {
            (Want::LastOfRows, _) => Ok(grad.shallow_clone()),
            (Want::MeanOfRows, Some(means)) => {
                self.behind_prefix(&grad.f_div(&means.lengths)?.f_index_select(0, &means.rows)?)
            }
            (Want::Tokens, _) => self.to_slots(&self.behind_prefix(grad)?),
            (Want::All | Want::MeanOfRows, _) => self.to_slots(grad),
        }
    }

    fn tokens(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        hidden.f_narrow(0, self.prefix_slots, self.n_slots() - self.prefix_slots)
    }

    /// Places zeros for the prefix before the gradients of tokens.
    fn behind_prefix(&self, grad: &Tensor) -> Result<Tensor, TchError> {
        let zeros = Tensor::f_zeros([self.prefix_slots, grad.size()[1]], (Kind::Float, grad.device()))?;
        Tensor::f_cat(&[&zeros, grad], 0)
    }
}
