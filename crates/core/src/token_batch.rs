use std::ops::Range;

use crate::Ragged;

/// Token sequences of a batch, end to end, with the parts of their texts that a task head may need.
///
/// A row of the task is one sequence, or several, such as the options of a question or the windows of a long text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids of all sequences, `[n_tokens]`.
    pub ids: Vec<i64>,
    /// Offsets of the sequences in the ids.
    pub sequences: Ragged,
    /// Sequences of each row; `None` if each row is one sequence.
    pub groups: Option<Ragged>,
    /// Text of each sequence, if the task reads words.
    pub texts: Option<Vec<TokenText>>,
    /// Tokens of each sequence that are its answer, counted from the sequence's first token; `None` if the task has no
    /// answers.
    pub answers: Option<Vec<Range<usize>>>,
}

impl TokenBatch {
    /// Batch of rows of one sequence each, without texts and answers.
    pub fn new(ids: Vec<i64>, sequences: Ragged) -> Self {
        Self { ids, sequences, groups: None, texts: None, answers: None }
    }

    /// Number of rows of the task.
    pub fn n_rows(&self) -> usize {
        self.groups.as_ref().unwrap_or(&self.sequences).len()
    }

    /// Number of tokens of all sequences.
    pub fn n_tokens(&self) -> usize {
        self.sequences.n_tokens()
    }

    /// Sequences of row `row`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn sequences_of(&self, row: usize) -> Range<usize> {
        self.groups.as_ref().map_or(row..row + 1, |groups| groups.range(row))
    }
}

/// Joining of the logits of a text's windows to those of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WindowPool {
    /// Mean of the logits.
    #[default]
    Mean,
    /// Largest logit of each label.
    Max,
}

/// Text of a sequence, and the part of it that each token covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenText {
    /// Text of the row, without a template around it.
    pub text: String,
    /// Bytes of the text that each token covers, `[tokens]`; empty for special tokens and words of a template.
    pub bytes: Vec<Range<usize>>,
}

impl TokenText {
    /// Words of a text, as bytes: its parts between white space.
    pub fn words(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
        text.split_whitespace().map(|word| {
            let start = word.as_ptr().addr() - text.as_ptr().addr();
            start..start + word.len()
        })
    }

    /// First token of each word; `None` for a word without a token, for example one that truncation removed.
    pub fn first_tokens(&self) -> Vec<Option<usize>> {
        let overlap = |token: &Range<usize>, word: &Range<usize>| token.start < word.end && word.start < token.end;
        let first = |word: Range<usize>| self.bytes.iter().position(|token| overlap(token, &word));
        Self::words(&self.text).map(first).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_at_their_first_token() {
        // " Ada", " Love", "lace", a special token, " met"; "him" was cut off.
        let text = "Ada  Lovelace met him".to_owned();
        let token_text = TokenText { text, bytes: vec![0..3, 3..9, 9..13, 0..0, 13..17] };
        assert_eq!(TokenText::words(&token_text.text).collect::<Vec<_>>(), [0..3, 5..13, 14..17, 18..21]);
        assert_eq!(token_text.first_tokens(), [Some(0), Some(1), Some(4), None]);
    }

    #[test]
    fn token_over_two_words_begins_both() {
        let token_text = TokenText { text: "a bé".to_owned(), bytes: std::iter::once(0..5).collect() };
        assert_eq!(token_text.first_tokens(), [Some(0), Some(0)]);
        assert!(TokenText { text: " \n".to_owned(), bytes: Vec::new() }.first_tokens().is_empty());
    }

    #[test]
    fn groups_divide_sequences_into_rows() {
        let sequences = Ragged::from_lengths([2, 1, 3]).expect("sequences");
        let batch = TokenBatch::new(vec![0; 6], sequences);
        assert_eq!((batch.n_rows(), batch.n_tokens(), batch.sequences_of(2)), (3, 6, 2..3));
        let groups = Some(Ragged::from_lengths([2, 1]).expect("groups"));
        let batch = TokenBatch { groups, ..batch };
        assert_eq!((batch.n_rows(), batch.sequences_of(0), batch.sequences_of(1)), (2, 0..2, 2..3));
    }
}
