use std::f64::consts::TAU;

use sepal_core::{Rope, RopeScaling};
use tch::{Kind, TchError, Tensor};

/// Rotary position embedding (arXiv 2104.09864): the numbers `i` and `i + head_dim / 2` of a head turn together.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// `[1, head_dim / 2]`
    frequencies: Tensor,
    /// Both queries and keys are scaled by it.
    amplitude: f64,
}

impl Rotary {
    pub(crate) fn new(rope: &Rope, head_dim: usize) -> Result<Self, TchError> {
        let (frequencies, amplitude) = frequencies(rope, head_dim);
        let frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
        Ok(Self { frequencies: Tensor::f_from_slice(&frequencies)?.f_unsqueeze(0)?, amplitude })
    }

    /// The rotations of `positions [n]`.
    pub(crate) fn rotations(&self, positions: &Tensor) -> Result<Rotations, TchError> {
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&self.frequencies)?;
        let scaled = |turn: Tensor| if self.amplitude == 1.0 { Ok(turn) } else { turn.f_mul_scalar(self.amplitude) };
        Ok(Rotations { cos: scaled(angles.f_cos()?)?, sin: scaled(angles.f_sin()?)? })
    }
}

/// Cosine and sine of the angle of each position and pair, `[n, head_dim / 2]`, times the amplitude.
#[derive(Debug)]
pub(crate) struct Rotations {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// The angle per position of each pair, and the amplitude.
fn frequencies(rope: &Rope, head_dim: usize) -> (Vec<f64>, f64) {
    let exponent = |i: usize| (2 * i) as f64 / head_dim as f64;
    let plain: Vec<f64> = (0..head_dim / 2).map(|i| rope.theta.powf(-exponent(i))).collect();
    match rope.scaling {
        RopeScaling::Default => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|frequency| frequency / factor).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let stretch = |frequency: f64| {
                let turns = original_max_positions as f64 * frequency / TAU;
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (keep + (1.0 - keep) / factor)
            };
            (plain.into_iter().map(stretch).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor } => {
            // The pair that turns `beta` times within the original length.
            let pair = |beta: f64| {
                let turns = original_max_positions as f64 / (beta * TAU);
                head_dim as f64 * turns.ln() / (2.0 * rope.theta.ln())
            };
            let first = pair(beta_fast).floor().max(0.0);
            let last = pair(beta_slow).ceil().min((head_dim - 1) as f64);
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

    const GOLDENS: &str = include_str!("../../testkit/goldens/rope.json");

    fn scaling(value: &Value) -> RopeScaling {
        let number = |key: &str| value[key].as_f64();
        let factor = number("factor").unwrap_or(1.0);
        let original_max_positions = value["original_max_position_embeddings"].as_u64().unwrap_or(0) as usize;
        match value["rope_type"].as_str() {
            Some("default") => RopeScaling::Default,
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
            },
            other => panic!("a golden of rope type {other:?}"),
        }
    }

    #[test]
    fn frequencies_equal_those_of_transformers() {
        let goldens: Vec<Value> = serde_json::from_str(GOLDENS).expect("goldens");
        assert_eq!(goldens.len(), 5);
        for golden in goldens {
            let rope = Rope { theta: golden["theta"].as_f64().expect("theta"), scaling: scaling(&golden["scaling"]) };
            let (found, amplitude) = frequencies(&rope, golden["head_dim"].as_u64().expect("head_dim") as usize);
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
    fn angles_grow_with_the_position() {
        let rotary = Rotary::new(&Rope { theta: 100.0, scaling: RopeScaling::Default }, 4).expect("rotary");
        let rotations = rotary.rotations(&Tensor::from_slice(&[0_i64, 3])).expect("rotations");
        for (at, angle) in [(0, 0.0_f64), (1, 3.0)] {
            for (pair, frequency) in [(0, 1.0), (1, 0.1)] {
                let (cos, sin) = (rotations.cos.double_value(&[at, pair]), rotations.sin.double_value(&[at, pair]));
                assert!(
                    (cos - (angle * frequency).cos()).abs() < 1e-6 && (sin - (angle * frequency).sin()).abs() < 1e-6
                );
            }
        }
    }
}
