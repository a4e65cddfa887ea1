use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use sepal_core::{DType, HostTensor, NamedHostTensor};
use sha2::{Digest, Sha256};
use tch::{Kind, TchError, Tensor};

use crate::file;
use crate::host::{HostError, from_host, to_host};

/// Named trainable fp32 leaf tensors that require grad, in the order of their addition.
///
/// Tuning modes and heads add parameters when they are built and keep the clones; the optimizer updates the numbers in
/// place, which the clones share.
#[derive(Debug, Default)]
pub struct Parameters {
    entries: Vec<(String, Tensor)>,
}

impl Parameters {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a trainable fp32 copy of `init` and returns a clone that shares its numbers and gradient.
    ///
    /// # Errors
    /// [`AddError::Duplicate`] if the name exists.
    pub fn add(&mut self, name: impl Into<String>, init: &Tensor) -> Result<Tensor, AddError> {
        let name = name.into();
        if self.get(&name).is_some() {
            return Err(AddError::Duplicate { name });
        }
        let tensor = leaf(init).map_err(|source| AddError::Torch { name: name.clone(), source })?;
        self.entries.push((name, tensor.shallow_clone()));
        Ok(tensor)
    }

    /// Iterates over names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Returns the tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.iter().find(|&(other, _)| other == name).map(|(_, tensor)| tensor)
    }

    /// Returns a store of the tensors whose names `is_included` accepts, in order. They share numbers and gradients with
    /// these.
    #[must_use]
    pub fn subset(&self, mut is_included: impl FnMut(&str) -> bool) -> Self {
        let included = self.entries.iter().filter(|(name, _)| is_included(name.as_str()));
        Self { entries: included.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect() }
    }

    /// Returns the number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true without tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the number of scalar parameters.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// Sets all gradients to zero; an undefined gradient stays undefined.
    pub fn zero_grad(&mut self) {
        for (_, tensor) in &mut self.entries {
            tensor.zero_grad();
        }
    }

    /// Copies the current numbers to host memory, in order.
    ///
    /// # Errors
    /// [`HostError`] if libtorch cannot copy them.
    pub fn to_host(&self) -> Result<Vec<NamedHostTensor>, HostError> {
        self.iter()
            .map(|(name, tensor)| Ok(NamedHostTensor { name: name.to_owned(), tensor: to_host(tensor, DType::F32)? }))
            .collect()
    }

    /// Returns the SHA-256 over names, shapes and bytes in order, as hex: equal exactly if the parameters are equal.
    ///
    /// # Errors
    /// [`HostError`] if libtorch cannot copy them.
    pub fn digest(&self) -> Result<String, HostError> {
        let mut hasher = Sha256::new();
        for NamedHostTensor { name, tensor } in self.to_host()? {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update((tensor.shape().len() as u64).to_le_bytes());
            tensor.shape().iter().for_each(|&dim| hasher.update((dim as u64).to_le_bytes()));
            hasher.update(tensor.data());
        }
        Ok(hex::encode(hasher.finalize()))
    }

    /// Writes all parameters as fp32 safetensors with `metadata`, atomically. Equal content gives equal bytes.
    ///
    /// # Errors
    /// [`SaveError`] if the write fails; the previous file stays.
    pub fn save(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<(), SaveError> {
        let tensors = self.to_host().map_err(|source| SaveError::Read { source })?;
        file::write(path, &tensors, metadata).map_err(|source| SaveError::Write { source })
    }

    /// Replaces all numbers, in place, by those of a file that [`save`](Self::save) wrote, and returns its metadata.
    /// The file must hold exactly these names with these shapes; otherwise nothing changes.
    ///
    /// # Errors
    /// [`LoadError`] with the missing, unexpected or differently shaped tensors.
    pub fn load(&mut self, path: &Path) -> Result<BTreeMap<String, String>, LoadError> {
        let file::Contents { tensors, metadata } = file::read(path).map_err(|source| LoadError::Read { source })?;
        self.replace(path, tensors)?;
        Ok(metadata)
    }

    /// Replaces all numbers, in place, by those of [`to_host`](Self::to_host). It is as strict as [`load`](Self::load).
    ///
    /// # Errors
    /// [`LoadError`] with the missing, unexpected or differently shaped tensors.
    pub fn set(&mut self, tensors: Vec<NamedHostTensor>) -> Result<(), LoadError> {
        self.replace(Path::new("the saved parameters"), tensors)
    }

    fn replace(&mut self, origin: &Path, tensors: Vec<NamedHostTensor>) -> Result<(), LoadError> {
        let mut found: HashMap<String, HostTensor> =
            tensors.into_iter().map(|named| (named.name, named.tensor)).collect();
        let found = self.matching(origin, &mut found)?;
        tch::no_grad(|| {
            for ((name, tensor), host) in self.entries.iter_mut().zip(&found) {
                let numbers = from_host(host).map_err(|source| LoadError::Host { name: name.clone(), source })?;
                tensor.f_copy_(&numbers).map_err(|source| LoadError::Torch { name: name.clone(), source })?;
            }
            Ok(())
        })
    }

    /// Returns the tensors of `found` in the order of the parameters if names and shapes agree.
    fn matching(&self, path: &Path, found: &mut HashMap<String, HostTensor>) -> Result<Vec<HostTensor>, LoadError> {
        let missing: Vec<String> =
            self.iter().filter(|(name, _)| !found.contains_key(*name)).map(|(name, _)| name.to_owned()).collect();
        let mut unexpected: Vec<String> = found.keys().filter(|name| self.get(name).is_none()).cloned().collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            unexpected.sort_unstable();
            return Err(LoadError::Names { path: path.into(), missing, unexpected });
        }
        let mut ordered = Vec::with_capacity(self.len());
        for (name, tensor) in self.iter() {
            let Some(host) = found.remove(name) else { continue };
            let expected: Vec<usize> = tensor.size().iter().map(|&dim| dim.unsigned_abs() as usize).collect();
            if host.shape() != expected {
                let (name, found) = (name.to_owned(), host.shape().to_vec());
                return Err(LoadError::Shape { path: path.into(), name, expected, found });
            }
            ordered.push(host);
        }
        Ok(ordered)
    }
}

