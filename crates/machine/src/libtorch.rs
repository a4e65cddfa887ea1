//! Libtorch of a program, without loading it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bounded::output_within;

/// Library of a CUDA build.
pub const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// Time for the loader, which reads all libraries.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Library that every build has.
const CPU_LIBRARY: &str = "libtorch_cpu.so";

/// Libtorch as the loader finds it for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Linked {
    /// All libraries are found.
    Found(Libtorch),
    /// Libraries that the loader does not find.
    Missing(Vec<String>),
    /// The program is not linked with libtorch.
    Unlinked,
    /// Message of a loader that cannot read a library.
    Refused(String),
}

impl Linked {
    /// Returns the libtorch that the loader would load for `program`, which is not run.
    ///
    /// # Errors
    /// Error of the system if the loader cannot be started or does not end in time.
    pub fn of_program(program: &Path) -> io::Result<Self> {
        // The loader prints what it finds and ends, as for ldd.
        let mut loader = Command::new(program);
        let output = output_within(loader.env("LD_TRACE_LOADED_OBJECTS", "1"), TIMEOUT)?;
        if output.stdout.is_empty() && !output.status.success() {
            return Ok(Self::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(Self::read(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Reads the list of the loader: `libtorch_cpu.so => /path/libtorch_cpu.so (0x7f..)`, or `=> not found`.
    fn read(list: &str) -> Self {
        let libraries: Vec<(&str, &str)> = list.lines().filter_map(|line| line.trim().split_once(" => ")).collect();
        let missing: Vec<String> = libraries
            .iter()
            .filter(|(_, found)| found.starts_with("not found"))
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let path = |found: &str| Some(Path::new(found.rsplit_once(" (")?.0).parent()?.to_owned());
        let cpu = libraries.iter().find(|(name, _)| *name == CPU_LIBRARY).and_then(|(_, found)| path(found));
        match cpu {
            _ if !missing.is_empty() => Self::Missing(missing),
            Some(folder) => Self::Found(Libtorch { folder }),
            None => Self::Unlinked,
        }
    }
}

/// Folder with the libraries of libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// Folder, usually called `lib`.
    pub folder: PathBuf,
}

impl Libtorch {
    /// True if the folder holds the libraries of a CUDA build.
    pub fn is_cuda_build(&self) -> bool {
        self.folder.join(CUDA_LIBRARY).is_file()
    }

    /// Version by `build-version` (distribution) or `version.py` (Python package) above the folder.
    pub fn version(&self) -> Option<String> {
        let above = self.folder.parent()?;
        if let Ok(text) = std::fs::read_to_string(above.join("build-version")) {
            return Some(text.trim().to_owned());
        }
        let text = std::fs::read_to_string(above.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(|c| c == '\'' || c == '"').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_list_of_the_loader() {
        let libc = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n";
        let found = format!(
            "{libc}\tlibtorch_cpu.so => /opt/lib torch/lib/libtorch_cpu.so (0x3)\n\tlibc10.so => /opt/lib torch/lib/libc10.so (0x4)\n"
        );
        let folder = PathBuf::from("/opt/lib torch/lib");
        assert_eq!(Linked::read(&found), Linked::Found(Libtorch { folder }));
        let partly = found.replace("/opt/lib torch/lib/libc10.so (0x4)", "not found");
        assert_eq!(Linked::read(&partly), Linked::Missing(vec!["libc10.so".to_owned()]));
        assert_eq!(Linked::read(libc), Linked::Unlinked);
    }

    #[test]
    fn program_without_libtorch_is_unlinked() {
        let program = std::env::current_exe().expect("this test is a file");
        assert_eq!(Linked::of_program(&program).expect("the loader runs"), Linked::Unlinked);
        assert!(Linked::of_program(Path::new("/no/such/program")).is_err());
    }

    #[test]
    fn version_and_kind_are_read_from_the_folder() {
        let above = tempfile::tempdir().expect("a folder");
        let libtorch = Libtorch { folder: above.path().join("lib") };
        std::fs::create_dir(&libtorch.folder).expect("a folder");
        assert_eq!((libtorch.version(), libtorch.is_cuda_build()), (None, false));
        let python = "__version__ = '2.13.0+cpu'\ndebug = False\n";
        std::fs::write(above.path().join("version.py"), python).expect("written");
        assert_eq!(libtorch.version().as_deref(), Some("2.13.0+cpu"));
        std::fs::write(above.path().join("build-version"), "2.12.1\n").expect("written");
        assert_eq!(libtorch.version().as_deref(), Some("2.12.1"));
        std::fs::write(libtorch.folder.join(CUDA_LIBRARY), "").expect("written");
        assert!(libtorch.is_cuda_build());
    }
}
