//! Sepal's own files beside those of PEFT, with the trained prompts that keys and values do not contain.

use std::io;
use std::path::Path;

use sepal_track::Manifest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// File that describes the origin of the folder.
pub(crate) const RECORD: &str = "sepal.json";
pub(crate) const TRAINED: &str = "sepal_adapter.safetensors";

pub(crate) const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExportRecord {
    pub(crate) version: u32,
    pub(crate) sepal: String,
    pub(crate) model_digest: String,
    /// SHA-256 of [`TRAINED`].
    pub(crate) trained: String,
    /// SHA-256 of PEFT's tensors.
    pub(crate) exported: String,
    /// SHA-256 of PEFT's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<String>,
    pub(crate) verified: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<Run>,
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
    /// Returns `None` if the folder has no record.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(folder.join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        }
    }
}

pub(crate) fn digest(path: &Path) -> io::Result<String> {
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(std::fs::read(path)?))))
}
