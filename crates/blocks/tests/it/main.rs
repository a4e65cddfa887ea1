//! The blocks against PyTorch and transformers, and against themselves.

mod checkpoint;
mod goldens;
mod invariants;
mod model;
mod refusals;
mod together;