/// Failed addition of a parameter.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum AddError {
    /// The name exists.
    #[error("add parameter `{name}`: the name exists already")]
    Duplicate { name: String },
    /// libtorch failed.
    #[error("add parameter `{name}`")]
    Torch { name: String, source: TchError },
}

/// Failed save. The previous file stays.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum SaveError {
    /// The numbers cannot be copied.
    #[error("read the parameters")]
    Read { source: HostError },
    /// The file cannot be written.
    #[error("save the parameters")]
    Write { source: file::WriteError },
}

/// Failed load. The parameters are unchanged, unless libtorch itself failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("load the parameters")]
    Read { source: file::ReadError },
    /// The file holds other tensors than the parameters: those of `unexpected` are not parameters.
    #[error("load {path}: missing {missing:?}, unexpected {unexpected:?}")]
    Names { path: PathBuf, missing: Vec<String>, unexpected: Vec<String> },
    /// A tensor has another shape than its parameter.
    #[error("load `{name}` of {path}: expected shape {expected:?}, found {found:?}")]
    Shape { path: PathBuf, name: String, expected: Vec<usize>, found: Vec<usize> },
    /// The numbers cannot be converted.
    #[error("load `{name}`")]
    Host { name: String, source: HostError },
    /// libtorch failed.
    #[error("load `{name}`")]
    Torch { name: String, source: TchError },
}

