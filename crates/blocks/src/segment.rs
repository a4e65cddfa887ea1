use tch::{TchError, Tensor};

/// Consecutive rows of a matrix that belong to one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: i64,
    pub(crate) len: i64,
}

impl Segment {
    /// Segments of these lengths, one after another.
    pub(crate) fn consecutive(lengths: impl Iterator<Item = i64>) -> Vec<Self> {
        let mut start = 0;
        let segment = |len| {
            let segment = Self { start, len };
            start += len;
            segment
        };
        lengths.map(segment).collect()
    }

    /// Segments of `size` numbers, and a shorter last one, that cover `0..total`.
    pub(crate) fn cover(total: i64, size: i64) -> impl Iterator<Item = Self> {
        let size = size.max(1);
        (0..(total + size - 1) / size).map(move |i| Self { start: i * size, len: size.min(total - i * size) })
    }

    /// Segment of a matrix with `factor` rows for each row of this one.
    pub(crate) fn scaled(self, factor: i64) -> Self {
        Self { start: self.start * factor, len: self.len * factor }
    }

    /// Segment of the same length that starts at 0.
    pub(crate) fn at_zero(self) -> Self {
        Self { start: 0, len: self.len }
    }

    /// The rows of the segment, a view of `matrix`.
    pub(crate) fn narrow(self, matrix: &Tensor) -> Result<Tensor, TchError> {
        self.narrow_dim(matrix, 0)
    }

    /// The segment of the dimension `dim`, a view of `tensor`.
    pub(crate) fn narrow_dim(self, tensor: &Tensor, dim: i64) -> Result<Tensor, TchError> {
        tensor.f_narrow(dim, self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cover_ends_with_a_shorter_segment() {
        let segments = |total, size| {
            Segment::cover(total, size).map(|segment| (segment.start, segment.len)).collect::<Vec<(i64, i64)>>()
        };
        assert_eq!(segments(7, 3), [(0, 3), (3, 3), (6, 1)]);
        assert_eq!(segments(6, 3), [(0, 3), (3, 3)]);
        assert_eq!(segments(2, 5), [(0, 2)]);
        assert!(segments(0, 5).is_empty());
    }
}
