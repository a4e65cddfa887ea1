use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use sepal_core::TokenBatch;

use crate::shuffle::{generator, shuffle};
use crate::{Labels, TokenTable};

/// Size and order of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Number of rows of a batch.
    pub batch_size: usize,
    /// True if a last batch that is not full is left out.
    pub drop_last: bool,
    /// True if each epoch has its own order, false for the order of the file.
    pub shuffle: bool,
    /// Seed of the orders, together with the number of the epoch.
    pub seed: u64,
    /// Number of batches that a thread prepares in advance; 0 to make each batch on demand.
    pub prefetch: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self { batch_size: 32, drop_last: false, shuffle: true, seed: 42, prefetch: 4 }
    }
}

/// Batches of a token table, epoch by epoch.
#[derive(Debug, Clone)]
pub struct Loader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tokens: Arc<TokenTable>,
    labels: Option<Labels>,
    config: LoaderConfig,
}

/// Batch of rows of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Token sequences of the rows.
    pub tokens: TokenBatch,
    /// Labels of the rows; none for rows without labels.
    pub labels: Option<Labels>,
    /// Indices of the rows in the table.
    pub indices: Vec<usize>,
}

impl Batch {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.indices.len()
    }
}

impl Loader {
    /// Creates a loader of these rows; `labels` are in the same order.
    ///
    /// # Errors
    /// [`LoaderError`] if there would be no batch, or the numbers of labels and rows differ.
    pub fn new(tokens: Arc<TokenTable>, labels: Option<Labels>, config: LoaderConfig) -> Result<Self, LoaderError> {
        let rows = tokens.len();
        let batch_size = config.batch_size;
        if batch_size == 0 {
            return Err(LoaderError::EmptyBatches);
        }
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != rows) {
            return Err(LoaderError::Labels { rows, labels: labels.len() });
        }
        if config.drop_last && rows < batch_size {
            return Err(LoaderError::AllDropped { rows, batch_size });
        }
        Ok(Self { shared: Arc::new(Shared { tokens, labels, config }) })
    }

    /// Number of batches of an epoch; at least one.
    pub fn batches_per_epoch(&self) -> usize {
        let (rows, config) = (self.rows(), self.shared.config);
        if config.drop_last { rows / config.batch_size } else { rows.div_ceil(config.batch_size) }
    }

    /// Labels of all rows, in the order of the file, including dropped rows.
    pub fn labels(&self) -> Option<&Labels> {
        self.shared.labels.as_ref()
    }

    /// Number of rows, including dropped rows.
    pub fn rows(&self) -> usize {
        self.shared.tokens.len()
    }

    /// Number of tokens of the longest sequence; 0 without rows.
    pub fn longest_row(&self) -> usize {
        self.shared.tokens.sequences().lengths().max().unwrap_or(0)
    }

    /// Batches of epoch `epoch`, from 0. Epochs do not depend on each other.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_from(epoch, 0)
    }

    /// Batches of epoch `epoch` from batch `first_batch` on, to resume it; none beyond the last batch.
    pub fn epoch_from(&self, epoch: u64, first_batch: usize) -> Epoch {
        let last = self.batches_per_epoch();
        let cursor =
            BatchCursor { shared: self.shared.clone(), order: self.order(epoch), next: first_batch.min(last)..last };
        Epoch { n_left: cursor.next.len(), source: BatchSource::start(cursor) }
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.rows()).collect();
        if self.shared.config.shuffle {
            shuffle(&mut generator("loader", self.shared.config.seed, epoch), &mut order);
        }
        order
    }
}

#[derive(Debug, Clone)]
struct BatchCursor {
    shared: Arc<Shared>,
    order: Vec<usize>,
    next: Range<usize>,
}

impl Iterator for BatchCursor {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let Shared { tokens, labels, config } = self.shared.as_ref();
        let start = self.next.next()? * config.batch_size;
        let indices = self.order[start..self.order.len().min(start + config.batch_size)].to_vec();
        Some(Batch {
            tokens: tokens.batch(&indices),
            labels: labels.as_ref().map(|labels| labels.select(&indices)),
            indices,
        })
    }
}

