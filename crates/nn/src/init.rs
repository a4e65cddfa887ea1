//! Initial values of parameters: seeded random streams, normal and uniform numbers, rows of a vocabulary.

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use sha2::{Digest, Sha256};
use tch::{TchError, Tensor};

use crate::{RowSource, RowsError};

/// Failed initialisation.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum InitError {
    /// The matrix has too few rows, or is not a matrix.
    #[error("sample {n_requested} different rows of a tensor of shape {shape:?}")]
    Rows { n_requested: usize, shape: Vec<i64> },
    /// A dimension is negative, or the tensor is too large.
    #[error("make a tensor of shape {shape:?}")]
    Shape { shape: Vec<i64> },
    /// The rows of the matrix cannot be read.
    #[error("sample rows of a matrix")]
    Read(#[from] RowsError),
    /// libtorch failed.
    #[error("initialise a tensor")]
    Torch(#[from] TchError),
}

/// Returns the random stream `stream` of the run's `seed`. Streams of different names are independent, so that a new
/// consumer does not shift the others. They are equal on all machines.
pub fn rng(seed: u64, stream: &str) -> ChaCha8Rng {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(stream.as_bytes()).finalize();
    ChaCha8Rng::from_seed(digest.into())
}

/// Draws fp32 numbers from N(0, `std`^2) in row-major order.
///
/// # Errors
/// [`InitError::Shape`] if a dimension is negative or the tensor is too large.
pub fn normal(shape: &[i64], std: f64, rng: &mut ChaCha8Rng) -> Result<Tensor, InitError> {
    draw(shape, || {
        let unit: f64 = StandardNormal.sample(rng);
        unit * std
    })
}

/// Draws fp32 numbers from U(-`bound`, `bound`) in row-major order.
///
/// Linear layers of PyTorch start with the bound `1 / sqrt(inputs)`, which is Kaiming's for a slope of `sqrt(5)`.
///
/// # Errors
/// [`InitError::Shape`] if a dimension is negative or the tensor is too large.
pub fn uniform(shape: &[i64], bound: f64, rng: &mut ChaCha8Rng) -> Result<Tensor, InitError> {
    draw(shape, || {
        let unit: f64 = StandardUniform.sample(rng); // [0, 1)
        (2.0 * unit - 1.0) * bound
    })
}

/// Fills a tensor with the values of `next`.
fn draw(shape: &[i64], mut next: impl FnMut() -> f64) -> Result<Tensor, InitError> {
    let numel = shape
        .iter()
        .try_fold(1_usize, |numel, &dim| numel.checked_mul(usize::try_from(dim).ok()?))
        .ok_or_else(|| InitError::Shape { shape: shape.to_vec() })?;
    let numbers: Vec<f32> = (0..numel).map(|_| next() as f32).collect();
    Ok(Tensor::f_from_slice(&numbers)?.f_view(shape)?)
}

/// Returns `n` different random rows of `matrix [rows, hidden]` as a copy `[n, hidden]`, to initialise prompts from
/// words.
///
/// # Errors
/// [`InitError::Rows`] if `matrix` is not a matrix or has fewer than `n` rows, [`InitError::Read`] if it cannot be read.
pub fn sample_rows(matrix: &dyn RowSource, n: usize, rng: &mut ChaCha8Rng) -> Result<Tensor, InitError> {
    let shape = matrix.shape();
    let rows = match shape[..] {
        [rows, _] if rows.unsigned_abs() as usize >= n => rows.unsigned_abs() as usize,
        _ => return Err(InitError::Rows { n_requested: n, shape }),
    };
    let picked: Vec<i64> = index::sample(rng, rows, n).into_iter().map(|row| row as i64).collect();
    Ok(matrix.rows(&picked)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tch::Kind;

    use super::*;

    #[test]
    fn rng_streams_repeat_and_differ() {
        let draw = |seed, stream| {
            let tensor = normal(&[4, 4], 1.0, &mut rng(seed, stream)).expect("numbers");
            Vec::<f32>::try_from(tensor.flatten(0, -1)).expect("numbers")
        };
        assert_eq!(draw(1, "prompts"), draw(1, "prompts"));
        assert_ne!(draw(1, "prompts"), draw(1, "score.weight"));
        assert_ne!(draw(1, "prompts"), draw(2, "prompts"));
    }

    #[test]
    fn normal_has_deviation() {
        let tensor = normal(&[100, 100], 0.02, &mut rng(7, "x")).expect("numbers");
        assert!((f64::try_from(tensor.std(true)).expect("a number") - 0.02).abs() < 1e-3);
        assert!(f64::try_from(tensor.mean(Kind::Float)).expect("a number").abs() < 1e-3);
        assert!(normal(&[-1, 2], 1.0, &mut rng(7, "x")).is_err());
        assert!(normal(&[i64::MAX, 3], 1.0, &mut rng(7, "x")).is_err());
    }

    #[test]
    fn uniform_fills_its_range() {
        let tensor = uniform(&[100, 100], 0.5, &mut rng(7, "x")).expect("numbers");
        let number = |tensor: Tensor| f64::try_from(tensor).expect("a number");
        assert!(number(tensor.abs().max()) <= 0.5 && number(tensor.max()) > 0.49 && number(tensor.min()) < -0.49);
        assert!(number(tensor.mean(Kind::Float)).abs() < 1e-2);
        assert!((number(tensor.std(true)) - 0.5 / 3.0_f64.sqrt()).abs() < 1e-2);
        assert!(uniform(&[-1], 0.5, &mut rng(7, "x")).is_err());
    }

    #[test]
    fn sample_rows_are_distinct() {
        let matrix = Tensor::arange(40, (Kind::Float, tch::Device::Cpu)).view([20, 2]);
        let rows = sample_rows(&matrix, 20, &mut rng(3, "prompts")).expect("rows");
        let firsts = Vec::<f32>::try_from(rows.select(1, 0)).expect("numbers");
        assert_eq!(firsts.iter().map(|&x| x as i64).collect::<HashSet<_>>().len(), 20);
        assert_eq!(rows.select(1, 1), rows.select(1, 0) + 1.0);
        let error = sample_rows(&matrix, 21, &mut rng(3, "prompts"));
        assert!(matches!(error, Err(InitError::Rows { n_requested: 21, .. })));
        assert!(matches!(sample_rows(&matrix.view([40]), 1, &mut rng(3, "p")), Err(InitError::Rows { .. })));
    }
}
