//! Python interpreters with the official packages of trackers, for tests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Interpreter of `SEPAL_TEST_PYTHON` if it has the package; otherwise reports that the test is skipped.
pub(crate) fn python_with(package: &str) -> Option<PathBuf> {
    let Some(python) = std::env::var_os("SEPAL_TEST_PYTHON") else {
        eprintln!("skipped: SEPAL_TEST_PYTHON names no Python with the package `{package}`");
        return None;
    };
    let has_it = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    if has_it.is_ok_and(|output| output.status.success()) {
        return Some(python.into());
    }
    eprintln!("skipped: {} has no package `{package}`", python.display());
    None
}

/// Python without packages, if installed; otherwise reports that the test is skipped.
pub(crate) fn plain_python() -> Option<PathBuf> {
    let has_it = Command::new("python3").args(["-c", "import re, unicodedata"]).output();
    if has_it.is_ok_and(|output| output.status.success()) {
        return Some("python3".into());
    }
    eprintln!("skipped: there is no python3");
    None
}

pub(crate) struct Script<'a> {
    pub(crate) python: &'a Path,
    pub(crate) code: &'a str,
}

impl Script<'_> {
    /// Runs the script and parses the last line of its output.
    pub(crate) fn json(&self, arguments: &[&dyn AsRef<OsStr>]) -> serde_json::Value {
        let arguments = arguments.iter().map(|argument| argument.as_ref());
        let output = Command::new(self.python).args(["-c", self.code]).args(arguments).output().expect("Python starts");
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}\n{errors}");
        serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}
