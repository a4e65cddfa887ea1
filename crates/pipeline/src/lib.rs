//! Runs of a pipeline: a checked [`Spec`](sepal_config::Spec) to a trained adapter in a run folder.
//!
//! [`run`] fetches the model and the data, tokenizes, trains, evaluates and leaves a run folder; [`Classifier`] predicts with
//! its adapter. [`sweep()`] makes several runs of one pipeline, which share embedded servers, and [`FrozenBlocks`] serves loops
//! of other programs. This crate joins `sepal-prepare`, `sepal-config`, `sepal-model` and `sepal-train`. It knows the traits of
//! plugins and never a concrete plugin, and it prints nothing: an [`Observer`] receives events.
//!
//! Invariants: nothing is fetched, loaded or connected to before the pipeline has been checked; the files of a run folder are
//! complete, also after an error or an interruption.
//!
//! Place in the crate graph: above all crates but `cli`, which names the plugins and prints.
//!
//! ```
//! use std::path::Path;
//!
//! use sepal_plugin::Registry;
//!
//! let error = sepal_pipeline::pipeline_of(Path::new("no/run"), &Registry::new()).expect_err("no run folder");
//! assert!(error.to_string().starts_with("resume no/run: it is no folder of a run"), "{error}");
//! ```

mod adopt;
mod audit;
mod batches;
mod calibrate;
mod classifier;
mod connect;
mod data;
mod embedded;
mod error;
mod evidence;
mod finish;
mod formats;
mod frozen_blocks;
mod frozen_model;
mod initial_head;
mod labelled;
pub mod plan;
mod portable;
mod progress;
mod records;
mod resume;
mod run;
mod shared_base;
mod sweep;
#[cfg(test)]
mod testing;
mod trained_prompts;

pub use adopt::adopted;
pub use audit::{Audit, AuditOptions, AuditResult};
pub use classifier::{Classifier, Evaluation, Session};
pub use error::{
    AdapterError, AssembleError, AuditError, CalibrateError, ClassifierError, CountedRows, DataError, ModelError,
    RecordError, ResumeError, RowsError, RunError,
};
pub use frozen_blocks::FrozenBlocks;
pub use labelled::{LabelledSource, LabelledTable};
pub use portable::portable;
pub use progress::{Event, Observer, Silent, Summary};
pub use resume::{pipeline_of, unfinished_run};
pub use run::{resume, run};
pub use sepal_prepare::ModelFiles;
pub use shared_base::SharedBase;
pub use sweep::{
    SweepError, SweepEvent, SweepObserver, SweepSummary, resume_sweep, sweep, sweep_file, unfinished_sweep,
};
pub use trained_prompts::trained_prompts;
