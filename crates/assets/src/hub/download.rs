//! Resumable download of one file of the hub, verified before it is put in place.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode, Url};
use sepal_machine::durable;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use crate::event::emit;
use crate::hub::api::{Api, ApiError, Entry};
use crate::{EventHandler, FetchError, FetchEvent};

/// Interval of progress events while bytes arrive, and while none do.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
pub(super) const IDLE_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Download<'a> {
    pub(crate) api: &'a Api,
    /// Name for messages.
    pub(crate) what: String,
    /// Address of the file. It names a commit, so the content cannot change between two attempts.
    pub(crate) url: Url,
    pub(crate) entry: &'a Entry,
    /// Final path in the cache.
    pub(crate) blob: PathBuf,
}

enum AttemptError {
    Transient(ApiError),
    Fatal(FetchError),
}

impl Download<'_> {
    pub(crate) fn is_cached(&self) -> bool {
        fs::metadata(&self.blob).is_ok_and(|metadata| metadata.len() == self.entry.size)
    }

    /// Downloads the missing part of the file.
    pub(crate) async fn fetch(&self, on_event: &mut EventHandler<'_>) -> Result<(), FetchError> {
        let mut partial = Partial::open(&self.blob, self.entry)?;
        let (size, before) = (self.entry.size, partial.len);
        let started = Instant::now();
        emit(on_event, FetchEvent::Begin { file: &self.what, size, bytes_done: before })?;
        self.fill(&mut partial, on_event).await?;
        let mut found = partial.digest();
        // Another tool may have written the earlier part, and not from its start.
        if before > 0 && found != expected(self.entry) {
            let notice = format!("{}: the cached part is damaged; downloading again from the start", self.what);
            emit(on_event, FetchEvent::Notice(&notice))?;
            partial.restart()?;
            self.fill(&mut partial, on_event).await?;
            found = partial.digest();
        }
        if found != expected(self.entry) {
            partial.discard();
            let (kind, expected) = (digest_kind(&self.entry.oid).unwrap_or("digest"), self.entry.oid.clone());
            return Err(FetchError::Damaged { what: self.what.clone(), kind, expected, found });
        }
        partial.persist(&self.blob)?;
        let received = size.saturating_sub(before);
        emit(on_event, FetchEvent::End { file: &self.what, size, received, seconds: started.elapsed().as_secs_f64() })
    }

    /// Attempts until the file is complete, or too many attempts in a row brought no bytes.
    async fn fill(&self, partial: &mut Partial, on_event: &mut EventHandler<'_>) -> Result<(), FetchError> {
        let mut failures = 0;
        while partial.len < self.entry.size {
            let before = partial.len;
            let error = match self.attempt(partial, on_event).await {
                Ok(()) => return Ok(()),
                Err(AttemptError::Fatal(error)) => return Err(error),
                Err(AttemptError::Transient(error)) => error,
            };
            failures = if partial.len > before { 1 } else { failures + 1 };
            if failures > self.api.retries {
                return Err(self.exhausted(error, partial.len));
            }
            let pause = error.pause(self.api.backoff * 2_u32.saturating_pow(failures - 1));
            let notice = format!("{}: {error}; retrying in {:.1} s", self.what, pause.as_secs_f32());
            emit(on_event, FetchEvent::Notice(&notice))?;
            pause_with_progress(pause, partial.len, on_event).await?;
        }
        Ok(())
    }

    /// One request from the first missing byte on.
    async fn attempt(&self, partial: &mut Partial, on_event: &mut EventHandler<'_>) -> Result<(), AttemptError> {
        let (mut response, start) = match self.api.content(self.url.clone(), partial.len).await {
            Ok(answer) => answer,
            Err(ApiError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) if partial.len > 0 => {
                partial.restart()?;
                return Err(AttemptError::Transient(ApiError::Short));
            }
            Err(error) if error.is_transient() => return Err(AttemptError::Transient(error)),
            Err(error) => return Err(FetchError::Hub { what: self.what.clone(), source: error.into() }.into()),
        };
        if start < partial.len {
            partial.restart()?;
        }
        let mut last_event = Instant::now();
        while partial.len < self.entry.size {
            let chunk = self.chunk(&mut response, partial.len, on_event).await?;
            partial.append(&chunk)?;
            if last_event.elapsed() >= PROGRESS_INTERVAL {
                last_event = Instant::now();
                emit(on_event, FetchEvent::Progress { bytes_done: partial.len })?;
            }
        }
        Ok(emit(on_event, FetchEvent::Progress { bytes_done: partial.len })?)
    }

    /// Returns the next bytes, with a progress event each second without any.
    async fn chunk(
        &self,
        response: &mut Response,
        bytes_done: u64,
        on_event: &mut EventHandler<'_>,
    ) -> Result<Vec<u8>, AttemptError> {
        let started = Instant::now();
        loop {
            let remaining = self.api.stall.saturating_sub(started.elapsed());
            if remaining.is_zero() {
                return Err(AttemptError::Transient(ApiError::Stalled(self.api.stall)));
            }
            match timeout(remaining.min(IDLE_INTERVAL), response.chunk()).await {
                Ok(Ok(Some(chunk))) => return Ok(chunk.into()),
                Ok(Ok(None)) => return Err(AttemptError::Transient(ApiError::Short)),
                Ok(Err(error)) => return Err(AttemptError::Transient(error.into())),
                Err(_) => emit(on_event, FetchEvent::Progress { bytes_done })?,
            }
        }
    }

    fn exhausted(&self, error: ApiError, bytes_done: u64) -> FetchError {
        let (what, size) = (self.what.clone(), self.entry.size);
        match error {
            ApiError::Stalled(stall) => FetchError::Stalled { what, seconds: stall.as_secs_f32(), bytes_done, size },
            error => FetchError::Interrupted { what, bytes_done, size, source: error.into() },
        }
    }
}

