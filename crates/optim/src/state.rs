use std::collections::BTreeMap;

use sepal_core::{DType, NamedHostTensor};
use sepal_nn::{HostError, Parameters, from_host, to_host};
use tch::{TchError, Tensor};

/// Failed save or restore of the state of an optimizer, a schedule or a scaler.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum StateError {
    /// The tensor belongs to no parameter, or the state has no such tensor.
    #[error("restore the state of training: `{name}` is unknown")]
    Unknown { name: String },
    /// A required tensor is missing.
    #[error("restore the state of training: `{name}` is missing")]
    Missing { name: String },
    /// The tensor has another shape than required, for example by its parameter.
    #[error("restore the state of training: expected `{name}` of shape {expected:?}, found {found:?}")]
    Shape { name: String, expected: Vec<i64>, found: Vec<i64> },
    /// The numbers that encode the bits of one number are not 16-bit integers.
    #[error("restore the state of training: expected four whole numbers below 65536 as `{name}`")]
    Bits { name: String },
    /// The number of steps is none.
    #[error("restore the state of training: expected a number of steps as `{name}`, found {found}")]
    Count { name: String, found: f64 },
    /// The tensor cannot be copied.
    #[error("copy `{name}` of the state of training")]
    Host { name: String, source: HostError },
    /// libtorch failed.
    #[error("read `{name}` of the state of training")]
    Torch { name: String, source: TchError },
}

/// Greatest number of steps, to which as many can be added.
const MAX_COUNT: f64 = (1 << 30) as f64;

/// Converts one tensor of a parameter's state to be saved as `KIND.PARAMETER`.
pub(crate) fn save(kind: &str, parameter: &str, tensor: &Tensor) -> Result<NamedHostTensor, StateError> {
    let name = format!("{kind}.{parameter}");
    match to_host(tensor, DType::F32) {
        Ok(tensor) => Ok(NamedHostTensor { name, tensor }),
        Err(source) => Err(StateError::Host { name, source }),
    }
}

/// Converts 64 bits to be saved as `KIND.NAME [4]`: 16 bits at a time, which f32 represents exactly, the lowest first.
pub(crate) fn save_bits(kind: &str, name: &str, bits: u64) -> Result<NamedHostTensor, StateError> {
    let words = [0, 16, 32, 48].map(|shift| f32::from((bits >> shift) as u16));
    save(kind, name, &Tensor::from_slice(&words))
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

    /// Takes the number that was saved as `KIND.PARAMETER`.
    pub(crate) fn take_number(&mut self, kind: &str, parameter: &str) -> Result<f64, StateError> {
        let torch = |source| StateError::Torch { name: format!("{kind}.{parameter}"), source };
        f64::try_from(self.take(kind, parameter, &[])?).map_err(torch)
    }

    /// Takes the number of steps that was saved as `KIND.PARAMETER`, to which further ones can be added.
    pub(crate) fn take_count(&mut self, kind: &str, parameter: &str) -> Result<i32, StateError> {
        let found = self.take_number(kind, parameter)?;
        match found.fract() == 0.0 && (0.0..=MAX_COUNT).contains(&found) {
            true => Ok(found as i32),
            false => Err(StateError::Count { name: format!("{kind}.{parameter}"), found }),
        }
    }

    /// Takes the bits that [`save_bits`] saved as `KIND.NAME`.
    pub(crate) fn take_bits(&mut self, kind: &str, name: &str) -> Result<u64, StateError> {
        let tensor = self.take(kind, name, &[4])?;
        let name = format!("{kind}.{name}");
        let words = Vec::<f32>::try_from(tensor).map_err(|source| StateError::Torch { name: name.clone(), source })?;
        let is_u16 = |&word: &f32| word.fract() == 0.0 && (0.0..=65535.0).contains(&word);
        if !words.iter().all(is_u16) {
            return Err(StateError::Bits { name });
        }
        Ok(words.iter().rev().fold(0, |bits, &word| (bits << 16) | word as u64))
    }

    /// Calls `take(self, name, shape)` for each parameter with a `KIND.PARAMETER`; error if tensors remain.
    pub(crate) fn for_each<T>(
        mut self,
        params: &Parameters,
        kind: &str,
        mut take: impl FnMut(&mut Self, &str, &[i64]) -> Result<T, StateError>,
    ) -> Result<BTreeMap<String, T>, StateError> {
        let mut all = BTreeMap::new();
        for (name, tensor) in params.iter() {
            if self.0.contains_key(&format!("{kind}.{name}")) {
                all.insert(name.to_owned(), take(&mut self, name, &tensor.size())?);
            }
        }
        self.check_empty().map(|()| all)
    }

    /// Error if tensors remain.
    pub(crate) fn check_empty(&self) -> Result<(), StateError> {
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
        fn bits_round_trip(bits: u64) {
            let state = [save_bits("schedule", "best", bits).expect("saved")];
            let mut saved = Saved::new(&state).expect("read");
            prop_assert_eq!(saved.take_bits("schedule", "best").expect("taken"), bits);
            saved.check_empty().expect("no tensor remains");
        }
    }

    #[test]
    fn invalid_counts_are_errors() {
        let take = |number: f32| {
            let state = [save("step", "a", &Tensor::from(number)).expect("saved")];
            Saved::new(&state).expect("read").take_count("step", "a")
        };
        assert_eq!(take(7.0).expect("a count"), 7);
        for number in [-1.0, 0.5, 1e38, f32::NAN, f32::INFINITY] {
            assert!(matches!(take(number), Err(StateError::Count { .. })), "{number}");
        }
    }

    #[test]
    fn invalid_bits_are_error() {
        for words in [[0.5_f32, 0.0, 0.0, 0.0], [0.0, 65536.0, 0.0, 0.0], [0.0, 0.0, f32::NAN, 0.0]] {
            let state = [save("schedule", "best", &Tensor::from_slice(&words)).expect("saved")];
            let error = Saved::new(&state).expect("read").take_bits("schedule", "best");
            assert!(matches!(error, Err(StateError::Bits { .. })), "{words:?}");
        }
    }
}
