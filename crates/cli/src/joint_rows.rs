//! Rows that several runs read together.

use std::path::Path;

use sepal_data::Format;
use sepal_track::DataFacts;

use crate::args::PredictArgs;
use crate::output::Failure;
use crate::predict::STANDARD;
use crate::runs::NamedRun;

/// Returns the facts of the first run's data, if the rows of all runs have the same parts.
pub(crate) fn shared_facts(runs: &[NamedRun]) -> Result<&DataFacts, Failure> {
    let (first, others) = runs.split_first().ok_or("predict without a run")?;
    let parts = |run: &NamedRun| {
        let DataFacts { text_pair, options, words, .. } = &run.manifest.data;
        let inputs = if text_pair.is_some() { "pairs of texts" } else { "single texts" };
        (inputs, !options.is_empty(), *words)
    };
    match others.iter().find(|other| parts(other) != parts(first)) {
        None => Ok(&first.manifest.data),
        Some(other) => {
            let text = |run: &NamedRun| match parts(run) {
                (_, true, _) => "texts with options".to_owned(),
                (_, _, true) => "lists of words".to_owned(),
                (inputs, ..) => inputs.to_owned(),
            };
            Err(format!(
                "predict with `{}` and `{}` together: the first takes {} and the second {}",
                first.name,
                other.name,
                text(first),
                text(other)
            )
            .into())
        }
    }
}

/// Refuses runs that read other columns of a table, unless the command line names those of all.
pub(crate) fn check_columns(runs: &[NamedRun], args: &PredictArgs) -> Result<(), Failure> {
    let of_name = || (args.input != Path::new(STANDARD)).then(|| Format::from_path(&args.input)).flatten();
    if matches!(args.format.or_else(of_name), None | Some(Format::Lines)) {
        return Ok(());
    }
    let columns = |run: &NamedRun| {
        let DataFacts { text, text_pair, options, .. } = &run.manifest.data;
        let text = args.text.is_none().then(|| ("texts", vec![text.clone()], "--text names one for all"));
        let pair = args
            .rows
            .text_pair
            .is_none()
            .then(|| ("second texts", text_pair.iter().cloned().collect(), "--text-pair names one for all"));
        let options = Some(("options", options.clone(), "use one run at a time"));
        [text, pair, options]
    };
    let Some((first, others)) = runs.split_first() else { return Ok(()) };
    for other in others {
        for (part, of_other) in columns(first).into_iter().zip(columns(other)) {
            let (Some((what, part, remedy)), Some((_, of_other, _))) = (part, of_other) else { continue };
            if part != of_other {
                let [part, of_other] = [part, of_other].map(|names| names.join("`, `"));
                return Err(format!(
                    "predict with `{}` and `{}` together: {what} are in the column `{part}` for the first and `{of_other}` for \
                     the second; {remedy}",
                    first.name, other.name
                )
                .into());
            }
        }
    }
    Ok(())
}
