//! Single rows of matrices.

use sepal_core::HostTensor;

use crate::Checkpoint;
use crate::error::ReadError;
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

impl Checkpoint {
    /// Reads rows of the tensor `name` in fp32, `[ids, width]`, in the order of `ids`. Only these rows are read, except of the
    /// few matrices that a GGUF file stores transposed, of MXFP4 and of quantized safetensors other than FP8 and INT8.
    ///
    /// # Errors
    /// [`ReadError`] if the tensor does not exist, cannot be read, has an unsupported type, or has no such row.
    pub fn rows(&self, name: &str, ids: &[usize]) -> Result<HostTensor, ReadError> {
        let missing = || ReadError::Missing { name: name.to_owned(), path: self.path.clone() };
        self.store.read_rows(name, self.find(name).ok_or_else(missing)?, ids, None)
    }
}

impl Store {
    /// Reads rows of a matrix as fp32 `[rows, width]`, neighbours at once, and multiplies them by `factor`.
    pub(crate) fn read_rows(
        &self,
        name: &str,
        stored: &Stored,
        rows: &[usize],
        factor: Option<f64>,
    ) -> Result<HostTensor, ReadError> {
        let n_rows = stored.shape.first().copied().unwrap_or(0);
        let width: usize = stored.shape.iter().skip(1).product();
        let path = || self.files[stored.file].path().to_owned();
        if let Some(&row) = rows.iter().find(|&&row| row >= n_rows) {
            return Err(ReadError::Row { name: name.to_owned(), path: path(), row, n_rows });
        }
        let mut values = self.row_values(name, stored, rows, [n_rows, width])?;
        if let Some(factor) = factor {
            values.iter_mut().for_each(|value| *value *= factor as f32);
        }
        HostTensor::from_f32(vec![rows.len(), width], &values).map_err(|source| ReadError::Decode {
            name: name.to_owned(),
            path: path(),
            source: source.into(),
        })
    }

    fn row_values(
        &self,
        name: &str,
        stored: &Stored,
        rows: &[usize],
        [n_rows, width]: [usize; 2],
    ) -> Result<Vec<f32>, ReadError> {
        if let Encoding::Quantized { .. } = stored.encoding {
            let runs: Vec<&[usize]> = rows.chunk_by(|row, next| row + 1 == *next).collect();
            if runs.len() > 1 && !self.has_separate_rows(stored) {
                let matrix = self.dequantized_rows(name, stored, 0..n_rows)?;
                return Ok(rows.iter().flat_map(|row| &matrix[row * width..(row + 1) * width]).copied().collect());
            }
            let runs = runs.into_iter().map(|run| self.dequantized_rows(name, stored, run[0]..run[0] + run.len()));
            return Ok(runs.collect::<Result<Vec<_>, _>>()?.concat());
        }
        let stored_rows = stored.rows.stored_rows(rows, n_rows).map_err(|source| ReadError::Decode {
            name: name.to_owned(),
            path: self.files[stored.file].path().to_owned(),
            source: source.into(),
        })?;
        let has_separate_rows = match stored.encoding {
            Encoding::Gguf(number_type) => width.is_multiple_of(number_type.block_len()),
            // The factors are in another tensor.
            Encoding::Mxfp4 { .. } => false,
            _ => true,
        };
        let mut values = Vec::with_capacity(rows.len() * width);
        let Some(stored_rows) = stored_rows.filter(|_| has_separate_rows) else {
            let matrix = self.read(name, stored)?.to_f32();
            rows.iter().for_each(|row| values.extend_from_slice(&matrix[row * width..(row + 1) * width]));
            return Ok(values);
        };
        // The rows are in the order of the model already.
        let order = if stored.rows == Rows::OneMore { Rows::OneMore } else { Rows::Same };
        let row_bytes = stored.len / n_rows.max(1) as u64;
        for run in stored_rows.chunk_by(|row, next| row + 1 == *next) {
            let part = Stored {
                shape: vec![run.len(), width],
                offset: stored.offset + run[0] as u64 * row_bytes,
                len: run.len() as u64 * row_bytes,
                rows: order,
                ..stored.clone()
            };
            values.extend(self.read(name, &part)?.to_f32());
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Folders and GGUF files of the tiny models.
    fn models() -> Vec<PathBuf> {
        let goldens = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens"));
        let entries = std::fs::read_dir(goldens).expect("goldens").map(|entry| entry.expect("an entry").path());
        let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension == "gguf");
        entries.filter(|path| is_gguf(path) || path.join("config.json").is_file()).collect()
    }

    #[test]
    fn rows_of_all_tensors_equal_the_complete_tensor() {
        let mut orders = Vec::new();
        for path in models() {
            let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
            for (name, stored) in &checkpoint.store.tensors {
                let (Ok(complete), Some(&n_rows)) = (checkpoint.tensor(name), stored.shape.first()) else { continue };
                let numbers = complete.to_f32();
                let width = numbers.len() / n_rows;
                // A gap, a repetition, and neighbours in both directions.
                let ids = [n_rows - 1, 0, 0, n_rows / 2, n_rows / 2 + 1, 2, 1].map(|id| id.min(n_rows - 1));
                let rows = checkpoint.rows(name, &ids).expect("rows");
                assert_eq!(rows.shape(), [ids.len(), width]);
                let expected: Vec<f32> =
                    ids.iter().flat_map(|id| &numbers[id * width..(id + 1) * width]).copied().collect();
                assert_eq!(rows.to_f32(), expected, "{name} of {}", path.display());
                if !orders.contains(&std::mem::discriminant(&stored.rows)) {
                    orders.push(std::mem::discriminant(&stored.rows));
                }
                assert!(matches!(checkpoint.rows(name, &[n_rows]), Err(ReadError::Row { .. })), "{name}");
            }
        }
        assert_eq!(orders.len(), 5, "all orders of rows are among the goldens");
    }

    #[test]
    fn rows_of_unknown_tensors_are_refused() {
        let goldens = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens"));
        let checkpoint = Checkpoint::open(goldens.join("tiny-llama-gqa")).expect("a checkpoint");
        assert!(matches!(checkpoint.rows("nowhere", &[0]), Err(ReadError::Missing { .. })));
        assert_eq!(checkpoint.rows("norm.weight", &[]).expect("no rows").shape(), [0, 1]);
    }
}
