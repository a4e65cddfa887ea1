//! Tests of blocks against PyTorch and transformers, and of their invariants.

mod adapters;
mod calls;
mod cobatching;
mod compute;
mod configs;
mod embeddings;
mod families;
mod formats;
mod gguf;
mod goldens;
mod injected;
mod invariants;
mod model;
mod packed;
mod refusals;
mod tunables;
