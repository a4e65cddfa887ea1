//! Frozen layers that treat each position on its own.

pub(crate) mod dense;
pub(crate) mod experts;
pub(crate) mod linear;
pub(crate) mod matrix;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod origin;
pub(crate) mod packed;
pub(crate) mod rope;
