//! Fixtures of the integration tests in `tests/` and of the benches: the real program in a temporary folder, tiny
//! models with reference outputs of PyTorch, a proxy that disturbs a link, hostile clients, and a server that lies.
//!
//! This crate is not published and no other crate of the product depends on it.

#![expect(missing_docs, missing_debug_implementations, reason = "only tests and benches use these items")]

pub mod fixture;
pub mod golden;
pub mod hostile;
pub mod liar;
pub mod proxy;
