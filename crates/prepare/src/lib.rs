//! Files of a pipeline before anything is computed: model and data, found or fetched.
//!
//! [`fetch`] brings all that a run needs into the cache. [`ModelFiles`] opens a model of which only some parts are there, and
//! [`DataSource`] is the first data source that is available. An [`Observer`] receives the events of this and of a run.
//!
//! This crate knows pipeline files and checkpoints, and neither libtorch nor plugins. Place in the crate graph: above `config`,
//! `checkpoint` and `track`; `pipeline` and `front` stand on it.
//!
//! Invariants: fetched data is kept after an error, and the next call continues from there; no weights are fetched for a model
//! with an unsupported configuration.
//!
//! ```
//! use sepal_prepare::describe_attempts;
//!
//! assert!(describe_attempts(&[]).is_empty());
//! ```

mod data_source;
mod error;
mod events;
mod fetch;
mod model_files;

pub use data_source::DataSource;
pub use error::{BoxError, DataError, ModelError, PrepareError};
pub use events::{Event, Observer, Silent};
pub use fetch::{Fetcher, describe_attempts, fetch, fetch_model, fetch_parts, watched};
pub use model_files::{ModelFiles, fetch_part, open_asset};
