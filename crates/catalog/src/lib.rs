//! Catalog of plugins: the name, options and JSON schema of each, without the plugins themselves.
//!
//! A pipeline file can be checked against a [`Catalog`] without libtorch. `sepal_plugin::Registry` holds one, and adds
//! the functions that build plugins.
//!
//! Place in the crate graph: on the ground floor; `config` and `plugin` stand on it. It builds nothing and reads no file.
//!
//! Invariants: a name is listed once per [`PluginKind`]; the schema and the summary of a plugin come from the doc
//! comments of its options.
//!
//! ```
//! use schemars::JsonSchema;
//! use sepal_catalog::{Catalog, Entry, PluginKind};
//! use serde::{Deserialize, Serialize};
//! use serde_json::json;
//!
//! /// Gradient descent with a fixed learning rate.
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Options {
//!     /// Learning rate.
//!     lr: f64,
//! }
//!
//! let mut catalog = Catalog::new();
//! let entry = Entry::new("plain-sgd", &Options { lr: 0.1 }, |_: &Options| Vec::new())?;
//! catalog.insert(PluginKind::Optimizer, entry)?;
//! assert!(catalog.resolve(PluginKind::Optimizer, "plain-sgd", json!({ "lr": 0.5 })).is_ok());
//! assert!(catalog.resolve(PluginKind::Optimizer, "plain-sgd", json!({ "rate": 0.5 })).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod catalog;
mod entry;
mod options;

pub use catalog::{Catalog, DuplicateError, PluginKind, RegisterError, ResolveError};
pub use entry::{Entry, OptionProblem, parse, schema_of};
pub use options::Options;