/// Batches of an epoch. Dropping it stops the thread that prepares them.
#[derive(Debug)]
pub struct Epoch {
    source: BatchSource,
    n_left: usize,
}

#[derive(Debug)]
enum BatchSource {
    Inline(BatchCursor),
    Thread { batches: Option<Receiver<Batch>>, thread: Option<JoinHandle<()>> },
}

impl BatchSource {
    fn start(cursor: BatchCursor) -> Self {
        let prefetch = cursor.shared.config.prefetch.min(cursor.next.len());
        if prefetch == 0 {
            return BatchSource::Inline(cursor);
        }
        // The batch that the thread waits to send counts.
        let (sender, batches) = sync_channel(prefetch - 1);
        let inline = cursor.clone();
        let send_all = move || cursor.map(|batch| sender.send(batch).is_ok()).take_while(|&sent| sent).for_each(drop);
        match Builder::new().name("loader".to_owned()).spawn(send_all) {
            Ok(thread) => BatchSource::Thread { batches: Some(batches), thread: Some(thread) },
            Err(error) => {
                tracing::warn!(%error, "no thread to prepare batches");
                BatchSource::Inline(inline)
            }
        }
    }
}

impl Iterator for Epoch {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        if self.n_left == 0 {
            return None;
        }
        let batch = match &mut self.source {
            BatchSource::Inline(cursor) => cursor.next(),
            BatchSource::Thread { batches, thread } => {
                let batch = batches.as_ref().and_then(|batches| batches.recv().ok());
                if let (None, Some(thread)) = (&batch, thread.take_if(|_| batch.is_none())) {
                    // Only a panic ends the thread early.
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                }
                batch
            }
        };
        self.n_left -= 1;
        batch
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.n_left, Some(self.n_left))
    }
}

impl ExactSizeIterator for Epoch {}

impl Drop for Epoch {
    fn drop(&mut self) {
        if let BatchSource::Thread { batches, thread } = &mut self.source {
            drop(batches.take());
            // A panic of the thread has no effect any more.
            let _ = thread.take().map(JoinHandle::join);
        }
    }
}

