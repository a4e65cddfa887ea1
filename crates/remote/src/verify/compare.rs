//! Comparison of the results of two servers.
//!
//! Servers round differently: sums have another order with another number of threads or other kernels, and numbers of 16 bits
//! are then rounded to neighbours. The tolerances lie between these differences, as `just bench-verify` measures them, and the
//! smallest lie that is worth it: a factor of 1.05 is a relative difference of 0.05.

use sepal_core::{DType, HostTensor, HostTunable};
use sepal_wire::codec::Grads;

/// Norm of a row, relative to the mean of all rows, below which the differences of the row count less.
const SMALL_ROW: f64 = 0.1;
/// Norm of a gradient, relative to the largest of the same call, below which it counts as rounding noise.
const NOISE: f64 = 1e-6;

/// Result of a call.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// Hidden states of a forward call.
    Hidden(HostTensor),
    /// Gradients of a backward call.
    Grads(Grads),
}

/// Largest differences between two results, over all tensors of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Difference {
    /// L2 norm of the difference of a tensor, relative to the tensor.
    pub tensor: f64,
    /// L2 norm of the difference of one row of a tensor, relative to the row.
    pub row: f64,
    /// Deviation of the factor between two tensors from 1. Rounding moves it much less than the other two.
    pub factor: f64,
}

/// Largest differences between honest servers that count as equal.
///
/// | products | wire | tensor | row | factor |
/// | --- | --- | --- | --- | --- |
/// | f32, weights as stored | f32 | 0.002 | 0.02 | 0.001 |
/// | f32, rounded weights | f32 | 0.01 | 0.03 | 0.005 |
/// | f32 | 16 bits or q8 | 0.02 | 0.05 | 0.01 |
/// | 16 bits | any | 0.04 | 0.15 | 0.02 |
///
/// `just bench-verify` prints the largest differences of honest servers over numbers of threads and kernels. Those of a tiny
/// model are at most 1.4e-6, 2.5e-6 and 4e-7 (first two lines of the table), 5.3e-4, 7.1e-3 and 5e-5 (16 bits or q8 on the wire)
/// and 0.020, 0.057 and 0.0052 (products in bf16).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Tolerance of [`Difference::tensor`].
    pub tensor: f64,
    /// Tolerance of [`Difference::row`].
    pub row: f64,
    /// Tolerance of [`Difference::factor`].
    pub factor: f64,
}

impl Tolerance {
    /// Returns the tolerance for a model whose digest names the formats of its weights and products, with hidden states in the
    /// format `wire`.
    pub fn new(digest: &str, wire: DType) -> Self {
        let mut formats = digest.split('+').skip(1);
        let has_16_bit_products = formats.clone().any(|format| format.starts_with("compute-"));
        let has_rounded_weights = formats.any(|format| !format.starts_with("compute-"));
        match (has_16_bit_products, wire, has_rounded_weights) {
            (true, _, _) => Self { tensor: 0.04, row: 0.15, factor: 0.02 },
            (false, DType::F16 | DType::Bf16 | DType::Q8, _) => Self { tensor: 0.02, row: 0.05, factor: 0.01 },
            (false, DType::F32, true) => Self { tensor: 0.01, row: 0.03, factor: 0.005 },
            (false, DType::F32, false) => Self { tensor: 0.002, row: 0.02, factor: 0.001 },
        }
    }
}

impl Output {
    pub(super) fn is_finite(&self) -> bool {
        match self {
            Self::Hidden(hidden) => hidden.is_finite(),
            Self::Grads(grads) => tensors(grads).all(HostTensor::is_finite),
        }
    }
}

impl Difference {
    /// Difference of tensors that cannot be compared.
    const INFINITE: Self = Self { tensor: f64::INFINITY, row: f64::INFINITY, factor: f64::INFINITY };

    /// True if two results with this difference count as equal.
    pub fn is_within(self, tolerance: Tolerance) -> bool {
        self.tensor <= tolerance.tensor && self.row <= tolerance.row && self.factor <= tolerance.factor
    }

