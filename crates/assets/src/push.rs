use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::FetchError;

/// Options of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// First line of the commit message.
    pub message: String,
    /// True if the repository must be private: a new one is created as private, and a public one is rejected.
    pub private: bool,
}

/// Outcome of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PushOutcome {
    /// Page of the repository.
    pub url: String,
    /// New commit; none if the repository had all files.
    pub commit: Option<String>,
    /// Names of the new and changed files.
    pub changed: Vec<String>,
}

/// Failed push to a repository `OWNER/NAME`, which is unchanged, except after [`PushError::Unknown`].
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum PushError {
    /// No token is set.
    #[error(
        "push to {repository}: no token is set; set HF_TOKEN to a token with write access, or log in with \
         `hf auth login`, and leave HF_HUB_DISABLE_IMPLICIT_TOKEN unset"
    )]
    NoToken { repository: String },
    /// The token lacks the right to write.
    #[error(
        "push to {repository}: the hub refused it ({reason}); the token needs the right to write there, and to make it if it is new"
    )]
    Forbidden { repository: String, reason: String },
    /// The repository is public although it must be private.
    #[error(
        "push to {repository}: it is public and must be private; change its settings on the hub, or push to another repository"
    )]
    Open { repository: String },
    /// Offline mode is on.
    #[error("push to {repository}: HF_HUB_OFFLINE is set, so no request is sent")]
    Offline { repository: String },
    /// The repository ignores files of this name.
    #[error("push to {repository}: its .gitignore ignores {file}; change that there")]
    Ignored { repository: String, file: String },
    /// The target is not a branch of a repository.
    #[error("push to {target}: it is {problem}; write hub:OWNER/NAME, or hub:OWNER/NAME@BRANCH")]
    Target { target: String, problem: &'static str },
    /// A local file cannot be read.
    #[error("push {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A request to the hub failed or was refused.
    #[error("push to {repository}: {action}")]
    Hub { repository: String, action: String, source: Box<dyn Error + Send + Sync> },
    /// The answer to the commit request was lost.
    #[error(
        "push to {repository}: the outcome of the commit is unknown; push again, unchanged files are not sent twice"
    )]
    Unknown { repository: String, source: Box<dyn Error + Send + Sync> },
    /// The event handler stopped the push.
    #[error("push to {repository}: the push was stopped; the next push does not send stored files again")]
    Stopped { repository: String },
    /// The hub is unreachable.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}
