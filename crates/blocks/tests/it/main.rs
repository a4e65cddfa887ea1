//! Tests of blocks against PyTorch and transformers, and of their invariants.

mod adapters;
mod cobatching;
mod configs;
mod families;
mod formats;
mod gguf;
mod goldens;
mod injected;
mod invariants;
mod model;
mod refusals;
mod tunables;
