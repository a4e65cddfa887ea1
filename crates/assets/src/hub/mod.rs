//! The Hugging Face Hub, and its cache on this machine.

mod api;
mod cache;
mod download;
mod push;
mod upload;

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::error::one_line;
use crate::{Asset, AssetOptions, Assets, FetchError, FetchEvent, HubSource, Kind, Screen, Source, Unfetched, Watch};

use api::{Api, ApiError, Entry, RepoId};
use cache::{Holding, Repository, at_once, belongs, is_commit, is_weights, is_whole, pickled};
use download::Download;

/// How many small parts of files are asked for at the same time.
const AT_A_TIME: usize = 8;

/// A hub that has answered.
#[derive(Debug)]
pub(crate) struct Hub {
    api: Api,
    /// Requests run on the thread that makes them.
    runtime: Runtime,
}

impl Assets {
    /// A file of a repository, or the folder with the files that make a model or dataset; and their commit.
    pub(crate) fn fetch_hub(
        &self,
        source: &HubSource,
        kind: Kind,
        screen: &mut Screen<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<(PathBuf, String), FetchError> {
        let cached = Repository::new(self.options(), source, kind);
        let mut enough = None;
        if let Some(commit) = cached.commit() {
            let held = match source.path() {
                Some(path) => cached.file(&commit, path).map(|file| (file, Holding::All)),
                None => Some((cached.snapshot(&commit), cached.held(&commit))),
            };
            // Whoever asks for an adapter wants what was pushed last.
            let stays = kind != Kind::Adapter || is_commit(cached.revision());
            match held {
                Some((path, Holding::All)) if stays => return Ok((path, commit)),
                Some((path, Holding::All | Holding::Enough)) => enough = Some((path, commit)),
                _ => {}
            }
        }
        let hub = match self.answering_hub(source, source.path()) {
            Ok(hub) => hub,
            // What the Python tools left here is enough to work with.
            Err(error) => return enough.ok_or(error),
        };
        hub.remote(source, &cached, kind).fetch(screen, watch)
    }

    /// Brings further files of a model into the folder of `asset`, which [`fetch`](Self::fetch) made: the shards that
    /// somebody needs, by their names. What is there already is left as it is.
    ///
    /// # Errors
    /// [`FetchError`]. What came of a file is kept; calling this again goes on from there.
    pub fn complete(&self, asset: &Asset, files: &[String], watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let missing: Vec<&String> = files.iter().filter(|file| !asset.path.join(file).is_file()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let (source, commit) = from_hub(asset, first)?;
        let cached = Repository::new(self.options(), source, Kind::Model);
        let remote = self.answering_hub(source, Some(first))?.remote(source, &cached, Kind::Model);
        let listed = remote.listed(commit)?;
        for file in missing {
            let entry = listed.iter().find(|entry| entry.path == *file).ok_or_else(|| not_there(asset, file))?;
            remote.download(commit, entry, watch)?;
        }
        Ok(())
    }

    /// Bytes of files of a model that are not in the folder of `asset`, each by its name; fewer where a file ends. They
    /// are not kept.
    ///
    /// # Errors
    /// [`FetchError`], also if the hub sends whole files only.
    pub fn peek(&self, asset: &Asset, parts: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, FetchError> {
        let Some((first, _)) = parts.first() else { return Ok(Vec::new()) };
        let (source, commit) = from_hub(asset, first)?;
        let cached = Repository::new(self.options(), source, Kind::Model);
        self.answering_hub(source, Some(first))?.remote(source, &cached, Kind::Model).peek(commit, parts)
    }

    /// Asks the hub whether it is there, within the patience that the options have; `source` is the repository
    /// that it is asked about.
    ///
    /// # Errors
    /// [`FetchError::HubUnreachable`], or [`FetchError::Offline`] if it must not be asked.
    pub fn probe_hub(&self, source: &HubSource) -> Result<(), FetchError> {
        self.answering_hub(source, source.path()).map(drop)
    }

    /// The hub, asked once whether it is there; `path` is what is wanted of it.
    fn answering_hub(&self, source: &HubSource, path: Option<&str>) -> Result<&Hub, FetchError> {
        let options = self.options();
        if options.hub_offline {
            return Err(FetchError::Offline { what: what(source, path), cache: options.hub_cache.clone() });
        }
        self.hub.get_or_init(|| Hub::connect(options, source)).as_ref().map_err(|reason| FetchError::HubUnreachable {
            endpoint: options.hub_endpoint.clone(),
            reason: reason.clone(),
        })
    }
}

impl Hub {
    /// A client, if the hub answers within the patience that the options have.
    fn connect(options: &AssetOptions, source: &HubSource) -> Result<Self, String> {
        let api = Api::new(options).map_err(|error| one_line(&error))?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let patience = options.hub_patience;
        let id = RepoId { source, kind: Kind::Model };
        match runtime.block_on(async { timeout(patience, api.probe(id)).await }) {
            Ok(Ok(())) => Ok(Self { api, runtime }),
            Ok(Err(error)) => Err(one_line(&error)),
            Err(_) => {
                // A name may still be looked up, on a thread that nobody waits for.
                runtime.shutdown_background();
                Err(format!("no answer within {} s", patience.as_secs_f32()))
            }
        }
    }

    fn remote<'a>(&'a self, source: &'a HubSource, cached: &'a Repository, kind: Kind) -> Remote<'a> {
        Remote { hub: self, source, cached, id: RepoId { source, kind } }
    }
}

/// A repository on the hub, and here.
struct Remote<'a> {
    hub: &'a Hub,
    source: &'a HubSource,
    cached: &'a Repository,
    id: RepoId<'a>,
}

