//! Embeddings that are read row by row.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sepal_blocks::{BoxError, Ends, EndsError, Weights};
use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig};
use tch::Tensor;

use crate::model::goldens;

/// Source that counts the bytes of the tensors and rows that it returns.
#[derive(Clone)]
struct Counting {
    checkpoint: Checkpoint,
    bytes: Arc<AtomicUsize>,
    is_gone: Arc<AtomicBool>,
}

impl Counting {
    fn open(path: PathBuf) -> Self {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        Self { checkpoint, bytes: Arc::default(), is_gone: Arc::default() }
    }

    fn count(&self, tensor: HostTensor) -> HostTensor {
        self.bytes.fetch_add(tensor.data().len(), Ordering::Relaxed);
        tensor
    }

    /// Bytes since the last call.
    fn take_bytes(&self) -> usize {
        self.bytes.swap(0, Ordering::Relaxed)
    }

    fn row_bytes(&self) -> usize {
        self.checkpoint.config().hidden * 4
    }
}

impl Weights for Counting {
    fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        Ok(self.count(self.checkpoint.tensor(name)?))
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, BoxError> {
        Ok(self.checkpoint.shape(name).ok_or("no such tensor")?.to_vec())
    }

    fn rows(&self, name: &str, ids: &[usize]) -> Result<HostTensor, BoxError> {
        if self.is_gone.load(Ordering::Relaxed) {
            return Err("the file is gone".into());
        }
        Ok(self.count(self.checkpoint.rows(name, ids)?))
    }

    fn share(&self) -> Option<Arc<dyn Weights + Send>> {
        Some(Arc::new(self.clone()))
    }
}

/// Folders and GGUF files of the tiny models.
fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(goldens()).expect("the goldens").map(|entry| entry.expect("an entry").path());
    let is_model = |path: &PathBuf| {
        path.join("config.json").is_file() || path.extension().is_some_and(|extension| extension == "gguf")
    };
    entries.filter(is_model).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
}

#[test]
fn rows_from_the_source_equal_the_matrix_bit_for_bit() {
    let ids = Tensor::from_slice(&[7_i64, 3, 3, 0, 8, 7, 11]);
    for path in models() {
        let model = Counting::open(path.clone());
        let in_memory = Ends::load(&model.checkpoint).expect("ends");
        let vocabulary: Vec<i64> = (0..in_memory.embeddings().shape()[0]).collect();
        let expected = numbers(&in_memory.embed(&ids).expect("embedded"));
        // No row, a few rows, and almost all rows are cached.
        for cached_rows in [0, 4, vocabulary.len() - 1] {
            let ends = Ends::load_within(&model, cached_rows * model.row_bytes()).expect("ends");
            assert_eq!(ends.embeddings().shape(), in_memory.embeddings().shape());
            for _ in 0..3 {
                assert_eq!(numbers(&ends.embed(&ids).expect("embedded")), expected, "{}", path.display());
            }
            let rows = ends.embeddings().rows(&vocabulary).expect("rows");
            let matrix = in_memory.embeddings().rows(&vocabulary).expect("rows");
            assert_eq!(numbers(&rows), numbers(&matrix), "{}", path.display());
        }
    }
}

#[test]
fn embed_reads_each_missing_row_once() {
    let model = Counting::open(goldens().join("tiny-llama-gqa"));
    let row = model.row_bytes();
    let ends = Ends::load_within(&model, 40 * row).expect("ends");
    let norm = row; // of `hidden` numbers in fp32
    assert!(model.take_bytes() <= row + norm, "a row and the final norm");
    let embed = |ids: &[i64]| {
        let _ = ends.embed(&Tensor::from_slice(ids)).expect("embedded");
        model.take_bytes() / row
    };
    assert_eq!(embed(&[5, 6, 5, 5]), 2);
    assert_eq!(embed(&[6, 5, 9]), 1);
    assert_eq!(embed(&[9, 9, 6, 5]), 0);
    assert_eq!(embed(&[]), 0);
    // A scan of the vocabulary leaves the cache as it is.
    let vocabulary: Vec<i64> = (0..ends.embeddings().shape()[0]).collect();
    let _ = ends.embeddings().rows(&vocabulary).expect("rows");
    assert_eq!(model.take_bytes() / row, vocabulary.len());
    assert_eq!(embed(&[5, 6, 9]), 0);
}

#[test]
fn lost_source_is_an_error_with_the_name_of_the_tensor() {
    let model = Counting::open(goldens().join("tiny-llama-gqa"));
    let ends = Ends::load_within(&model, 0).expect("ends");
    model.is_gone.store(true, Ordering::Relaxed);
    let error = ends.embed(&Tensor::from_slice(&[1_i64])).expect_err("gone");
    let EndsError::Rows(rows) = &error else { panic!("{error:?}") };
    assert_eq!(rows.to_string(), "read rows of `model.embed_tokens.weight`");
    assert!(Ends::load_within(&model, 0).is_err(), "found when the ends are loaded");
}

/// Source with the methods that every source has.
struct Plain(Checkpoint);

impl Weights for Plain {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        Ok(self.0.tensor(name)?)
    }

    fn has(&self, name: &str) -> bool {
        self.0.has(name)
    }
}

#[test]
fn source_without_rows_is_read_whole() {
    let checkpoint = Checkpoint::open(goldens().join("tiny-llama-gqa")).expect("a checkpoint");
    let name = "model.embed_tokens.weight";
    let expected = checkpoint.rows(name, &[4, 0]).expect("rows");
    let in_memory = Ends::load(&checkpoint).expect("ends");
    let plain = Plain(checkpoint);
    assert_eq!(plain.rows(name, &[4, 0]).expect("rows"), expected);
    assert!(plain.rows(name, &[1 << 20]).is_err() && plain.rows("model.norm.weight", &[0]).is_err());
    let ends = Ends::load_within(&plain, 0).expect("ends");
    let all = |ends: &Ends| numbers(&ends.embeddings().rows(&[0, 1, 2]).expect("rows"));
    assert_eq!(all(&ends), all(&in_memory));
}
