//! The order of rows in converted files, and its inverse.

/// Order of the rows of a stored matrix, or of the entries of its bias, compared with the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The order of the model.
    Same,
    /// Queries or keys of a Llama in GGUF: the two halves of each head are interleaved, so that neighbours rotate together
    /// instead of halves.
    InterleavedHalves { heads: usize },
    /// Fused queries, keys and values in GGUF: all queries, all keys, all values. The model has, for each of `heads` key
    /// heads, its `repeat` queries, the key and the value.
    Concatenated { heads: usize, repeat: usize },
    /// The transposed matrix.
    Transposed,
    /// The order of the model, with 1 added to each number.
    OneMore,
    /// More rows than the model has: its rows are `first`, `first + step` and so on.
    Every { first: usize, step: usize },
    /// A transposed matrix with more columns than the model has rows: its rows are the columns `first`, `first + step` and so
    /// on.
    Columns { first: usize, step: usize },
}

impl Rows {
    /// Converts the numbers of a stored tensor to the order of the model, in which its shape is `shape`.
    ///
    /// # Errors
    /// [`RowsError`] if the heads do not divide the rows evenly.
    pub(crate) fn restore(self, values: Vec<f32>, shape: &[usize]) -> Result<Vec<f32>, RowsError> {
        let n_rows = shape.first().copied().unwrap_or(1);
        match self {
            Rows::OneMore => Ok(values.into_iter().map(|value| value - 1.0).collect()),
            Rows::Transposed | Rows::Every { .. } | Rows::Columns { .. } => Ok(self.select(&values, shape)),
            _ => self.reordered(values, n_rows),
        }
    }

    /// Converts numbers, or the bytes of a packed matrix, of `n_rows` rows of equal length to the order of the model. Rows
    /// that are selected or transposed stay as they are.
    ///
    /// # Errors
    /// [`RowsError`] if the heads do not divide the rows evenly.
    pub(crate) fn reordered<T: Copy>(self, values: Vec<T>, n_rows: usize) -> Result<Vec<T>, RowsError> {
        let parts = match self {
            Rows::Same | Rows::OneMore | Rows::Transposed | Rows::Every { .. } | Rows::Columns { .. } => {
                return Ok(values);
            }
            Rows::InterleavedHalves { heads } => heads * 2,
            Rows::Concatenated { heads, repeat } => heads * (repeat + 2),
        };
        if n_rows == 0 || !n_rows.is_multiple_of(parts) {
            return Err(RowsError { n_rows, parts });
        }
        let width = values.len() / n_rows;
        let mut restored = Vec::with_capacity(values.len());
        for row in 0..n_rows {
            let stored = self.stored_row(row, n_rows);
            restored.extend_from_slice(&values[stored * width..(stored + 1) * width]);
        }
        Ok(restored)
    }

    /// Copies the rows of the model, in which the tensor has the shape `shape`, out of stored rows or columns. Numbers in
    /// another order are copied as they are.
    pub(crate) fn select<T: Copy>(self, values: &[T], shape: &[usize]) -> Vec<T> {
        let n_rows = shape.first().copied().unwrap_or(1);
        let columns = |first: usize, step: usize| {
            let n_columns = n_rows * step;
            let column = |column: usize| values.iter().skip(column).step_by(n_columns).copied();
            (first..n_columns).step_by(step).flat_map(column).collect::<Vec<T>>()
        };
        match self {
            Rows::Transposed => columns(0, 1),
            Rows::Columns { first, step } => columns(first, step),
            Rows::Every { first, step } => {
                let width = shape.iter().skip(1).product::<usize>().max(1);
                values.chunks_exact(width).skip(first).step_by(step).flatten().copied().collect()
            }
            _ => values.to_vec(),
        }
    }

    /// Stored indices of the model's rows `rows`; `None` if a row is not stored in one piece, or some stored rows are no rows of
    /// the model.
    ///
    /// # Errors
    /// [`RowsError`] if the heads do not divide the rows evenly.
    pub(crate) fn stored_rows(self, rows: &[usize], n_rows: usize) -> Result<Option<Vec<usize>>, RowsError> {
        let parts = match self {
            Rows::Transposed | Rows::Every { .. } | Rows::Columns { .. } => return Ok(None),
            Rows::Same | Rows::OneMore => 1,
            Rows::InterleavedHalves { heads } => heads * 2,
            Rows::Concatenated { heads, repeat } => heads * (repeat + 2),
        };
        if !n_rows.is_multiple_of(parts) {
            return Err(RowsError { n_rows, parts });
        }
        Ok(Some(rows.iter().map(|&row| self.stored_row(row, n_rows)).collect()))
    }

