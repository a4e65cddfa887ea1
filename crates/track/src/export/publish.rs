//! Checks of an export before it is published.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CARD, CONFIG, ExportRecord, RECORD, TENSORS, TRAINED, digest};
use crate::Calibration;

/// Key of PEFT's configuration that others need.
#[derive(Deserialize)]
struct BaseModel {
    base_model_name_or_path: Option<String>,
}

impl BaseModel {
    fn read(folder: &Path) -> io::Result<Self> {
        serde_json::from_slice(&sepal_machine::regular::read(&folder.join(CONFIG))?).map_err(io::Error::from)
    }
}

/// Export that can be published.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Publishable {
    /// Files to publish.
    pub files: Vec<PathBuf>,
    /// Notices for the user, one line each.
    pub notices: Vec<String>,
}

/// Error of a folder that should not be published.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum PublishError {
    /// The folder is no export.
    #[error("publish {}: it is not an exported folder ({missing} is missing)", folder.display())]
    Foreign { folder: PathBuf, missing: &'static str },
    /// The folder is a run.
    #[error("publish {}: it is a run; export it first", folder.display())]
    Run { folder: PathBuf },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file was changed after the export.
    #[error("publish {}: {file} does not match {RECORD}; export again", folder.display())]
    Changed { folder: PathBuf, file: &'static str },
    /// The frozen model is not public.
    #[error(
        "publish {}: {CONFIG} names the base model `{base_model}`, which is not on the hub; export again with the model's \
         name on the hub", folder.display()
    )]
    BaseModel { folder: PathBuf, base_model: String },
}

/// Returns the files of an export if others can use it: all files exist, tensors and configuration are unchanged, and the
/// base model has a name on the hub. The card may have been edited.
///
/// # Errors
/// [`PublishError`] if one of these conditions fails.
pub fn check_publishable(folder: &Path) -> Result<Publishable, PublishError> {
    if folder.join("adapter.safetensors").is_file() {
        return Err(PublishError::Run { folder: folder.to_owned() });
    }
    let mut names = vec![CARD, CONFIG, TENSORS, RECORD, TRAINED];
    names.extend(Some(Calibration::FILE).filter(|name| folder.join(name).is_file()));
    if let Some(missing) = names.iter().copied().find(|name| !folder.join(name).is_file()) {
        return Err(PublishError::Foreign { folder: folder.to_owned(), missing });
    }
    let failed = |name: &str| {
        let path = folder.join(name);
        move |source| PublishError::Io { path, source }
    };
    let record = ExportRecord::read(folder).map_err(failed(RECORD))?;
    let record = record.ok_or_else(|| PublishError::Foreign { folder: folder.to_owned(), missing: RECORD })?;
    let digests =
        [(TRAINED, Some(&record.trained)), (TENSORS, Some(&record.exported)), (CONFIG, record.config.as_ref())];
    for (file, expected) in digests {
        if Some(&digest(&folder.join(file)).map_err(failed(file))?) != expected {
            return Err(PublishError::Changed { folder: folder.to_owned(), file });
        }
    }
    let found = BaseModel::read(folder).map_err(failed(CONFIG))?;
    let base_model = found.base_model_name_or_path.unwrap_or_default();
    if !is_hub_name(&base_model) {
        return Err(PublishError::BaseModel { folder: folder.to_owned(), base_model });
    }
    let card = std::fs::read_to_string(folder.join(CARD)).map_err(failed(CARD))?;
    let mut notices = Vec::new();
    if !has_licence(&card) {
        notices.push(format!("{CARD} names no licence, so that others may not use it"));
    }
    let others = others(folder, &names).map_err(failed(""))?;
    if !others.is_empty() {
        notices.push(format!("left out, as not part of an export: {}", others.join(", ")));
    }
    Ok(Publishable { files: names.iter().map(|name| folder.join(name)).collect(), notices })
}

/// Returns true if a name has the form `OWNER/NAME`.
pub fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_usual = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(is_usual)
    };
    name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

fn has_licence(card: &str) -> bool {
    let matter = card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map_or("", |(matter, _)| matter);
    matter.lines().any(|line| line.strip_prefix("license:").is_some_and(|value| !value.trim().is_empty()))
}

fn others(folder: &Path, names: &[&str]) -> io::Result<Vec<String>> {
    let found = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    let found = found.collect::<io::Result<Vec<_>>>()?;
    let mut others: Vec<String> = found.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    others.retain(|name| !names.contains(&name.as_str()));
    others.sort();
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_not_paths() {
        for name in ["HuggingFaceTB/SmolLM2-135M", "a/b.c_d"] {
            assert!(is_hub_name(name), "{name}");
        }
        for name in ["", "gpt2", "/home/me/model", "./a", "../a", "a/b/c", "~/a", "a/", "C:\\a/b"] {
            assert!(!is_hub_name(name), "{name}");
        }
    }

    #[test]
    fn licence_is_read_from_the_front_matter() {
        assert!(has_licence("---\nbase_model: x\nlicense: apache-2.0\n---\n# A"));
        for card in
            ["# A\nlicense: mit", "---\n# license: mit\n---\n", "---\nlicense:\n---\n", "---\na: b\n---\nlicense: mit"]
        {
            assert!(!has_licence(card), "{card}");
        }
    }
}
