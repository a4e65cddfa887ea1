//! One file of the hub: gone on with where it broke off, checked, and only then put into its place.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode, Url};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use crate::event::tell;
use crate::hub::api::{Api, ApiError, Entry};
use crate::{FetchError, FetchEvent, Watch};

/// How often who watches is told of bytes, and how often while there are none.
const TELL: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_secs(1);

/// A file that is to come.
pub(crate) struct Download<'a> {
    pub(crate) api: &'a Api,
    /// What people call it.
    pub(crate) what: String,
    /// Where it lies. The address names a commit, so the content cannot change between two parts of it.
    pub(crate) url: Url,
    pub(crate) entry: &'a Entry,
    /// Where it shall lie here.
    pub(crate) blob: PathBuf,
}

/// Why a try ended before the file did.
enum Trouble {
    /// Another try may help.
    Passing(ApiError),
    Final(FetchError),
}

impl Download<'_> {
    /// Whether it is in its place already.
    pub(crate) fn is_here(&self) -> bool {
        fs::metadata(&self.blob).is_ok_and(|metadata| metadata.len() == self.entry.size)
    }

    /// Brings what is missing of it.
    pub(crate) async fn fetch(&self, watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let mut partial = Partial::open(&self.blob, self.entry)?;
        let (size, before) = (self.entry.size, partial.here);
        let started = Instant::now();
        tell(watch, FetchEvent::Begin { file: &self.what, size, here: before })?;
        self.fill(&mut partial, watch).await?;
        let mut found = partial.digest();
        // What was here before may have been written by somebody who did not write it from its beginning on.
        if before > 0 && found != expected(self.entry) {
            let notice = format!("{}: what was here of it before is damaged; it comes again from the start", self.what);
            tell(watch, FetchEvent::Notice(&notice))?;
            partial.restart()?;
            self.fill(&mut partial, watch).await?;
            found = partial.digest();
        }
        if found != expected(self.entry) {
            partial.discard();
            let (kind, expected) = (kind_of(&self.entry.oid).unwrap_or("digest"), self.entry.oid.clone());
            return Err(FetchError::Damaged { what: self.what.clone(), kind, expected, found });
        }
        partial.keep(&self.blob)?;
        let received = size.saturating_sub(before);
        tell(watch, FetchEvent::End { file: &self.what, size, received, seconds: started.elapsed().as_secs_f64() })
    }

    /// Tries until all bytes are here, or too many tries in a row brought nothing.
    async fn fill(&self, partial: &mut Partial, watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let mut failures = 0;
        while partial.here < self.entry.size {
            let before = partial.here;
            let error = match self.attempt(partial, watch).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(error)) => error,
            };
            failures = if partial.here > before { 1 } else { failures + 1 };
            if failures > self.api.retries {
                return Err(self.given_up(error, partial.here));
            }
            let pause = error.pause(self.api.backoff * 2_u32.saturating_pow(failures - 1));
            let notice = format!("{}: {error}; trying again in {:.1} s", self.what, pause.as_secs_f32());
            tell(watch, FetchEvent::Notice(&notice))?;
            rest(pause, partial.here, watch).await?;
        }
        Ok(())
    }

    /// One request, from the first byte that is missing on.
    async fn attempt(&self, partial: &mut Partial, watch: &mut Watch<'_>) -> Result<(), Trouble> {
        let (mut response, start) = match self.api.content(self.url.clone(), partial.here).await {
            Ok(answer) => answer,
            Err(ApiError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) if partial.here > 0 => {
                partial.restart()?;
                return Err(Trouble::Passing(ApiError::Short));
            }
            Err(error) if error.is_passing() => return Err(Trouble::Passing(error)),
            Err(error) => return Err(FetchError::Hub { what: self.what.clone(), source: error.into() }.into()),
        };
        if start < partial.here {
            partial.restart()?;
        }
        let mut told = Instant::now();
        while partial.here < self.entry.size {
            let chunk = self.chunk(&mut response, partial.here, watch).await?;
            partial.add(&chunk)?;
            if told.elapsed() >= TELL {
                told = Instant::now();
                tell(watch, FetchEvent::Progress { here: partial.here })?;
            }
        }
        Ok(tell(watch, FetchEvent::Progress { here: partial.here })?)
    }

    /// The next bytes. Who watches hears of it while none come.
    async fn chunk(&self, response: &mut Response, here: u64, watch: &mut Watch<'_>) -> Result<Vec<u8>, Trouble> {
        let asked = Instant::now();
        loop {
            let left = self.api.stall.saturating_sub(asked.elapsed());
            if left.is_zero() {
                return Err(Trouble::Passing(ApiError::Stalled(self.api.stall)));
            }
            match timeout(left.min(TICK), response.chunk()).await {
                Ok(Ok(Some(chunk))) => return Ok(chunk.into()),
                Ok(Ok(None)) => return Err(Trouble::Passing(ApiError::Short)),
                Ok(Err(error)) => return Err(Trouble::Passing(error.into())),
                Err(_) => tell(watch, FetchEvent::Progress { here })?,
            }
        }
    }

    fn given_up(&self, error: ApiError, here: u64) -> FetchError {
        let (what, size) = (self.what.clone(), self.entry.size);
        match error {
            ApiError::Stalled(stall) => FetchError::Stalled { what, seconds: stall.as_secs_f32(), here, size },
            error => FetchError::Broken { what, here, size, source: error.into() },
        }
    }
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

