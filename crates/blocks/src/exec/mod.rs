//! Forward and backward passes through blocks.

pub(crate) mod batch;
pub(crate) mod block;
mod block_backward;
pub(crate) mod block_sequence;
mod non_finite;
pub(crate) mod tape;
