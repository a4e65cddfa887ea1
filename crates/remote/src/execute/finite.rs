use sepal_core::{HostTensor, HostTunable};

use crate::command::MicroBatchGrads;

impl MicroBatchGrads {
    pub(super) fn are_finite(&self) -> bool {
        all_finite(self.input.as_ref(), &self.tunables)
    }
}

pub(super) fn all_finite<'a>(input: Option<&HostTensor>, tunables: impl IntoIterator<Item = &'a HostTunable>) -> bool {
    input.is_none_or(HostTensor::is_finite) && tunables.into_iter().all(|named| named.tensor.is_finite())
}
