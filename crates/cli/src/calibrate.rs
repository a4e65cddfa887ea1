//! `sepal calibrate`: probabilities and thresholds of a trained run.

use sepal_config::spec::{CalibrateSpec, ThresholdGoal};
use sepal_pipeline::Classifier;
use sepal_plugin::Registry;
use sepal_track::{Calibration, Manifest, RunFolder};

use crate::args::CalibrateArgs;
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print, print_progress};
use crate::predict::labelled_rows;

pub(crate) fn calibrate(registry: &Registry, args: &CalibrateArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after this batch; the run stays as it was")?;
    let mut console = Console::default();
    let (spec, rows) = labelled_rows(registry, &args.run, &args.labelled, &mut console, &stop)?;
    let classifier = Classifier::open(&spec, &args.run, registry, &mut console, &stop)?;
    let fits =
        CalibrateSpec { temperature: !args.no_temperature, thresholds: args.thresholds.then_some(ThresholdGoal::F1) };
    let (calibration, warnings) = classifier.calibrate(fits, rows, &mut console, &stop)?;
    drop(console);
    for warning in warnings {
        print_progress(&format!("warning: {warning}"));
    }
    let lines = lines(&calibration);
    let manifest = Manifest { calibration: Some(calibration), ..Manifest::read(&args.run)? };
    manifest.save(&RunFolder::open(&args.run)?)?;
    print(&lines.join("\n"))
}

/// Description of a fit for people: its values, and each measure before and after it.
pub(crate) fn lines(calibration: &Calibration) -> Vec<String> {
    let mut lines = vec![format!("calibrated  {}", calibration.description())];
    let Calibration { before, after, .. } = calibration;
    let changed = before.iter().filter_map(|(name, before)| Some((name, *before, *after.get(name)?)));
    let changed = changed.filter(|(_, before, after)| before != after);
    lines.extend(changed.map(|(name, before, after)| format!("{name:<11} {before:.4}, then {after:.4}")));
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn lines_have_the_measures_that_changed() {
        let measures = |ece: f64| BTreeMap::from([("accuracy".to_owned(), 0.5), ("ece".to_owned(), ece)]);
        let calibration = Calibration {
            temperature: Some(2.0),
            before: measures(0.25),
            after: measures(0.125),
            ..Calibration::default()
        };
        assert_eq!(lines(&calibration), ["calibrated  temperature 2.0000", "ece         0.2500, then 0.1250"]);
    }
}
