//! Files of this machine as a commit on the hub.

use std::path::PathBuf;
use std::time::Instant;

use reqwest::StatusCode;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::event::tell;
use crate::hub::api::{Api, ApiError, RepoId};
use crate::hub::cache::is_commit;
use crate::hub::upload::{Upload, Wanted};
use crate::{Assets, FetchEvent, HubSource, Kind, PushError, PushOptions, Pushed, Source, Watch};

impl Assets {
    /// Makes one commit of files in a repository of the hub, at its top and under the names that they have here. A
    /// repository that is not there is made. Files that are there as they are do not go again; others there are left alone.
    /// Files are held in memory meanwhile.
    ///
    /// # Errors
    /// [`PushError`]; either all files have changed on the hub, or none.
    pub fn push(
        &self,
        to: &HubSource,
        files: &[PathBuf],
        options: &PushOptions,
        watch: &mut Watch<'_>,
    ) -> Result<Pushed, PushError> {
        check_target(to)?;
        let uploads = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let repository = || format!("{}/{}", to.owner(), to.name());
        if self.options().hub_offline {
            return Err(PushError::Offline { repository: repository() });
        }
        if self.options().hub_token.is_none() {
            return Err(PushError::NoToken { repository: repository() });
        }
        let hub = self.answering_hub(to, None)?;
        let id = RepoId { source: to, kind: Kind::Model };
        let push = Push { api: &hub.api, id, branch: to.revision().unwrap_or("main"), options };
        hub.runtime.block_on(push.run(&uploads, watch))
    }
}

/// Only a branch can be written to.
fn check_target(to: &HubSource) -> Result<(), PushError> {
    let problem = match to.revision() {
        _ if to.path().is_some() => "a file in a repository",
        Some(revision) if is_commit(revision) => "a commit, which never changes",
        _ => return Ok(()),
    };
    Err(PushError::Target { target: Source::Hub(to.clone()).to_string(), problem })
}

fn read(path: &PathBuf) -> Result<Upload, PushError> {
    let refused = |source| PushError::Read { path: path.clone(), source };
    let content = std::fs::read(path).map_err(refused)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let git = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(&content);
    let (sha256, git_hash) = (hex::encode(Sha256::digest(&content)), hex::encode(git.finalize()));
    Ok(Upload { name, content: content.into(), sha256, git_hash })
}

/// A push to one branch.
struct Push<'a> {
    api: &'a Api,
    id: RepoId<'a>,
    branch: &'a str,
    options: &'a PushOptions,
}

impl Push<'_> {
    async fn run(&self, files: &[Upload], watch: &mut Watch<'_>) -> Result<Pushed, PushError> {
        let (api, id, branch) = (self.api, self.id, self.branch);
        self.prepare().await?;
        let wanted = api.wanted(id, branch, files).await.map_err(|error| self.error("announce the files", error))?;
        let mut changed = Vec::new();
        for (file, wanted) in self.in_pairs(files, &wanted)? {
            if !wanted.has(file) {
                // Storage for large files refuses empty ones.
                let is_large = wanted.is_large() && !file.content.is_empty();
                if is_large {
                    self.bring(file, watch).await?;
                }
                changed.push((file, is_large));
            }
        }
        let commit = self.commit(&changed).await?;
        let changed = changed.iter().map(|(file, _)| file.name.clone()).collect();
        Ok(Pushed { url: api.page(id).to_string(), commit, changed })
    }

    /// Makes the repository if it is not there, and sees to it that it is private if that is wanted.
    async fn prepare(&self) -> Result<(), PushError> {
        let look =
            async || self.api.is_private(self.id).await.map_err(|error| self.error("look at the repository", error));
        let mut found = look().await?;
        if found.is_none() {
            if self.branch != "main" {
                let target = format!("hub:{}@{}", self.repository(), self.branch);
                return Err(PushError::Target { target, problem: "a branch of a repository that is not there" });
            }
            let made = self.api.create(self.id, self.options.private).await;
            made.map_err(|error| self.error("make the repository", error))?;
            found = look().await?;
        }
        match found {
            Some(false) | None if self.options.private => Err(PushError::Open { repository: self.repository() }),
            _ => Ok(()),
        }
    }

    /// Each file with what the hub says of it; none may be ignored.
    fn in_pairs<'f>(
        &self,
        files: &'f [Upload],
        wanted: &'f [Wanted],
    ) -> Result<Vec<(&'f Upload, &'f Wanted)>, PushError> {
        let pair = |file: &'f Upload| {
            let found = wanted.iter().find(|wanted| wanted.path == file.name);
            let silent = || ApiError::Refused(format!("it says nothing of {}", file.name));
            let found = found.ok_or_else(|| self.error("announce the files", silent()))?;
            if found.should_ignore {
                return Err(PushError::Ignored { repository: self.repository(), file: file.name.clone() });
            }
            Ok((file, found))
        };
        files.iter().map(pair).collect()
    }

    /// Brings a large file to the hub's storage.
    async fn bring(&self, file: &Upload, watch: &mut Watch<'_>) -> Result<(), PushError> {
        let failed = |error| self.error(&format!("send {}", file.name), error);
        let (size, started) = (file.content.len() as u64, Instant::now());
        self.tell(watch, FetchEvent::Begin { file: &file.name, size, here: 0 })?;
        let mut went = |here| watch(FetchEvent::Progress { here });
        self.api.bring(self.id, self.branch, file, &mut went).await.map_err(failed)?;
        let seconds = started.elapsed().as_secs_f64();
        self.tell(watch, FetchEvent::End { file: &file.name, size, received: size, seconds })
    }

    /// The commit, if anything changed.
    async fn commit(&self, changed: &[(&Upload, bool)]) -> Result<Option<String>, PushError> {
        if changed.is_empty() {
            return Ok(None);
        }
        match self.api.make_commit(self.id, self.branch, &self.options.message, changed).await {
            Ok(commit) => Ok(Some(commit.commit_oid)),
            Err(error) if is_certain(&error) => Err(self.error("make the commit", error)),
            Err(source) => Err(PushError::Unknown { repository: self.repository(), source: source.into() }),
        }
    }

    fn tell(&self, watch: &mut Watch<'_>, event: FetchEvent<'_>) -> Result<(), PushError> {
        tell(watch, event).map_err(|_| PushError::Stopped { repository: self.repository() })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.id.source.owner(), self.id.source.name())
    }

    fn error(&self, action: &str, error: ApiError) -> PushError {
        let (repository, action) = (self.repository(), action.to_owned());
        match error {
            ApiError::Stopped => PushError::Stopped { repository },
            ApiError::Status { status, said, .. }
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
            {
                let said = said.map(|said| format!(": {said}")).unwrap_or_default();
                PushError::Forbidden { repository, reason: format!("{status}{said}") }
            }
            error => PushError::Hub { repository, action, source: error.into() },
        }
    }
}

/// Whether nothing came of a request that ended so.
fn is_certain(error: &ApiError) -> bool {
    match error {
        ApiError::Status { status, .. } => status.is_client_error() && *status != StatusCode::REQUEST_TIMEOUT,
        ApiError::Http(error) => error.is_connect() || error.is_builder(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
