//! Adapters from PEFT folders.

use std::path::{Path, PathBuf};

use sepal_checkpoint::Checkpoint;
use sepal_track::export::{self, ExportRecord, RECORD, Run, TRAINED};

use crate::adapter::{Adapter, AdapterKind};
use crate::config::{AdapterConfig, CONFIG, SEQ_CLS, TENSORS};
use crate::export_options::{Form, Method};
use crate::folder::{FolderError, Staged, json};
use crate::foreign::{self, Foreign};
use crate::import_error::ImportError;
use crate::imported_modes::imported_modes;
use crate::label_names::{LabelNames, read_label_names};
use crate::lora_config::Alphas;
use crate::lora_scaling::LoraScaling;
use crate::model_match::parse_of;
use crate::used_plugin::UsedPlugin;

const ADAPTER: &str = "adapter.safetensors";

/// Options of an import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Names of the labels in the order of the logits. PEFT does not save them; exports of this crate do.
    pub labels: Option<Vec<String>>,
    /// Folder of the model, whose `config.json` may name labels.
    pub model_folder: Option<PathBuf>,
    /// Replaces an existing import.
    pub overwrite: bool,
}

/// Adapter from a PEFT folder, staged until [`finish`](Self::finish). Dropping it leaves no file behind.
pub struct Import {
    staged: Staged,
    out: PathBuf,
    adapter: Adapter,
    prefix_len: usize,
    modes: Vec<UsedPlugin>,
    run: Option<Run>,
    is_foreign: bool,
    multi_label: bool,
    has_assumed_labels: bool,
    notices: Vec<String>,
}

impl Import {
    /// Reads the PEFT folder `folder` and stages a folder `out` with an `adapter.safetensors`. Only exports of this program
    /// can be read without `checkpoint`. The adapter is checked against the model as far as the folder describes it.
    ///
    /// # Errors
    /// [`ImportError`], without any file left behind.
    pub fn open(
        options: &ImportOptions,
        checkpoint: Option<&Checkpoint>,
        folder: &Path,
        out: &Path,
    ) -> Result<Self, ImportError> {
        let staged = Staged::new(out, ADAPTER, options.overwrite)?;
        let config = read_config(folder)?;
        let opened = match read_record(folder)?.filter(|_| is_exported_method(config.method())) {
            Some(record) => Opened::exported(folder, &config, record)?,
            None => Opened::foreign(foreign::read_adapter(folder, &config, checkpoint)?),
        };
        let Opened { mut adapter, scaling, run, is_foreign, mut notices } = opened;
        let has_assumed_labels = options.labels.is_none() && adapter.facts.labels.is_empty();
        let multi_label = name_labels(options, &mut adapter, folder, &mut notices);
        // Shapes in untrusted files may be arbitrary.
        let mut adapter = adapter.checked()?;
        if let Some(checkpoint) = checkpoint {
            check_model(&mut adapter, checkpoint)?;
        }
        if adapter.facts.model_digest.is_empty() {
            notices.push("the base model is unknown; name it to have it checked and recorded".to_owned());
        }
        adapter.write(&staged.path().join(ADAPTER)).map_err(FolderError::from)?;
        // The parameters of an encoder do not tell the number of its prompts.
        let has_encoder = adapter.kinds().contains(&AdapterKind::EncodedPrompts);
        let prefix_len = if has_encoder { config.num_virtual_tokens.unwrap_or(0) } else { adapter.prefix_len() };
        let n_blocks = checkpoint.map(|checkpoint| checkpoint.config().n_blocks);
        let modes = imported_modes(&adapter, prefix_len, scaling, n_blocks)?;
        let out = out.to_owned();
        Ok(Self { staged, out, adapter, prefix_len, modes, run, is_foreign, multi_label, has_assumed_labels, notices })
    }

    /// Returns the path of the staged adapter.
    pub fn adapter(&self) -> PathBuf {
        self.staged.path().join(ADAPTER)
    }

    /// Returns the run that the folder was exported from. It is untrusted.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// Returns true if another program wrote the folder.
    pub fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Returns the task by the name of its head.
    pub fn task(&self) -> &str {
        &self.adapter.facts.task
    }

    /// Returns the tuning modes of a run with this adapter, with the options that the folder tells.
    pub fn modes(&self) -> &[UsedPlugin] {
        &self.modes
    }

    /// Returns what was trained besides the head, for example `16 soft prompts`.
    pub fn description(&self) -> String {
        self.adapter.description()
    }

