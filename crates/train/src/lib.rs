//! The training loop: optimizer steps, evaluations and checkpoints of a [`Model`](sepal_model::Model).
//!
//! A [`Trainer`] needs a model, an optimizer, a schedule and loaders of rows, and no pipeline file. It writes its
//! [`TrainState`] to [`Checkpoints`] and resumes from them; [`evaluate`] predicts labelled rows. This crate reads no model
//! and no data, connects to no server and writes no run folder but the checkpoints in it.
//!
//! Invariants: a resumed run makes the same steps as an uninterrupted one; a checkpoint is complete or absent; a skipped step
//! moves neither the parameters nor the schedule.
//!
//! Place in the crate graph: above `model`, `optim`, `data` and `config` (whose option types it takes); below `pipeline`.
//! `examples/serve_and_train.rs` has a whole loop.
//!
//! ```
//! use sepal_config::spec::EvaluateSpec;
//! use sepal_track::BestEvaluation;
//! use sepal_train::ModelSelector;
//!
//! let selector = ModelSelector::new(&EvaluateSpec::default(), None);
//! let best = |step, value| BestEvaluation { step, metric: "accuracy".to_owned(), value };
//! assert!(selector.is_better(&best(20, 0.9), Some(&best(10, 0.8)), 0.0));
//! assert!(!selector.is_better(&best(30, f64::NAN), Some(&best(20, 0.9)), 0.0));
//! ```

mod checkpoint;
mod cursor;
mod error;
mod evaluate;
mod loss_scaling;
mod observer;
mod progress;
mod state;
mod step;
mod trainer;

pub use checkpoint::{Checkpoints, NO_CHECKPOINT, RunIdentity, has_checkpoint, row_digests, tokenizer_digest};
pub use cursor::BatchCursor;
pub use error::{CheckpointError, EvaluateError, MetricError, MetricUsage, MissingLabelsError, TrainError};
pub use evaluate::{Evaluation, ModelSelector, SelectedEvaluation, Split, evaluate, goal_of, headline, metric_names};
pub use loss_scaling::LossScaling;
pub use observer::{Event, Observer, Recorder, Silent};
pub use progress::{Progress, ended_by_time};
pub use state::TrainState;
pub use step::{StepMeasurement, measure_step};
pub use trainer::{Outcome, Pause, Trainer, TrainerContext, TrainerInputs, TrainerOptions};
