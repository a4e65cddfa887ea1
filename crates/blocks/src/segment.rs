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
        matrix.f_narrow(0, self.start, self.len)
    }
}
