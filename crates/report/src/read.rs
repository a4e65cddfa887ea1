use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use sepal_data::Predictions;
use sepal_track::{History, Manifest};

use crate::options::Options;

/// What a manifest calls the server within the run's process.
const EMBEDDED: &str = "embedded";

/// A run folder, read.
#[derive(Debug, Clone)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// `manifest.json`.
    pub manifest: Manifest,
    /// `pipeline.yaml`: the options with every default written out.
    pub options: Options,
    /// `metrics.jsonl`: steps and evaluations.
    pub history: History,
    /// `predictions.parquet`, if there is one.
    pub predictions: Option<Predictions>,
    /// What is missing or cannot be read, in words.
    pub problems: Vec<String>,
}

/// A folder that holds no run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is no folder.
    #[error("find the run folder {}", folder.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder has no manifest: a run writes it when it ends.
    #[error("find {}: it is written when a run ends, so this folder is of no run or of one that goes on", path.display())]
    NoManifest {
        /// Where it should be.
        path: PathBuf,
    },
    /// The manifest cannot be opened.
    #[error("read {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is no manifest.
    #[error("understand {}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Run {
    /// Reads a run folder. Only the manifest has to be there: whatever else is missing or damaged is told of in
    /// [`Run::problems`].
    ///
    /// # Errors
    /// [`ReadError`] if there is no manifest or it cannot be read.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let manifest = manifest(folder)?;
        let mut problems = Vec::new();
        let options = match std::fs::read_to_string(folder.join("pipeline.yaml")) {
            Ok(text) => Options::new(&text),
            Err(error) => {
                problems.push(words("pipeline.yaml", &error));
                Options::default()
            }
        };
        if let Some(problem) = options.problem() {
            problems.push(format!("pipeline.yaml is shown but not understood: {problem}"));
        }
        let history = History::read(&folder.join("metrics.jsonl")).unwrap_or_else(|error| {
            problems.push(words("metrics.jsonl", &error));
            History::default()
        });
        if history.broken_lines > 0 {
            problems.push(format!("metrics.jsonl: {} lines cannot be read and were passed over", history.broken_lines));
        }
        let path = folder.join("predictions.parquet");
        let predictions = match path.exists().then(|| Predictions::read(&path)) {
            None => None,
            Some(Ok(predictions)) if predictions.is_empty() => None,
            Some(Ok(predictions)) => Some(predictions),
            Some(Err(error)) => {
                problems.push(words("predictions.parquet", &error));
                None
            }
        };
        Ok(Self { folder: folder.to_owned(), manifest, options, history, predictions, problems })
    }

    /// Whether the blocks ran in the run's own process, so that nothing went over a network.
    pub(crate) fn is_in_process(&self) -> bool {
        let servers = &self.manifest.servers;
        !servers.is_empty() && servers.iter().all(|one| one.server == EMBEDDED)
    }

    /// The folder's name, which tells runs of one pipeline apart.
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
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(_) if !folder.is_dir() => return Err(ReadError::NoFolder { folder: folder.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::NoManifest { path }),
        Err(source) => return Err(ReadError::Open { path, source }),
    };
    serde_json::from_slice(&text).map_err(|source| ReadError::Manifest { path, source })
}

/// An error with its causes in one line.
fn words(file: &str, error: &dyn Error) -> String {
    let mut text = format!("{file} cannot be read: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
