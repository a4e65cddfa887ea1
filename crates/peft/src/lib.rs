//! Export of trained adapters as folders that PEFT loads, import of such folders, and merges into the frozen model.
//!
//! An adapter is a list of named tensors and a linear head. [`export`] writes soft prompts, shallow and deep, as
//! PREFIX_TUNING: the frozen blocks compute their keys and values once. Under a causal mask these do not depend on the
//! following text, so that the conversion is exact. Low-rank additions become LORA, factors of layers IA3. [`Import`] reads
//! exports of this crate, and PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA and IA3 of PEFT. [`merge`] writes a checkpoint
//! for transformers with LORA or IA3 in its weights. The names and the record of an exported folder are in
//! [`sepal_track::export`]. The crate stands above `blocks`, `checkpoint` and `track`. It does not train, download or run
//! Python, and it knows no encoders of prompts: their output comes with [`ExportOptions::prompts`].
//!
//! Invariants: a folder is written completely or not at all, and an existing one is replaced only on request. A model
//! that PEFT computes differently is refused with the reason. PEFT's own files contain nothing of Sepal. A pickle is never
//! read. A merge has one tensor of the model in memory.
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
mod block_inputs;
mod card;
mod compute;
mod config;
mod export;
mod export_options;
mod export_texts;
mod family;
mod fold;
mod folder;
mod foreign;
mod import;
mod import_error;
mod imported_modes;
mod label_names;
mod lora_config;
mod lora_scaling;
mod merge;
mod model_match;
mod site_names;
mod site_tensors;
#[cfg(test)]
mod tests;
mod used_plugin;
mod verify;

pub use adapter::AdapterError;
pub use compute::ComputeError;
pub use export::{ExportError, Exported, export, has_encoder};
pub use export_options::{ExportOptions, Form, Verify};
pub use folder::FolderError;
pub use import::{Import, ImportOptions};
pub use import_error::ImportError;
pub use lora_scaling::LoraOptionsError;
pub use merge::{MergeError, MergeOptions, Merged, merge};
pub use model_match::ModelMismatch;
pub use sepal_track::export::Run;
pub use used_plugin::{HeadMismatch, UsedPlugin};
pub use verify::Verified;
