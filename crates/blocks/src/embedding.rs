//! Embeddings of a vocabulary, in memory if they are small, else read from their source row by row.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::Arc;

use sepal_checkpoint::tensor_names;
use sepal_nn::{RowSource, RowsError, from_host};
use tch::{TchError, Tensor};

use crate::weights::{BoxError, LoadError, Reader, Weights};

/// Embeddings `[vocab_size, hidden]` in fp32, with the family's factor.
pub(crate) enum EmbeddingTable {
    InMemory(Tensor),
    InSource(SourceTable),
}

impl EmbeddingTable {
    /// Reads the tensor `name`, given without the family's prefix, if its numbers take at most `memory_bytes` or `weights`
    /// cannot be shared.
    pub(crate) fn load(
        weights: &dyn Weights,
        reader: &Reader<'_>,
        name: &str,
        factor: Option<f64>,
        memory_bytes: usize,
    ) -> Result<Self, LoadError> {
        let config = weights.config();
        let shape = [config.vocab_size, config.hidden];
        let row_bytes = config.hidden.saturating_mul(size_of::<f32>());
        let is_small = config.vocab_size.saturating_mul(row_bytes) <= memory_bytes;
        let source = if is_small { None } else { weights.share() };
        let Some(source) = source else {
            return Ok(Self::InMemory(multiplied(reader.tensor(name, &shape)?, factor)?));
        };
        let name = format!("{}{name}", tensor_names(config.family).prefix);
        let found = match source.shape(&name) {
            Ok(found) => found,
            Err(source) => return Err(LoadError::Read { name, source }),
        };
        if found != shape {
            return Err(LoadError::Shape { name, expected: shape.to_vec(), found });
        }
        // Reports an unreadable tensor at once.
        if let Err(source) = source.rows(&name, &[0]) {
            return Err(LoadError::Read { name, source });
        }
        let cache = RefCell::new(RowCache::new(memory_bytes / row_bytes.max(1)));
        Ok(Self::InSource(SourceTable { source, name, shape, factor, cache }))
    }

    /// Returns the embeddings of the tokens `ids [n]`, `[n, hidden]`. `numbers` are the same tokens.
    pub(crate) fn embed(&self, ids: &Tensor, numbers: &[i64]) -> Result<Tensor, RowsError> {
        match self {
            Self::InMemory(matrix) => Ok(matrix.f_index_select(0, ids)?),
            Self::InSource(table) => table.embed(numbers),
        }
    }
}

impl RowSource for EmbeddingTable {
    fn shape(&self) -> Vec<i64> {
        match self {
            Self::InMemory(matrix) => matrix.size(),
            Self::InSource(table) => table.shape.map(|dim| dim as i64).to_vec(),
        }
    }

    fn rows(&self, ids: &[i64]) -> Result<Tensor, RowsError> {
        match self {
            Self::InMemory(matrix) => matrix.rows(ids),
            // A scan of the vocabulary must not replace the rows of the training data.
            Self::InSource(table) => table.read(ids),
        }
    }
}

impl fmt::Debug for EmbeddingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = if matches!(self, Self::InMemory(_)) { "in memory" } else { "read row by row" };
        write!(f, "EmbeddingTable({:?}, {memory})", self.shape())
    }
}

/// Embeddings that are read when tokens need them.
pub(crate) struct SourceTable {
    source: Arc<dyn Weights + Send>,
    /// Name of the tensor with the family's prefix.
    name: String,
    /// `[vocab_size, hidden]`
    shape: [usize; 2],
    factor: Option<f64>,
    cache: RefCell<RowCache>,
}