/// Invalid configuration of a loader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum LoaderError {
    /// Batches without rows.
    #[error("make batches of 0 rows; a batch has at least 1 row")]
    EmptyBatches,
    /// Labels of other rows.
    #[error("make batches of {rows} row(s) with {labels} label(s)")]
    Labels { rows: usize, labels: usize },
    /// The only batch would be dropped.
    #[error("make batches of {batch_size} from {rows} row(s): the only batch is not full, and such a batch is dropped")]
    AllDropped { rows: usize, batch_size: usize },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::TokenSpec;
    use crate::testing::{Letters, texts};

    fn loader(rows: usize, config: LoaderConfig) -> Result<Loader, LoaderError> {
        let rows: Vec<String> = (0..rows).map(|row| "abcdefg"[..=row % 7].to_owned()).collect();
        let table = texts(&rows.iter().map(String::as_str).collect::<Vec<_>>());
        let tokens = TokenTable::build(&table, &Letters::default(), &TokenSpec::new(9)).expect("tokens");
        Loader::new(Arc::new(tokens), Some(Labels::Class((0..rows.len() as i64).collect())), config)
    }

    fn indices(epoch: Epoch) -> Vec<usize> {
        epoch.flat_map(|batch| batch.indices).collect()
    }

    #[test]
    fn epoch_without_shuffle_keeps_file_order() {
        let config = LoaderConfig { batch_size: 4, shuffle: false, ..LoaderConfig::default() };
        let loader = loader(10, config).expect("a loader");
        assert_eq!(indices(loader.epoch(3)), (0..10).collect::<Vec<_>>());
        let sizes: Vec<usize> = loader.epoch(0).map(|batch| batch.n_rows()).collect();
        assert_eq!(sizes, [4, 4, 2]);
    }

    #[test]
    fn loader_without_batches_is_refused() {
        let config = LoaderConfig { batch_size: 4, drop_last: true, ..LoaderConfig::default() };
        let error = loader(3, config).expect_err("nothing left");
        assert_eq!(error, LoaderError::AllDropped { rows: 3, batch_size: 4 });
        let empty = LoaderConfig { batch_size: 0, ..config };
        assert_eq!(loader(3, empty).expect_err("no rows"), LoaderError::EmptyBatches);
        let tokens = loader(4, config).expect("a loader").shared.tokens.clone();
        let error = Loader::new(tokens, Some(Labels::Value(vec![0.0])), config).expect_err("one label");
        assert_eq!(error, LoaderError::Labels { rows: 4, labels: 1 });
    }

    #[test]
    fn dropped_epoch_stops_its_thread() {
        let config = LoaderConfig { batch_size: 1, prefetch: 2, ..LoaderConfig::default() };
        let loader = loader(100, config).expect("a loader");
        let mut epoch = loader.epoch(0);
        assert!(Arc::strong_count(&loader.shared) > 1, "a thread holds the rows");
        epoch.next().expect("a batch");
        drop(epoch);
        assert_eq!(Arc::strong_count(&loader.shared), 1, "the thread is still there");
    }

    #[test]
    fn loader_without_labels_makes_batches_without_labels() {
        let tokens = loader(4, LoaderConfig::default()).expect("a loader").shared.tokens.clone();
        let loader = Loader::new(tokens, None, LoaderConfig::default()).expect("a loader");
        assert!(loader.epoch(0).all(|batch| batch.labels.is_none()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn epoch_has_every_row_once(
            rows in 1_usize..60,
            batch_size in 1_usize..20,
            seed in any::<u64>(),
            epoch in 0_u64..5,
            prefetch in 0_usize..4,
            drop_last in any::<bool>(),
        ) {
            let config = LoaderConfig { batch_size, drop_last, shuffle: true, seed, prefetch };
            let Ok(loader) = loader(rows, config) else {
                prop_assert!(drop_last && rows < batch_size);
                return Ok(());
            };
            let batches: Vec<Batch> = loader.epoch(epoch).collect();
            prop_assert_eq!(batches.len(), loader.batches_per_epoch());
            for batch in &batches {
                let lengths: Vec<usize> = batch.indices.iter().map(|row| row % 7 + 1).collect();
                let tokens = &batch.tokens;
                prop_assert_eq!(tokens.sequences.lengths().collect::<Vec<_>>(), lengths);
                prop_assert_eq!(tokens.ids.len(), tokens.n_tokens());
                let first = |row: usize| tokens.ids[tokens.sequences.range(row).start];
                prop_assert!((0..batch.n_rows()).all(|row| first(row) == i64::from(b'a')));
                let labels: Vec<i64> = batch.indices.iter().map(|&row| row as i64).collect();
                prop_assert_eq!(batch.labels.as_ref(), Some(&Labels::Class(labels)));
            }
            let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
            seen.sort_unstable();
            prop_assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "a row came twice");
            prop_assert_eq!(seen.len(), if drop_last { rows / batch_size * batch_size } else { rows });

            let again: Vec<Batch> = loader.epoch(epoch).collect();
            prop_assert_eq!(&again, &batches);
            let resumed: Vec<Batch> = loader.epoch_from(epoch, 1).collect();
            prop_assert_eq!(&resumed, &batches[1..]);
            prop_assert_eq!(loader.epoch_from(epoch, batches.len() + 3).count(), 0);
        }
    }

    #[test]
    fn epochs_have_different_orders() {
        let loader = loader(50, LoaderConfig::default()).expect("a loader");
        let other = LoaderConfig { seed: 43, ..LoaderConfig::default() };
        let other = self::loader(50, other).expect("a loader");
        let (first, second) = (indices(loader.epoch(0)), indices(loader.epoch(1)));
        assert_ne!(first, second);
        assert_ne!(first, indices(other.epoch(0)));
        assert_ne!(first, (0..50).collect::<Vec<_>>());
    }
}
