//! The blocks against PyTorch and transformers, and against themselves.

mod configs;
mod families;
mod formats;
mod gguf;
mod given;
mod goldens;
mod invariants;
mod model;
mod refusals;
mod together;
