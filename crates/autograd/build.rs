//! Compiles the C++ shims against the headers of the libtorch that `torch-sys` found.

use std::env;
use std::path::PathBuf;

const SOURCES: [&str; 7] = [
    "src/shim.cpp",
    "src/packed.cpp",
    "src/fused.cpp",
    "src/linear.cpp",
    "src/memory.cpp",
    "src/dlpack.cpp",
    "src/parallel.cpp",
];

/// All sources as one translation unit.
const ALL: &str = "src/all.cpp";

fn main() {
    for source in ["src/kernels.h", "src/packed_rows.h", ALL].into_iter().chain(SOURCES) {
        println!("cargo:rerun-if-changed={source}");
    }
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .expect("torch-sys reports the path of libtorch; run `just setup` first");
    let include = lib.parent().expect("libtorch's lib/ has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        // Optimized in every profile, because a step spends its time in these loops.
        .opt_level(3)
        // Lines for traces only, as in the profile: descriptions of libtorch's types take long.
        .debug(false)
        .flag("-g1")
        .flag("-fopenmp")
        .flag("-fno-math-errno")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file(ALL)
        .compile("sepal_autograd_shim");
    // By name only, so that it resolves to the library that libtorch has loaded, with its threads.
    println!("cargo:rustc-link-lib=gomp");
}
