use std::ops::Range;

/// Rows of different lengths, concatenated: row `r` is positions `offsets[r]..offsets[r + 1]`.
///
/// There is at least one row, no row is empty, and positions fit in `u32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ragged {
    offsets: Vec<u32>,
}

impl Ragged {
    /// Rows from offsets `[rows + 1]`.
    ///
    /// # Errors
    /// [`RaggedError`] if there is no row, the first offset is not 0, or a row is empty.
    pub fn from_offsets(offsets: Vec<u32>) -> Result<Self, RaggedError> {
        if offsets.len() < 2 {
            return Err(RaggedError::NoRows);
        }
        if offsets[0] != 0 {
            return Err(RaggedError::FirstOffset { found: offsets[0] });
        }
        match offsets.windows(2).position(|pair| pair[1] <= pair[0]) {
            Some(row) => Err(RaggedError::EmptyRow { row }),
            None => Ok(Self { offsets }),
        }
    }

    /// Rows of these lengths.
    ///
    /// # Errors
    /// [`RaggedError`] if there is no row, a row is empty, or the tokens do not fit in `u32`.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Self, RaggedError> {
        let mut offsets = vec![0_u32];
        let mut end = 0_u32;
        for (row, length) in lengths.into_iter().enumerate() {
            end = u32::try_from(length)
                .ok()
                .and_then(|length| end.checked_add(length))
                .ok_or(RaggedError::TooLong { row })?;
            offsets.push(end);
        }
        Self::from_offsets(offsets)
    }

    /// Number of rows.
    #[expect(clippy::len_without_is_empty, reason = "there is always a row")]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens of all rows.
    pub fn n_tokens(&self) -> usize {
        self.offsets[self.len()] as usize
    }

    /// Offsets `[rows + 1]`.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// Positions of row `row`.
    pub fn range(&self, row: usize) -> Range<usize> {
        self.offsets[row] as usize..self.offsets[row + 1] as usize
    }

    /// Length of row `row`.
    pub fn row_len(&self, row: usize) -> usize {
        self.range(row).len()
    }

    /// Lengths of the rows, in order.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize)
    }

    /// A batch of the rows `rows`, in that order.
    ///
    /// # Panics
    /// If a row does not exist or `rows` is empty.
    pub fn select(&self, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "a batch has at least one row");
        let ends = rows.iter().scan(0, |end, &row| {
            *end += self.offsets[row + 1] - self.offsets[row];
            Some(*end)
        });
        Self { offsets: std::iter::once(0).chain(ends).collect() }
    }

    /// Groups of rows for micro-batches: rows sorted by length (ties in order), cut before a group with its prefix would
    /// exceed `max_tokens` tokens. A longer row is its own group. A batch that fits keeps its order.
    pub fn micro_batches(&self, prefix_len: usize, max_tokens: usize) -> Vec<Vec<usize>> {
        if prefix_len + self.n_tokens() <= max_tokens {
            return vec![(0..self.len()).collect()];
        }
        let mut by_length: Vec<usize> = (0..self.len()).collect();
        by_length.sort_by_key(|&row| self.row_len(row));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for row in by_length {
            let length = self.row_len(row);
            match groups.last_mut() {
                Some(group) if prefix_len + tokens + length <= max_tokens => {
                    group.push(row);
                    tokens += length;
                }
                _ => {
                    groups.push(vec![row]);
                    tokens = length;
                }
            }
        }
        groups
    }
}

/// Error of offsets that describe no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum RaggedError {
    /// Fewer than two offsets.
    #[error("a batch has at least one row")]
    NoRows,
    /// The first offset must be zero.
    #[error("the first row starts at {found}, expected 0")]
    FirstOffset { found: u32 },
    /// A row is empty, or offsets decrease.
    #[error("row {row} holds no token")]
    EmptyRow { row: usize },
    /// The number of tokens does not fit in `u32`.
    #[error("the tokens up to row {row} do not fit in 32 bits")]
    TooLong { row: usize },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invalid_offsets_are_refused() {
        assert_eq!(Ragged::from_offsets(vec![0]), Err(RaggedError::NoRows));
        assert_eq!(Ragged::from_offsets(vec![1, 2]), Err(RaggedError::FirstOffset { found: 1 }));
        assert_eq!(Ragged::from_offsets(vec![0, 2, 2]), Err(RaggedError::EmptyRow { row: 1 }));
        assert_eq!(Ragged::from_offsets(vec![0, 2, 1]), Err(RaggedError::EmptyRow { row: 1 }));
        assert_eq!(Ragged::from_lengths([2, usize::MAX]), Err(RaggedError::TooLong { row: 1 }));
    }

    proptest! {
        #[test]
        fn micro_batches_contain_each_row_once(
            lengths in prop::collection::vec(1_usize..70, 1..60),
            prefix_len in 0_usize..20,
            max_tokens in 1_usize..400,
        ) {
            let rows = Ragged::from_lengths(lengths.clone()).expect("rows");
            let groups = rows.micro_batches(prefix_len, max_tokens);
            let mut seen: Vec<usize> = groups.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for group in &groups {
                let part = rows.select(group);
                prop_assert!(group.len() == 1 || prefix_len + part.n_tokens() <= max_tokens);
                prop_assert_eq!(part.lengths().collect::<Vec<_>>(), group.iter().map(|&r| lengths[r]).collect::<Vec<_>>());
            }
        }
    }
}