impl SourceTable {
    /// Returns the embeddings of the tokens, `[tokens, hidden]`. Each row is read once.
    fn embed(&self, tokens: &[i64]) -> Result<Tensor, RowsError> {
        let [_, width] = self.shape;
        let mut ids = tokens.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let mut values = vec![0.0_f32; ids.len() * width]; // [ids, hidden]
        let mut missing = Vec::new();
        for (row, &id) in values.chunks_exact_mut(width).zip(&ids) {
            match self.cache.borrow().row(id) {
                Some(cached) => row.copy_from_slice(cached),
                None => missing.push(id),
            }
        }
        if !missing.is_empty() {
            let read = Vec::<f32>::try_from(self.read(&missing)?.f_view([-1])?)?;
            for (row, id) in read.chunks_exact(width).zip(&missing) {
                let at = ids.partition_point(|known| known < id);
                values[at * width..(at + 1) * width].copy_from_slice(row);
            }
        }
        let mut cache = self.cache.borrow_mut();
        values.chunks_exact(width).zip(&ids).for_each(|(row, &id)| cache.insert(id, row));
        let matrix = Tensor::f_from_slice(&values)?.f_view([ids.len() as i64, width as i64])?;
        let rows: Vec<i64> = tokens.iter().map(|token| ids.partition_point(|id| id < token) as i64).collect();
        Ok(matrix.f_index_select(0, &Tensor::f_from_slice(&rows)?)?)
    }

    /// Reads rows from the source, `[ids, hidden]`.
    fn read(&self, ids: &[i64]) -> Result<Tensor, RowsError> {
        let failed = |source: BoxError| RowsError::Read { name: self.name.clone(), source };
        let row = |&id: &i64| usize::try_from(id).map_err(|_| failed(format!("there is no row {id}").into()));
        let rows: Vec<usize> = ids.iter().map(row).collect::<Result<_, _>>()?;
        let host = self.source.rows(&self.name, &rows).map_err(failed)?;
        let expected = [rows.len(), self.shape[1]];
        if host.shape() != expected {
            return Err(failed(format!("expected rows of shape {expected:?}, found {:?}", host.shape()).into()));
        }
        let rows = from_host(&host).map_err(|error| failed(error.into()))?;
        Ok(multiplied(rows, self.factor)?)
    }
}

fn multiplied(mut rows: Tensor, factor: Option<f64>) -> Result<Tensor, TchError> {
    match factor {
        Some(factor) => rows.f_mul_scalar_(factor),
        None => Ok(rows),
    }
}

/// Rows that were used last, in two generations: a full generation replaces the older one.
struct RowCache {
    rows_per_generation: usize,
    recent: HashMap<i64, Box<[f32]>>,
    older: HashMap<i64, Box<[f32]>>,
}

impl RowCache {
    /// Creates a cache of at most `n_rows` rows.
    fn new(n_rows: usize) -> Self {
        Self { rows_per_generation: n_rows / 2, recent: HashMap::new(), older: HashMap::new() }
    }

    fn row(&self, id: i64) -> Option<&[f32]> {
        self.recent.get(&id).or_else(|| self.older.get(&id)).map(|row| &**row)
    }

    /// Makes a row the most recent one.
    fn insert(&mut self, id: i64, row: &[f32]) {
        if self.rows_per_generation == 0 || self.recent.contains_key(&id) {
            return;
        }
        let row = self.older.remove(&id).unwrap_or_else(|| row.into());
        if self.recent.len() == self.rows_per_generation {
            self.older = mem::take(&mut self.recent);
        }
        self.recent.insert(id, row);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.recent.len() + self.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_cache_drops_the_older_generation() {
        let mut cache = RowCache::new(4);
        let insert = |cache: &mut RowCache, id: i64| cache.insert(id, &[id as f32]);
        [1, 2, 3].into_iter().for_each(|id| insert(&mut cache, id));
        assert_eq!(cache.row(1), Some([1.0].as_slice()), "of the older generation");
        // Used again, so that it outlives the others of its generation.
        insert(&mut cache, 1);
        insert(&mut cache, 4);
        assert_eq!([1, 2, 3, 4].map(|id| cache.row(id).is_some()), [true, false, true, true]);
        for id in 0..100 {
            insert(&mut cache, id);
            assert!(cache.len() <= 4 && cache.row(id) == Some([id as f32].as_slice()), "{id}");
        }
    }

    #[test]
    fn row_cache_without_memory_holds_no_row() {
        let mut cache = RowCache::new(1);
        cache.insert(7, &[1.0]);
        assert_eq!((cache.row(7), cache.len()), (None, 0));
    }
}
