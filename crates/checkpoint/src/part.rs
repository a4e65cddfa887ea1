use std::collections::BTreeSet;
use std::ops::Range;

use sepal_core::{ModelConfig, Span};

use crate::Checkpoint;

/// A part of a model that somebody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is before the first block and after the last but the output layer: embeddings and norms. A client's.
    Ends,
    /// Some blocks. A server's.
    Blocks(Span),
    /// All there is.
    Whole,
}

impl Checkpoint {
    /// The weights files that hold tensors of this part and are not here, by their names in the folder, sorted. Of a
    /// checkpoint that came in parts some are not; once they are put there, they are found without opening it again.
    pub fn missing_files(&self, part: Part) -> Vec<String> {
        let tensors = self.store.tensors.iter().filter(|(name, _)| part.has(name, self.config()));
        let files: BTreeSet<usize> = tensors.map(|(_, stored)| stored.file).collect();
        let missing = files.into_iter().filter(|file| !self.store.files[*file].is_here());
        let name = |file: usize| self.store.files[file].path().file_name().unwrap_or_default().to_string_lossy();
        let mut names: Vec<String> = missing.map(|file| name(file).into_owned()).collect();
        names.sort();
        names
    }

    /// How many numbers the tensors of this part have together.
    pub fn part_parameter_count(&self, part: Part) -> u64 {
        let tensors = self.store.tensors.iter().filter(|(name, _)| part.has(name, self.config()));
        tensors.map(|(_, stored)| stored.shape.iter().product::<usize>() as u64).sum()
    }
}

impl Part {
    /// Whether the tensor `name` belongs to it.
    fn has(self, name: &str, config: &ModelConfig) -> bool {
        let family = config.family;
        // Files of the bare model leave out what stands before the names.
        let bare = |name: &str| name.strip_prefix(family.prefix()).unwrap_or(name).to_owned();
        let name = bare(name);
        let is_in = |mut blocks: Range<usize>| blocks.any(|block| name.starts_with(&bare(&family.block_prefix(block))));
        let are_positions = family.positions() == Some(&name);
        match self {
            Part::Whole => true,
            Part::Blocks(span) => is_in(span.blocks()) || (are_positions && span.start() == 0),
            Part::Ends => {
                let is_output = ["lm_head.", "embed_out."].iter().any(|output| name.starts_with(output));
                !is_output && !are_positions && !is_in(0..config.n_blocks)
            }
        }
    }
}
