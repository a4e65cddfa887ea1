//! Trained adapters as folders that PEFT loads, and such folders as adapters.
//!
//! [`export`] writes soft prompts, shallow and deep, as PEFT's PREFIX_TUNING: the frozen blocks make keys and values of
//! them once. Under a causal mask these do not depend on the text behind them, so that nothing is lost. [`Import`] reads
//! what [`export`] wrote, and PROMPT_TUNING, P_TUNING and PREFIX_TUNING of anybody; [`share`] says whether an export can be given to others. This crate trains nothing, fetches nothing and runs no Python.
//!
//! Invariants: a folder is there whole or not at all, and one that is there is not written over unless asked to; what PEFT
//! would compute otherwise is refused with the reason; nothing of ours stands in PEFT's own files; a pickle is never read.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use sepal_checkpoint::Checkpoint;
//! use sepal_peft::{ExportOptions, Verify, export};
//!
//! let checkpoint = Checkpoint::open("models/SmolLM2-135M")?;
//! let options = ExportOptions {
//!     base_model: "HuggingFaceTB/SmolLM2-135M".to_owned(),
//!     verify: Verify::Samples,
//!     ..ExportOptions::default()
//! };
//! let adapter = Path::new("runs/demo/adapter.safetensors");
//! let exported = export(&options, &checkpoint, adapter, Path::new("demo-peft"))?;
//! assert!(exported.verified.is_some_and(|verified| verified.difference < 1e-3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod card;
mod compute;
mod config;
mod export;
mod family;
mod fold;
mod folder;
mod foreign;
mod import;
mod names;
mod share;
mod side;
#[cfg(test)]
mod tests;
mod verify;

pub use adapter::AdapterError;
pub use compute::ComputeError;
pub use export::{ExportError, ExportOptions, Exported, Form, Verify, export};
pub use folder::FolderError;
pub use import::{Import, ImportError, ImportOptions};
pub use share::{ShareError, Shared, share};
pub use side::Run;
pub use verify::Verified;