    /// Returns the number of positions in front of every row.
    pub fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    /// Returns the labels in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.adapter.facts.labels
    }

    /// Returns true if the folder or the model says that any number of labels may apply to a text.
    pub fn multi_label(&self) -> bool {
        self.multi_label
    }

    /// Returns true if the names of the labels are from a `config.json` or placeholders.
    pub fn has_assumed_labels(&self) -> bool {
        self.has_assumed_labels
    }

    /// Returns notices for the user, one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Moves the folder to its target, with `run` beside the adapter so that it can predict. Returns the adapter's path.
    ///
    /// # Errors
    /// [`ImportError`], without any file left behind.
    pub fn finish(self, run: Option<&Run>) -> Result<PathBuf, ImportError> {
        if let Some(run) = run {
            self.staged.write("pipeline.yaml", run.pipeline.as_bytes())?;
            self.staged.write("manifest.json", &json(&run.manifest)?)?;
            // An import has no steps and no evaluations.
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

/// Content of a folder.
struct Opened {
    adapter: Adapter,
    scaling: Option<LoraScaling>,
    run: Option<Run>,
    is_foreign: bool,
    notices: Vec<String>,
}

impl Opened {
    fn foreign(Foreign { adapter, scaling, notices }: Foreign) -> Self {
        Self { adapter, scaling, run: None, is_foreign: true, notices }
    }

    /// Reads an export of this crate, of which the files are unchanged.
    fn exported(folder: &Path, config: &AdapterConfig, record: ExportRecord) -> Result<Self, ImportError> {
        let adapter = read_trained(folder, &record)?;
        let scaling = match adapter.lora_shape()? {
            Some(shape) => Some(Alphas::read(config)?.default_scaling(shape.rank)),
            None => None,
        };
        Ok(Self { adapter, scaling, run: record.run, is_foreign: false, notices: Vec::new() })
    }
}

/// True for the methods of exports.
fn is_exported_method(method: &str) -> bool {
    Form::ALL.into_iter().any(|form| form.peft_type() == method)
}

/// Names the labels after the options, the adapter, or a `config.json` beside it or beside the model. Returns true if one
/// of these says that any number of labels may apply to a text.
fn name_labels(options: &ImportOptions, adapter: &mut Adapter, folder: &Path, notices: &mut Vec<String>) -> bool {
    let n_labels = adapter.score.shape().first().copied().unwrap_or(0);
    let folders = [Some(folder), options.model_folder.as_deref()].into_iter().flatten();
    let mut found: Vec<LabelNames> = folders.map(|folder| read_label_names(folder, n_labels)).collect();
    let labels = &mut adapter.facts.labels;
    if let Some(names) = &options.labels {
        labels.clone_from(names);
    } else if labels.is_empty() {
        let named = found.iter_mut().find_map(|names| names.labels.take());
        let from = if named.is_some() { "taken from config.json" } else { "LABEL_0 and so on" };
        notices.push(format!("PEFT does not save the names of labels; they are {from}"));
        *labels = named.unwrap_or_default();
    }
    found.iter().any(|names| names.multi_label)
}

fn read_config(folder: &Path) -> Result<AdapterConfig, ImportError> {
    let path = folder.join(CONFIG);
    let found = AdapterConfig::read(folder).map_err(|source| match source.kind() {
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

/// Returns the folders in `folder` that PEFT wrote: it saves each of several adapters in its own folder.
fn adapters_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let adapters = entries.filter(|entry| entry.path().join(CONFIG).is_file());
    let mut names: Vec<String> = adapters.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn read_record(folder: &Path) -> Result<Option<ExportRecord>, ImportError> {
    match ExportRecord::read(folder) {
        Ok(Some(record)) if record.version != export::VERSION => Err(ImportError::Version { found: record.version }),
        Ok(record) => Ok(record),
        Err(source) => Err(ImportError::Io { path: folder.join(RECORD), source }),
    }
}

/// Reads the trained adapter of an export by this crate. Error if a file was changed.
fn read_trained(folder: &Path, record: &ExportRecord) -> Result<Adapter, ImportError> {
    for (file, expected) in [(TRAINED, &record.trained), (TENSORS, &record.exported)] {
        let path = folder.join(file);
        let digest = export::digest(&path).map_err(|source| ImportError::Io { path, source })?;
        if &digest != expected {
            return Err(ImportError::Changed { file });
        }
    }
    Ok(Adapter::read(&folder.join(TRAINED))?)
}

/// Error if the adapter belongs to another model. An adapter without a digest gets that of this model.
fn check_model(adapter: &mut Adapter, checkpoint: &Checkpoint) -> Result<(), ImportError> {
    adapter.check_model(checkpoint.config())?;
    let found = checkpoint.digest();
    let expected = &mut adapter.facts.model_digest;
    if expected.is_empty() {
        found.clone_into(expected);
    }
    match parse_of(expected, found) {
        Some(_) => Ok(()),
        None => Err(ImportError::Model { expected: expected.clone(), found: found.to_owned() }),
    }
}
