//! Traits that plugin authors implement, and the registry that finds plugins by name.
//!
//! A plugin fills a [`Slot`]: a task head ([`Head`]), a tuning mode ([`Tuning`]), an optimizer ([`Opt`]), a schedule
//! ([`Sched`]) or a tracker ([`Track`]). A [`Plugin`] has a name, a documented options struct and a function that builds it.
//!
//! This crate reads no pipeline file, moves no bytes and runs no training loop. The [`Registry`] knows no concrete plugin;
//! its [`Catalog`] of names and options needs no libtorch. Only [`standard`] names plugins: the optimizers and schedules of
//! `sepal-optim` and the trackers of `sepal-track`.
//!
//! Place in the crate graph: above `optim`, `nn`, `metrics`, `track`, `options` and `catalog`; plugins, `model`, `train` and
//! `pipeline` use it.
//!
//! Invariants: a name is registered once per slot; options with unknown keys are refused; the schema and the manual of a
//! plugin both come from the doc comments of its options.
//!
//! ```
//! use sepal_plugin::{Registry, Sched, SchedContext, standard};
//! use serde_json::json;
//!
//! let mut registry = Registry::new();
//! standard::register(&mut registry)?;
//! let mut cx = SchedContext { total_steps: 100 };
//! let schedule = registry.build::<Sched>("linear", json!({ "warmup_steps": 10 }), &mut cx)?;
//! assert_eq!(schedule.factor(5), 0.5);
//!
//! let error = registry.build::<Sched>("liner", json!({}), &mut cx).err().expect("there is no such schedule");
//! assert!(error.to_string().starts_with("find schedule `liner`; did you mean `linear`? (known: constant, cosine, "));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod combined;
mod head;
mod hidden_view;
mod measure;
mod prompts;
mod registry;
mod slot;
pub mod standard;
mod tuning;

pub use combined::CombinedTuning;
pub use head::{AnswerTokens, HeadError, Items, Logits, Phase, Prediction, TaskHead, class_tensor, label_tensor};
pub use hidden_view::HiddenView;
pub use prompts::{adapter_file, initial_prompts, saved_tensor};
pub use registry::{BuildError, Plugin, Registry};
pub use sepal_catalog::{
    Catalog, DuplicateError, Entry, OptionProblem, Options, PluginKind, RegisterError, ResolveError,
};
pub use sepal_core::{
    LabelKind, Labels, LinearSite, Ragged, SiteRole, Task, TokenBatch, TokenText, TrainedTensor, TunableName, Want,
};
pub use sepal_nn::{RowSource, RowsError, Tunable};
pub use sepal_options::{
    OptionError, PROMPTS, Pooling, PromptInit, Targets, Tokenize, WordError, label_words, word_token,
};
pub use slot::{
    Head, HeadContext, LmRows, Opt, OptContext, Sched, SchedContext, Slot, Track, TrackContext, Tuning, TuningContext,
};
pub use tuning::{TuningError, TuningMode};
