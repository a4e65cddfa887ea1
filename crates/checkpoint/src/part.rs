use std::collections::BTreeSet;
use std::ops::Range;

use sepal_core::{ComputeFormat, ModelConfig, RowEncoding, Span, WeightFormat};

use crate::Checkpoint;
use crate::error::ReadError;
use crate::families::tensor_names;
use crate::layout::file_name;
use crate::mxfp4::GROUP_BYTES;
use crate::store::{Encoding, Stored};

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Embeddings and final norm, without the output layer. A client needs them.
    Ends,
    /// Some blocks. A server needs them.
    Blocks(Span),
    /// The output layer; of a model that ties it to the embeddings, these.
    Output,
    /// All tensors.
    All,
}

/// Memory for embeddings, in bytes: a smaller matrix is held complete in fp32, and of a larger one the rows that were used last.
pub const EMBEDDING_BYTES: usize = 64 << 20;

/// Largest memory of a client's embeddings and final norm, in bytes.
pub fn ends_bytes(config: &ModelConfig) -> u64 {
    let row_bytes = config.hidden.saturating_mul(size_of::<f32>());
    config.vocab_size.saturating_mul(row_bytes).min(EMBEDDING_BYTES).saturating_add(row_bytes) as u64
}

/// Numbers and bytes of the tensors of a part, by their encoding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartSizes {
    /// Matrices that are stored row by row, one entry for each encoding.
    pub encoded: Vec<EncodedSize>,
    /// Numbers of the other matrices.
    pub plain: u64,
    /// Numbers of the vectors.
    pub vectors: u64,
}

/// Size of all matrices in one encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedSize {
    /// Encoding of the rows.
    pub encoding: RowEncoding,
    /// Numbers of the matrices.
    pub numbers: u64,
    /// Bytes of the encoded matrices.
    pub bytes: u64,
}

impl PartSizes {
    /// Memory of the tensors in bytes, where matrices in an encoding that `keeps` accepts stay as they are stored, other
    /// matrices take `plain_bytes` for each number, and vectors are in fp32.
    pub fn bytes(&self, plain_bytes: u64, keeps: impl Fn(RowEncoding) -> bool) -> u64 {
        let encoded = self.encoded.iter().map(|size| match keeps(size.encoding) {
            true => size.bytes,
            false => size.numbers * plain_bytes,
        });
        encoded.sum::<u64>() + self.plain * plain_bytes + self.vectors * size_of::<f32>() as u64
    }

    /// Memory of these tensors as weights in `format`, for products in `compute`, in bytes. In `auto` and `f32`, matrices that
    /// do not stay as they are stored are in the format of the products. The other formats are counted for vectors, too, which
    /// stay in fp32.
    pub fn weight_bytes(&self, format: WeightFormat, compute: ComputeFormat, is_on_cpu: bool) -> u64 {
        match format {
            WeightFormat::Auto | WeightFormat::F32 => {
                let plain_bytes = compute.dtype().n_bytes(1).unwrap_or_default() as u64;
                self.bytes(plain_bytes, |encoding| format.keeps(encoding, compute, is_on_cpu))
            }
            fixed => (self.parameters() as f64 * fixed.bits() / 8.0).ceil() as u64,
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.encoded.iter().map(|size| size.numbers).sum::<u64>() + self.plain + self.vectors
    }

    fn add_encoded(&mut self, encoding: RowEncoding, numbers: u64, bytes: u64) {
        match self.encoded.iter_mut().find(|size| size.encoding == encoding) {
            Some(size) => {
                size.numbers += numbers;
                size.bytes += bytes;
            }
            None => self.encoded.push(EncodedSize { encoding, numbers, bytes }),
        }
    }
}

impl Checkpoint {
    /// Sorted names of the files that hold tensors of this part and are not complete in the folder. Once they are there, they
    /// are found without opening the checkpoint again.
    pub fn missing_files(&self, part: Part) -> Vec<String> {
        let files: BTreeSet<usize> =
            self.part_tensors(part).flat_map(|(_, stored)| self.store.files_of(stored)).collect();
        let missing = files.into_iter().filter(|file| !self.store.files[*file].is_complete());
        let name = |file: usize| self.store.files[file].path().file_name().unwrap_or_default().to_string_lossy();
        let mut names: Vec<String> = missing.map(|file| name(file).into_owned()).collect();
        names.sort();
        names
    }

