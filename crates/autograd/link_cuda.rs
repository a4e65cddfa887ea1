//! Build script of the packages whose programs compute: it links libtorch's CUDA library if the configured libtorch has
//! one.
//!
//! CUDA registers itself when the library is loaded, and no program names a symbol of it. A linker drops libraries that
//! are not named (`--as-needed`), so libtorch would find no device. Linker arguments reach the programs of their own package
//! only, hence each such package has this file as its build script.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(lib) = env::var_os("LIBTORCH").map(|libtorch| PathBuf::from(libtorch).join("lib")) else { return };
    if lib.is_dir() {
        println!("cargo:rerun-if-changed={}", lib.display());
    }
    for argument in arguments(&lib) {
        println!("cargo:rustc-link-arg={argument}");
    }
}

/// Arguments of the linker; none for a CPU build.
fn arguments(lib: &Path) -> Vec<String> {
    if !lib.join("libtorch_cuda.so").is_file() {
        return Vec::new();
    }
    let search = format!("-L{}", lib.display());
    ["-Wl,--push-state,--no-as-needed", &search, "-ltorch_cuda", "-Wl,--pop-state"].map(str::to_owned).to_vec()
}