async fn rest(pause: Duration, here: u64, watch: &mut Watch<'_>) -> Result<(), FetchError> {
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(TICK)).await;
        tell(watch, FetchEvent::Progress { here })?;
    }
}

/// The digest that a file must have, as [`Partial::digest`] gives it.
fn expected(entry: &Entry) -> String {
    if kind_of(&entry.oid).is_some() { entry.oid.to_ascii_lowercase() } else { String::new() }
}

/// What the hub's digest is, by its length; `None` if it is nothing that can be checked.
fn kind_of(oid: &str) -> Option<&'static str> {
    match oid.len() {
        _ if !oid.chars().all(|c| c.is_ascii_hexdigit()) => None,
        40 => Some("git hash"),
        64 => Some("sha256"),
        _ => None,
    }
}

/// What is here of a file, under a name of its own beside its place: that which the Python tools use, so that either
/// goes on with what the other began.
struct Partial {
    path: PathBuf,
    file: File,
    here: u64,
    size: u64,
    hash: Hash,
    fresh: Hash,
}

#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    Git(Sha1),
    /// Only the size can be checked.
    Unknown,
}

impl Hash {
    /// That of a file's first byte.
    fn of(entry: &Entry) -> Self {
        match kind_of(&entry.oid) {
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
    /// Goes on with what is here.
    fn open(blob: &Path, entry: &Entry) -> Result<Self, FetchError> {
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        let folder = blob.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(FetchError::io("make the folder", folder))?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FetchError::io("open", &path))?;
        let fresh = Hash::of(entry);
        let mut partial = Self { path, file, here: 0, size: entry.size, hash: fresh.clone(), fresh };
        partial.take_in().map_err(FetchError::io("read", &partial.path))?;
        if partial.here > entry.size {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Reads what is here.
    fn take_in(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hash.update(&buffer[..n]);
                    self.here += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes behind the end of the file are left out.
    fn add(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let left = usize::try_from(self.size - self.here).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(left)];
        self.file.write_all(bytes).map_err(FetchError::io("write", &self.path))?;
        self.hash.update(bytes);
        self.here += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), FetchError> {
        self.file.set_len(0).map_err(FetchError::io("write", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(FetchError::io("write", &self.path))?;
        (self.here, self.hash) = (0, self.fresh.clone());
        Ok(())
    }

    /// The digest of what is here, in hexadecimal; nothing where it is of no use.
    fn digest(&self) -> String {
        match &self.hash {
            Hash::Sha256(hash) => hex::encode(hash.clone().finalize()),
            Hash::Git(hash) => hex::encode(hash.clone().finalize()),
            Hash::Unknown => String::new(),
        }
    }

    fn keep(self, blob: &Path) -> Result<(), FetchError> {
        self.file.sync_all().map_err(FetchError::io("sync", &self.path))?;
        fs::rename(&self.path, blob).map_err(FetchError::io("write", blob))
    }

    fn discard(self) {
        // Best effort: the error that is being reported matters more.
        let _ = fs::remove_file(&self.path);
    }
}
