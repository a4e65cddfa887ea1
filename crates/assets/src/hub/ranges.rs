//! Byte ranges of large files of models.

use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::time::Instant;

use futures::StreamExt;
use tokio::time::timeout;

use super::api::{ApiError, Entry};
use super::cache::Repository;
use super::download::IDLE_INTERVAL;
use super::pieces::{Damaged, Pieces, offsets};
use super::{CONCURRENT_RANGES, Remote, display_name, hub_origin, not_from_hub, repository_path};
use crate::event::emit;
use crate::{Asset, Assets, EventHandler, FetchError, FetchEvent, Kind, Source};

impl Assets {
    /// Downloads byte ranges of a file of a model that is not in the folder of `asset`: pieces of 8 MiB into the folder
    /// `NAME.pieces` beside the place of the file. A piece is a file `OFFSET-SHA256`. It is written and renamed, and checked
    /// by that digest in later calls; the digest of the hub covers only the complete file. The complete file is downloaded
    /// instead, and replaces the pieces, if it has at most [`hub_complete_bytes`], if the ranges are three quarters of it or
    /// more, or if the hub ignores byte ranges.
    ///
    /// # Errors
    /// [`FetchError`] if the file is unavailable, or a range ends after it. Received pieces are kept, and the next call resumes.
    ///
    /// [`hub_complete_bytes`]: crate::AssetOptions::hub_complete_bytes
    pub fn fetch_ranges(
        &self,
        asset: &Asset,
        file: &str,
        ranges: &[Range<u64>],
        on_event: &mut EventHandler<'_>,
    ) -> Result<(), FetchError> {
        let path = asset.folder().join(file);
        if path.is_file() {
            return Ok(());
        }
        let mut checked = None;
        if let Some(pieces) = Pieces::open(&path) {
            check_ranges(asset, file, ranges, pieces.entry())?;
            let missing = check(&pieces, &offsets(ranges, pieces.entry().size), Damaged::Report, on_event)?;
            if missing.is_empty() {
                return Ok(());
            }
            checked = Some((pieces, missing));
        }
        let (source, commit) = hub_origin(asset, file)?;
        let cached = Repository::new(self.options(), source, Kind::Model);
        let remote = self.reachable_hub(source, Some(file))?.remote(source, &cached, Kind::Model);
        let in_repository = repository_path(source, file);
        let entry = remote.model_files(commit)?.into_iter().find(|entry| entry.path == in_repository);
        let entry = entry.ok_or_else(|| not_from_hub(asset, file))?;
        check_ranges(asset, file, ranges, &entry)?;
        let wanted = offsets(ranges, entry.size);
        if !self.is_fetched_complete(&entry, &wanted) {
            let missing = checked.filter(|(pieces, _)| *pieces.entry() == entry).map(|(_, missing)| missing);
            let download = PieceDownload { remote: &remote, commit, entry: &entry, path: &path, wanted: &wanted };
            match download.fetch(missing, on_event) {
                Err(error) if error.is_without_ranges() => {}
                result => return result,
            }
        }
        remote.download(commit, &entry, on_event).map(drop)
    }

    fn is_fetched_complete(&self, entry: &Entry, wanted: &[u64]) -> bool {
        let n_bytes = wanted.len() as u64 * super::pieces::PIECE;
        entry.size <= self.options().hub_complete_bytes || n_bytes / 3 >= entry.size / 4
    }
}

impl FetchError {
    /// Returns true if the hub answered a request for a byte range with the complete file.
    pub fn is_without_ranges(&self) -> bool {
        let Self::Hub { source, .. } = self else { return false };
        matches!(source.downcast_ref(), Some(ApiError::NoRanges))
    }
}

/// Download of pieces of one file.
struct PieceDownload<'a> {
    remote: &'a Remote<'a>,
    commit: &'a str,
    entry: &'a Entry,
    /// Path of the complete file in the cache.
    path: &'a Path,
    /// Offsets of the pieces that must be there afterwards.
    wanted: &'a [u64],
}

