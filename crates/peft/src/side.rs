//! Our own state beside PEFT's files: what was trained, which keys and values do not tell any more.

use std::io;
use std::path::Path;

use sepal_track::Manifest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Says what the folder was made of.
pub(crate) const SIDE: &str = "sepal.json";
/// The adapter as it was trained.
pub(crate) const TRAINED: &str = "sepal_adapter.safetensors";

/// The version of [`Side`] that is written and read.
pub(crate) const VERSION: u32 = 1;

/// `sepal.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    pub(crate) version: u32,
    /// The program that wrote it.
    pub(crate) sepal: String,
    /// Of the model whose blocks folded the prompts.
    pub(crate) model_digest: String,
    /// SHA-256 of [`TRAINED`].
    pub(crate) trained: String,
    /// SHA-256 of PEFT's tensors; others would be of somebody else.
    pub(crate) exported: String,
    /// That of PEFT's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<String>,
    /// The largest difference of logits that was found when it was written, if it was looked for.
    pub(crate) verified: Option<f64>,
    /// The run, as far as it is of use elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<Run>,
}

/// What makes a trained adapter a classifier, beside the frozen model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `pipeline.yaml`.
    pub pipeline: String,
    /// `manifest.json`.
    pub manifest: Manifest,
}

impl Side {
    /// None if the folder has none.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(folder.join(SIDE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        }
    }
}

/// `sha256:` and the digest of a file.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(std::fs::read(path)?))))
}
