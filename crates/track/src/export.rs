//! Folders that runs are exported to: their files, the record of their origin, and the check before they are published.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Manifest;

mod publish;

pub use self::publish::{PublishError, Publishable, check_publishable, is_hub_name};

/// File that describes the origin of the folder.
pub const RECORD: &str = "sepal.json";
/// Trained tensors of the run, with the prompts that keys and values do not contain.
pub const TRAINED: &str = "sepal_adapter.safetensors";
/// Configuration for PEFT.
pub const CONFIG: &str = "adapter_config.json";
/// Tensors for PEFT.
pub const TENSORS: &str = "adapter_model.safetensors";
/// Model card.
pub const CARD: &str = "README.md";

/// Version of [`ExportRecord`].
pub const VERSION: u32 = 1;

/// Content of [`RECORD`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Version of Sepal.
    pub sepal: String,
    /// Digest of the frozen model.
    pub model_digest: String,
    /// SHA-256 of [`TRAINED`].
    pub trained: String,
    /// SHA-256 of PEFT's tensors.
    pub exported: String,
    /// SHA-256 of PEFT's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Largest difference to the run in a check of the exported tensors.
    pub verified: Option<f64>,
    /// Run that was exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

/// Pipeline and manifest, which make a trained adapter a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `pipeline.yaml`.
    pub pipeline: String,
    /// `manifest.json`.
    pub manifest: Manifest,
}

impl ExportRecord {
    /// Returns the record of a folder; `None` if it has none.
    ///
    /// # Errors
    /// [`io::Error`] if it cannot be read.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        match sepal_machine::regular::read(&folder.join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        }
    }
}

/// Returns the digest of a file in the form of the record.
///
/// # Errors
/// [`io::Error`] if it cannot be read.
pub fn digest(path: &Path) -> io::Result<String> {
    let digest = Sha256::digest(sepal_machine::regular::read(path)?);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{digits}"))
}
