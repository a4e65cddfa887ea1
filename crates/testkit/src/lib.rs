//! Test support for other crates: contract tests of plugins, tiny models with goldens of PyTorch, and a hub on
//! loopback.
//!
//! This crate is used only by tests and benches, and is not published. It depends on `plugin`, `optim`, `nn` and
//! `core`.
//!
//! Invariants: a check panics with a sentence that states the duty of the plugin; a golden lies beside the script that
//! made it.
//!
//! ```
//! use sepal_plugin::Opt;
//!
//! sepal_testkit::contract::check_options::<Opt, sepal_optim::AdamW>();
//! ```

pub mod contract;
pub mod hub;
pub mod tiny;
