//! Compiles the C++ shims against the headers of the libtorch that `torch-sys` found.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cpp");
    println!("cargo:rerun-if-changed=src/codes.cpp");
    println!("cargo:rerun-if-changed=src/fused.cpp");
    println!("cargo:rerun-if-changed=src/kernels.h");
    println!("cargo:rerun-if-changed=src/linear.cpp");
    println!("cargo:rerun-if-changed=src/memory.cpp");
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .expect("torch-sys says where libtorch is; run `just setup` first");
    let include = lib.parent().expect("libtorch's lib/ has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        // Optimized in every profile: its loops are where a step would lose time.
        .opt_level(3)
        .flag("-fopenmp")
        .flag("-fno-math-errno")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file("src/shim.cpp")
        .file("src/codes.cpp")
        .file("src/fused.cpp")
        .file("src/linear.cpp")
        .file("src/memory.cpp")
        .compile("sepal_autograd_shim");
    // By its name alone, so that it is the one that libtorch has loaded, with its threads.
    println!("cargo:rustc-link-lib=gomp");
}