    /// Stored index of the model's row `row`.
    fn stored_row(self, row: usize, n_rows: usize) -> usize {
        match self {
            Rows::Same | Rows::Transposed | Rows::OneMore | Rows::Every { .. } | Rows::Columns { .. } => row,
            Rows::InterleavedHalves { heads } => {
                let head_dim = n_rows / heads;
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, offset) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + offset * 2 + half
            }
            Rows::Concatenated { heads, repeat } => {
                let head_dim = n_rows / (heads * (repeat + 2));
                let (group, within) = (row / ((repeat + 2) * head_dim), row % ((repeat + 2) * head_dim));
                let (part, offset) = (within / head_dim, within % head_dim);
                let head = match part.checked_sub(repeat) {
                    None => group * repeat + part,
                    Some(kind) => heads * (repeat + kind) + group,
                };
                head * head_dim + offset
            }
        }
    }
}

/// Error of rows that heads do not divide evenly.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {n_rows} rows cannot be divided into {parts} equal parts, as the number of heads requires")]
pub(crate) struct RowsError {
    n_rows: usize,
    parts: usize,
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The conversion of a Llama's queries and keys: `reshape(heads, 2, half, width).swapaxes(1, 2)`.
    pub(crate) fn interleave(values: &[f32], heads: usize, n_rows: usize) -> Vec<f32> {
        let (width, half) = (values.len() / n_rows, n_rows / heads / 2);
        let mut stored = Vec::with_capacity(values.len());
        for head in 0..heads {
            for offset in 0..half {
                for side in 0..2 {
                    let row = (head * 2 + side) * half + offset;
                    stored.extend_from_slice(&values[row * width..(row + 1) * width]);
                }
            }
        }
        stored
    }

    /// The conversion of a fused matrix: `reshape(heads, repeat + 2, head_dim, width)`, then queries, keys and values
    /// concatenated.
    pub(crate) fn concatenate(values: &[f32], heads: usize, repeat: usize, n_rows: usize) -> Vec<f32> {
        let (width, head_dim) = (values.len() / n_rows, n_rows / heads / (repeat + 2));
        let mut stored = Vec::with_capacity(values.len());
        for parts in [0..repeat, repeat..repeat + 1, repeat + 1..repeat + 2] {
            for head in 0..heads {
                for part in parts.clone() {
                    let start = (head * (repeat + 2) + part) * head_dim * width;
                    stored.extend_from_slice(&values[start..start + head_dim * width]);
                }
            }
        }
        stored
    }

    #[test]
    fn interleaved_halves_of_one_head_are_restored() {
        // The model's rows 0 1 | 2 3 are stored as 0 2 1 3.
        let rows = Rows::InterleavedHalves { heads: 1 };
        assert_eq!(rows.restore(vec![0.0, 2.0, 1.0, 3.0], &[4]), Ok(vec![0.0, 1.0, 2.0, 3.0]));
        assert_eq!(rows.restore(vec![0.0; 3], &[3]), Err(RowsError { n_rows: 3, parts: 2 }));
    }

    #[test]
    fn transposed_and_incremented_matrices_are_restored() {
        let stored = vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]; // [3, 2] of [2, 3]
        assert_eq!(Rows::Transposed.restore(stored, &[2, 3]), Ok(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!(Rows::OneMore.restore(vec![1.0, 3.5], &[2]), Ok(vec![0.0, 2.5]));
    }

    #[test]
    fn rows_are_selected_out_of_rows_and_columns() {
        let stored: Vec<u16> = (0..8).collect();
        // [4, 2] as rows, and [2, 4] as columns.
        assert_eq!(Rows::Every { first: 1, step: 2 }.select(&stored, &[2, 2]), [2, 3, 6, 7]);
        assert_eq!(Rows::Every { first: 0, step: 2 }.select(&stored, &[4]), [0, 2, 4, 6]);
        assert_eq!(Rows::Columns { first: 1, step: 2 }.select(&stored, &[2, 2]), [1, 5, 3, 7]);
        assert_eq!(Rows::Columns { first: 0, step: 1 }.select(&stored, &[4, 2]), [0, 4, 1, 5, 2, 6, 3, 7]);
        // Rows of two bytes.
        let interleaved = Rows::InterleavedHalves { heads: 1 }.reordered(vec![0_u8, 1, 4, 5, 2, 3, 6, 7], 4);
        assert_eq!(interleaved, Ok((0..8).collect()));
    }

    proptest! {
        #[test]
        fn restore_inverts_the_conversion(
            heads in 1_usize..5, repeat in 1_usize..4, half in 1_usize..5, width in 1_usize..4,
        ) {
            let n_rows = heads * half * 2;
            let values: Vec<f32> = (0..n_rows * width).map(|at| at as f32).collect();
            let stored = interleave(&values, heads, n_rows);
            prop_assert_eq!(Rows::InterleavedHalves { heads }.restore(stored, &[n_rows, width]).expect("fits"), values);

            let n_rows = heads * half * (repeat + 2);
            let values: Vec<f32> = (0..n_rows * width).map(|at| at as f32).collect();
            let stored = concatenate(&values, heads, repeat, n_rows);
            prop_assert_eq!(Rows::Concatenated { heads, repeat }.restore(stored, &[n_rows, width]).expect("fits"), values);
        }
    }
}
