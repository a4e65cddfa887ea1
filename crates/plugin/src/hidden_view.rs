use std::ops::Range;

use sepal_core::{Ragged, TokenBatch, TokenText, Want};
use tch::Tensor;

use crate::HeadError;

/// Hidden states of a batch for a head, after the model's final norm, at the positions that the head
/// [wants](crate::TaskHead::wants).
#[derive(Debug)]
pub struct HiddenView<'a> {
    states: Tensor,
    want: Want,
    batch: &'a TokenBatch,
}

impl<'a> HiddenView<'a> {
    /// Joins the `states` at the positions `want` with their batch.
    ///
    /// # Errors
    /// [`HeadError::Shape`] if there is not one state for each position.
    pub fn new(states: Tensor, want: Want, batch: &'a TokenBatch) -> Result<Self, HeadError> {
        let found = states.size();
        let positions = want.positions(0, &batch.sequences) as i64;
        if found.len() != 2 || found[0] != positions {
            let expected = vec![positions, found.last().copied().unwrap_or(0)];
            return Err(HeadError::Shape { what: "hidden states", expected, found });
        }
        Ok(Self { states, want, batch })
    }

    /// Hidden states: `[sequences, hidden]` for [`Want::LastOfRows`] and [`Want::MeanOfRows`], `[n_tokens, hidden]` for
    /// [`Want::Tokens`]. A row of the task is one sequence, except with [`groups`](Self::groups).
    pub fn states(&self) -> &Tensor {
        &self.states
    }

    /// Hidden states as [`states`](Self::states).
    ///
    /// # Errors
    /// [`HeadError::Shape`] if a state is not `hidden` wide.
    pub fn states_of_width(&self, hidden: i64) -> Result<&Tensor, HeadError> {
        let found = self.states.size();
        if found.last() == Some(&hidden) {
            return Ok(&self.states);
        }
        let expected = vec![found.first().copied().unwrap_or(1), hidden];
        Err(HeadError::Shape { what: "hidden states", expected, found })
    }

    /// Positions of the states.
    pub fn want(&self) -> Want {
        self.want
    }

    /// Number of rows of the task.
    pub fn n_rows(&self) -> usize {
        self.batch.n_rows()
    }

    /// Offsets of the sequences in the tokens.
    pub fn sequences(&self) -> &'a Ragged {
        &self.batch.sequences
    }

    /// Token ids, `[n_tokens]`.
    pub fn ids(&self) -> &'a [i64] {
        &self.batch.ids
    }

    /// Hidden states of the tokens of one sequence, `[tokens, hidden]`. Only for [`Want::Tokens`].
    ///
    /// # Errors
    /// [`HeadError::Torch`] if the states are of other positions.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn sequence(&self, sequence: usize) -> Result<Tensor, HeadError> {
        let tokens = self.batch.sequences.range(sequence);
        Ok(self.states.f_narrow(0, tokens.start as i64, tokens.len() as i64)?)
    }

    /// Hidden states at these positions of [`states`](Self::states), `[positions, hidden]`.
    ///
    /// # Errors
    /// [`HeadError::Torch`] if there is no such position.
    pub fn select(&self, positions: &[usize]) -> Result<Tensor, HeadError> {
        let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        Ok(self.states.f_index_select(0, &Tensor::f_from_slice(&positions)?)?)
    }

    /// Sequences of each row.
    ///
    /// # Errors
    /// [`HeadError::NoPart`] if rows are single sequences.
    pub fn groups(&self) -> Result<&'a Ragged, HeadError> {
        self.batch.groups.as_ref().ok_or(HeadError::NoPart { what: "groups" })
    }

    /// Texts of the sequences, with the bytes of each token.
    ///
    /// # Errors
    /// [`HeadError::NoPart`] unless the task reads words.
    pub fn texts(&self) -> Result<&'a [TokenText], HeadError> {
        self.batch.texts.as_deref().ok_or(HeadError::NoPart { what: "texts" })
    }

    /// Tokens of the answer of each sequence, counted from the sequence's first token.
    ///
    /// # Errors
    /// [`HeadError::NoPart`] unless the task has answers.
    pub fn answers(&self) -> Result<&'a [Range<usize>], HeadError> {
        self.batch.answers.as_deref().ok_or(HeadError::NoPart { what: "answers" })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn batch() -> TokenBatch {
        TokenBatch::new(vec![4, 5, 6], Ragged::from_lengths([2, 1]).expect("sequences"))
    }

    fn states(rows: i64) -> Tensor {
        Tensor::arange(rows * 2, (Kind::Float, Device::Cpu)).view([rows, 2])
    }

    #[test]
    fn states_fit_the_positions() {
        let batch = batch();
        for (want, rows) in [(Want::LastOfRows, 2), (Want::MeanOfRows, 2), (Want::Tokens, 3)] {
            let view = HiddenView::new(states(rows), want, &batch).expect("they fit");
            assert_eq!((view.want(), view.n_rows(), view.ids()), (want, 2, &[4, 5, 6][..]));
            let error = HiddenView::new(states(rows + 1), want, &batch).expect_err("one too many");
            let expected = format!("use the hidden states: expected shape [{rows}, 2], found [{}, 2]", rows + 1);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn tokens_are_taken_by_sequence_and_position() {
        let batch = batch();
        let view = HiddenView::new(states(3), Want::Tokens, &batch).expect("they fit");
        assert_eq!(view.sequence(1).expect("a sequence"), Tensor::from_slice(&[4.0_f32, 5.0]).view([1, 2]));
        assert_eq!(view.select(&[2, 0]).expect("positions").size(), [2, 2]);
        assert!(view.states_of_width(2).is_ok() && view.states_of_width(3).is_err());
        assert!(matches!(view.texts(), Err(HeadError::NoPart { what: "texts" })));
        assert!(view.groups().is_err() && view.answers().is_err());
    }
}
