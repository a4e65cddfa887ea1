use std::collections::BTreeMap;

use sepal_core::{DType, NamedHostTensor};
use sepal_nn::{HostError, Parameters, from_host, to_host};
use tch::{TchError, Tensor};

/// An optimizer's state that could not be saved or taken up again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The tensor belongs to no parameter, or the optimizer keeps no such tensor.
    #[error("restore the optimizer: `{name}` belongs to no parameter")]
    Unknown {
        /// The tensor's name.
        name: String,
    },
    /// A parameter has one of its tensors, but not all.
    #[error("restore the optimizer: `{name}` is missing")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// The tensor has another shape than its parameter.
    #[error("restore the optimizer: expected `{name}` of shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The parameter's shape.
        expected: Vec<i64>,
        /// The tensor's shape.
        found: Vec<i64>,
    },
    /// A tensor could not be copied.
    #[error("copy the optimizer's `{name}`")]
    Host {
        /// The tensor's name.
        name: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// libtorch refused.
    #[error("read the optimizer's `{name}`")]
    Torch {
        /// The tensor's name.
        name: String,
        /// What libtorch said.
        #[source]
        source: TchError,
    },
}

/// One tensor of a parameter's state to be saved as `KIND.PARAMETER`.
pub(crate) fn save(kind: &str, parameter: &str, tensor: &Tensor) -> Result<NamedHostTensor, StateError> {
    let name = format!("{kind}.{parameter}");
    match to_host(tensor, DType::F32) {
        Ok(tensor) => Ok(NamedHostTensor { name, tensor }),
        Err(source) => Err(StateError::Host { name, source }),
    }
}

/// Saved tensors by name, taken out one by one.
pub(crate) struct Saved(BTreeMap<String, Tensor>);

impl Saved {
    pub(crate) fn new(state: &[NamedHostTensor]) -> Result<Self, StateError> {
        let tensor = |named: &NamedHostTensor| match from_host(&named.tensor) {
            Ok(tensor) => Ok((named.name.clone(), tensor)),
            Err(source) => Err(StateError::Host { name: named.name.clone(), source }),
        };
        state.iter().map(tensor).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is a `KIND.PARAMETER`.
    pub(crate) fn has(&self, kind: &str, parameter: &str) -> bool {
        self.0.contains_key(&format!("{kind}.{parameter}"))
    }

    /// Takes `KIND.PARAMETER`, which must have this shape.
    pub(crate) fn take(&mut self, kind: &str, parameter: &str, expected: &[i64]) -> Result<Tensor, StateError> {
        let name = format!("{kind}.{parameter}");
        let tensor = self.0.remove(&name).ok_or_else(|| StateError::Missing { name: name.clone() })?;
        let found = tensor.size();
        if found != expected {
            return Err(StateError::Shape { name, expected: expected.to_vec(), found });
        }
        Ok(tensor)
    }

    /// Calls `take(self, name, shape)` for each parameter that has a `KIND.PARAMETER`; what is left over then
    /// belongs to nobody.
    pub(crate) fn for_each<T>(
        mut self,
        params: &Parameters,
        kind: &str,
        mut take: impl FnMut(&mut Self, &str, &[i64]) -> Result<T, StateError>,
    ) -> Result<BTreeMap<String, T>, StateError> {
        let mut all = BTreeMap::new();
        for (name, tensor) in params.iter() {
            if self.has(kind, name) {
                all.insert(name.to_owned(), take(&mut self, name, &tensor.size())?);
            }
        }
        self.is_empty().map(|()| all)
    }

    /// Nothing is left over.
    pub(crate) fn is_empty(&self) -> Result<(), StateError> {
        match self.0.keys().next() {
            Some(name) => Err(StateError::Unknown { name: name.clone() }),
            None => Ok(()),
        }
    }
}
