//! From a pipeline file to a checked [`Spec`] to a run.
//!
//! [`Layers`] puts the file, the environment and the command line over each other and reports everything that
//! is wrong with them at once; [`run`] fetches, tokenizes, trains, evaluates and leaves a run folder. This crate
//! knows the traits of plugins and never a concrete one, and it prints nothing: an [`Observer`] is told.
//!
//! Invariants: nothing is fetched, loaded or connected to before the whole pipeline is checked; a problem names
//! its key and where it was written; a run folder's files are whole, also after an error or an interruption.
//!
//! ```
//! use sepal_pipeline::{Layers, schema};
//! use sepal_plugin::Registry;
//!
//! let registry = Registry::new();
//! let problems = Layers::text("demo.yaml", "name: demo\nmodle: {}\n").load(&registry).expect_err("not a pipeline");
//! assert!(problems.to_string().contains("did you mean `model`"), "{problems}");
//! assert_eq!(schema(&registry)["type"], "object");
//! ```

mod adopt;
mod assemble;
mod blocks;
mod checks;
mod classifier;
mod connect;
mod data;
mod diagnose;
mod error;
mod evaluate;
mod finite;
mod layers;
mod load;
mod model;
mod model_files;
mod path;
pub mod plan;
mod portable;
mod positions;
mod precision;
mod problem;
mod progress;
mod records;
mod render;
mod run;
mod run_checkpoint;
mod schema;
pub mod spec;
mod step;
mod swarm;
mod train;
mod unfinished;

mod words;
mod yaml;

pub use adopt::adopted;
pub use classifier::{Classifier, Evaluation, Session};
pub use error::RunError;
pub use finite::NonFiniteOrigin;
pub use load::{Layers, Loaded, ReadError};
pub use model_files::ModelFiles;
pub use path::KeyPath;
pub use portable::portable;
pub use positions::Position;
pub use problem::{Origin, Problem, Problems};
pub use progress::{Event, Observer, Silent, Summary};
pub use render::{Comes, Rendered, Resolved};
pub use run::{fetch, resume, run};
pub use schema::schema;
pub use spec::{Spec, SwarmSpec};
pub use unfinished::{pipeline_of, unfinished_run};
