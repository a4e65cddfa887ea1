use std::f64::consts::TAU;

use sepal_autograd::fused::{self, Rotate};
use sepal_core::{ModelConfig, Rope, RopeScaling};
use tch::{Device, Kind, TchError, Tensor};

use crate::attention::heads::Heads;

/// Rotary embeddings of a model's blocks.
#[derive(Debug, Default)]
pub(crate) struct Rotaries {
    pub(crate) full: Option<Rotary>,
    /// Rotary embedding of blocks with a window, if it differs.
    pub(crate) windowed: Option<Rotary>,
}

impl Rotaries {
    pub(crate) fn new(config: &ModelConfig, device: Device) -> Result<Self, TchError> {
        let rotary = |rope: &Rope| Rotary::new(rope, device);
        let window = config.scores.window.as_ref();
        Ok(Self {
            full: config.rope.as_ref().map(rotary).transpose()?,
            windowed: window.and_then(|window| window.rope.as_ref()).map(rotary).transpose()?,
        })
    }
}

/// Rotary position embedding (arXiv 2104.09864) of the first `dim` numbers of a head.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// `[1, dim / 2]`
    frequencies: Tensor,
    /// Factor of both queries and keys.
    amplitude: f64,
}

impl Rotary {
    fn new(rope: &Rope, device: Device) -> Result<Self, TchError> {
        let (frequencies, amplitude) = frequencies(rope);
        let frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
        let frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(device)?;
        Ok(Self { frequencies: frequencies.f_unsqueeze(0)?, amplitude })
    }

    /// Returns the rotations of `positions [n]`.
    pub(crate) fn rotations(&self, positions: &Tensor) -> Result<Rotations, TchError> {
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&self.frequencies)?;
        let scaled = |x: Tensor| if self.amplitude == 1.0 { Ok(x) } else { x.f_mul_scalar(self.amplitude) };
        Ok(Rotations { cos: scaled(angles.f_cos()?)?, sin: scaled(angles.f_sin()?)? })
    }
}

/// Cosine and sine of the angle of each position and pair, `[n, dim / 2]`, times the amplitude.
#[derive(Debug)]
pub(crate) struct Rotations {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Rotations {
    /// Rotations of the positions with the indices `rows`.
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Self, TchError> {
        Ok(Self { cos: self.cos.f_index_select(0, rows)?, sin: self.sin.f_index_select(0, rows)? })
    }

    /// Rotates the heads of `x [n, heads * head_dim]`, of any kind, in place; rotations are computed in fp32.
    pub(crate) fn rotate(&self, x: &mut Tensor, heads: Heads, direction: Rotate) -> Result<(), TchError> {
        match heads.has_adjacent_pairs {
            false => fused::rotate(x, &self.cos, &self.sin, heads.dim, direction),
            true => self.rotate_adjacent(x, heads.dim, direction),
        }
    }