impl PieceDownload<'_> {
    /// Downloads the missing pieces; all wanted pieces may be missing if `missing` is `None`.
    fn fetch(&self, missing: Option<Vec<u64>>, on_event: &mut EventHandler<'_>) -> Result<(), FetchError> {
        let what = display_name(self.remote.source, Some(&self.entry.path));
        let _lock = self.remote.lock(self.entry, &what, on_event)?;
        if self.path.is_file() {
            return Ok(());
        }
        let pieces = Pieces::create(self.path, self.entry)?;
        // Another process may have brought some since.
        let missing = check(&pieces, missing.as_deref().unwrap_or(self.wanted), Damaged::Remove, on_event)?;
        if missing.is_empty() {
            return Ok(());
        }
        let (size, received) = (pieces.n_bytes(self.wanted), pieces.n_bytes(&missing));
        let (started, bytes_done) = (Instant::now(), size - received);
        emit(on_event, FetchEvent::Begin { file: &what, size, bytes_done })?;
        self.remote.hub.runtime.block_on(self.receive(&pieces, &missing, &what, bytes_done, on_event))?;
        emit(on_event, FetchEvent::End { file: &what, size, received, seconds: started.elapsed().as_secs_f64() })
    }

    /// Receives pieces, several at a time, and saves each.
    async fn receive(
        &self,
        pieces: &Pieces,
        missing: &[u64],
        what: &str,
        mut bytes_done: u64,
        on_event: &mut EventHandler<'_>,
    ) -> Result<(), FetchError> {
        let api = &self.remote.hub.api;
        let url = api.file_url(self.remote.id, self.commit, &self.entry.path);
        let answers = missing.iter().map(|&offset| {
            let answer = api.piece(url.clone(), pieces.range(offset), self.entry.size);
            async move { (offset, answer.await) }
        });
        let mut answers = pin!(futures::stream::iter(answers).buffer_unordered(CONCURRENT_RANGES));
        loop {
            match timeout(IDLE_INTERVAL, answers.next()).await {
                // The event handler may stop the download meanwhile.
                Err(_) => {}
                Ok(None) => return Ok(()),
                Ok(Some((offset, Ok(bytes)))) => {
                    pieces.save(offset, &bytes)?;
                    bytes_done += bytes.len() as u64;
                }
                Ok(Some((_, Err(error)))) => return Err(failure(what, error, bytes_done, pieces.n_bytes(self.wanted))),
            }
            emit(on_event, FetchEvent::Progress { bytes_done })?;
        }
    }
}

fn failure(what: &str, error: ApiError, bytes_done: u64, size: u64) -> FetchError {
    let what = what.to_owned();
    if error.is_transient() {
        FetchError::Interrupted { what, bytes_done, size, source: error.into() }
    } else {
        FetchError::Hub { what, source: error.into() }
    }
}

/// Error if a range ends after the file.
fn check_ranges(asset: &Asset, file: &str, ranges: &[Range<u64>], entry: &Entry) -> Result<(), FetchError> {
    let Some(range) = ranges.iter().find(|range| range.end > entry.size) else { return Ok(()) };
    let problem = format!("the bytes up to {} of it are needed, and it has {} bytes", range.end, entry.size);
    let what = match &asset.source {
        Source::Hub(source) => display_name(source, Some(&repository_path(source, file))),
        _ => file.to_owned(),
    };
    Err(FetchError::Hub { what, source: problem.into() })
}

/// Returns the missing ones of the pieces at `offsets`.
fn check(
    pieces: &Pieces,
    offsets: &[u64],
    damaged: Damaged,
    on_event: &mut EventHandler<'_>,
) -> Result<Vec<u64>, FetchError> {
    pieces.missing(offsets, damaged, |bytes_done| emit(on_event, FetchEvent::Progress { bytes_done }))
}

#[cfg(test)]
mod tests;
