//! Forward and backward passes through blocks.

pub(crate) mod batch;
pub(crate) mod block;
mod block_backward;
pub(crate) mod block_sequence;
pub(crate) mod call_memory;
pub(crate) mod cancel;
mod non_finite;
pub(crate) mod tape;
