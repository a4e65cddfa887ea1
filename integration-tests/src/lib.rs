//! Fixtures of the integration tests in `tests/` and of the benches: the real program in a temporary folder, tiny
//! models with reference outputs of PyTorch, and a proxy that disturbs a link.
//!
//! This crate is not published and no other crate of the product depends on it.

#![expect(missing_docs, missing_debug_implementations, reason = "only tests and benches use these items")]

pub mod fixture;
pub mod golden;
pub mod proxy;
