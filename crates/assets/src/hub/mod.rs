//! Hugging Face Hub and its cache on this machine.

mod api;
mod cache;
mod download;
mod pieces;
mod push;
mod ranges;
mod upload;

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::error::one_line;
use crate::{
    Asset, AssetOptions, Assets, EventHandler, FetchError, FetchEvent, HubSource, Kind, ModelCheck, ModelPreview,
    Source,
};

use api::{Api, ApiError, Entry, RepoId};
pub(crate) use cache::Deferral;
use cache::{
    Completeness, Repository, initial_files, is_commit, is_complete, is_gguf, is_relevant, is_weights, parent, pickled,
};
use download::Download;
use pieces::Pieces;

const CONCURRENT_RANGES: usize = 8;

/// Hub that has answered a probe.
#[derive(Debug)]
pub(crate) struct Hub {
    api: Api,
    /// Runtime that runs requests on the calling thread.
    runtime: Runtime,
}

impl Assets {
    /// Returns the path of a file or of a snapshot folder, and the commit. `deferral` leaves out weights of a model.
    pub(crate) fn fetch_hub(
        &self,
        source: &HubSource,
        kind: Kind,
        deferral: Deferral,
        check_model: &mut ModelCheck<'_>,
        on_event: &mut EventHandler<'_>,
    ) -> Result<(PathBuf, String), FetchError> {
        let cached = Repository::new(self.options(), source, kind);
        let mut fallback = None;
        if let Some(commit) = cached.commit() {
            let cached_path = match source.path() {
                Some(path) => {
                    let file = cached.file(&commit, path).or_else(|| cached.deferred_file(&commit, path, deferral));
                    file.map(|file| (file, Completeness::Complete))
                }
                None => Some((cached.snapshot(&commit), cached.completeness(&commit, deferral))),
            };
            // Adapters are updated by pushes, so their branch is resolved again.
            let is_pinned = kind != Kind::Adapter || is_commit(cached.revision());
            match cached_path {
                Some((path, Completeness::Complete)) if is_pinned => return Ok((path, commit)),
                Some((path, Completeness::Complete | Completeness::Usable)) => fallback = Some((path, commit)),
                _ => {}
            }
        }
        let hub = match self.reachable_hub(source, source.path()) {
            Ok(hub) => hub,
            // The files that the Python tools left are sufficient.
            Err(error) => return fallback.ok_or(error),
        };
        hub.remote(source, &cached, kind).fetch(deferral, check_model, on_event)
    }

