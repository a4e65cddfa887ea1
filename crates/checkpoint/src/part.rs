use std::collections::BTreeSet;

use sepal_core::Span;

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
        let blocks = match part {
            Part::Blocks(span) => span.blocks(),
            Part::Ends | Part::Whole => 0..self.config().n_blocks,
        };
        let prefixes: Vec<String> = blocks.map(|block_idx| bare(&self.block_prefix(block_idx)).to_owned()).collect();
        let is_in_blocks = |name: &str| prefixes.iter().any(|prefix| bare(name).starts_with(prefix));
        let is_part = |name: &str| match part {
            Part::Whole => true,
            Part::Blocks(_) => is_in_blocks(name),
            Part::Ends => !name.starts_with("lm_head.") && !is_in_blocks(name),
        };
        let tensors = self.store.tensors.iter().filter(|(name, _)| is_part(name));
        let files: BTreeSet<usize> = tensors.map(|(_, stored)| stored.file).collect();
        let missing = files.into_iter().filter(|file| !self.store.files[*file].is_here());
        let name = |file: usize| self.store.files[file].path().file_name().unwrap_or_default().to_string_lossy();
        let mut names: Vec<String> = missing.map(|file| name(file).into_owned()).collect();
        names.sort();
        names
    }
}

/// A name without what stands before it in some files and not in others.
fn bare(name: &str) -> &str {
    ["model.", "transformer."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}
