use tch::{Kind, TchError, Tensor};

use crate::segment::Segment;

/// Penalty on scores that grows with the distance of the key (arXiv 2108.12409).
#[derive(Debug, Clone)]
pub(crate) struct Alibi {
    /// Penalty per position of distance, for each head.
    slopes: Vec<f32>,
    /// Falcon's variant: slopes, positions and their products are rounded to bf16 and then scaled by this factor.
    rounded_scale: Option<f32>,
}

impl Alibi {
    /// If the number of heads is no power of two, the heads beyond the last power take every other slope of the next.
    pub(crate) fn new(n_heads: usize) -> Self {
        let power = if n_heads.is_power_of_two() { n_heads } else { n_heads.next_power_of_two() / 2 };
        let slope = |heads: usize, i: usize| (-8.0 / heads as f64 * i as f64).exp2() as f32;
        let first = (1..=power).map(|i| slope(power, i));
        let others = (0..n_heads - power).map(|i| slope(2 * power, 2 * i + 1));
        Self { slopes: first.chain(others).collect(), rounded_scale: None }
    }

    /// Falcon's variant.
    pub(crate) fn rounded(n_heads: usize, head_dim: usize) -> Self {
        let Self { slopes, .. } = Self::new(n_heads);
        let slopes = slopes.into_iter().map(to_bf16).collect();
        Self { slopes, rounded_scale: Some((head_dim as f32).sqrt().recip()) }
    }

    pub(crate) fn n_heads(&self) -> usize {
        self.slopes.len()
    }

    /// Addend to the score of a query on a key.
    pub(crate) fn bias(&self, head: usize, query: usize, key: usize) -> f32 {
        let slope = self.slopes[head];
        match self.rounded_scale {
            // Distances instead of positions: softmax is invariant to the difference, and large numbers lose digits.
            None => -slope * (query - key) as f32,
            Some(scale) => {
                let product = |position: usize| to_bf16(slope * to_bf16(position as f32));
                (product(key) - product(query)) * scale
            }
        }
    }

    /// Addends to the scores of queries at the positions `queries [bins, n, 1]` on keys at `keys [bins, 1, m]`, both fp32,
    /// for some heads: `[bins, heads, n, m]`, the numbers of [`bias`](Self::bias).
    pub(crate) fn biases(&self, heads: Segment, queries: &Tensor, keys: &Tensor) -> Result<Tensor, TchError> {
        let slopes = Tensor::f_from_slice(&self.slopes)?.f_to_device(queries.device())?;
        let slopes = heads.narrow(&slopes)?.f_view([1, heads.len, 1, 1])?;
        let (queries, keys) = (queries.f_unsqueeze(1)?, keys.f_unsqueeze(1)?);
        let Some(scale) = self.rounded_scale else { return keys.f_sub(&queries)?.f_mul(&slopes) };
        let products = |positions: &Tensor| round(&round(positions)?.f_mul(&slopes)?);
        products(&keys)?.f_sub(&products(&queries)?)?.f_mul_scalar_(f64::from(scale))
    }
}

/// Rounds each number as [`to_bf16`].
fn round(numbers: &Tensor) -> Result<Tensor, TchError> {
    numbers.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)
}

/// Rounds to the nearest bf16 number, ties to even.
fn to_bf16(number: f32) -> f32 {
    let bits = number.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_slopes_cover_head_counts_beyond_powers_of_two() {
        assert_eq!(Alibi::new(4).slopes, [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(Alibi::new(6).slopes, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(Alibi::new(1).slopes, [0.00390625]);
        assert_eq!(Alibi::new(3).slopes.len(), 3);
    }

    #[test]
    fn to_bf16_rounds_ties_to_even() {
        // 8 bits of fraction: 257 lies between 256 and 258, and goes to the even one.
        assert_eq!([1.0, 257.0, 259.0, -257.0].map(to_bf16), [1.0, 256.0, 260.0, -256.0]);
        assert_eq!(to_bf16(3.0), 3.0);
        // The position is rounded before the product: 257 becomes 256, and half of it is 128.
        let alibi = Alibi { slopes: vec![0.5], rounded_scale: Some(1.0) };
        assert_eq!(alibi.bias(0, 257, 0), -128.0);
    }

    #[test]
    fn biases_equal_single_biases() {
        let positions = Tensor::arange(600, (Kind::Float, tch::Device::Cpu));
        let (queries, keys) = (positions.view([1, -1, 1]), positions.view([1, 1, -1]));
        for alibi in [Alibi::new(6), Alibi::rounded(6, 48)] {
            let heads = Segment { start: 2, len: 3 };
            let found = alibi.biases(heads, &queries, &keys).expect("biases");
            assert_eq!(found.size(), [1, 3, 600, 600]);
            for (head, query, key) in [(0, 0, 0), (0, 599, 3), (1, 300, 299), (2, 257, 1), (2, 599, 0)] {
                let number = f64::try_from(found.get(0).get(head).get(query).get(key)).expect("a number");
                let expected = alibi.bias(2 + head as usize, query as usize, key as usize);
                assert_eq!(number, f64::from(expected), "head {head}, {query} on {key}");
            }
        }
    }
}