    /// Downloads further files of a model into the folder of `asset`: shards, parts of a GGUF file or a file that
    /// [`fetch_first_model`](Self::fetch_first_model) left out, by their names. Files that are present are left as they are.
    ///
    /// # Errors
    /// [`FetchError`] if a file is unavailable. Received bytes are kept, and the next call resumes.
    pub fn fetch_files(
        &self,
        asset: &Asset,
        files: &[String],
        on_event: &mut EventHandler<'_>,
    ) -> Result<(), FetchError> {
        let missing: Vec<&String> = files.iter().filter(|file| !asset.folder().join(file).is_file()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let (source, commit) = hub_origin(asset, first)?;
        let cached = Repository::new(self.options(), source, Kind::Model);
        let remote = self.reachable_hub(source, Some(first))?.remote(source, &cached, Kind::Model);
        let listed = remote.model_files(commit)?;
        for file in missing {
            let path = repository_path(source, file);
            let entry = listed.iter().find(|entry| entry.path == path).ok_or_else(|| not_from_hub(asset, file))?;
            remote.download(commit, entry, on_event)?;
        }
        Ok(())
    }

    /// Reads byte ranges of files of a model that are not in the folder of `asset`. A range is cut at the end of its
    /// file, and nothing is cached.
    ///
    /// # Errors
    /// [`FetchError`] if a file is unavailable or the hub ignores byte ranges.
    pub fn read_ranges(&self, asset: &Asset, parts: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, FetchError> {
        let Some((first, _)) = parts.first() else { return Ok(Vec::new()) };
        let (source, commit) = hub_origin(asset, first)?;
        let cached = Repository::new(self.options(), source, Kind::Model);
        let path = |(file, range): &(String, Range<u64>)| (repository_path(source, file), range.clone());
        let parts: Vec<(String, Range<u64>)> = parts.iter().map(path).collect();
        self.reachable_hub(source, Some(first))?.remote(source, &cached, Kind::Model).read_ranges(commit, &parts)
    }

    /// Checks that the hub answers within [`AssetOptions::hub_connect_timeout`], with a request for the repository
    /// `source`.
    ///
    /// # Errors
    /// [`FetchError::HubUnreachable`] if the hub does not answer; [`FetchError::Offline`] in offline mode.
    pub fn probe_hub(&self, source: &HubSource) -> Result<(), FetchError> {
        self.reachable_hub(source, source.path()).map(drop)
    }

    /// Returns the hub after one probe per [`Assets`]; `path` is the requested file.
    fn reachable_hub(&self, source: &HubSource, path: Option<&str>) -> Result<&Hub, FetchError> {
        let options = self.options();
        if options.hub_offline {
            return Err(FetchError::Offline { what: display_name(source, path), cache: options.hub_cache.clone() });
        }
        self.hub.get_or_init(|| Hub::connect(options, source)).as_ref().map_err(|reason| FetchError::HubUnreachable {
            endpoint: options.hub_endpoint.clone(),
            reason: reason.clone(),
        })
    }
}

impl Hub {
    /// Connects to the hub and probes it once.
    fn connect(options: &AssetOptions, source: &HubSource) -> Result<Self, String> {
        let api = Api::new(options).map_err(|error| one_line(&error))?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let connect_timeout = options.hub_connect_timeout;
        let id = RepoId { source, kind: Kind::Model };
        match runtime.block_on(async { timeout(connect_timeout, api.probe(id)).await }) {
            Ok(Ok(())) => Ok(Self { api, runtime }),
            Ok(Err(error)) => Err(one_line(&error)),
            Err(_) => {
                // A blocking thread may still resolve the host name; it is abandoned.
                runtime.shutdown_background();
                Err(format!("no answer within {} s", connect_timeout.as_secs_f32()))
            }
        }
    }

    fn remote<'a>(&'a self, source: &'a HubSource, cached: &'a Repository, kind: Kind) -> Remote<'a> {
        Remote { hub: self, source, cached, id: RepoId { source, kind } }
    }
}

/// Repository on the hub with its local cache.
struct Remote<'a> {
    hub: &'a Hub,
    source: &'a HubSource,
    cached: &'a Repository,
    id: RepoId<'a>,
}

