//! Choice of the computation of attention for each group of bins. Masks are saved for short rows and bins only; all other
//! computations need memory that is linear in the tokens.

use tch::{Device, TchError, Tensor};

use crate::attention::heads::AttentionRange;
use crate::attention::masks::MaskConfig;

/// Sizes of masks and of temporary tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Positions of a row, its prefix included, up to which the row has a mask.
    pub(crate) masked_positions: usize,
    /// Numbers of a row's mask up to which the row has one.
    pub(crate) mask_numel: usize,
    /// Length of the prefix up to which it is part of the masks of bins.
    pub(crate) masked_prefix: usize,
    /// Numbers of the largest temporary tensor.
    pub(crate) temporary_numel: usize,
}

impl Limits {
    /// libtorch's kernel computes keys in blocks of 512 and skips blocks that are hidden: for shorter rows a mask is the
    /// fastest.
    pub(crate) const CPU: Self =
        Self { masked_positions: 512, mask_numel: 1 << 21, masked_prefix: 256, temporary_numel: 1 << 21 };

    /// Larger temporary tensors on other devices, where each operation has a cost of its own.
    pub(crate) fn on(device: Device) -> Self {
        match device {
            Device::Cpu => Self::CPU,
            _ => Self { temporary_numel: 1 << 24, ..Self::CPU },
        }
    }
}

/// Computation of the attention of one group of bins.
#[derive(Debug)]
pub(crate) enum Method {
    /// One call, in which each query attends to all keys.
    Unmasked,
    /// One call with this mask, `[bins or 1, heads or 1, queries * repeat, keys]`.
    Masked(Tensor),
    /// A call on the prefix without a mask, and one on the bins' own keys with this mask, `[bins, 1, queries * repeat, len]`.
    Split(Tensor),
    /// A call on the prefix without a mask, and a causal one on the row's own keys.
    Causal,
    /// One call for each block of queries, with masks that exist during the call only.
    Blocks,
}

/// Methods of blocks without a window, and of those with one if it hides something.
#[derive(Debug)]
pub(crate) struct Methods {
    full: Method,
    windowed: Option<Method>,
}

impl Methods {
    pub(crate) fn build(
        window: Option<usize>,
        build: impl Fn(Option<usize>) -> Result<Method, TchError>,
    ) -> Result<Self, TchError> {
        Ok(Self { full: build(None)?, windowed: window.map(|window| build(Some(window))).transpose()? })
    }

    pub(crate) fn get(&self, range: AttentionRange) -> &Method {
        match range {
            AttentionRange::Windowed => self.windowed.as_ref().unwrap_or(&self.full),
            AttentionRange::Full => &self.full,
        }
    }
}

/// [`Method`] before its mask is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MethodKind {
    Masked,
    Split,
    Causal,
    Blocks,
}

impl MaskConfig {
    /// Method for rows of `len` tokens behind `prefix_len` positions, each with a bin of its own, in blocks with this
    /// window.
    pub(crate) fn method_of_rows(&self, prefix_len: usize, len: usize, window: Option<usize>) -> MethodKind {
        let positions = prefix_len + len;
        match self.has_mask(positions) {
            true => MethodKind::Masked,
            false if self.is_plain(positions, window) => MethodKind::Causal,
            false => MethodKind::Blocks,
        }
    }

    /// Method for bins of several rows, with `len` tokens in each bin.
    pub(crate) fn method_of_bins(&self, prefix_len: usize, len: usize, window: Option<usize>) -> MethodKind {
        match self.has_kernel() && prefix_len <= self.limits.masked_prefix {
            true => MethodKind::Masked,
            false if self.is_plain(prefix_len + len, window) => MethodKind::Split,
            false => MethodKind::Blocks,
        }
    }

    /// True if a single row has a mask, given its positions, the prefix included.
    pub(crate) fn has_mask(&self, positions: usize) -> bool {
        let numel = self.masks_per_score() * positions * positions;
        self.has_kernel() && positions <= self.limits.masked_positions && numel <= self.limits.mask_numel
    }

    /// True if libtorch's kernel computes the scores. Plain operations hold them, so that they are computed in blocks.
    fn has_kernel(&self) -> bool {
        self.device == Device::Cpu && !self.is_capped
    }

    /// True if libtorch's kernel computes the scores and only later tokens and other rows are hidden.
    fn is_plain(&self, positions: usize, window: Option<usize>) -> bool {
        let hides_nothing = window.is_none_or(|window| window >= positions);
        self.has_kernel() && self.alibi.is_none() && hides_nothing
    }
}
