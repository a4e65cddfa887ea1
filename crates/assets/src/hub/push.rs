//! Commits of local files to the hub.

use std::path::PathBuf;
use std::time::Instant;

use reqwest::StatusCode;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::event::emit;
use crate::hub::api::{Api, ApiError, RepoId};
use crate::hub::cache::is_commit;
use crate::hub::upload::{Upload, UploadDecision};
use crate::{Assets, EventHandler, FetchEvent, HubSource, Kind, PushError, PushOptions, PushOutcome, Source};

impl Assets {
    /// Commits files to the root of a hub repository, under their local names. The repository is created if it does not
    /// exist. Unchanged files are not sent again, and other files of the repository stay. All files are held in memory.
    ///
    /// # Errors
    /// [`PushError`] if the push fails; the hub then has all changes or none.
    pub fn push(
        &self,
        to: &HubSource,
        files: &[PathBuf],
        options: &PushOptions,
        on_event: &mut EventHandler<'_>,
    ) -> Result<PushOutcome, PushError> {
        check_target(to)?;
        let uploads = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let repository = || format!("{}/{}", to.owner(), to.name());
        if self.options().hub_offline {
            return Err(PushError::Offline { repository: repository() });
        }
        if self.options().hub_token.is_none() {
            return Err(PushError::NoToken { repository: repository() });
        }
        let hub = self.reachable_hub(to, None)?;
        let id = RepoId { source: to, kind: Kind::Model };
        let push = Push { api: &hub.api, id, branch: to.revision().unwrap_or("main"), options };
        hub.runtime.block_on(push.run(&uploads, on_event))
    }
}

/// Error if the target is not a branch.
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

struct Push<'a> {
    api: &'a Api,
    id: RepoId<'a>,
    branch: &'a str,
    options: &'a PushOptions,
}

impl Push<'_> {
    async fn run(&self, files: &[Upload], on_event: &mut EventHandler<'_>) -> Result<PushOutcome, PushError> {
        let (api, id, branch) = (self.api, self.id, self.branch);
        self.prepare().await?;
        let decisions =
            api.upload_decisions(id, branch, files).await.map_err(|error| self.error("announce the files", error))?;
        let mut changed = Vec::new();
        for (file, decision) in self.match_decisions(files, &decisions)? {
            if !decision.is_unchanged(file) {
                // The storage for large files rejects empty files.
                let is_large = decision.is_large() && !file.content.is_empty();
                if is_large {
                    self.upload(file, on_event).await?;
                }
                changed.push((file, is_large));
            }
        }
        let commit = self.commit(&changed).await?;
        let changed = changed.iter().map(|(file, _)| file.name.clone()).collect();
        Ok(PushOutcome { url: api.page(id).to_string(), commit, changed })
    }

    /// Creates the repository if it does not exist, and checks that it is private if the options require it.
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

    /// Pairs each file with the hub's decision; error if a file is ignored.
    fn match_decisions<'f>(
        &self,
        files: &'f [Upload],
        decisions: &'f [UploadDecision],
    ) -> Result<Vec<(&'f Upload, &'f UploadDecision)>, PushError> {
        let pair = |file: &'f Upload| {
            let found = decisions.iter().find(|decision| decision.path == file.name);
            let missing = || ApiError::Refused(format!("it has no decision for {}", file.name));
            let found = found.ok_or_else(|| self.error("announce the files", missing()))?;
            if found.should_ignore {
                return Err(PushError::Ignored { repository: self.repository(), file: file.name.clone() });
            }
            Ok((file, found))
        };
        files.iter().map(pair).collect()
    }

    async fn upload(&self, file: &Upload, on_event: &mut EventHandler<'_>) -> Result<(), PushError> {
        let failed = |error| self.error(&format!("send {}", file.name), error);
        let (size, started) = (file.content.len() as u64, Instant::now());
        self.emit(on_event, FetchEvent::Begin { file: &file.name, size, bytes_done: 0 })?;
        let mut n_sent = |bytes_done| on_event(FetchEvent::Progress { bytes_done });
        self.api.upload(self.id, self.branch, file, &mut n_sent).await.map_err(failed)?;
        let seconds = started.elapsed().as_secs_f64();
        self.emit(on_event, FetchEvent::End { file: &file.name, size, received: size, seconds })
    }

    /// Commits the changed files; none if nothing changed.
    async fn commit(&self, changed: &[(&Upload, bool)]) -> Result<Option<String>, PushError> {
        if changed.is_empty() {
            return Ok(None);
        }
        match self.api.make_commit(self.id, self.branch, &self.options.message, changed).await {
            Ok(commit) => Ok(Some(commit.commit_oid)),
            Err(error) if is_definitely_rejected(&error) => Err(self.error("make the commit", error)),
            Err(source) => Err(PushError::Unknown { repository: self.repository(), source: source.into() }),
        }
    }

    fn emit(&self, on_event: &mut EventHandler<'_>, event: FetchEvent<'_>) -> Result<(), PushError> {
        emit(on_event, event).map_err(|_| PushError::Stopped { repository: self.repository() })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.id.source.owner(), self.id.source.name())
    }

    fn error(&self, action: &str, error: ApiError) -> PushError {
        let (repository, action) = (self.repository(), action.to_owned());
        match error {
            ApiError::Stopped => PushError::Stopped { repository },
            ApiError::Status { status, message, .. }
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
            {
                let message = message.map(|message| format!(": {message}")).unwrap_or_default();
                PushError::Forbidden { repository, reason: format!("{status}{message}") }
            }
            error => PushError::Hub { repository, action, source: error.into() },
        }
    }
}

/// Returns true if a failed request certainly had no effect.
fn is_definitely_rejected(error: &ApiError) -> bool {
    match error {
        ApiError::Status { status, .. } => status.is_client_error() && *status != StatusCode::REQUEST_TIMEOUT,
        ApiError::Http(error) => error.is_connect() || error.is_builder(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