    /// Returns the difference of `found` from `expected`. Rows are vectors along the last dimension. `floor` is a norm below
    /// which numbers are rounding noise.
    pub fn of_tensors(found: &HostTensor, expected: &HostTensor, floor: f64) -> Self {
        if found.shape() != expected.shape() {
            return Self::INFINITE;
        }
        let row_len = expected.shape().last().copied().unwrap_or(1).max(1);
        let (found, expected) = (found.to_f32(), expected.to_f32());
        let rows: Vec<Sums> = found
            .chunks(row_len)
            .zip(expected.chunks(row_len))
            .map(|(found, expected)| Sums::new(found, expected))
            .collect();
        let total = rows.iter().fold(Sums::default(), |total, row| total.plus(row));
        let mean_row = (total.expected / rows.len().max(1) as f64).sqrt();
        let row_floor = (SMALL_ROW * mean_row).max(floor);
        Self {
            tensor: ratio(total.difference.sqrt(), total.expected.sqrt().max(floor)),
            row: rows
                .iter()
                .map(|row| ratio(row.difference.sqrt(), row.expected.sqrt().max(row_floor)))
                .fold(0.0, f64::max),
            // The projection of the one on the other; that of noise is the same as nothing.
            factor: if total.expected.sqrt() > floor { (total.product / total.expected - 1.0).abs() } else { 0.0 },
        }
    }

    fn max(self, other: Self) -> Self {
        let (tensor, row) = (self.tensor.max(other.tensor), self.row.max(other.row));
        Self { tensor, row, factor: self.factor.max(other.factor) }
    }

    /// Returns the difference of two results. The first `skipped` rows of hidden states are left out. `None` if neither is
    /// finite, which is an error of its own.
    pub(super) fn of_outputs(found: &Output, expected: &Output, skipped: usize) -> Option<Self> {
        match (found.is_finite(), expected.is_finite()) {
            (false, false) => return None,
            (true, true) => {}
            (false, true) | (true, false) => return Some(Self::INFINITE),
        }
        Some(match (found, expected) {
            (Output::Hidden(found), Output::Hidden(expected)) => {
                let compared = |tensor: &HostTensor| {
                    let end = tensor.shape().first().copied().unwrap_or(0);
                    tensor.rows(skipped..end).unwrap_or_else(|| tensor.clone())
                };
                Self::of_tensors(&compared(found), &compared(expected), 0.0)
            }
            (Output::Grads(found), Output::Grads(expected)) => Self::of_grads(found, expected),
            _ => Self::INFINITE,
        })
    }

    fn of_grads(found: &Grads, expected: &Grads) -> Self {
        let floor = NOISE * tensors(expected).map(norm).fold(0.0, f64::max);
        let input = match (&found.input, &expected.input) {
            (None, None) => Self::default(),
            (Some(found), Some(expected)) => Self::of_tensors(found, expected, floor),
            _ => Self::INFINITE,
        };
        if found.tunables.len() != expected.tunables.len() {
            return Self::INFINITE;
        }
        let tunable = |expected: &HostTunable| {
            let same = found.tunables.iter().find(|found| found.name == expected.name);
            same.map_or(Self::INFINITE, |found| Self::of_tensors(&found.tensor, &expected.tensor, floor))
        };
        expected.tunables.iter().map(tunable).fold(input, Self::max)
    }
}

/// Sums of squares and products of two rows.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    difference: f64,
    expected: f64,
    product: f64,
}

impl Sums {
    fn new(found: &[f32], expected: &[f32]) -> Self {
        let mut sums = Self::default();
        for (&found, &expected) in found.iter().zip(expected) {
            let (found, expected) = (f64::from(found), f64::from(expected));
            sums.difference += (found - expected) * (found - expected);
            sums.expected += expected * expected;
            sums.product += found * expected;
        }
        sums
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            difference: self.difference + other.difference,
            expected: self.expected + other.expected,
            product: self.product + other.product,
        }
    }
}

pub(super) fn tensors(grads: &Grads) -> impl Iterator<Item = &HostTensor> {
    grads.input.iter().chain(grads.tunables.iter().map(|named| &named.tensor))
}

fn norm(tensor: &HostTensor) -> f64 {
    tensor.to_f32().iter().map(|&number| f64::from(number) * f64::from(number)).sum::<f64>().sqrt()
}

