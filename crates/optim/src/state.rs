use std::collections::BTreeMap;

use sepal_core::{DType, NamedHostTensor};
use sepal_nn::{HostError, Parameters, from_host, to_host};
use tch::{TchError, Tensor};

/// The state of an optimizer, a schedule or a scaler that could not be saved or taken up again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The tensor belongs to no parameter, or no such tensor is kept.
    #[error("restore the state of training: nothing here keeps `{name}`")]
    Unknown {
        /// The tensor's name.
        name: String,
    },
    /// Of what belongs together, this is not there.
    #[error("restore the state of training: `{name}` is missing")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// The tensor has another shape than it must have, for example its parameter's.
    #[error("restore the state of training: expected `{name}` of shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that it must have.
        expected: Vec<i64>,
        /// The tensor's shape.
        found: Vec<i64>,
    },
    /// Numbers that stand for the bits of one number are not whole, or not of 16 bits.
    #[error("restore the state of training: expected four whole numbers below 65536 as `{name}`")]
    Bits {
        /// The tensor's name.
        name: String,
    },
    /// A tensor could not be copied.
    #[error("copy `{name}` of the state of training")]
    Host {
        /// The tensor's name.
        name: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// libtorch refused.
    #[error("read `{name}` of the state of training")]
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

/// 64 bits to be saved as `KIND.NAME [4]`: sixteen at a time, which f32 holds exactly, the lowest first.
pub(crate) fn save_bits(kind: &str, name: &str, bits: u64) -> Result<NamedHostTensor, StateError> {
    let words = [0, 16, 32, 48].map(|shift| f32::from((bits >> shift) as u16));
    save(kind, name, &Tensor::from_slice(&words))
}

/// Takes the count of steps that was saved as `KIND.PARAMETER`.
pub(crate) fn step_of(saved: &mut Saved, kind: &str, parameter: &str) -> Result<i32, StateError> {
    let torch = |source| StateError::Torch { name: format!("{kind}.{parameter}"), source };
    f64::try_from(saved.take(kind, parameter, &[])?).map(|step| step as i32).map_err(torch)
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

    /// Takes what [`save_bits`] saved as `KIND.NAME`.
    pub(crate) fn take_bits(&mut self, kind: &str, name: &str) -> Result<u64, StateError> {
        let tensor = self.take(kind, name, &[4])?;
        let name = format!("{kind}.{name}");
        let words = Vec::<f32>::try_from(tensor).map_err(|source| StateError::Torch { name: name.clone(), source })?;
        let whole = |&word: &f32| word.fract() == 0.0 && (0.0..=65535.0).contains(&word);
        if !words.iter().all(whole) {
            return Err(StateError::Bits { name });
        }
        Ok(words.iter().rev().fold(0, |bits, &word| (bits << 16) | word as u64))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_survive(bits: u64) {
            let state = [save_bits("schedule", "best", bits).expect("saved")];
            let mut saved = Saved::new(&state).expect("read");
            prop_assert_eq!(saved.take_bits("schedule", "best").expect("taken"), bits);
            saved.is_empty().expect("nothing is left");
        }
    }

    #[test]
    fn what_are_no_bits_is_refused() {
        for words in [[0.5_f32, 0.0, 0.0, 0.0], [0.0, 65536.0, 0.0, 0.0], [0.0, 0.0, f32::NAN, 0.0]] {
            let state = [save("schedule", "best", &Tensor::from_slice(&words)).expect("saved")];
            let error = Saved::new(&state).expect("read").take_bits("schedule", "best");
            assert!(matches!(error, Err(StateError::Bits { .. })), "{words:?}");
        }
    }
}
