//! The output layer of a language model, row by row.

use sepal_core::HostTensor;

use crate::Checkpoint;
use crate::error::ReadError;
use crate::store::Stored;

/// Names of the output layer's weights.
const OUTPUTS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// Names of the output layer's bias.
const BIASES: [&str; 2] = ["lm_head.bias", "embed_out.bias"];

/// Names of the embeddings after the family's prefix. They are the output layer of a model without one.
const EMBEDDINGS: [&str; 5] =
    ["embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight", "decoder.embed_tokens.weight"];

impl Checkpoint {
    /// Reads rows of the output layer, one for each token of `ids`: fp32 `[ids, hidden]`. Of a model that ties the layer to
    /// its embeddings, they are rows of the embeddings as they are stored, without a family's scale. A constant factor of
    /// the logits is part of them. Only these rows are read.
    ///
    /// # Errors
    /// [`ReadError`] if the layer's shard is missing or unreadable, a token has no row, or the layer has a bias.
    pub fn output_rows(&self, ids: &[usize]) -> Result<HostTensor, ReadError> {
        if let Some(name) = BIASES.into_iter().find(|name| self.has(name)) {
            return Err(ReadError::OutputBias { name: name.to_owned(), path: self.path.clone() });
        }
        let missing = || ReadError::Missing { name: OUTPUTS[0].to_owned(), path: self.path.clone() };
        let (name, stored) = self.output_layer().ok_or_else(missing)?;
        self.store.read_rows(name, stored, ids, self.config.factors.logits)
    }

    pub(crate) fn output_layer(&self) -> Option<(&'static str, &Stored)> {
        OUTPUTS.into_iter().chain(EMBEDDINGS).find_map(|name| Some((name, self.find(name)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn goldens() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens"))
    }

    /// Checks rows, with a gap, a repetition and neighbours, against the complete tensor.
    fn check(model: &str, tensor: &str) {
        let checkpoint = Checkpoint::open(goldens().join(model)).expect("a checkpoint");
        let complete = checkpoint.tensor(tensor).expect("a tensor");
        let width = complete.shape()[1];
        let numbers = complete.to_f32();
        let ids = [3, 4, 5, 0, 0, 9];
        let rows = checkpoint.output_rows(&ids).expect("rows");
        assert_eq!(rows.shape(), [ids.len(), width], "{model}");
        let factor = checkpoint.config().factors.logits.map_or(1.0, |factor| factor as f32);
        let expected = ids.iter().flat_map(|&id| &numbers[id * width..(id + 1) * width]).map(|number| number * factor);
        let expected: Vec<f32> = expected.collect();
        assert_eq!(rows.to_f32(), expected, "{model}");
        let n_rows = complete.shape()[0];
        let error = checkpoint.output_rows(&[n_rows]).expect_err("beyond the vocabulary");
        assert!(matches!(error, ReadError::Row { row, .. } if row == n_rows), "{error}");
    }

    #[test]
    fn rows_of_tied_and_untied_layers_are_read() {
        for entry in std::fs::read_dir(goldens()).expect("goldens") {
            let path = entry.expect("an entry").path();
            if !path.join("config.json").is_file() {
                continue;
            }
            let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
            let (name, _) = checkpoint.output_layer().expect("an output layer or embeddings");
            check(&path.file_name().expect("a name").to_string_lossy(), name);
        }
    }

    #[test]
    fn quantized_rows_are_dequantized() {
        let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension == "gguf");
        let files = std::fs::read_dir(goldens()).expect("goldens").map(|entry| entry.expect("an entry").path());
        let mut files: Vec<_> = files.filter(|path| is_gguf(path)).collect();
        files.sort();
        assert!(!files.is_empty(), "there are GGUF files among the goldens");
        for path in files {
            let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
            let (name, _) = checkpoint.output_layer().expect("an output layer or embeddings");
            check(&path.file_name().expect("a name").to_string_lossy(), name);
        }
    }
}
