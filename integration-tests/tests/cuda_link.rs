//! Linking of libtorch's CUDA library, with a stub in its place.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Folder with the build script as a program.
struct BuildScript(TempDir);

impl BuildScript {
    fn compile() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/autograd/link_cuda.rs");
        rustc(&source, &folder.path().join("build"), &[]);
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Arguments for rustc that the script prints for the libtorch in `folder`.
    fn arguments(&self, folder: &Path) -> Vec<String> {
        let output = Command::new(self.path("build")).env("LIBTORCH", folder).output().expect("the script runs");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let argument = |line: &str| Some(format!("-Clink-arg={}", line.strip_prefix("cargo:rustc-link-arg=")?));
        text.lines().filter_map(argument).collect()
    }

    /// True if a program that is linked with these arguments needs the CUDA library.
    fn is_needed(&self, arguments: &[String]) -> bool {
        let (source, program) = (self.path("program.rs"), self.path("program"));
        fs::write(&source, "fn main() {}").expect("written");
        rustc(&source, &program, arguments);
        let output = Command::new("readelf").arg("-d").arg(&program).output().expect("readelf runs");
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("NEEDED"), "{text}");
        text.lines().any(|line| line.contains("NEEDED") && line.contains("[libtorch_cuda.so]"))
    }
}

fn rustc(source: &Path, program: &Path, arguments: &[String]) {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "-o"]).arg(program).arg(source).args(arguments);
    assert!(command.stdout(Stdio::null()).status().expect("rustc runs").success(), "{}", source.display());
}

/// Writes an empty shared library.
fn write_stub(path: &Path) {
    let mut command = Command::new("g++");
    let name = path.file_name().and_then(OsStr::to_str).expect("a name");
    command.args(["-shared", "-x", "c++", "/dev/null", &format!("-Wl,-soname,{name}"), "-o"]).arg(path);
    assert!(command.status().expect("g++ runs").success());
}

#[test]
fn cuda_library_is_linked_although_nothing_names_it() {
    let script = BuildScript::compile();
    let lib = script.path("lib");
    fs::create_dir(&lib).expect("a folder");
    assert!(script.arguments(script.0.path()).is_empty(), "a CPU build has no CUDA library");
    write_stub(&lib.join("libtorch_cuda.so"));
    assert!(script.is_needed(&script.arguments(script.0.path())));
    // The plain option, which the bindings pass, has no effect.
    let plain = [format!("-Lnative={}", lib.display()), "-ldylib=torch_cuda".to_owned()];
    assert!(!script.is_needed(&plain));
}
