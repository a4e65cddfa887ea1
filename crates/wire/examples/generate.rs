//! Writes `src/generated/sepal_capnp.rs` from `schemas/rpc/sepal.capnp`; run by `just schemas`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schemas = here.join("../../schemas/rpc");
    capnpc::CompilerCommand::new()
        .src_prefix(&schemas)
        .file(schemas.join("sepal.capnp"))
        .output_path(here.join("src/generated"))
        .default_parent_module(vec!["generated".into()])
        .run()?;
    Ok(())
}
