//! What tells one checkpoint from another without reading all of it.

use std::collections::BTreeMap;

use sepal_core::ModelConfig;
use sha2::{Digest, Sha256};

use crate::error::OpenError;
use crate::outline::{OUTLINE, Outline};
use crate::store::{Store, Stored};

/// Bytes of a tensor that the digest takes in, at the most.
const PROBE: u64 = 4096;

/// Bytes of a weights file that stand for a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Index into [`Store::files`].
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What the weights are, in 64 hex digits: the configuration, of every tensor the name, the type and the shape, and
/// the bytes of the probes; `outline` has those of files that are not here.
pub(crate) fn fingerprint(config: &ModelConfig, store: &Store, outline: &Outline) -> Result<String, OpenError> {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(b"sepal checkpoint 3");
    field(&serde_json::to_vec(config).expect("a configuration has no key that JSON cannot have"));
    for (name, stored) in &store.tensors {
        field(name.as_bytes());
        field(stored.encoding.name().as_bytes());
        field(format!("{:?}", stored.shape).as_bytes());
    }
    for probe in probes(&store.tensors) {
        field(&read(probe, store, outline)?);
    }
    Ok(hex::encode(hash.finalize()))
}

/// The probes of a checkpoint, in an order that does not depend on how tensors are dealt out to files: 4 KiB from the
/// middle of one tensor of each block, and of each tensor outside of blocks.
///
/// Block 0 is looked at in its first matrix by name, block 1 in its second, and so on in a circle, so that blocks in a
/// row look at different kinds. A fine-tuning that changed one kind of matrix in all blocks is then seen, and so is one
/// that changed all of one block. (Masks, which some files have in each block, have four dimensions.) Vectors count only where there is no matrix: training hardly moves norms.
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
        let matrices: Vec<&Stored> = stored.iter().copied().filter(|stored| stored.shape.len() == 2).collect();
        let choice = if matrices.is_empty() { stored } else { matrices };
        probes.push(probe(choice[block_idx % choice.len()]));
    }
    probes
}

/// What stands before the number of a tensor's block, and the number: `model.layers.` and 3.
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

fn read(probe: Probe, store: &Store, outline: &Outline) -> Result<Vec<u8>, OpenError> {
    let file = &store.files[probe.file];
    if file.is_here() {
        let mut bytes = vec![0; probe.len as usize];
        file.read_at(probe.offset, &mut bytes).map_err(|source| file.io(source))?;
        return Ok(bytes);
    }
    let bytes = outline.probe(file.path(), probe.offset).filter(|bytes| bytes.len() as u64 == probe.len);
    bytes.ok_or_else(|| OpenError::NoOutline { path: file.path().to_owned(), outline: OUTLINE })
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::rows::Rows;
    use crate::store::Encoding;

    /// Tensors of 10,000 bytes, one behind the other in a file, by name and number of dimensions.
    fn tensors(names: &[(&str, usize)]) -> BTreeMap<String, Stored> {
        let stored = |(at, (name, dims)): (usize, &(&str, usize))| {
            let (encoding, offset) = (Encoding::Plain(Dtype::F32), at as u64 * 10_000);
            let stored = Stored { file: 0, encoding, shape: vec![1; *dims], offset, len: 10_000, rows: Rows::Same };
            ((*name).to_owned(), stored)
        };
        names.iter().enumerate().map(stored).collect()
    }

    fn check(names: &[(&str, usize)], expected: &[&str]) {
        let tensors = tensors(names);
        let name = |probe: Probe| {
            assert_eq!((probe.len, probe.offset % 10_000), (4096, 2952), "the middle");
            let at = names.iter().position(|(name, _)| tensors[*name].offset == probe.offset / 10_000 * 10_000);
            names[at.expect("a tensor")].0
        };
        assert_eq!(probes(&tensors).into_iter().map(name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn blocks_are_looked_at_in_turns() {
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
    fn a_block_has_its_number_after_the_first_words() {
        assert_eq!(block("model.layers.3.mlp.experts.7.weight"), Some(("model.layers.", 3)));
        assert_eq!(block("h.12.ln.bias"), Some(("h.", 12)));
        assert_eq!(block("lm_head.weight"), None);
    }
}
