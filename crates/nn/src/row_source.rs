use std::error::Error;
use std::fmt;

use tch::{Kind, TchError, Tensor};

/// Matrix `[n_rows, width]` that is read row by row, such as embeddings that stay in their file. A [`Tensor`] is one, too.
pub trait RowSource: fmt::Debug {
    /// Shape of the matrix, `[n_rows, width]`.
    fn shape(&self) -> Vec<i64>;

    /// Returns the rows `ids` as a copy in fp32, `[ids, width]`, without gradients.
    ///
    /// # Errors
    /// [`RowsError`] if there is no such row, or it cannot be read.
    fn rows(&self, ids: &[i64]) -> Result<Tensor, RowsError>;
}

/// Rows that cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum RowsError {
    /// The source of the tensor `name` failed.
    #[error("read rows of `{name}`")]
    Read { name: String, source: Box<dyn Error + Send + Sync> },
    /// libtorch failed, for example because there is no such row.
    #[error("select rows of a matrix")]
    Torch(#[from] TchError),
}

impl RowSource for Tensor {
    fn shape(&self) -> Vec<i64> {
        self.size()
    }

    fn rows(&self, ids: &[i64]) -> Result<Tensor, RowsError> {
        let ids = Tensor::f_from_slice(ids)?;
        Ok(tch::no_grad(|| self.f_index_select(0, &ids)?.f_to_kind(Kind::Float))?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn rows_of_a_tensor_are_copies_in_fp32() {
        let matrix = Tensor::arange(12, (Kind::BFloat16, Device::Cpu)).view([4, 3]).set_requires_grad(true);
        let source: &dyn RowSource = &matrix;
        assert_eq!(source.shape(), [4, 3]);
        let rows = source.rows(&[3, 0, 3]).expect("rows");
        let expected = [9.0_f32, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0];
        assert_eq!(Vec::<f32>::try_from(rows.flatten(0, -1)).expect("numbers"), expected);
        assert!(!rows.requires_grad());
        assert!(matches!(source.rows(&[4]), Err(RowsError::Torch(_))));
    }
}
