//! Pipeline files: a file, the environment and the command line, merged, checked and turned into a [`Spec`].
//!
//! [`Layers`] merges the sources and reports every problem at once, each with its key and position. [`schema()`] is the JSON
//! schema that editors use, and [`Rendered`] shows the origin of each value. This crate reads the options of plugins from
//! a `sepal_catalog::Catalog`; it needs no libtorch, opens no model and trains nothing.
//!
//! Place in the crate graph: above `assets`, `catalog`, `data` and `swarm`; `train`, `pipeline` and `cli` use it.
//!
//! Invariants: a [`Spec`] has passed every check that needs neither a tensor nor a connection; a problem names its key and
//! the place where it was written; a written [`Spec`] reads as itself.
//!
//! ```
//! use sepal_catalog::Catalog;
//! use sepal_config::{Layers, schema};
//!
//! let catalog = Catalog::new();
//! let problems = Layers::text("demo.yaml", "name: demo\nmodle: {}\n").load(&catalog).expect_err("not a pipeline");
//! assert!(problems.to_string().contains("did you mean `model`"), "{problems}");
//! assert_eq!(schema(&catalog)["type"], "object");
//! ```

mod checks;
mod diagnose;
mod layers;
mod load;
mod path;
mod positions;
mod problem;
mod renamed;
mod render;
mod schema;
pub mod spec;
mod swarm;
mod sweep;
mod ticket;
mod validate;
mod words;
mod yaml;

pub use load::{Layers, Loaded, ReadError};
pub use path::KeyPath;
pub use positions::Position;
pub use problem::{Origin, Problem, Problems};
pub use render::{Rendered, Resolved, ValueOrigin};
pub use schema::schema;
pub use spec::{Spec, SwarmSpec};
pub use sweep::{Member, Setting, Sweep};
pub use ticket::TicketSpec;
