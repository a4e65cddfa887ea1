//! Causal attention on ragged batches behind a shared prefix.

pub(crate) mod alibi;
pub(crate) mod bins;
pub(crate) mod grouped;
pub(crate) mod heads;
pub(crate) mod layout;
pub(crate) mod masks;
pub(crate) mod outputs;
pub(crate) mod packed_batch;
pub(crate) mod sdpa;
