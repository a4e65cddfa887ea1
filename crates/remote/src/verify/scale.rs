//! Gradients of unusual size, which are always checked: one of them could end the run before a check by share finds its server.

use std::collections::HashMap;

use sepal_core::{HostTensor, Span};
use sepal_wire::codec::Grads;

use super::compare::tensors;

/// Factor over the largest confirmed gradients from which on gradients are unusual. Those of honest servers differ by less than
/// ten between micro-batches.
const UNUSUAL: f32 = 100.0;

/// Largest confirmed gradients by the blocks of the call, each relative to the gradient of the output.
#[derive(Debug, Default)]
pub(super) struct Scales(HashMap<Span, f32>);

impl Scales {
    /// Takes gradients that a check has confirmed into account.
    pub(super) fn confirm(&mut self, span: Span, grad_output: &HostTensor, grads: &Grads) {
        if let Some(scale) = scale(grad_output, grads) {
            let known = self.0.entry(span).or_insert(scale);
            *known = known.max(scale);
        }
    }

    /// True if gradients are much larger than those that were confirmed for the same blocks.
    pub(super) fn is_unusual(&self, span: Span, grad_output: &HostTensor, grads: &Grads) -> bool {
        let Some(known) = self.0.get(&span) else { return false };
        scale(grad_output, grads).is_some_and(|scale| scale > UNUSUAL * known)
    }
}

/// Returns the largest number of the gradients over that of the gradient of the output. `None` if the latter is zero.
fn scale(grad_output: &HostTensor, grads: &Grads) -> Option<f32> {
    let output = grad_output.max_abs();
    (output > 0.0).then(|| tensors(grads).map(HostTensor::max_abs).fold(0.0, f32::max) / output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(numbers: &[f32]) -> HostTensor {
        HostTensor::from_f32(vec![1, numbers.len()], numbers).expect("a tensor")
    }

    fn grads(largest: f32) -> Grads {
        Grads { input: Some(tensor(&[0.5, -largest])), tunables: Vec::new(), not_finite: None }
    }

    #[test]
    fn gradients_are_unusual_beyond_a_hundred_times_the_confirmed_ones() {
        let (span, output) = ("0:2".parse().expect("a span"), tensor(&[2.0, 1.0]));
        let mut scales = Scales::default();
        assert!(!scales.is_unusual(span, &output, &grads(1e30)), "nothing is known");
        scales.confirm(span, &output, &grads(4.0));
        assert!(!scales.is_unusual(span, &output, &grads(399.0)));
        assert!(scales.is_unusual(span, &output, &grads(401.0)));
        assert!(!scales.is_unusual(span, &tensor(&[20.0, 1.0]), &grads(3990.0)), "relative to the output's gradient");
        assert!(!scales.is_unusual("0:1".parse().expect("a span"), &output, &grads(1e30)), "other blocks");
        scales.confirm(span, &output, &grads(40.0));
        assert!(!scales.is_unusual(span, &output, &grads(3990.0)));
        assert!(!scales.is_unusual(span, &tensor(&[0.0]), &grads(1e30)), "nothing to compare with");
    }
}
