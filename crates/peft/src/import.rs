use std::path::{Path, PathBuf};

use sepal_checkpoint::Checkpoint;
use sepal_core::{DType, HostTensor, NamedHostTensor, WeightFormat};
use sepal_nn::{share_from_host, to_host};

use crate::adapter::{Adapter, AdapterError, Facts};
use crate::config::{CONFIG, Found, HEAD, PREFIX_TUNING, PROMPT_EMBEDDINGS, PROMPT_TUNING, SEQ_CLS, TENSORS};
use crate::folder::{FolderError, Staged, json};
use crate::side::{self, Run, SIDE, Side, TRAINED};

/// The file that an import leaves.
const ADAPTER: &str = "adapter.safetensors";

/// How a PEFT folder is imported.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The labels' names in the order of the logits, which PEFT does not keep; those of our own exports are known.
    pub labels: Option<Vec<String>>,
    /// What is written beside the adapter so that it can predict: that of [`exported_run`], once somebody has seen that it
    /// does nothing that it should not.
    pub run: Option<Run>,
    /// Puts the import in the place of an older one.
    pub overwrite: bool,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The adapter, as a run leaves it.
    pub adapter: PathBuf,
    /// Its tuning mode: `ptune` or `deep-ptune`.
    pub tuning: String,
    /// Soft prompts.
    pub prefix_len: usize,
    /// Labels, in the order of the logits.
    pub labels: Vec<String>,
    /// What the folder calls its base model.
    pub base_model: Option<String>,
    /// What people should know, one line each.
    pub notices: Vec<String>,
}

