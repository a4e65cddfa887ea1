use tch::{Kind, TchError, Tensor};

use crate::{RowSource, RowsError};

/// Largest number of embedding rows that are compared at once.
const ROWS: i64 = 8192;
/// Largest number of embedding values that are compared at once, 64 MiB in fp32.
const VALUES: i64 = 1 << 24;

/// Returns the `k` nearest words to each of `prompts [P, H]` among `embeddings [V, H]`: row and cosine similarity, the
/// nearest first, and the lower row first for equal similarity. It returns all words if there are fewer than `k`.
///
/// A zero vector has similarity 0 with everything. A few thousand embeddings at a time are read and widened to fp32, so that
/// their number costs time but no memory.
///
/// # Errors
/// [`RowsError`] if embeddings cannot be read, or libtorch fails, for example for matrices of different width.
pub fn nearest_words(
    prompts: &Tensor,
    embeddings: &dyn RowSource,
    k: usize,
) -> Result<Vec<Vec<(usize, f64)>>, RowsError> {
    tch::no_grad(|| {
        let prompts = to_unit_length(prompts)?; // [P, H]
        let shape = embeddings.shape();
        let n_words = shape.first().copied().unwrap_or(0);
        let chunk_rows = (VALUES / shape.get(1).copied().unwrap_or(1).max(1)).clamp(1, ROWS);
        let mut neighbours = vec![Vec::new(); prompts.size().first().copied().unwrap_or(0).unsigned_abs() as usize];
        let mut start = 0;
        while start < n_words {
            let rows = chunk_rows.min(n_words - start);
            let ids: Vec<i64> = (start..start + rows).collect();
            let chunk = to_unit_length(&embeddings.rows(&ids)?)?; // [rows, H]
            let similarity = prompts.f_matmul(&chunk.f_tr()?)?; // [P, rows]
            let (values, indices) = similarity.f_topk(rows.min(i64::try_from(k).unwrap_or(rows)), 1, true, true)?;
            for (prompt, nearest) in neighbours.iter_mut().enumerate() {
                let values = Vec::<f32>::try_from(values.f_get(prompt as i64)?)?;
                let rows = Vec::<i64>::try_from(indices.f_get(prompt as i64)?)?;
                let found = rows.iter().zip(values);
                nearest.extend(found.map(|(row, value)| ((start + row).unsigned_abs() as usize, f64::from(value))));
                nearest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                nearest.truncate(k);
            }
            start += rows;
        }
        Ok(neighbours)
    })
}

/// Rows of a matrix in fp32, scaled to unit length.
fn to_unit_length(matrix: &Tensor) -> Result<Tensor, TchError> {
    let matrix = matrix.f_to_kind(Kind::Float)?;
    let norms = matrix.f_norm_scalaropt_dim(2, [1_i64].as_slice(), true)?.f_clamp_min(1e-12)?; // [rows, 1]
    matrix.f_div(&norms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{normal, rng};

    /// Reference by the definition: all words at once, in double precision.
    fn reference(prompts: &Tensor, embeddings: &Tensor, k: usize) -> Vec<Vec<usize>> {
        let (prompts, embeddings) = (prompts.to_kind(Kind::Double), embeddings.to_kind(Kind::Double));
        let norms = |matrix: &Tensor| matrix.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
        let cosine = prompts.matmul(&embeddings.tr()) / norms(&prompts) / norms(&embeddings).tr();
        let order = cosine.argsort(1, true).narrow(1, 0, k as i64);
        (0..order.size()[0])
            .map(|row| Vec::<i64>::try_from(order.get(row)).expect("rows").iter().map(|&row| row as usize).collect())
            .collect()
    }

    #[test]
    fn nearest_words_in_chunks_equal_reference() {
        let draw = |name, rows| normal(&[rows, 16], 1.0, &mut rng(1, name)).expect("numbers");
        let (prompts, embeddings) = (draw("prompts", 5), draw("words", 2 * ROWS + 5000));
        let found = nearest_words(&prompts, &embeddings, 7).expect("found");
        let rows: Vec<Vec<usize>> = found.iter().map(|near| near.iter().map(|&(row, _)| row).collect()).collect();
        assert_eq!(rows, reference(&prompts, &embeddings, 7));
        for chunk in 0..3 {
            assert!(rows.concat().iter().any(|&row| row / ROWS as usize == chunk), "some are in chunk {chunk}");
        }
    }

    #[test]
    fn nearest_words_ignore_length() {
        let embeddings = normal(&[50, 8], 1.0, &mut rng(2, "words")).expect("numbers").to_kind(Kind::BFloat16);
        let prompts = (embeddings.narrow(0, 30, 2) * 7.0).set_requires_grad(true);
        for (i, near) in nearest_words(&prompts, &embeddings, 3).expect("found").into_iter().enumerate() {
            assert_eq!((near.len(), near[0].0), (3, 30 + i));
            assert!((near[0].1 - 1.0).abs() < 1e-4 && near[0].1 > near[1].1 && near[1].1 >= near[2].1, "{near:?}");
        }
    }

    #[test]
    fn nearest_words_with_few_words_and_zeros() {
        let embeddings = Tensor::from_slice(&[1.0_f32, 0.0, -1.0, 0.0, 0.0, 0.0]).view([3, 2]);
        let prompts = Tensor::from_slice(&[2.0_f32, 0.0, 0.0, 0.0]).view([2, 2]);
        let found = nearest_words(&prompts, &embeddings, 9).expect("found");
        assert_eq!(found[0], [(0, 1.0), (2, 0.0), (1, -1.0)]);
        assert_eq!(found[1].iter().map(|&(row, _)| row).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(nearest_words(&prompts, &embeddings, 0).expect("found"), [vec![], vec![]]);
        assert!(nearest_words(&prompts, &Tensor::ones([3, 5], (Kind::Float, tch::Device::Cpu)), 1).is_err());
    }
}
