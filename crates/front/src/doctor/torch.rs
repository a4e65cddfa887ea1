//! The engine and its libtorch.

use sepal_machine::{Libtorch, Linked};

use super::finding::Finding;
use crate::engine::{Engine, EngineError, EngineReport};

/// Version of libtorch that the bindings require.
const LIBTORCH: &str = "2.13.0";
/// Advice for a libtorch that is missing or of another version.
const FIX: &str = "in this repository `just setup` brings libtorch 2.13.0; for an installed package, \
                   `pip install torch==2.13.0`; see LIBTORCH and LD_LIBRARY_PATH";

/// Engine of this installation, as far as it can be found and started.
#[derive(Debug)]
pub(super) enum Torch {
    /// Engine that is not there, or that the loader cannot read.
    NoEngine(EngineError),
    /// Libraries that the loader does not find for the engine.
    Missing(Vec<String>),
    /// Message of a loader that cannot read a library.
    Refused(String),
    /// Engine with all its libraries.
    Linked {
        /// Folder of libtorch; `None` if it is a part of the engine.
        libtorch: Option<Libtorch>,
        /// Answer of the running engine.
        report: Result<EngineReport, EngineError>,
    },
}

impl Torch {
    /// Finds the engine and its libraries, and starts it if all are there.
    pub(super) fn of_engine(engine: Engine) -> Self {
        let path = match engine.path() {
            Ok(path) => path,
            Err(error) => return Self::NoEngine(error),
        };
        match Linked::of_program(&path) {
            Err(source) => Self::NoEngine(EngineError::Start { path, source }),
            Ok(Linked::Missing(libraries)) => Self::Missing(libraries),
            Ok(Linked::Refused(message)) => Self::Refused(message),
            Ok(Linked::Unlinked) => Self::Linked { libtorch: None, report: Engine::report(&path) },
            Ok(Linked::Found(libtorch)) => Self::Linked { libtorch: Some(libtorch), report: Engine::report(&path) },
        }
    }

    /// Answer of the engine, if it starts.
    pub(super) fn report(&self) -> Option<&EngineReport> {
        match self {
            Self::Linked { report, .. } => report.as_ref().ok(),
            Self::NoEngine(_) | Self::Missing(_) | Self::Refused(_) => None,
        }
    }

    /// True if libtorch is a CUDA build.
    pub(super) fn is_cuda_build(&self) -> bool {
        matches!(self, Self::Linked { libtorch: Some(libtorch), .. } if libtorch.is_cuda_build())
    }
}

/// Version and kind of libtorch, or the reason why the engine does not start.
pub(super) fn libtorch(torch: &Torch) -> Finding {
    match torch {
        Torch::NoEngine(error) => Finding::problem(
            sepal_core::in_one_line(error),
            "build the engine by `cargo build --workspace --bins`, or install the package again",
        ),
        Torch::Missing(libraries) => {
            Finding::problem(format!("missing: the loader does not find {}", libraries.join(", ")), FIX)
        }
        Torch::Refused(message) => Finding::problem(format!("not readable: {message}"), FIX),
        Torch::Linked { libtorch, report } => judge(libtorch.as_ref(), report.as_ref().err()),
    }
}

fn judge(libtorch: Option<&Libtorch>, error: Option<&EngineError>) -> Finding {
    let version = libtorch.and_then(Libtorch::version);
    let named = match libtorch {
        Some(libtorch) => {
            let kind = if libtorch.is_cuda_build() { "CUDA build" } else { "CPU build" };
            let version = version.as_deref().unwrap_or("of a version that it does not state");
            format!("{version}, {kind}, from {}", libtorch.folder.display())
        }
        None => format!("a part of the engine, which is made for {LIBTORCH}"),
    };
    let is_other = version.is_some_and(|version| !version.starts_with(LIBTORCH));
    let other = if is_other { format!(", but this program is made for {LIBTORCH}") } else { String::new() };
    match error {
        Some(error) => Finding::problem(format!("{named}{other}: failed to {}", sepal_core::in_one_line(error)), FIX),
        None if is_other => Finding::warning(format!("{named}{other}"), FIX),
        None => Finding::ok(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn libtorch_of_each_kind_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let libtorch = Libtorch { folder: folder.path().join("lib") };
        std::fs::create_dir(&libtorch.folder).expect("a folder");
        let version = |text: &str| std::fs::write(folder.path().join("build-version"), text).expect("written");
        version("2.13.0\n");
        assert!(judge(Some(&libtorch), None).found.starts_with("2.13.0, CPU build, from "));
        std::fs::write(libtorch.folder.join(sepal_machine::CUDA_LIBRARY), "").expect("written");
        assert!(judge(Some(&libtorch), None).found.starts_with("2.13.0, CUDA build, from "));
        version("2.12.1\n");
        assert_eq!(judge(Some(&libtorch), None).state, State::Warning);
        let error = EngineError::Report { path: "engine".into(), message: "undefined symbol".to_owned() };
        let finding = judge(Some(&libtorch), Some(&error));
        assert_eq!(finding.state, State::Problem);
        assert!(finding.found.contains("made for 2.13.0: failed to start engine: undefined symbol"), "{finding:?}");
    }

    #[test]
    fn missing_parts_are_problems() {
        let finding = libtorch(&Torch::Missing(vec!["libtorch_cpu.so".to_owned()]));
        assert_eq!(finding.state, State::Problem);
        assert!(finding.found.contains("does not find libtorch_cpu.so"), "{finding:?}");
        let engine = EngineError::Missing { tried: vec!["bin/sepal-engine".into()] };
        let finding = libtorch(&Torch::NoEngine(engine));
        assert_eq!(finding.state, State::Problem);
        assert!(finding.found.contains("there is none at bin/sepal-engine"), "{finding:?}");
    }
}