impl Remote<'_> {
    fn fetch(
        &self,
        deferral: Deferral,
        check_model: &mut ModelCheck<'_>,
        on_event: &mut EventHandler<'_>,
    ) -> Result<(PathBuf, String), FetchError> {
        let commit = self.commit()?;
        let path = match self.source.path() {
            Some(path) if deferral != Deferral::Never && is_gguf(path) => {
                let found = self.model_files(&commit)?.into_iter().find(|entry| entry.path == path);
                let entry = found.ok_or_else(|| no_such_file(self.source, path))?;
                if deferral.applies(&entry) {
                    self.cached.make_folder(&commit, path)?
                } else {
                    self.download(&commit, &entry, on_event)?
                }
            }
            Some(path) => self.download(&commit, &self.entry(&commit, path)?, on_event)?,
            None => {
                let listed = self.listed(&commit)?;
                let (weights, others): (Vec<&Entry>, Vec<&Entry>) =
                    initial_files(&listed, self.id.kind).into_iter().partition(|entry| is_weights(&entry.path));
                for entry in others {
                    self.download(&commit, entry, on_event)?;
                }
                let folder = self.cached.snapshot(&commit);
                if self.id.kind == Kind::Model {
                    let read_ranges = |parts: &[(String, Range<u64>)]| self.read_ranges(&commit, parts);
                    let refused = |source| FetchError::Refused { repository: display_name(self.source, None), source };
                    check_model(&ModelPreview { folder: &folder, read_ranges: &read_ranges }).map_err(refused)?;
                }
                for entry in weights {
                    if deferral.applies(entry) {
                        self.leave_out(&commit, entry, on_event)?;
                    } else {
                        self.download(&commit, entry, on_event)?;
                    }
                }
                folder
            }
        };
        self.cached.point_to(&commit)?;
        Ok((path, commit))
    }

    fn read_ranges(&self, commit: &str, parts: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>, FetchError> {
        let (hub, source, id) = (self.hub, self.source, self.id);
        let read = move |(file, range): (String, Range<u64>)| async move {
            let bytes = hub.api.range(hub.api.file_url(id, commit, &file), range).await;
            bytes.map_err(|error| FetchError::Hub { what: display_name(source, Some(&file)), source: error.into() })
        };
        // `buffered` keeps the order of the ranges.
        let answers = futures::stream::iter(parts.iter().cloned()).map(read).buffered(CONCURRENT_RANGES);
        hub.runtime.block_on(answers.try_collect())
    }

    fn commit(&self) -> Result<String, FetchError> {
        let revision = self.cached.revision();
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        let commit = self.hub.runtime.block_on(self.hub.api.commit(self.id, revision));
        let commit = commit.map_err(|error| self.error(None, error))?;
        tracing::info!(repository = display_name(self.source, None), commit, "the revision stands for a commit");
        if is_commit(&commit) {
            return Ok(commit);
        }
        let source = format!("its commit `{commit}` for {revision} is not a commit hash").into();
        Err(FetchError::Hub { what: display_name(self.source, None), source })
    }

    fn entry(&self, commit: &str, path: &str) -> Result<Entry, FetchError> {
        let entries = self.hub.runtime.block_on(self.hub.api.list(self.id, commit, parent(path), false));
        let entries = entries.map_err(|error| self.error(Some(path), error))?;
        entries.into_iter().find(|entry| entry.path == path).ok_or_else(|| no_such_file(self.source, path))
    }

    /// Returns the files beside which weights of the model lie, from the record or from the hub: the relevant files of the
    /// repository, or the GGUF files in the folder of the source's file.
    fn model_files(&self, commit: &str) -> Result<Vec<Entry>, FetchError> {
        let Some(path) = self.source.path() else { return self.listed(commit) };
        let folder = parent(path);
        if let Some(entries) = self.cached.listed_folder(commit, folder) {
            return Ok(entries);
        }
        let entries = self.hub.runtime.block_on(self.hub.api.list(self.id, commit, folder, false));
        let mut entries = entries.map_err(|error| self.error(Some(path), error))?;
        entries.retain(|entry| is_gguf(&entry.path));
        self.cached.record_folder(commit, folder, &entries)?;
        Ok(entries)
    }

    /// Returns the relevant files of a commit, from the record or from the hub; at least one.
    fn listed(&self, commit: &str) -> Result<Vec<Entry>, FetchError> {
        if let Some(entries) = self.cached.listed(commit) {
            return Ok(entries);
        }
        let kind = self.id.kind;
        let entries = self.hub.runtime.block_on(self.hub.api.list(self.id, commit, "", kind == Kind::Dataset));
        let entries = entries.map_err(|error| self.error(None, error))?;
        self.check(&entries)?;
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| is_relevant(&entry.path, kind)).collect();
        self.cached.record(commit, &entries)?;
        Ok(entries)
    }

    /// Error if these files do not make a repository of the kind.
    fn check(&self, entries: &[Entry]) -> Result<(), FetchError> {
        let names: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let belonging: Vec<&str> = names.iter().copied().filter(|name| is_relevant(name, self.id.kind)).collect();
        if is_complete(&belonging, self.id.kind) {
            return Ok(());
        }
        let repository = display_name(self.source, None);
        let expected = match (self.id.kind, pickled(&names)) {
            (Kind::Model, Some(file)) => return Err(FetchError::Pickled { repository, file: file.to_owned() }),
            (Kind::Model, None) => "config.json and safetensors weights",
            (Kind::Adapter, _) => "adapter_config.json and adapter_model.safetensors",
            (Kind::Dataset, _) => "a parquet, arrow, csv, tsv, json or jsonl file",
        };
        Err(FetchError::NoFiles { repository, expected })
    }

    /// Makes the folder of the pieces of a file that is left out, which shows that the model in the snapshot has the file.
    fn leave_out(&self, commit: &str, entry: &Entry, on_event: &mut EventHandler<'_>) -> Result<(), FetchError> {
        let path = self.cached.make_folder(commit, &entry.path)?;
        let _lock = self.lock(entry, &display_name(self.source, Some(&entry.path)), on_event)?;
        if path.is_file() { Ok(()) } else { Pieces::create(&path, entry).map(drop) }
    }

    /// Downloads a file into the cache if it is missing, in place of its pieces.
    fn download(&self, commit: &str, entry: &Entry, on_event: &mut EventHandler<'_>) -> Result<PathBuf, FetchError> {
        let download = Download {
            api: &self.hub.api,
            what: display_name(self.source, Some(&entry.path)),
            url: self.hub.api.file_url(self.id, commit, &entry.path),
            entry,
            blob: self.cached.blob(entry),
        };
        let has_pieces = Pieces::exist(&self.cached.snapshot(commit).join(&entry.path));
        if download.is_cached() && !has_pieces {
            return self.cached.link(commit, entry);
        }
        let _lock = self.lock(entry, &download.what, on_event)?;
        if !download.is_cached() {
            self.hub.runtime.block_on(download.fetch(on_event))?;
        }
        // A process that waits for the lock finds the complete file and writes no pieces.
        let path = self.cached.link(commit, entry)?;
        Pieces::remove(&path)?;
        Ok(path)
    }

    /// Locks the download of a file; `what` is its name for messages.
    fn lock(&self, entry: &Entry, what: &str, on_event: &mut EventHandler<'_>) -> Result<File, FetchError> {
        let notice = format!("{what}: waiting for another process that downloads it");
        let mut flow = ControlFlow::Continue(());
        let lock = self.cached.lock(entry, || flow = on_event(FetchEvent::Notice(&notice)))?;
        if flow.is_break() { Err(FetchError::Stopped) } else { Ok(lock) }
    }

    fn error(&self, path: Option<&str>, error: ApiError) -> FetchError {
        FetchError::Hub { what: display_name(self.source, path), source: error.into() }
    }
}