/// Returns `difference / norm`; zero if both are.
fn ratio(difference: f64, norm: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / norm }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 2] = [12, 64];

    fn numbers(seed: u32) -> Vec<f32> {
        (0..12 * 64_u32).map(|i| ((i * 37 + seed * 101) as f32).sin() + 0.3 * ((i * 11 + seed) as f32).cos()).collect()
    }

    fn tensor(values: &[f32]) -> HostTensor {
        HostTensor::from_f32(SHAPE.to_vec(), values).expect("fits")
    }

    fn grads(values: &[f32], scale: f32) -> Output {
        let scaled: Vec<f32> = values.iter().map(|value| value * scale).collect();
        let tunable = HostTunable { name: "deep_prompts".into(), first_block: 0, tensor: tensor(&scaled) };
        Output::Grads(Grads { input: Some(tensor(values)), tunables: vec![tunable], not_finite: None })
    }

    fn difference(lie: impl Fn(usize, f32) -> f32) -> Difference {
        let honest = numbers(1);
        let found: Vec<f32> = honest.iter().enumerate().map(|(i, &value)| lie(i, value)).collect();
        Difference::of_tensors(&tensor(&found), &tensor(&honest), 0.0)
    }

    fn tolerances() -> Vec<Tolerance> {
        ["d", "d+int8", "d+nf4+compute-bf16"]
            .iter()
            .flat_map(|digest| DType::ALL.map(|wire| Tolerance::new(digest, wire)))
            .collect()
    }

    #[test]
    fn every_kind_of_lie_exceeds_every_tolerance() {
        let (noise, other) = (numbers(7), numbers(9));
        let lies: [&dyn Fn(usize, f32) -> f32; 8] = [
            &|_, value| -value,
            &|i, value| value + 0.3 * noise[i],
            &|_, value| 1.05 * value,
            &|_, _| 0.0,
            &|_, value| 1e6 * value,
            &|i, _| other[i],
            // One row of twelve.
            &|i, value| if i / 64 == 5 { -value } else { value },
            &|i, value| if i / 64 == 5 { 1.3 * value } else { value },
        ];
        for (number, lie) in lies.iter().enumerate() {
            let difference = difference(lie);
            for tolerance in tolerances() {
                assert!(!difference.is_within(tolerance), "lie {number}: {difference:?} within {tolerance:?}");
            }
        }
    }

    #[test]
    fn rounding_to_the_wire_is_within_its_tolerance() {
        let honest = numbers(1);
        let shifted: Vec<f32> =
            honest.iter().enumerate().map(|(i, value)| value * (1.0 + 2e-6 * (i as f32).sin())).collect();
        for dtype in [DType::F32, DType::Q8] {
            let convert = |values: &[f32]| if dtype == DType::Q8 { tensor(values).to_q8() } else { tensor(values) };
            let difference = Difference::of_tensors(&convert(&shifted), &convert(&honest), 0.0);
            assert!(difference.is_within(Tolerance::new("d", dtype)), "{difference:?} in {dtype}");
        }
    }

    #[test]
    fn gradients_are_compared_by_name_and_noise_is_left_out() {
        let (honest, other) = (numbers(1), numbers(2));
        let tolerance = Tolerance::new("d", DType::F32);
        let is_equal = |found: &Output, expected: &Output| {
            Difference::of_outputs(found, expected, 0).is_some_and(|difference| difference.is_within(tolerance))
        };
        assert!(is_equal(&grads(&honest, 1.0), &grads(&honest, 1.0)));
        assert!(!is_equal(&grads(&honest, 1.05), &grads(&honest, 1.0)));
        assert!(!is_equal(&grads(&other, 1.0), &grads(&honest, 1.0)));
        // A gradient that is zero but for rounding.
        assert!(is_equal(&grads(&honest, 1e-10), &grads(&honest, -1e-10)));
        let Output::Grads(without) = grads(&honest, 1.0) else { panic!("gradients") };
        let without = Output::Grads(Grads { tunables: Vec::new(), ..without });
        assert!(!is_equal(&without, &grads(&honest, 1.0)) && !is_equal(&grads(&honest, 1.0), &without));
    }

    #[test]
    fn other_shapes_and_non_finite_numbers_differ() {
        let (flat, honest) = (HostTensor::from_f32(vec![768], &numbers(1)).expect("fits"), tensor(&numbers(1)));
        assert_eq!(Difference::of_tensors(&flat, &honest, 0.0), Difference::INFINITE);
        let mut broken = numbers(1);
        broken[3] = f32::NAN;
        let (broken, honest) = (Output::Hidden(tensor(&broken)), Output::Hidden(honest));
        assert_eq!(Difference::of_outputs(&broken, &honest, 0), Some(Difference::INFINITE));
        assert_eq!(Difference::of_outputs(&broken, &broken, 0), None);
    }

    #[test]
    fn skipped_rows_are_not_compared() {
        let honest = numbers(1);
        let mut found = honest.clone();
        found[..128].fill(9.0);
        let outputs = [Output::Hidden(tensor(&found)), Output::Hidden(tensor(&honest))];
        let difference = |skipped| Difference::of_outputs(&outputs[0], &outputs[1], skipped).expect("finite");
        assert_eq!(difference(2), Difference::default());
        assert!(difference(1).row > 0.5);
    }
}
