//! The engine: the program with libtorch.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of the program.
const NAME: &str = "sepal-engine";
/// Variable that names another engine.
const VARIABLE: &str = "SEPAL_ENGINE";
/// Path of the engine in the site-packages of a Python environment.
const IN_PACKAGE: &str = "sepal/bin/sepal-engine";
/// Variable with the number of the process in which a front has replaced itself by an engine.
const REPLACED: &str = "SEPAL_FRONT_PROCESS";
/// Only argument of an engine that prints its [`EngineReport`].
const REPORT: &str = "--engine-report";
/// Time for the report, in which libtorch is loaded, also with CUDA from a cold disk.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Program that computes, with libtorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The running program itself.
    Running,
    /// The engine that belongs to the running program.
    Beside,
}

impl Engine {
    /// True if the user names an engine by `SEPAL_ENGINE`.
    pub fn is_named() -> bool {
        named().is_some()
    }

    /// Path of the engine: the one named by `SEPAL_ENGINE`; the one beside this program; the one in the Python packages of the
    /// environment that this program is installed in.
    ///
    /// # Errors
    /// [`EngineError::Missing`] with all paths that have no file.
    pub fn path(self) -> Result<PathBuf, EngineError> {
        let program = std::env::current_exe().map_err(|source| EngineError::Program { source })?;
        match self {
            Engine::Running => Ok(program),
            Engine::Beside => find(named(), &program),
        }
    }

    /// Replaces the running program by the engine, with the same arguments and further variables. Returns only if that fails.
    pub fn replace_this_program(self, variables: &[(&str, &str)]) -> EngineError {
        let path = match self.path() {
            Ok(path) => path,
            Err(error) => return error,
        };
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| NAME.into());
        // A program keeps its number when it is replaced.
        let number = std::process::id().to_string();
        if std::env::var(REPLACED).is_ok_and(|replaced| replaced == number) {
            return EngineError::Front { path };
        }
        let mut engine = Command::new(&path);
        let source = engine.arg0(name).args(arguments).envs(variables.iter().copied()).env(REPLACED, number).exec();
        EngineError::Start { path, source }
    }

    /// True if the running engine is asked for its report.
    pub fn is_asked_for_report() -> bool {
        std::env::args_os().skip(1).eq([OsString::from(REPORT)])
    }

    /// Asks the engine at `path` for its report.
    ///
    /// # Errors
    /// [`EngineError`] if it does not start, for example because the loader does not find libtorch, or does not answer in time.
    pub(crate) fn report(path: &Path) -> Result<EngineReport, EngineError> {
        Self::report_within(path, REPORT_TIMEOUT)
    }

    fn report_within(path: &Path, timeout: Duration) -> Result<EngineReport, EngineError> {
        let output = sepal_machine::output_within(Command::new(path).arg(REPORT), timeout);
        let output = output.map_err(|source| match source.kind() {
            ErrorKind::TimedOut => EngineError::NoAnswer { path: path.to_owned(), seconds: timeout.as_secs_f64() },
            _ => EngineError::Start { path: path.to_owned(), source },
        })?;
        let message = || {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if text.is_empty() { format!("it ended with {}", output.status) } else { text }
        };
        let report = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success());
        report.ok_or_else(|| EngineError::Report { path: path.to_owned(), message: message() })
    }
}

/// Properties of libtorch that only a program with it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Threads for matrix products.
    pub threads: usize,
    /// CUDA devices.
    pub cuda_devices: usize,
    /// True if the CUDA library of libtorch is loaded.
    pub has_cuda_library: bool,
}

