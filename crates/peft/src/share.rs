//! Whether an export can be given to others as it is.

use std::io;
use std::path::{Path, PathBuf};

use crate::card::CARD;
use crate::config::{CONFIG, Found, TENSORS};
use crate::side::{self, SIDE, Side, TRAINED};

/// An export that can be given on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shared {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// What people should know, one line each.
    pub notices: Vec<String>,
}

/// A folder that should not be given on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// It was not exported here.
    #[error("share {}: it is no folder that `sepal export peft` wrote ({missing} is missing)", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// What such a folder has.
        missing: &'static str,
    },
    /// It is a run.
    #[error("share {0}: it is a run; `sepal export peft {0} DIR` makes of it what others can use", folder.display())]
    Run {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A file is not what was exported.
    #[error("share {}: {SIDE} tells of another {file}; export again", folder.display())]
    Changed {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// Others cannot load the frozen model.
    #[error(
        "share {}: {CONFIG} names `{base_model}` as its base model, which others do not have; export again with \
         --base-model OWNER/NAME, the model's name on the hub", folder.display()
    )]
    BaseModel {
        /// The folder.
        folder: PathBuf,
        /// What is named.
        base_model: String,
    },
}

/// The files of an export, if others can use it: all are there, tensors and settings are those that were exported, and the
/// base model is one that others find. The card may have been edited.
///
/// # Errors
/// [`ShareError`] with what to do.
pub fn share(folder: &Path) -> Result<Shared, ShareError> {
    if folder.join("adapter.safetensors").is_file() {
        return Err(ShareError::Run { folder: folder.to_owned() });
    }
    let names = [CARD, CONFIG, TENSORS, SIDE, TRAINED];
    if let Some(missing) = names.into_iter().find(|name| !folder.join(name).is_file()) {
        return Err(ShareError::Foreign { folder: folder.to_owned(), missing });
    }
    let failed = |name: &str| {
        let path = folder.join(name);
        move |source| ShareError::Io { path, source }
    };
    let side = Side::read(folder).map_err(failed(SIDE))?;
    let side = side.ok_or_else(|| ShareError::Foreign { folder: folder.to_owned(), missing: SIDE })?;
    let digests = [(TRAINED, Some(&side.trained)), (TENSORS, Some(&side.exported)), (CONFIG, side.config.as_ref())];
    for (file, expected) in digests {
        if Some(&side::digest(&folder.join(file)).map_err(failed(file))?) != expected {
            return Err(ShareError::Changed { folder: folder.to_owned(), file });
        }
    }
    let found = Found::read(folder).map_err(failed(CONFIG))?;
    let base_model = found.base_model_name_or_path.unwrap_or_default();
    if !is_of_hub(&base_model) {
        return Err(ShareError::BaseModel { folder: folder.to_owned(), base_model });
    }
    let card = std::fs::read_to_string(folder.join(CARD)).map_err(failed(CARD))?;
    let mut notices = Vec::new();
    if !has_licence(&card) {
        notices.push(format!("{CARD} names no licence, so that nobody knows what they may do with it"));
    }
    let others = others(folder, &names).map_err(failed(""))?;
    if !others.is_empty() {
        notices.push(format!("left out, as no part of an export: {}", others.join(", ")));
    }
    Ok(Shared { files: names.map(|name| folder.join(name)).to_vec(), notices })
}

/// Whether it looks like `OWNER/NAME`.
pub(crate) fn is_of_hub(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_usual = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(is_usual)
    };
    name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Whether the front matter of the card has a line for it.
fn has_licence(card: &str) -> bool {
    let matter = card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map_or("", |(matter, _)| matter);
    matter.lines().any(|line| line.strip_prefix("license:").is_some_and(|value| !value.trim().is_empty()))
}

/// The names of what else is in the folder, sorted.
fn others(folder: &Path, names: &[&str]) -> io::Result<Vec<String>> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !names.contains(&name.as_str()) {
            others.push(name);
        }
    }
    others.sort();
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_not_paths() {
        for name in ["HuggingFaceTB/SmolLM2-135M", "a/b.c_d"] {
            assert!(is_of_hub(name), "{name}");
        }
        for name in ["", "gpt2", "/home/me/model", "./a", "../a", "a/b/c", "~/a", "a/", "C:\\a/b"] {
            assert!(!is_of_hub(name), "{name}");
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