    /// Bytes of this part's tensors in a model whose only weights file is not complete in the folder: the file's name, and
    /// ascending ranges. `None` if the model has several files, or its file is there. The ranges can be brought as pieces of
    /// the file, which are files `OFFSET-DIGEST` in the folder `NAME.pieces`.
    pub fn missing_ranges(&self, part: Part) -> Option<(String, Vec<Range<u64>>)> {
        let [file] = self.store.files.as_slice() else { return None };
        if file.is_complete() {
            return None;
        }
        let sources = self.part_tensors(part).flat_map(|(_, stored)| self.store.sources_of(stored));
        let mut tensors: Vec<Range<u64>> = sources.map(|stored| stored.offset..stored.offset + stored.len).collect();
        tensors.sort_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for tensor in tensors {
            match ranges.last_mut() {
                Some(last) if tensor.start <= last.end => last.end = last.end.max(tensor.end),
                _ => ranges.push(tensor),
            }
        }
        Some((file_name(file.path()), ranges))
    }

    /// Checks that embeddings, norms and blocks of this part are of types that are read; the output layer is used by few
    /// heads. Reads no file, so that nothing is fetched in vain.
    ///
    /// # Errors
    /// [`ReadError::BlockType`], with the name of the first tensor of another type.
    pub fn check_types(&self, part: Part) -> Result<(), ReadError> {
        let is_needed = |name: &str| part != Part::All || !is_output(bare(name, self.config()));
        let is_unread =
            |stored: &Stored| matches!(stored.encoding, Encoding::Gguf(number_type) if !number_type.is_read());
        match self.part_tensors(part).find(|(name, stored)| is_needed(name) && is_unread(stored)) {
            Some((name, stored)) => Err(self.store.unsupported(name, stored)),
            None => Ok(()),
        }
    }

    /// Sizes of this part's tensors. Matrices of all experts in MXFP4 count as rows.
    pub fn part_sizes(&self, part: Part) -> PartSizes {
        let mut sizes = PartSizes::default();
        for (_, stored) in self.part_tensors(part) {
            let numbers = stored.shape.iter().product::<usize>() as u64;
            match self.encoded_bytes(stored) {
                Some((encoding, bytes)) => sizes.add_encoded(encoding, numbers, bytes),
                None if stored.shape.len() < 2 => sizes.vectors += numbers,
                None => sizes.plain += numbers,
            }
        }
        sizes
    }

    /// Encoding of the rows of a tensor and their bytes; `None` if it is not stored row by row.
    fn encoded_bytes(&self, stored: &Stored) -> Option<(RowEncoding, u64)> {
        match (stored.encoding, stored.encoding.of_rows()) {
            // Numbers and factors of all experts.
            (Encoding::Mxfp4 { .. }, _) => Some((RowEncoding::Mxfp4, stored.len + stored.len / GROUP_BYTES as u64)),
            (_, Some(encoding)) => {
                let has_rows = !self.has_rows_of_inputs() && stored.shape.len() == 2;
                has_rows.then_some((encoding, stored.len))
            }
            (_, None) => self.store.packed_bytes(stored),
        }
    }

    fn part_tensors(&self, part: Part) -> impl Iterator<Item = (&String, &Stored)> {
        let output = self.output_layer().map(|(_, stored)| stored);
        let has = move |name: &str, stored: &Stored| match part {
            Part::Output => output.is_some_and(|output| std::ptr::eq(output, stored)),
            part => part.has(name, self.config()),
        };
        self.store.tensors.iter().filter(move |(name, stored)| has(name, stored))
    }
}

impl Part {
    /// True if the tensor `name` belongs to it.
    fn has(self, name: &str, config: &ModelConfig) -> bool {
        let names = tensor_names(config.family);
        let name = bare(name, config);
        let is_in =
            |mut blocks: Range<usize>| blocks.any(|block| name.starts_with(bare(&names.block_prefix(block), config)));
        let are_positions = names.positions == Some(name);
        match self {
            Part::All => true,
            // The name depends on the checkpoint, which may tie it to the embeddings.
            Part::Output => false,
            Part::Blocks(span) => is_in(span.blocks()) || (are_positions && span.start() == 0),
            Part::Ends => !is_output(name) && !are_positions && !is_in(0..config.n_blocks),
        }
    }
}

/// Name without the prefix that files of the bare model leave out.
fn bare<'a>(name: &'a str, config: &ModelConfig) -> &'a str {
    name.strip_prefix(tensor_names(config.family).prefix).unwrap_or(name)
}

/// True for the bare name of an output layer that is not tied to the embeddings.
fn is_output(name: &str) -> bool {
    ["lm_head.", "embed_out."].iter().any(|output| name.starts_with(output))
}