/// Trainable fp32 copy with its own memory.
fn leaf(init: &Tensor) -> Result<Tensor, TchError> {
    init.f_detach()?.f_to_dtype(Kind::Float, false, true)?.f_contiguous()?.f_set_requires_grad(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init;

    fn some(shapes: &[(&str, &[i64])]) -> Parameters {
        let mut parameters = Parameters::new();
        for &(name, shape) in shapes {
            let numbers = init::normal(shape, 1.0, &mut init::rng(1, name)).expect("numbers");
            drop(parameters.add(name, &numbers).expect("added"));
        }
        parameters
    }

    fn saved(parameters: &Parameters, folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("adapter.safetensors");
        parameters.save(&path, &BTreeMap::from([("seed".to_owned(), "42".to_owned())])).expect("saved");
        path
    }

    #[test]
    fn add_makes_independent_leaf() {
        let init = Tensor::from_slice(&[1.0_f64, 2.0]);
        let mut parameters = Parameters::new();
        let clone = parameters.add("prompts", &init).expect("added");
        assert!(clone.requires_grad() && clone.is_leaf() && clone.kind() == Kind::Float);
        (&clone * 3.0).sum(Kind::Float).backward();
        let parameter = parameters.get("prompts").expect("there");
        assert_eq!(Vec::<f32>::try_from(parameter.grad()).expect("numbers"), [3.0, 3.0]);
        parameters.zero_grad();
        assert_eq!(Vec::<f32>::try_from(clone.grad()).expect("numbers"), [0.0, 0.0]);
        drop(tch::no_grad(|| parameters.get("prompts").expect("there").shallow_clone().fill_(7.0)));
        assert_eq!(Vec::<f32>::try_from(&clone).expect("numbers"), [7.0, 7.0]);
        assert_eq!(Vec::<f64>::try_from(&init).expect("numbers"), [1.0, 2.0]);
        assert!(matches!(parameters.add("prompts", &init), Err(AddError::Duplicate { .. })));
    }

    #[test]
    fn load_restores_saved_parameters() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut parameters = some(&[("prompts", &[4, 8]), ("deep_prompts", &[2, 4, 8]), ("score.weight", &[2, 8])]);
        let path = saved(&parameters, &folder);
        let (digest, bytes) = (parameters.digest().expect("a digest"), std::fs::read(&path).expect("bytes"));
        tch::no_grad(|| parameters.entries.iter_mut().for_each(|(_, tensor)| drop(tensor.fill_(0.0))));
        assert_ne!(parameters.digest().expect("a digest"), digest);
        let metadata = parameters.load(&path).expect("loaded");
        assert_eq!(metadata["seed"], "42");
        assert_eq!(parameters.digest().expect("a digest"), digest);
        assert!(parameters.iter().all(|(_, tensor)| tensor.requires_grad() && tensor.is_leaf()));
        saved(&parameters, &folder);
        assert_eq!(std::fs::read(&path).expect("bytes"), bytes);
        assert_eq!(parameters.count(), 4 * 8 + 2 * 4 * 8 + 2 * 8);
    }

    #[test]
    fn subset_shares_numbers_and_gradients() {
        let all = some(&[("prompts", &[4, 8]), ("score.weight", &[2, 8]), ("scales", &[3])]);
        let subset = all.subset(|name| name.starts_with('s'));
        assert_eq!(subset.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["score.weight", "scales"]);
        let (ours, theirs) = (all.get("scales").expect("there"), subset.get("scales").expect("there"));
        ours.sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(theirs.grad()).expect("numbers"), [1.0; 3]);
        drop(tch::no_grad(|| theirs.shallow_clone().fill_(7.0)));
        assert_eq!(Vec::<f32>::try_from(ours).expect("numbers"), [7.0; 3]);
    }

    #[test]
    fn load_mismatch_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = saved(&some(&[("prompts", &[4, 8]), ("head", &[2, 8])]), &folder);

        let mut other = some(&[("prompts", &[4, 8]), ("score.weight", &[2, 8])]);
        let before = other.digest().expect("a digest");
        match other.load(&path) {
            Err(LoadError::Names { missing, unexpected, .. }) => {
                assert_eq!((missing, unexpected), (vec!["score.weight".to_owned()], vec!["head".to_owned()]));
            }
            result => panic!("expected a names error, got {result:?}"),
        }
        assert_eq!(other.digest().expect("a digest"), before);

        let mut wider = some(&[("head", &[2, 8]), ("prompts", &[5, 8])]);
        let before = wider.digest().expect("a digest");
        match wider.load(&path) {
            Err(LoadError::Shape { name, expected, found, .. }) => {
                assert_eq!((name.as_str(), expected, found), ("prompts", vec![5, 8], vec![4, 8]));
            }
            result => panic!("expected a shape error, got {result:?}"),
        }
        assert_eq!(wider.digest().expect("a digest"), before);
        assert!(matches!(wider.load(&folder.path().join("none")), Err(LoadError::Read { .. })));
    }

    #[test]
    fn digest_depends_on_names_and_shapes() {
        let digest = |shapes: &[(&str, &[i64])]| some(shapes).digest().expect("a digest");
        assert_eq!(digest(&[("a", &[2, 3])]), digest(&[("a", &[2, 3])]));
        let mut renamed = Parameters::new();
        let a = some(&[("a", &[2, 3])]);
        drop(renamed.add("b", a.get("a").expect("there")).expect("added"));
        assert_ne!(a.digest().expect("a digest"), renamed.digest().expect("a digest"));
        let mut reshaped = Parameters::new();
        drop(reshaped.add("a", &a.get("a").expect("there").view([3, 2])).expect("added"));
        assert_ne!(a.digest().expect("a digest"), reshaped.digest().expect("a digest"));
    }
}
