//! The blocks against PyTorch and transformers, and against themselves.

mod formats;
mod gguf;
mod goldens;
mod invariants;
mod model;
mod refusals;
mod together;
