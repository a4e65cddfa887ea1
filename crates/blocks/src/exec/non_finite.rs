use tch::{Device, TchError, Tensor};

use crate::segment::Segment;

/// Smallest and largest numbers of each batch after each block: both are finite if all numbers are. They stay on the device
/// until the end of a call, because the host waits for each number that it reads.
#[derive(Debug)]
pub(crate) struct Extremes {
    n_batches: usize,
    /// Batch and block of each pair of numbers.
    places: Vec<(usize, usize)>,
    numbers: Vec<Tensor>,
}

impl Extremes {
    /// For a number of batches.
    pub(crate) fn new(n_batches: usize) -> Self {
        Self { n_batches, places: Vec::new(), numbers: Vec::new() }
    }

    /// Adds the numbers `[n, ..]` of a block, in which each batch has a segment.
    pub(crate) fn add(&mut self, numbers: &Tensor, segments: &[Segment], block_idx: usize) -> Result<(), TchError> {
        for (batch_idx, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.len > 0) {
            let (smallest, largest) = segment.narrow(numbers)?.f_aminmax(None::<i64>, false)?;
            self.places.push((batch_idx, block_idx));
            self.numbers.extend([smallest, largest]);
        }
        Ok(())
    }

    /// Returns for each batch the first of its blocks, in the order of their addition, that has non-finite numbers.
    pub(crate) fn first_non_finite(self) -> Result<Vec<Option<usize>>, TchError> {
        let mut first = vec![None; self.n_batches];
        if self.numbers.is_empty() {
            return Ok(first);
        }
        let numbers = Vec::<f32>::try_from(Tensor::f_stack(&self.numbers, 0)?.f_to_device(Device::Cpu)?)?;
        for ((batch_idx, block_idx), numbers) in self.places.into_iter().zip(numbers.chunks(2)) {
            if first[batch_idx].is_none() && numbers.iter().any(|number| !number.is_finite()) {
                first[batch_idx] = Some(block_idx);
            }
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn first_block_with_nan_or_infinity_is_found_for_each_batch() {
        let segments = Segment::consecutive([2, 0, 1, 3, 1].into_iter());
        let mut extremes = Extremes::new(segments.len());
        let numbers = Tensor::ones([7, 3], (Kind::Float, Device::Cpu));
        extremes.add(&numbers, &segments, 4).expect("added");
        let set = |row: i64, number: f32| {
            let _ = numbers.get(row).get(1).fill_(f64::from(number));
        };
        set(1, f32::NAN);
        set(2, f32::NEG_INFINITY);
        // Their sum is infinite in fp32, but no number is.
        let _ = numbers.narrow(0, 3, 3).fill_(f64::from(f32::MAX));
        extremes.add(&numbers, &segments, 5).expect("added");
        set(6, f32::INFINITY);
        extremes.add(&numbers, &segments, 6).expect("added");
        assert_eq!(extremes.first_non_finite().expect("blocks"), [Some(5), None, Some(5), None, Some(6)]);
        assert_eq!(Extremes::new(2).first_non_finite().expect("blocks"), [None, None]);
    }
}