/// Returns the hub source and commit of an asset; an error about the missing `file` for other sources.
fn hub_origin<'a>(asset: &'a Asset, file: &str) -> Result<(&'a HubSource, &'a str), FetchError> {
    match (&asset.source, &asset.commit) {
        (Source::Hub(source), Some(commit)) => Ok((source, commit)),
        _ => Err(not_from_hub(asset, file)),
    }
}

fn not_from_hub(asset: &Asset, file: impl AsRef<Path>) -> FetchError {
    FetchError::NotFromHub { folder: asset.path.clone(), file: file.as_ref().display().to_string() }
}

fn no_such_file(source: &HubSource, path: &str) -> FetchError {
    FetchError::Hub { what: display_name(source, Some(path)), source: "the repository has no such file".into() }
}

/// Path in the repository of a file that lies beside the file of the source, or in the root.
fn repository_path(source: &HubSource, file: &str) -> String {
    match source.path().map(parent) {
        None | Some("") => file.to_owned(),
        Some(folder) => format!("{folder}/{file}"),
    }
}

fn display_name(source: &HubSource, path: Option<&str>) -> String {
    let revision = source.revision().map(|revision| format!("@{revision}")).unwrap_or_default();
    let path = path.map(|path| format!("/{path}")).unwrap_or_default();
    format!("{}/{}{revision}{path}", source.owner(), source.name())
}

#[cfg(test)]
mod tests;
