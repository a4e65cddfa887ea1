//! `sepal merge`: models with an adapter in their weights.

use sepal_checkpoint::Part;
use sepal_peft::{FolderError, MergeError, MergeOptions, Merged};
use sepal_plugin::Registry;

use crate::args::MergeArgs;
use crate::output::{Failure, listed, print, print_progress};
use crate::peft::{TrainedRun, existing_folder, open_model};

pub(crate) fn merge(registry: &Registry, args: &MergeArgs) -> Result<(), Failure> {
    let run = TrainedRun::open(registry, &args.run, &args.model)?;
    let model = open_model(&run.sources, Part::All)?;
    let options = MergeOptions {
        task: run.task(),
        tuning: run.tuning(),
        calibration: run.calibration(),
        overwrite: args.overwrite,
        ..MergeOptions::default()
    };
    let merged = sepal_peft::merge(&options, &model.asset.path, &model.checkpoint, &run.adapter(), &args.out);
    let Merged { description, class, changed, labels, notices, .. } = merged.map_err(|error| failure(error, args))?;
    for notice in notices {
        print_progress(&format!("note: {notice}"));
    }
    let labels = listed(&labels);
    print(&format!("wrote {}: {class} with {description} in {changed} tensors, labels {labels}", args.out.display()))?;
    print(&format!(
        "`AutoModelForSequenceClassification.from_pretrained(\"{}\")` of transformers loads it",
        args.out.display()
    ))
}

fn failure(error: MergeError, args: &MergeArgs) -> Failure {
    match error {
        MergeError::Folder(FolderError::Exists { path }) => existing_folder(&path),
        MergeError::Prefix { .. } => format!("{error}: `sepal export peft {} DIR`", args.run.display()).into(),
        MergeError::Format { .. } => format!("{error} (--model SOURCE)").into(),
        error => error.into(),
    }
}
