//! The digest of a checkpoint, from a sample of its bytes.

use sepal_core::ModelConfig;
use sha2::{Digest, Sha256};

use crate::error::OpenError;
use crate::probe::{Probe, probes};
use crate::store::Store;

/// Hash of the configuration, of the name, type and shape of each tensor, and of the probes, in 64 hex digits. `outline` is
/// the name of the file that should describe missing files.
pub(crate) fn fingerprint(config: &ModelConfig, store: &Store, outline: &str) -> Result<String, OpenError> {
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

fn read(probe: Probe, store: &Store, outline: &str) -> Result<Vec<u8>, OpenError> {
    let file = &store.files[probe.file];
    if file.has(probe.offset, probe.len) {
        return probe.read(file);
    }
    Err(OpenError::NoOutline { path: file.path().to_owned(), outline: outline.to_owned() })
}
