//! Writes `src/generated/sepal_capnp.rs` from `schemas/rpc/sepal.capnp`; run by `just schemas`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schemas = crate_folder.join("../../schemas/rpc");
    capnpc::CompilerCommand::new()
        .src_prefix(&schemas)
        .file(schemas.join("sepal.capnp"))
        .output_path(crate_folder.join("src/generated"))
        .default_parent_module(vec!["generated".into()])
        .run()?;
    Ok(())
}
