//! What tests of other crates share: the contract that every plugin keeps, and goldens made by PyTorch, and a hub on
//! loopback.
//!
//! This crate is for tests only and is not published; nothing of it is part of a binary.
//!
//! Invariants: a check panics with a sentence that says what the plugin must do; a golden lies beside the
//! script that made it.
//!
//! ```
//! use sepal_plugin::Opt;
//!
//! sepal_testkit::contract::check_options::<Opt, sepal_optim::AdamW>();
//! ```

pub mod contract;
pub mod hub;
pub mod tiny;
