use std::path::{Path, PathBuf};

use sepal_checkpoint::Checkpoint;
use sepal_core::WeightFormat;

use crate::adapter::{Adapter, AdapterError};
use crate::config::{CONFIG, Found, PREFIX_TUNING, PROMPT_TUNING, SEQ_CLS, TENSORS};
use crate::family;
use crate::folder::{FolderError, Staged, json};
use crate::foreign;
use crate::names::{Names, names};
use crate::share::is_of_hub;
use crate::side::{self, Run, SIDE, Side, TRAINED};

/// The file that an import leaves.
const ADAPTER: &str = "adapter.safetensors";

/// How a PEFT folder is imported.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The labels' names in the order of the logits, which PEFT does not keep; those of our own exports are known.
    pub labels: Option<Vec<String>>,
    /// The folder of the model, whose `config.json` may name labels, if it has one.
    pub model_folder: Option<PathBuf>,
    /// Puts the import in the place of an older one.
    pub overwrite: bool,
}

/// A PEFT folder as an adapter, beside its place until it is [finished](Self::finish). Dropping it leaves nothing behind.
pub struct Import {
    staged: Staged,
    out: PathBuf,
    adapter: Adapter,
    run: Option<Run>,
    is_foreign: bool,
    multi_label: bool,
    notices: Vec<String>,
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
    #[error("import an adapter for {found}: only SEQ_CLS is supported")]
    Task {
        /// Its `task_type`.
        found: String,
    },
    /// A method that trains something else than a prefix.
    #[error(
        "import {found}: only PROMPT_TUNING, P_TUNING and PREFIX_TUNING can be imported, since the model's own weights stay as \
         they are here; for LORA and the like, merge it into the model with PEFT (`merge_and_unload`) and tune that model"
    )]
    Method {
        /// Its `peft_type`.
        found: String,
    },
    /// A folder of another program does not hold its model.
    #[error("import the folder: name its base model{}", named_model(base_model.as_deref()))]
    NeedsModel {
        /// Name of the base model in the folder.
        base_model: Option<String>,
    },
    /// Query heads that share keys and values have different ones in the prefix.
    #[error(
        "import PREFIX_TUNING of {family}: {copies} query heads share keys and values in this model, but have different ones in \
         the prefix, which transformers caches for each of them; only a prefix that gives them the same can be imported"
    )]
    SplitHeads {
        /// The model's family.
        family: &'static str,
        /// Query heads that share.
        copies: usize,
    },
    /// The folder has no settings of PEFT.
    #[error("import {path}: it has no {CONFIG}, so it is no folder of PEFT{}", of_several(adapters))]
    NoConfig {
        /// The folder.
        path: PathBuf,
        /// Folders in it that have some.
        adapters: Vec<String>,
    },
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
    /// libtorch refused.
    #[error("lay out the prefix")]
    Torch(#[from] tch::TchError),
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

impl Import {
    /// Reads the PEFT folder `folder`, for a folder `out` with an `adapter.safetensors` as a run leaves it. With
    /// `checkpoint`, which only exports of this program do without, it is checked that the adapter is of this model, as far
    /// as the folder tells.
    ///
    /// # Errors
    /// [`ImportError`], with nothing left behind.
    pub fn open(
        options: &ImportOptions,
        checkpoint: Option<&Checkpoint>,
        folder: &Path,
        out: &Path,
    ) -> Result<Self, ImportError> {
        let staged = Staged::new(out, ADAPTER, options.overwrite)?;
        let found = read_config(folder)?;
        let method = found.peft_type.as_deref().unwrap_or("no method");
        let (mut adapter, run, is_foreign) =
            match own(folder)?.filter(|_| [PREFIX_TUNING, PROMPT_TUNING].contains(&method)) {
                Some(side) => (trained(folder, &side)?, side.run, false),
                None => (foreign::adapter(folder, &found, checkpoint)?, None, true),
            };
        let mut notices = Vec::new();
        if let Some(reason) = checkpoint.filter(|_| is_foreign).and_then(|model| family::refused(model.config())) {
            notices.push(format!("predictions differ from those of PEFT: {reason}"));
        }
        let multi_label = name_labels(options, &mut adapter, folder, &mut notices);
        // Shapes of a stranger may be any.
        let mut adapter = adapter.checked()?;
        if let Some(checkpoint) = checkpoint {
            check_model(&mut adapter, checkpoint)?;
        }
        if adapter.facts.model_digest.is_empty() {
            notices
                .push("which model it is of is not known; give one to have that checked and written down".to_owned());
        }
        // They go to terminals and into tables.
        if let Some(label) = adapter.facts.labels.iter().find(|label| label.chars().any(char::is_control)) {
            return Err(ImportError::Label { label: label.clone() });
        }
        adapter.write(&staged.path().join(ADAPTER)).map_err(FolderError::from)?;
        Ok(Self { staged, out: out.to_owned(), adapter, run, is_foreign, multi_label, notices })
    }

    /// The adapter, where it lies for now.
    pub fn adapter(&self) -> PathBuf {
        self.staged.path().join(ADAPTER)
    }

    /// The run that the folder was exported from, as whoever exported it wrote it down: a stranger perhaps.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// Returns true if another program wrote the folder.
    pub fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// The task, by the name of its head.
    pub fn task(&self) -> &str {
        &self.adapter.facts.task
    }

    /// The tuning mode: `ptune`, `deep-ptune` or `prefix-tuning`.
    pub fn tuning(&self) -> &str {
        &self.adapter.facts.tuning
    }

    /// Positions in front of every row.
    pub fn prefix_len(&self) -> usize {
        self.adapter.prefix_len()
    }

    /// Labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.adapter.facts.labels
    }

    /// Returns true if the folder or the model says that a text may have any number of the labels.
    pub fn multi_label(&self) -> bool {
        self.multi_label
    }

    /// Notices for the user, one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Puts the folder in its place, with `run` beside the adapter so that it can predict; the adapter's path there.
    ///
    /// # Errors
    /// [`ImportError`], with nothing left behind.
    pub fn finish(self, run: Option<&Run>) -> Result<PathBuf, ImportError> {
        if let Some(run) = run {
            self.staged.write("pipeline.yaml", run.pipeline.as_bytes())?;
            self.staged.write("manifest.json", &json(&run.manifest)?)?;
            // No step and no evaluation was recorded.
            self.staged.write("metrics.jsonl", b"")?;
        }
        self.staged.finish()?;
        Ok(self.out.join(ADAPTER))
    }
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import").field("out", &self.out).field("facts", &self.adapter.facts).finish_non_exhaustive()
    }
}