impl Remote<'_> {
    fn fetch(&self, screen: &mut Screen<'_>, watch: &mut Watch<'_>) -> Result<(PathBuf, String), FetchError> {
        let commit = self.commit()?;
        let path = match self.source.path() {
            Some(path) => self.download(&commit, &self.entry(&commit, path)?, watch)?,
            None => {
                let listed = self.listed(&commit)?;
                let (weights, others): (Vec<&Entry>, Vec<&Entry>) =
                    at_once(&listed, self.id.kind).into_iter().partition(|entry| is_weights(&entry.path));
                for entry in others {
                    self.download(&commit, entry, watch)?;
                }
                let folder = self.cached.snapshot(&commit);
                if self.id.kind == Kind::Model {
                    let peek = |parts: &[(String, Range<u64>)]| self.peek(&commit, parts);
                    let refused = |source| FetchError::Refused { repository: what(self.source, None), source };
                    screen(&Unfetched { folder: &folder, peek: &peek }).map_err(refused)?;
                }
                for entry in weights {
                    self.download(&commit, entry, watch)?;
                }
                folder
            }
        };
        self.cached.point_to(&commit)?;
        Ok((path, commit))
    }

    /// Bytes of files of a commit, which are not kept.
    fn peek(&self, commit: &str, parts: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, FetchError> {
        let (hub, source, id) = (self.hub, self.source, self.id);
        let ask = move |(file, range): (String, Range<u64>)| async move {
            let bytes = hub.api.part(hub.api.file_url(id, commit, &file), range).await;
            bytes.map_err(|error| FetchError::Hub { what: what(source, Some(&file)), source: error.into() })
        };
        // In order, whatever comes first.
        let answers = futures::stream::iter(parts.iter().cloned()).map(ask).buffered(AT_A_TIME);
        hub.runtime.block_on(answers.try_collect())
    }

    /// The commit that the revision stands for.
    fn commit(&self) -> Result<String, FetchError> {
        let revision = self.cached.revision();
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        let commit = self.hub.runtime.block_on(self.hub.api.commit(self.id, revision));
        let commit = commit.map_err(|error| self.error(None, error))?;
        tracing::info!(repository = what(self.source, None), commit, "the revision stands for a commit");
        if is_commit(&commit) {
            return Ok(commit);
        }
        let source = format!("it says that {revision} is `{commit}`, which is no commit").into();
        Err(FetchError::Hub { what: what(self.source, None), source })
    }

    /// One file of a commit.
    fn entry(&self, commit: &str, path: &str) -> Result<Entry, FetchError> {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let entries = self.hub.runtime.block_on(self.hub.api.list(self.id, commit, folder, false));
        let entries = entries.map_err(|error| self.error(Some(path), error))?;
        let found = entries.into_iter().find(|entry| entry.path == path);
        let source = || "the repository has no such file".into();
        found.ok_or_else(|| FetchError::Hub { what: what(self.source, Some(path)), source: source() })
    }

    /// The files of a commit that make a model or dataset, as they were noted or as the hub says; at least one.
    fn listed(&self, commit: &str) -> Result<Vec<Entry>, FetchError> {
        if let Some(entries) = self.cached.listed(commit) {
            return Ok(entries);
        }
        let kind = self.id.kind;
        let entries = self.hub.runtime.block_on(self.hub.api.list(self.id, commit, "", kind == Kind::Dataset));
        let entries = entries.map_err(|error| self.error(None, error))?;
        self.check(&entries)?;
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| belongs(&entry.path, kind)).collect();
        self.cached.record(commit, &entries)?;
        Ok(entries)
    }

    /// Whether these files make a model or dataset.
    fn check(&self, entries: &[Entry]) -> Result<(), FetchError> {
        let names: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let belonging: Vec<&str> = names.iter().copied().filter(|name| belongs(name, self.id.kind)).collect();
        if is_whole(&belonging, self.id.kind) {
            return Ok(());
        }
        let repository = what(self.source, None);
        let wanted = match (self.id.kind, pickled(&names)) {
            (Kind::Model, Some(file)) => return Err(FetchError::Pickled { repository, file: file.to_owned() }),
            (Kind::Model, None) => "config.json and safetensors weights",
            (Kind::Adapter, _) => "adapter_config.json and adapter_model.safetensors",
            (Kind::Dataset, _) => "a parquet, arrow, csv, tsv or jsonl file",
        };
        Err(FetchError::NoFiles { repository, wanted })
    }

    /// Brings a file into the hub's cache, if it is not there.
    fn download(&self, commit: &str, entry: &Entry, watch: &mut Watch<'_>) -> Result<PathBuf, FetchError> {
        let download = Download {
            api: &self.hub.api,
            what: what(self.source, Some(&entry.path)),
            url: self.hub.api.file_url(self.id, commit, &entry.path),
            entry,
            blob: self.cached.blob(entry),
        };
        if !download.is_here() {
            let notice = format!("{}: another process fetches it; waiting", download.what);
            let mut flow = ControlFlow::Continue(());
            let _lock = self.cached.lock(entry, || flow = watch(FetchEvent::Notice(&notice)))?;
            if flow.is_break() {
                return Err(FetchError::Stopped);
            }
            if !download.is_here() {
                self.hub.runtime.block_on(download.fetch(watch))?;
            }
        }
        self.cached.link(commit, entry)
    }

    fn error(&self, path: Option<&str>, error: ApiError) -> FetchError {
        FetchError::Hub { what: what(self.source, path), source: error.into() }
    }
}

/// Where an asset came from, if that is the hub; `file` is what is missing in it.
fn from_hub<'a>(asset: &'a Asset, file: &str) -> Result<(&'a HubSource, &'a str), FetchError> {
    match (&asset.source, &asset.commit) {
        (Source::Hub(source), Some(commit)) => Ok((source, commit)),
        _ => Err(not_there(asset, file)),
    }
}

fn not_there(asset: &Asset, file: impl AsRef<Path>) -> FetchError {
    FetchError::Elsewhere { folder: asset.path.clone(), file: file.as_ref().display().to_string() }
}

fn what(source: &HubSource, path: Option<&str>) -> String {
    let revision = source.revision().map(|revision| format!("@{revision}")).unwrap_or_default();
    let path = path.map(|path| format!("/{path}")).unwrap_or_default();
    format!("{}/{}{revision}{path}", source.owner(), source.name())
}

#[cfg(test)]
mod tests;
