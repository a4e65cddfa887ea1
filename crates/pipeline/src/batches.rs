//! Division of rows into batches of predictions.

use sepal_data::EncodedRow;

/// Divides `order` into batches of at most `max_rows` rows, and of at most `max_sequences` sequences of tokens unless it is a
/// single row.
pub(crate) fn batches<'a>(
    rows: &[EncodedRow],
    mut order: &'a [usize],
    max_rows: usize,
    max_sequences: usize,
) -> Vec<&'a [usize]> {
    let mut batches = Vec::new();
    while !order.is_empty() {
        let mut n_sequences = 0;
        let fits = |&&row: &&usize| {
            n_sequences += rows[row].sequences.len();
            n_sequences <= max_sequences
        };
        let n_rows = order.iter().take(max_rows).take_while(fits).count().max(1);
        let (batch, others) = order.split_at(n_rows);
        batches.push(batch);
        order = others;
    }
    batches
}

#[cfg(test)]
mod tests {
    use sepal_data::TokenRow;

    use super::*;

    fn divided(sequences: &[usize], max_rows: usize, max_sequences: usize) -> Vec<usize> {
        let row = |&n: &usize| EncodedRow { sequences: vec![TokenRow::default(); n], text: None, answer: None };
        let rows: Vec<EncodedRow> = sequences.iter().map(row).collect();
        let order: Vec<usize> = (0..rows.len()).collect();
        let batches = batches(&rows, &order, max_rows, max_sequences);
        assert_eq!(batches.concat(), order);
        batches.into_iter().map(<[usize]>::len).collect()
    }

    #[test]
    fn batches_are_limited_by_rows_and_by_windows() {
        assert_eq!(divided(&[1; 7], 3, usize::MAX), [3, 3, 1]);
        assert_eq!(divided(&[1, 1, 4, 2, 3, 9, 1], 3, 5), [2, 1, 2, 1, 1]);
        assert_eq!(divided(&[], 3, 5), [0; 0]);
    }
}