    /// As [`rotate`](Self::rotate), where the numbers `2 i` and `2 i + 1` of a head are a pair. Products of any kind with the
    /// fp32 of the rotations are fp32.
    fn rotate_adjacent(&self, x: &Tensor, head_dim: i64, direction: Rotate) -> Result<(), TchError> {
        let (n, width) = x.size2()?;
        let (n_heads, half) = (width / head_dim, self.cos.size()[1]);
        let rotated = x.f_view([n, n_heads, head_dim])?.f_narrow(2, 0, 2 * half)?;
        let pairs = rotated.f_view([n, n_heads, half, 2])?;
        let (mut first, mut second) = (pairs.f_select(3, 0)?, pairs.f_select(3, 1)?); // [n, heads, half]
        let (cos, sin) = (self.cos.f_unsqueeze(1)?, self.sin.f_unsqueeze(1)?);
        let sin = if direction == Rotate::Forward { sin } else { sin.f_neg()? };
        let rotated = first.f_mul(&cos)?.f_sub(&second.f_mul(&sin)?)?;
        second.f_copy_(&second.f_mul(&cos)?.f_add(&first.f_mul(&sin)?)?)?;
        first.f_copy_(&rotated)
    }
}

/// Returns the angle per position of each pair, and the amplitude.
fn frequencies(rope: &Rope) -> (Vec<f64>, f64) {
    let dim = rope.dim;
    let exponent = |i: usize| (2 * i) as f64 / dim as f64;
    let plain: Vec<f64> = (0..dim / 2).map(|i| rope.theta.powf(-exponent(i))).collect();
    match &rope.scaling {
        RopeScaling::Default => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|frequency| frequency / factor).collect(), 1.0),
        RopeScaling::Longrope { factors, attention_factor } => {
            (plain.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect(), *attention_factor)
        }
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let stretch = |frequency: f64| {
                let turns = original_max_positions as f64 * frequency / TAU;
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (keep + (1.0 - keep) / factor)
            };
            (plain.into_iter().map(stretch).collect(), 1.0)
        }
        &RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_positions,
            attention_factor,
            is_untruncated,
        } => {
            // The pair that makes `beta` full turns within the original length.
            let pair = |beta: f64| {
                let wavelength = original_max_positions as f64 / (beta * TAU);
                dim as f64 * wavelength.ln() / (2.0 * rope.theta.ln())
            };
            let (first, last) = (pair(beta_fast), pair(beta_slow));
            let (first, last) = if is_untruncated { (first, last) } else { (first.floor(), last.ceil()) };
            let (first, last) = (first.max(0.0), last.min((dim - 1) as f64));
            let width = if first == last { 0.001 } else { last - first };
            let stretch = |(i, frequency): (usize, f64)| {
                let interpolate = ((i as f64 - first) / width).clamp(0.0, 1.0);
                frequency * (1.0 - interpolate + interpolate / factor)
            };
            let derived = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            (plain.into_iter().enumerate().map(stretch).collect(), attention_factor.unwrap_or(derived))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const GOLDENS: &str = include_str!("../../../testkit/goldens/rope.json");

    fn scaling(golden: &Value) -> RopeScaling {
        let value = &golden["scaling"];
        let number = |key: &str| value[key].as_f64();
        let factor = number("factor").unwrap_or(1.0);
        let original_max_positions = value["original_max_position_embeddings"].as_u64().unwrap_or(0) as usize;
        match value["rope_type"].as_str() {
            // Within the maximum, dynamic scaling equals the default.
            Some("default" | "dynamic") => RopeScaling::Default,
            Some("longrope") => {
                let factors = value["short_factor"].as_array().expect("factors");
                RopeScaling::Longrope {
                    factors: factors.iter().map(|factor| factor.as_f64().expect("a factor")).collect(),
                    // Computed by the reader of the file; see the tests of sepal-checkpoint.
                    attention_factor: golden["attention_factor"].as_f64().expect("a factor"),
                }
            }
            Some("linear") => RopeScaling::Linear { factor },
            Some("llama3") => RopeScaling::Llama3 {
                factor,
                low_freq_factor: number("low_freq_factor").expect("a number"),
                high_freq_factor: number("high_freq_factor").expect("a number"),
                original_max_positions,
            },
            Some("yarn") => RopeScaling::Yarn {
                factor,
                beta_fast: number("beta_fast").unwrap_or(32.0),
                beta_slow: number("beta_slow").unwrap_or(1.0),
                original_max_positions,
                attention_factor: number("attention_factor"),
                is_untruncated: value["truncate"] == false,
            },
            other => panic!("a golden of rope type {other:?}"),
        }
    }

    #[test]
    fn frequencies_equal_transformers() {
        let goldens: Vec<Value> = serde_json::from_str(GOLDENS).expect("goldens");
        assert_eq!(goldens.len(), 10);
        for golden in goldens {
            let dim = golden["head_dim"].as_u64().expect("head_dim") as usize;
            let theta = golden["theta"].as_f64().expect("theta");
            let (found, amplitude) = frequencies(&Rope { theta, dim, scaling: scaling(&golden) });
            let expected = golden["inv_freq"].as_array().expect("frequencies");
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                let expected = expected.as_f64().expect("a frequency");
                assert!((found / expected - 1.0).abs() < 2e-6, "{}: {found} is not {expected}", golden["name"]);
            }
            assert!((amplitude - golden["attention_factor"].as_f64().expect("a factor")).abs() < 1e-6);
        }
    }

    #[test]
    fn adjacent_pairs_rotate_as_distant_ones_in_another_order() {
        let rope = Rope { theta: 100.0, dim: 4, scaling: RopeScaling::Default };
        let rotary = Rotary::new(&rope, Device::Cpu).expect("rotary");
        let rotations = rotary.rotations(&Tensor::from_slice(&[2_i64, 5, 7])).expect("rotations");
        // Two heads of six numbers, of which four rotate, in a matrix that has other columns.
        let x = Tensor::randn([3, 15], (Kind::Float, Device::Cpu));
        let order = Tensor::from_slice(&[0_i64, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
        for direction in [Rotate::Forward, Rotate::Backward] {
            let mut expected = x.narrow(1, 0, 12).index_select(1, &order);
            fused::rotate(&mut expected, &rotations.cos, &rotations.sin, 6, direction).expect("rotated");
            let found = x.copy();
            rotations.rotate_adjacent(&found.narrow(1, 0, 12), 6, direction).expect("rotated");
            let difference = found.narrow(1, 0, 12).index_select(1, &order) - expected;
            assert!(f64::try_from(difference.abs().max()).expect("a number") < 1e-6);
            assert_eq!(found.narrow(1, 12, 3), x.narrow(1, 12, 3));
        }
    }

    #[test]
    fn rotations_of_16_bits_round_the_result_in_fp32() {
        let rope = Rope { theta: 100.0, dim: 4, scaling: RopeScaling::Default };
        let rotary = Rotary::new(&rope, Device::Cpu).expect("rotary");
        let rotations = rotary.rotations(&Tensor::from_slice(&[2_i64, 5, 7])).expect("rotations");
        for kind in [Kind::BFloat16, Kind::Half] {
            let x = Tensor::randn([3, 15], (Kind::Float, Device::Cpu)).to_kind(kind);
            let wide = x.to_kind(Kind::Float);
            rotations.rotate_adjacent(&x.narrow(1, 0, 12), 6, Rotate::Forward).expect("rotated");
            rotations.rotate_adjacent(&wide.narrow(1, 0, 12), 6, Rotate::Forward).expect("rotated");
            assert_eq!((x.kind(), &x), (kind, &wide.to_kind(kind)));
        }
    }

    #[test]
    fn rotations_grow_with_the_position() {
        let rotary =
            Rotary::new(&Rope { theta: 100.0, dim: 4, scaling: RopeScaling::Default }, Device::Cpu).expect("rotary");
        let rotations = rotary.rotations(&Tensor::from_slice(&[0_i64, 3])).expect("rotations");
        for (position, angle) in [(0, 0.0_f64), (1, 3.0)] {
            for (pair, frequency) in [(0, 1.0), (1, 0.1)] {
                let value = |numbers: &Tensor| numbers.double_value(&[position, pair]);
                let (sin, cos) = (angle * frequency).sin_cos();
                assert!((value(&rotations.cos) - cos).abs() < 1e-6 && (value(&rotations.sin) - sin).abs() < 1e-6);
            }
        }
    }
}
