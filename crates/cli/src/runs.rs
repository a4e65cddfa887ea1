//! Several runs on the command line, with unique names.

use std::path::PathBuf;

use sepal_track::Manifest;

use crate::args::RunArg;
use crate::output::Failure;

/// Run with the name that tells it apart: the given one, or that of its pipeline.
pub(crate) struct NamedRun {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) manifest: Manifest,
}

/// Reads the manifests of the runs, and checks that their names differ.
pub(crate) fn named(args: &[RunArg]) -> Result<Vec<NamedRun>, Failure> {
    let mut runs: Vec<NamedRun> = Vec::with_capacity(args.len());
    for RunArg { name, folder } in args {
        if folder.is_file() {
            let folder = folder.display();
            return Err(format!("read the run {folder}: it is a file; options such as --input name other files").into());
        }
        let manifest = Manifest::read(folder)?;
        let name = name.clone().unwrap_or_else(|| manifest.name.clone());
        if let Some(other) = runs.iter().find(|other| other.name == name) {
            let (first, second) = (other.folder.display(), folder.display());
            return Err(format!(
                "use the runs {first} and {second} together: both are named `{name}`; give them other names, as in \
                 {name}-1={first} {name}-2={second}"
            )
            .into());
        }
        runs.push(NamedRun { name, folder: folder.clone(), manifest });
    }
    Ok(runs)
}
