//! A pipeline before anything is computed: its model and data, found or fetched, its rows as batches, and its plan.
//!
//! [`fetch`] brings all that a run needs into the cache. [`ModelFiles`] opens a model of which only some parts are there, and
//! [`DataSource`] is the first data source that is available. [`prepare_rows`] makes batches, and [`plan::counted`] counts what a
//! run needs. An [`Observer`] receives the events of this and of a run.
//!
//! This crate knows pipeline files and checkpoints, and neither libtorch nor plugins. Place in the crate graph: above `config`,
//! `data`, `checkpoint` and `track`; `pipeline` and `front` stand on it.
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
pub mod plan;
mod rows;

pub use data_source::DataSource;
pub use error::{BoxError, DataError, ModelError, PrepareError, too_many_windows};
pub use events::{Event, Observer, Silent};
pub use fetch::{Fetcher, check_types, describe_attempts, fetch, fetch_model, fetch_parts, watched};
pub use model_files::{ModelFiles, fetch_part, open_asset};
pub use rows::{
    PreparedData, RawRows, TruncationStats, WithoutSplits, check_windows, prepare_rows, read_rows, read_split,
    token_ids, truncation_side,
};