/// A folder that was not imported. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file of the folder cannot be read.
    #[error("read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// Its tensors cannot be read.
    #[error("read the folder's tensors")]
    Tensors(#[from] sepal_nn::file::ReadError),
    /// The tensors are in a pickle, which may run any program when it is read.
    #[error(
        "import {path}: its tensors are in a pickle (adapter_model.bin), which can run programs when it is read; load it \
         once with PEFT where you trust it, and save it with `save_pretrained(.., safe_serialization=True)`"
    )]
    Pickle {
        /// The folder.
        path: PathBuf,
    },
    /// A task other than SEQ_CLS.
    #[error("import an adapter for {found}: only SEQ_CLS is known here")]
    Task {
        /// Its `task_type`.
        found: String,
    },
    /// A method that trains something else than prompts.
    #[error("import {found}: only PROMPT_TUNING, and PREFIX_TUNING that was exported here, are known")]
    Method {
        /// Its `peft_type`.
        found: String,
    },
    /// Keys and values of somebody else.
    #[error(
        "import PREFIX_TUNING of others: it holds keys and values, which are in general of no prompts; only a folder that \
         was exported here says in {SIDE} what they were made of"
    )]
    ForeignPrefix,
    /// What is beside PEFT's files is not of this export.
    #[error("import the folder: {file} is not the one that {SIDE} tells of; one of them was changed")]
    Changed {
        /// The file.
        file: &'static str,
    },
    /// Written by another version.
    #[error("import the folder: its {SIDE} is of version {found}, and {} is known", side::VERSION)]
    Version {
        /// Its version.
        found: u32,
    },
    /// The folder is of another model.
    #[error("import the folder: it is of the model {expected}, and this one is {found}")]
    Model {
        /// The digest that it has.
        expected: String,
        /// That of the model that was given.
        found: String,
    },
    /// What is in it makes no adapter.
    #[error("make an adapter of the folder")]
    Adapter(#[from] AdapterError),
    /// Tensors cannot be widened.
    #[error("widen tensors")]
    Host(#[from] sepal_nn::HostError),
    /// The result cannot be written.
    #[error("write the adapter")]
    Folder(#[from] FolderError),
    /// A label that nobody can write.
    #[error("import the folder: its label {label:?} holds control characters; give other names (--labels)")]
    Label {
        /// The label.
        label: String,
    },
    /// The run's manifest has no JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
}

/// The run that the folder was exported from, as whoever exported it wrote it down: a stranger perhaps. `None` if the folder
/// does not say.
///
/// # Errors
/// [`ImportError`] if its side file cannot be read.
pub fn exported_run(folder: &Path) -> Result<Option<Run>, ImportError> {
    Ok(own(folder)?.and_then(|side| side.run))
}

/// Makes of the PEFT folder `folder` a folder `out` with an `adapter.safetensors` as a run leaves it. With `checkpoint` it
/// is checked that the adapter is of this model, as far as the folder tells.
///
/// # Errors
/// [`ImportError`], with nothing left behind.
pub fn import(
    options: &ImportOptions,
    checkpoint: Option<&Checkpoint>,
    folder: &Path,
    out: &Path,
) -> Result<Imported, ImportError> {
    let staged = Staged::new(out, ADAPTER, options.overwrite)?;
    let found = read_config(folder)?;
    let mut notices = Vec::new();
    let mut adapter = match (found.peft_type.as_deref().unwrap_or("no method"), own(folder)?) {
        (PREFIX_TUNING | PROMPT_TUNING, Some(side)) => trained(folder, &side)?,
        (PREFIX_TUNING, None) => return Err(ImportError::ForeignPrefix),
        (PROMPT_TUNING, None) => prompts(folder, &found)?,
        (other, _) => return Err(ImportError::Method { found: other.to_owned() }),
    };
    if let Some(labels) = &options.labels {
        adapter.facts.labels.clone_from(labels);
    } else if adapter.facts.labels.is_empty() {
        notices.push("PEFT does not keep the labels' names; they are LABEL_0 and so on, unless given".to_owned());
    }
    if let Some(checkpoint) = checkpoint {
        check_model(&mut adapter, checkpoint)?;
    }
    if adapter.facts.model_digest.is_empty() {
        notices.push("which model it is of is not known; give one to have that checked and written down".to_owned());
    }
    let adapter = adapter.checked()?;
    // They go to terminals and into tables.
    if let Some(label) = adapter.facts.labels.iter().find(|label| label.chars().any(char::is_control)) {
        return Err(ImportError::Label { label: label.clone() });
    }
    adapter.write(&staged.path().join(ADAPTER)).map_err(FolderError::from)?;
    if let Some(run) = &options.run {
        staged.write("pipeline.yaml", run.pipeline.as_bytes())?;
        staged.write("manifest.json", &json(&run.manifest)?)?;
    }
    staged.finish()?;
    Ok(Imported {
        adapter: out.join(ADAPTER),
        tuning: adapter.facts.tuning.clone(),
        prefix_len: adapter.prefix_len(),
        labels: adapter.facts.labels.clone(),
        base_model: found.base_model_name_or_path,
        notices,
    })
}

fn read_config(folder: &Path) -> Result<Found, ImportError> {
    let path = folder.join(CONFIG);
    let found = Found::read(folder).map_err(|source| ImportError::Io { path, source })?;
    if !folder.join(TENSORS).is_file() && folder.join("adapter_model.bin").is_file() {
        return Err(ImportError::Pickle { path: folder.to_owned() });
    }
    match found.task_type.as_deref() {
        Some(SEQ_CLS) => Ok(found),
        other => Err(ImportError::Task { found: other.unwrap_or("no task").to_owned() }),
    }
}

/// What our own export says of itself.
fn own(folder: &Path) -> Result<Option<Side>, ImportError> {
    match Side::read(folder) {
        Ok(Some(side)) if side.version != side::VERSION => Err(ImportError::Version { found: side.version }),
        Ok(side) => Ok(side),
        Err(source) => Err(ImportError::Io { path: folder.join(SIDE), source }),
    }
}

/// What our own export was made of, if nobody changed it.
fn trained(folder: &Path, side: &Side) -> Result<Adapter, ImportError> {
    for (file, expected) in [(TRAINED, &side.trained), (TENSORS, &side.exported)] {
        let path = folder.join(file);
        let digest = side::digest(&path).map_err(|source| ImportError::Io { path, source })?;
        if &digest != expected {
            return Err(ImportError::Changed { file });
        }
    }
    Ok(Adapter::read(&folder.join(TRAINED))?)
}

/// Prompts and head as PEFT wrote them.
fn prompts(folder: &Path, found: &Found) -> Result<Adapter, ImportError> {
    let (mut prompts, mut score) = (None, None);
    for NamedHostTensor { name, tensor } in sepal_nn::file::read(&folder.join(TENSORS))?.tensors {
        match name.as_str() {
            PROMPT_EMBEDDINGS => prompts = Some(widened(&tensor)?),
            HEAD => score = Some(widened(&tensor)?),
            _ if name.ends_with("bias") => return Err(AdapterError::Bias { name }.into()),
            _ => return Err(AdapterError::Unknown { name }.into()),
        }
    }
    let prompts = prompts.ok_or(AdapterError::Missing { name: PROMPT_EMBEDDINGS })?;
    let score = score.ok_or(AdapterError::Missing { name: HEAD })?;
    if let Some(expected) = found.num_virtual_tokens
        && prompts.shape().first() != Some(&expected)
    {
        let expected = format!("{expected} prompts, as {CONFIG} says");
        return Err(AdapterError::Shape { name: PROMPT_EMBEDDINGS, expected, found: prompts.shape().to_vec() }.into());
    }
    let facts = Facts { task: "sequence-classification".to_owned(), tuning: "ptune".to_owned(), ..Facts::default() };
    Ok(Adapter { prompts, deep_prompts: None, score, facts })
}

fn widened(tensor: &HostTensor) -> Result<HostTensor, sepal_nn::HostError> {
    to_host(&share_from_host(tensor)?, DType::F32)
}

/// An error if the adapter is of another model; one that does not say is then of this.
fn check_model(adapter: &mut Adapter, checkpoint: &Checkpoint) -> Result<(), ImportError> {
    adapter.check_model(checkpoint.config())?;
    let found = checkpoint.digest();
    let expected = &mut adapter.facts.model_digest;
    if expected.is_empty() {
        found.clone_into(expected);
    }
    if WeightFormat::ALL.iter().any(|format| &format.digest(found) == expected) {
        Ok(())
    } else {
        Err(ImportError::Model { expected: expected.clone(), found: found.to_owned() })
    }
}
