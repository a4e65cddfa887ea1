//! Causal attention on ragged batches behind a shared prefix.

pub(crate) mod alibi;
mod batch_attention;
pub(crate) mod bins;
mod block_mask;
mod causal_rows;
pub(crate) mod grouped;
pub(crate) mod heads;
mod keys_values;
pub(crate) mod layout;
pub(crate) mod masks;
mod merge;
pub(crate) mod methods;
pub(crate) mod outputs;
pub(crate) mod packed_batch;
mod queries;
mod query_blocks;
pub(crate) mod sdpa;

#[cfg(test)]
mod tests;
