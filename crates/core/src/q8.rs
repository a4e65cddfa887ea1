//! The layout of [`DType::Q8`](crate::DType::Q8): blocks of [`BLOCK`] numbers in row-major order, across rows; the last may
//! be shorter. A block consists of its scale, a binary32, and one signed byte for each number, the number divided by the
//! scale. The scale is a 127th of the block's largest absolute number, so that the error is at most half of it, a 254th of
//! the largest. (A block whose scale would be subnormal, below about 1e-38, is zero.) The scale of a block with a
//! non-finite number is NaN, and so are all its numbers.

/// Number of numbers in a block.
pub(crate) const BLOCK: usize = 64;
const SCALE: usize = size_of::<f32>();
/// The largest scale of which 127 times is finite.
const LARGEST_SCALE: f32 = f32::from_bits((f32::MAX / 127.0).to_bits() - 1);
/// Added to a small number, it leaves the nearest integer in the low bits of the sum, which rounds without a call.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Size of `numel` numbers in bytes; `None` on overflow.
pub(crate) fn n_bytes(numel: usize) -> Option<usize> {
    numel.div_ceil(BLOCK).checked_mul(SCALE)?.checked_add(numel)
}

/// Converts binary32 numbers, given as little-endian bytes, to q8.
pub(crate) fn encode(numbers: &[u8]) -> Vec<u8> {
    let numel = numbers.len() / size_of::<f32>();
    let mut data = Vec::with_capacity(n_bytes(numel).unwrap_or_default());
    let mut values = [0.0_f32; BLOCK];
    let mut bytes = [0_u8; BLOCK];
    for block in numbers.chunks(BLOCK * size_of::<f32>()) {
        // Without signs, the bits of floats are ordered as the floats are, with non-finite numbers last.
        let mut largest = 0_u32;
        let n = block.len() / size_of::<f32>();
        for (value, four) in values.iter_mut().zip(block.as_chunks().0) {
            *value = f32::from_le_bytes(*four);
            largest = largest.max(value.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        let scale = if largest.is_finite() { (largest / 127.0).min(LARGEST_SCALE) } else { f32::NAN };
        let (scale, inverse) = if scale < f32::MIN_POSITIVE { (0.0, 0.0) } else { (scale, 1.0 / scale) };
        for (byte, value) in bytes.iter_mut().zip(&values) {
            *byte = (value * inverse + ROUND).to_bits() as u8;
        }
        data.extend_from_slice(&scale.to_le_bytes());
        data.extend_from_slice(&bytes[..n]);
    }
    data
}

pub(crate) fn decode(data: &[u8]) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(data.len());
    let mut values = [0.0_f32; BLOCK];
    for (scale, bytes) in blocks(data) {
        for (value, &byte) in values.iter_mut().zip(bytes) {
            *value = scale * f32::from(byte as i8);
        }
        numbers.extend_from_slice(&values[..bytes.len()]);
    }
    numbers
}

pub(crate) fn is_finite(data: &[u8]) -> bool {
    blocks(data).all(|(scale, _)| scale.is_finite())
}

fn blocks(data: &[u8]) -> impl Iterator<Item = (f32, &[u8])> {
    data.chunks(SCALE + BLOCK).filter_map(|block| {
        let (scale, bytes) = block.split_first_chunk::<SCALE>()?;
        Some((f32::from_le_bytes(*scale), bytes))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn check(numbers: &[f32]) {
        let data = encode(&bytes(numbers));
        assert_eq!(Some(data.len()), n_bytes(numbers.len()));
        let back = decode(&data);
        assert_eq!(back.len(), numbers.len());
        assert!(is_finite(&data));
        for (numbers, back) in numbers.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let largest = numbers.iter().fold(0.0_f64, |largest, &number| largest.max(f64::from(number).abs()));
            // Slightly more than the bound, since binary32 rounds as well.
            let allowed = (largest / 254.0 * 1.0001).max(2e-36);
            for (&number, &back) in numbers.iter().zip(back) {
                let error = (f64::from(number) - f64::from(back)).abs();
                assert!(error <= allowed, "{number} became {back}, an error of more than {allowed}");
            }
        }
    }

    proptest! {
        #[test]
        fn encode_error_is_at_most_a_254th_of_the_largest_number(
            numbers in prop::collection::vec(-1000.0_f32..1000.0, 0..300),
            size in prop::sample::select(vec![1e-37_f32, 1e-30, 1e-6, 1.0, 1e30]),
        ) {
            check(&numbers.iter().map(|number| number * size).collect::<Vec<_>>());
        }

        #[test]
        fn encode_accepts_any_finite_number(
            bits in prop::collection::vec(any::<u32>(), 0..200),
        ) {
            check(&bits.into_iter().map(f32::from_bits).filter(|number| number.is_finite()).collect::<Vec<_>>());
        }

        #[test]
        fn block_with_a_non_finite_number_becomes_nan(
            n in 1_usize..300,
            index in any::<prop::sample::Index>(),
            value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        ) {
            let mut numbers = vec![1.0_f32; n];
            let index = index.index(n);
            numbers[index] = value;
            let data = encode(&bytes(&numbers));
            prop_assert!(!is_finite(&data));
            for (i, back) in decode(&data).into_iter().enumerate() {
                prop_assert_eq!(back.is_nan(), i / BLOCK == index / BLOCK);
            }
        }
    }

    #[test]
    fn encode_accepts_the_ends_of_the_range() {
        check(&[0.0; 65]);
        check(&[f32::MAX, f32::MIN, 1.0]);
        check(&[f32::MIN_POSITIVE, 1e-45, -1e-45]);
        assert_eq!(decode(&encode(&bytes(&[-127.0, 1.0, 127.0, 2.4, -0.6]))), [-127.0, 1.0, 127.0, 2.0, -1.0]);
        assert_eq!(n_bytes(usize::MAX), None);
    }
}
