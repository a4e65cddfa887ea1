use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use sepal_core::in_one_line;
use sepal_data::Predictions;
use sepal_machine::regular;
use sepal_track::{History, Manifest};

use crate::options::Options;

/// Name of the server within the run's process in a manifest.
const EMBEDDED: &str = "embedded";

/// Contents of a run folder.
#[derive(Debug, Clone)]
pub struct Run {
    /// Path of the folder.
    pub folder: PathBuf,
    /// Contents of `manifest.json`.
    pub manifest: Manifest,
    /// Options of `pipeline.yaml`, with every default written out.
    pub options: Options,
    /// Steps and evaluations of `metrics.jsonl`.
    pub history: History,
    /// Predictions of `predictions.parquet`, if it exists.
    pub predictions: Option<Predictions>,
    /// Problems: missing or unreadable files.
    pub problems: Vec<String>,
}

/// Unreadable run folder.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ReadError {
    /// The folder does not exist.
    #[error("find the run folder {}", folder.display())]
    NoFolder { folder: PathBuf },
    /// The folder has no manifest, which a run writes at its end.
    #[error("find {}: a run writes it at its end, so this folder belongs to no run or to an unfinished one", path.display())]
    NoManifest { path: PathBuf },
    /// The manifest cannot be opened.
    #[error("read {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// The state of a sweep is missing or invalid.
    #[error(transparent)]
    Sweep(sepal_track::ReadError),
    /// The manifest is invalid.
    #[error("understand {}", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },
}

impl Run {
    /// Reads a run folder. Only the manifest is required: other missing or damaged files are reported in
    /// [`Run::problems`].
    ///
    /// # Errors
    /// [`ReadError`] if the manifest is missing or unreadable.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let manifest = manifest(folder)?;
        let mut problems = Vec::new();
        let options = match regular::read_to_string(&folder.join("pipeline.yaml")) {
            Ok(text) => Options::new(&text),
            Err(error) => {
                problems.push(read_problem("pipeline.yaml", &error));
                Options::default()
            }
        };
        if let Some(problem) = options.problem() {
            problems.push(format!("pipeline.yaml is shown but not understood: {problem}"));
        }
        let history = History::read(&folder.join("metrics.jsonl")).unwrap_or_else(|error| {
            problems.push(read_problem("metrics.jsonl", &error));
            History::default()
        });
        if history.broken_lines > 0 {
            problems.push(format!("metrics.jsonl: {} lines cannot be read and were passed over", history.broken_lines));
        }
        let path = folder.join("predictions.parquet");
        let predictions = match path.is_file().then(|| Predictions::read(&path)) {
            None => None,
            Some(Ok(predictions)) if predictions.is_empty() => None,
            Some(Ok(predictions)) => Some(predictions),
            Some(Err(error)) => {
                problems.push(read_problem("predictions.parquet", &error));
                None
            }
        };
        Ok(Self { folder: folder.to_owned(), manifest, options, history, predictions, problems })
    }

    /// Returns true if the blocks ran in the run's own process, without a network.
    pub(crate) fn is_in_process(&self) -> bool {
        let servers = &self.manifest.servers;
        !servers.is_empty() && servers.iter().all(|one| one.server == EMBEDDED)
    }

    /// Returns the folder name, which identifies the run.
    pub fn id(&self) -> String {
        let name =
            self.folder.file_name().or_else(|| self.folder.components().next_back().map(|part| part.as_os_str()));
        match name.map(|name| name.to_string_lossy().into_owned()) {
            Some(name) if name != "." && name != ".." => name,
            _ => self.manifest.name.clone(),
        }
    }
}

fn manifest(folder: &Path) -> Result<Manifest, ReadError> {
    let path = folder.join("manifest.json");
    let text = match regular::read(&path) {
        Ok(text) => text,
        Err(_) if !folder.is_dir() => return Err(ReadError::NoFolder { folder: folder.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::NoManifest { path }),
        Err(source) => return Err(ReadError::Open { path, source }),
    };
    serde_json::from_slice(&text).map_err(|source| ReadError::Manifest { path, source })
}

fn read_problem(file: &str, error: &dyn Error) -> String {
    format!("{file} cannot be read: {}", in_one_line(error))
}
