//! What is pushed to the hub, and what can go wrong with it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::FetchError;

/// How files are pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// The first line of the commit's message.
    pub message: String,
    /// Whether nobody else may read the repository: it is made so if it is new, and nothing is pushed to one that is open.
    pub private: bool,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// The page of the repository.
    pub url: String,
    /// The commit that was made; none if the repository had all files as they are.
    pub commit: Option<String>,
    /// The files that were new or other ones there, by their names.
    pub changed: Vec<String>,
}

/// Files that were not pushed. No commit was made, so that whoever fetches from the repository sees what was there before,
/// except after [`PushError::Unknown`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// Nobody is logged in.
    #[error(
        "push to {repository}: the hub must know who you are; set HF_TOKEN to a token that may write, or log in with \
         `hf auth login`, and leave HF_HUB_DISABLE_IMPLICIT_TOKEN unset"
    )]
    NoToken {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// Whoever is logged in may not do that.
    #[error(
        "push to {repository}: the hub refused it ({reason}); the token needs the right to write there, and to make it if it is new"
    )]
    Forbidden {
        /// `OWNER/NAME`.
        repository: String,
        /// What the hub said.
        reason: String,
    },
    /// It should be private, and is not.
    #[error(
        "push to {repository}: it is open to all, and should be private; make it so in its settings on the hub, or push to another"
    )]
    Open {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// The hub must not be asked.
    #[error("push to {repository}: HF_HUB_OFFLINE is set, so the hub is not asked")]
    Offline {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// The repository takes no file of this name.
    #[error("push to {repository}: its .gitignore ignores {file}; change that there")]
    Ignored {
        /// `OWNER/NAME`.
        repository: String,
        /// The file.
        file: String,
    },
    /// The target is no branch of a repository.
    #[error("push to {target}: it is {problem}; write hub:OWNER/NAME, or hub:OWNER/NAME@BRANCH")]
    Target {
        /// What was given.
        target: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file cannot be read.
    #[error("push {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The hub, or the way to it, failed.
    #[error("push to {repository}: {action}")]
    Hub {
        /// `OWNER/NAME`.
        repository: String,
        /// What was tried.
        action: String,
        /// What the hub, or the way to it, said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The commit was asked for, and no answer came.
    #[error(
        "push to {repository}: whether the commit was made is not known; push again, what is there already is not sent twice"
    )]
    Unknown {
        /// `OWNER/NAME`.
        repository: String,
        /// What happened to the answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Somebody wanted the push to end.
    #[error("push to {repository}: it was told to stop; what is there already is not sent again by the next push")]
    Stopped {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// The hub does not answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}
