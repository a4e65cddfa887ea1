use std::collections::BTreeSet;
use std::ops::Range;

use sepal_core::{ModelConfig, Span};

use crate::Checkpoint;
use crate::families::tensor_names;
use crate::store::Stored;

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

impl Checkpoint {
    /// Sorted names of the files that hold tensors of this part and are not in the folder. Once they are there, they are
    /// found without opening the checkpoint again.
    pub fn missing_files(&self, part: Part) -> Vec<String> {
        let files: BTreeSet<usize> = self.part_tensors(part).map(|stored| stored.file).collect();
        let missing = files.into_iter().filter(|file| !self.store.files[*file].is_present());
        let name = |file: usize| self.store.files[file].path().file_name().unwrap_or_default().to_string_lossy();
        let mut names: Vec<String> = missing.map(|file| name(file).into_owned()).collect();
        names.sort();
        names
    }

    /// Number of parameters of this part.
    pub fn part_parameter_count(&self, part: Part) -> u64 {
        self.part_tensors(part).map(|stored| stored.shape.iter().product::<usize>() as u64).sum()
    }

    fn part_tensors(&self, part: Part) -> impl Iterator<Item = &Stored> {
        let output = self.output_layer().map(|(_, stored)| stored);
        let has = move |name: &str, stored: &Stored| match part {
            Part::Output => output.is_some_and(|output| std::ptr::eq(output, stored)),
            part => part.has(name, self.config()),
        };
        self.store.tensors.iter().filter(move |(name, stored)| has(name, stored)).map(|(_, stored)| stored)
    }
}

impl Part {
    /// True if the tensor `name` belongs to it.
    fn has(self, name: &str, config: &ModelConfig) -> bool {
        let names = tensor_names(config.family);
        // Files of the bare model leave out the prefix.
        let bare = |name: &str| name.strip_prefix(names.prefix).unwrap_or(name).to_owned();
        let name = bare(name);
        let is_in = |mut blocks: Range<usize>| blocks.any(|block| name.starts_with(&bare(&names.block_prefix(block))));
        let are_positions = names.positions == Some(&name);
        match self {
            Part::All => true,
            // The name depends on the checkpoint, which may tie it to the embeddings.
            Part::Output => false,
            Part::Blocks(span) => is_in(span.blocks()) || (are_positions && span.start() == 0),
            Part::Ends => {
                let is_output = ["lm_head.", "embed_out."].iter().any(|output| name.starts_with(output));
                !is_output && !are_positions && !is_in(0..config.n_blocks)
            }
        }
    }
}