impl From<FetchError> for AttemptError {
    fn from(error: FetchError) -> Self {
        Self::Fatal(error)
    }
}

async fn pause_with_progress(
    pause: Duration,
    bytes_done: u64,
    on_event: &mut EventHandler<'_>,
) -> Result<(), FetchError> {
    let until = Instant::now() + pause;
    loop {
        let remaining = until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Ok(());
        }
        sleep(remaining.min(IDLE_INTERVAL)).await;
        emit(on_event, FetchEvent::Progress { bytes_done })?;
    }
}

/// Expected value of [`Partial::digest`].
fn expected(entry: &Entry) -> String {
    if digest_kind(&entry.oid).is_some() { entry.oid.to_ascii_lowercase() } else { String::new() }
}

/// Kind of a digest of the hub by its length; none if it cannot be checked.
fn digest_kind(oid: &str) -> Option<&'static str> {
    match oid.len() {
        _ if !oid.chars().all(|c| c.is_ascii_hexdigit()) => None,
        40 => Some("git hash"),
        64 => Some("sha256"),
        _ => None,
    }
}

/// Partial download beside the final path, under the name that the Python tools use, so that either side can resume it.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    size: u64,
    hash: Hash,
    initial_hash: Hash,
}

#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Git(Sha1),
    Unknown,
}

impl Hash {
    /// Hash state before the first byte of a file.
    fn new(entry: &Entry) -> Self {
        match digest_kind(&entry.oid) {
            Some("sha256") => Self::Sha256(Sha256::new()),
            Some(_) => Self::Git(Sha1::new().chain_update(format!("blob {}\0", entry.size))),
            None => Self::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::Unknown => {}
        }
    }
}

impl Partial {
    /// Opens a partial download and hashes its bytes.
    fn open(blob: &Path, entry: &Entry) -> Result<Self, FetchError> {
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        let folder = durable::folder_of(blob);
        durable::create_folders(folder).map_err(FetchError::io("make the folder", folder))?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FetchError::io("open", &path))?;
        let initial_hash = Hash::new(entry);
        let mut partial = Self { path, file, len: 0, size: entry.size, hash: initial_hash.clone(), initial_hash };
        partial.read_existing().map_err(FetchError::io("read", &partial.path))?;
        if partial.len > entry.size {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn read_existing(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hash.update(&buffer[..n]);
                    self.len += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends bytes; those past the end of the file are ignored.
    fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let remaining = usize::try_from(self.size - self.len).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(remaining)];
        self.file.write_all(bytes).map_err(FetchError::io("write", &self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), FetchError> {
        self.file.set_len(0).map_err(FetchError::io("write", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(FetchError::io("write", &self.path))?;
        (self.len, self.hash) = (0, self.initial_hash.clone());
        Ok(())
    }

    /// Digest of the bytes so far in hexadecimal; empty if it cannot be checked.
    fn digest(&self) -> String {
        match &self.hash {
            Hash::Sha256(hash) => hex::encode(hash.clone().finalize()),
            Hash::Git(hash) => hex::encode(hash.clone().finalize()),
            Hash::Unknown => String::new(),
        }
    }

    fn persist(self, blob: &Path) -> Result<(), FetchError> {
        self.file.sync_all().map_err(FetchError::io("sync", &self.path))?;
        durable::rename(&self.path, blob).map_err(FetchError::io("write", blob))
    }

    fn discard(self) {
        // Best effort: the caller reports a more important error.
        let _ = fs::remove_file(&self.path);
    }
}