/// Gives the labels the names that were asked for, or those that the adapter has, or those of a `config.json` beside it or
/// beside the model; `true` if one of these says that any number of the labels may be right for a text.
fn name_labels(options: &ImportOptions, adapter: &mut Adapter, folder: &Path, notices: &mut Vec<String>) -> bool {
    let n_labels = adapter.score.shape().first().copied().unwrap_or(0);
    let folders = [Some(folder), options.model_folder.as_deref()].into_iter().flatten();
    let mut found: Vec<Names> = folders.map(|folder| names(folder, n_labels)).collect();
    let labels = &mut adapter.facts.labels;
    if let Some(given) = &options.labels {
        labels.clone_from(given);
    } else if labels.is_empty() {
        let named = found.iter_mut().find_map(|names| names.labels.take());
        let from = if named.is_some() { "taken from config.json" } else { "LABEL_0 and so on" };
        notices.push(format!("PEFT does not keep the labels' names; they are {from} (--labels gives others)"));
        *labels = named.unwrap_or_default();
    }
    found.iter().any(|names| names.multi_label)
}

fn read_config(folder: &Path) -> Result<Found, ImportError> {
    let path = folder.join(CONFIG);
    let found = Found::read(folder).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            ImportError::NoConfig { path: folder.to_owned(), adapters: adapters_in(folder) }
        }
        _ => ImportError::Io { path, source },
    })?;
    if !folder.join(TENSORS).is_file() && folder.join("adapter_model.bin").is_file() {
        return Err(ImportError::Pickle { path: folder.to_owned() });
    }
    match found.task_type.as_deref() {
        Some(SEQ_CLS) => Ok(found),
        other => Err(ImportError::Task { found: other.unwrap_or("no task").to_owned() }),
    }
}

/// Folders in `folder` that PEFT wrote: it saves each of several adapters into one of its own.
fn adapters_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let adapters = entries.filter(|entry| entry.path().join(CONFIG).is_file());
    let mut names: Vec<String> = adapters.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The option that names the model, as far as the folder knows.
fn named_model(base_model: Option<&str>) -> String {
    match base_model {
        Some(name) if is_of_hub(name) => format!(" (--model hub:{name})"),
        Some(name) => format!(" (--model SOURCE); it calls it {name:?}"),
        None => " (--model SOURCE)".to_owned(),
    }
}

fn of_several(adapters: &[String]) -> String {
    match adapters {
        [] => String::new(),
        names => format!("; adapters are in its folders {}: name one of them", names.join(", ")),
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
