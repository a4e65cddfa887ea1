//! Export of trained adapters as folders that PEFT loads, and import of such folders.
//!
//! [`export`] writes soft prompts, shallow and deep, as PREFIX_TUNING: the frozen blocks compute their keys and values
//! once. Under a causal mask these do not depend on the following text, so that the conversion is exact. [`Import`] reads
//! exports of this crate, and PROMPT_TUNING, P_TUNING and PREFIX_TUNING of PEFT. [`check_publishable`] checks an export
//! before it is published. The crate stands above `blocks`, `checkpoint` and `track`. It does not train, download or run
//! Python.
//!
//! Invariants: a folder is written completely or not at all, and an existing one is replaced only on request. A model
//! that PEFT computes differently is refused with the reason. PEFT's own files contain nothing of Sepal. A pickle is never
//! read.
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
mod export_options;
mod export_record;
mod family;
mod fold;
mod folder;
mod foreign;
mod import;
mod import_error;
mod label_names;
mod publish;
#[cfg(test)]
mod tests;
mod verify;

pub use adapter::AdapterError;
pub use compute::ComputeError;
pub use export::{ExportError, Exported, export};
pub use export_options::{ExportOptions, Form, Verify};
pub use export_record::Run;
pub use folder::FolderError;
pub use import::{Import, ImportOptions};
pub use import_error::ImportError;
pub use publish::{PublishError, Publishable, check_publishable, is_hub_name};
pub use verify::Verified;
