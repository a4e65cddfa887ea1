//! The sample of a checkpoint's bytes that enters its digest.

use std::collections::BTreeMap;

use crate::error::OpenError;
use crate::file::WeightsFile;
use crate::store::Stored;

/// Largest number of bytes of a tensor that enter the digest.
const PROBE: u64 = 4096;

/// Bytes of a weights file that represent a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Index into [`Store::files`].
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Probe {
    pub(crate) fn read(self, file: &WeightsFile) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; self.len as usize];
        file.read_at(self.offset, &mut bytes).map_err(|source| file.io(source))?;
        Ok(bytes)
    }
}

/// The probes of a checkpoint, in an order that does not depend on the distribution of tensors over files: 4 KiB from the
/// middle of one tensor of each block and of each tensor outside blocks.
///
/// Block 0 is represented by its first matrix by name, block 1 by its second, and so on cyclically, so that the digest
/// changes if one kind of matrix changes in all blocks, and if all of one block changes. Vectors are chosen only in blocks
/// without a matrix, because training hardly changes norms. The matrices of all experts in one tensor have three dimensions;
/// masks, which some files have in each block, have four.
pub(crate) fn probes(tensors: &BTreeMap<String, Stored>) -> Vec<Probe> {
    let mut blocks: BTreeMap<(&str, usize), Vec<&Stored>> = BTreeMap::new();
    let mut probes = Vec::new();
    for (name, stored) in tensors {
        match block(name) {
            Some(block) => blocks.entry(block).or_default().push(stored),
            None => probes.push(probe(stored)),
        }
    }
    for ((_, block_idx), stored) in blocks {
        let matrices: Vec<&Stored> =
            stored.iter().copied().filter(|stored| matches!(stored.shape.len(), 2 | 3)).collect();
        let choice = if matrices.is_empty() { stored } else { matrices };
        probes.push(probe(choice[block_idx % choice.len()]));
    }
    probes
}

/// Prefix and number of a tensor's block: `model.layers.` and 3.
fn block(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for part in name.split('.') {
        if let Ok(block_idx) = part.parse() {
            return Some((&name[..start], block_idx));
        }
        start += part.len() + 1;
    }
    None
}

fn probe(stored: &Stored) -> Probe {
    let len = stored.len.min(PROBE);
    Probe { file: stored.file, offset: stored.offset + (stored.len - len) / 2, len }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::rows::Rows;
    use crate::store::Encoding;

    /// Consecutive tensors of 10,000 bytes, by name and number of dimensions.
    fn tensors(names: &[(&str, usize)]) -> BTreeMap<String, Stored> {
        let stored = |(index, (name, dims)): (usize, &(&str, usize))| {
            let (encoding, offset) = (Encoding::Plain(Dtype::F32), index as u64 * 10_000);
            let stored = Stored { file: 0, encoding, shape: vec![1; *dims], offset, len: 10_000, rows: Rows::Same };
            ((*name).to_owned(), stored)
        };
        names.iter().enumerate().map(stored).collect()
    }

    fn check(names: &[(&str, usize)], expected: &[&str]) {
        let tensors = tensors(names);
        let name = |probe: Probe| {
            assert_eq!((probe.len, probe.offset % 10_000), (4096, 2952), "the middle");
            let index = names.iter().position(|(name, _)| tensors[*name].offset == probe.offset / 10_000 * 10_000);
            names[index.expect("a tensor")].0
        };
        assert_eq!(probes(&tensors).into_iter().map(name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn probes_cycle_through_the_matrices_of_blocks() {
        let names = [
            ("model.embed_tokens.weight", 2),
            ("model.layers.0.b.weight", 2),
            ("model.layers.0.a.weight", 2),
            ("model.layers.0.norm.weight", 1),
            ("model.layers.1.a.weight", 2),
            ("model.layers.1.b.weight", 2),
            ("model.layers.2.a.weight", 2),
            ("model.layers.2.b.weight", 2),
            ("model.layers.10.norm.weight", 1),
            ("model.norm.weight", 1),
        ];
        let expected = [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "model.layers.0.a.weight",
            "model.layers.1.b.weight",
            "model.layers.2.a.weight",
            "model.layers.10.norm.weight",
        ];
        check(&names, &expected);
    }

    #[test]
    fn block_number_is_the_first_number_of_a_name() {
        assert_eq!(block("model.layers.3.mlp.experts.7.weight"), Some(("model.layers.", 3)));
        assert_eq!(block("h.12.ln.bias"), Some(("h.", 12)));
        assert_eq!(block("lm_head.weight"), None);
    }
}