/// An engine that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum EngineError {
    /// Engine that is not there.
    #[error(
        "find the program sepal-engine, which computes with libtorch; there is none at {}. Build it by `cargo build --workspace \
         --bins`, install the package again, or name it by SEPAL_ENGINE",
        list(tried)
    )]
    Missing { tried: Vec<PathBuf> },
    /// Engine that is a front.
    #[error("start {} as the engine: it is no engine, but starts one; name sepal-engine by SEPAL_ENGINE", path.display())]
    Front { path: PathBuf },
    /// Engine that the system does not start.
    #[error("start {}", path.display())]
    Start { path: PathBuf, source: std::io::Error },
    /// Engine that does not end in time.
    #[error(
        "start {}: libtorch was not loaded within {seconds} s, and the engine was stopped; a first start from a slow disk may need \
         longer, then try again",
        path.display()
    )]
    NoAnswer { path: PathBuf, seconds: f64 },
    /// Engine that does not describe itself.
    #[error("start {}: {message}", path.display())]
    Report { path: PathBuf, message: String },
    /// Running program without a path.
    #[error("find the path of this program")]
    Program { source: std::io::Error },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn named() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Returns the first engine that exists, for a program at `program`.
fn find(named: Option<PathBuf>, program: &Path) -> Result<PathBuf, EngineError> {
    let candidates = match named {
        Some(path) => vec![path],
        None => candidates(program),
    };
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(EngineError::Missing { tried: candidates }),
    }
}

/// Places of the engine: beside the program, and in the Python packages of its environment or of its target folder.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let folder = program.parent().unwrap_or(Path::new("."));
    let environment = folder.parent().unwrap_or(folder);
    let mut candidates = vec![folder.join(NAME)];
    for lib in ["lib", "lib64", "local/lib"].map(|lib| environment.join(lib)) {
        let mut pythons: Vec<PathBuf> = std::fs::read_dir(&lib)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .map(|entry| entry.path())
            .collect();
        pythons.sort();
        for python in pythons {
            candidates
                .extend(["site-packages", "dist-packages"].map(|packages| python.join(packages).join(IN_PACKAGE)));
        }
    }
    // `pip install --target FOLDER` puts programs into FOLDER/bin.
    candidates.push(environment.join(IN_PACKAGE));
    candidates
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path) -> PathBuf {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, "").expect("written");
        path.to_owned()
    }

    #[test]
    fn engine_beside_the_program_comes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = write(&folder.path().join("bin/sepal"));
        let error = find(None, &program).expect_err("there is none").to_string();
        assert!(error.contains("bin/sepal-engine") && error.contains("SEPAL_ENGINE"), "{error}");

        let packaged = write(&folder.path().join("lib/python3.12/site-packages").join(IN_PACKAGE));
        assert_eq!(find(None, &program).expect("there is one"), packaged);
        let beside = write(&folder.path().join("bin/sepal-engine"));
        assert_eq!(find(None, &program).expect("there is one"), beside);
    }

    #[test]
    fn named_engine_is_the_only_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = write(&folder.path().join("sepal"));
        let beside = write(&folder.path().join("sepal-engine"));
        let named = folder.path().join("mine");
        assert!(find(Some(named.clone()), &program).is_err());
        assert_ne!(find(Some(write(&named)), &program).expect("there is one"), beside);
    }

    #[test]
    fn report_of_a_program_that_fails_has_its_message() {
        let error = Engine::report(Path::new("/bin/false")).expect_err("no report").to_string();
        assert!(error.starts_with("start /bin/false: it ended with exit status: 1"), "{error}");
        assert!(Engine::report(Path::new("/no/such/engine")).is_err());
    }

    #[test]
    fn engine_that_does_not_answer_is_stopped_and_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine");
        std::fs::write(&path, "#!/bin/sh\nexec sleep 600\n").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let error = loop {
            match Engine::report_within(&path, Duration::from_millis(250)).expect_err("no answer") {
                // A process that another test starts has the file open for writing until it is another program.
                EngineError::Start { source, .. } if source.kind() == ErrorKind::ExecutableFileBusy => {}
                error => break error,
            }
        };
        assert!(matches!(error, EngineError::NoAnswer { .. }), "{error:?}");
        assert!(error.to_string().contains("was not loaded within 0.25 s"), "{error}");
    }
}
