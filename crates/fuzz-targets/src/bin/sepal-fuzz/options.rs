use std::path::PathBuf;
use std::time::Duration;

use sepal_fuzz_targets::{TARGETS, Target, target};

pub(crate) const USAGE: &str = "usage: sepal-fuzz [--seconds N] [--target NAME] [--seed N] [--findings FOLDER]";

/// Arguments of the program.
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// Time for all targets together.
    pub(crate) duration: Duration,
    pub(crate) mode: Mode,
}

pub(crate) enum Mode {
    Parent {
        targets: Vec<&'static Target>,
        findings: PathBuf,
    },
    /// Process of one target that the parent starts.
    Child {
        target: &'static Target,
        work: PathBuf,
    },
}

impl Options {
    /// Parses arguments.
    ///
    /// # Errors
    /// The problem.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut seed, mut seconds, mut chosen, mut work) = (0, 60.0, None, None);
        let mut findings = PathBuf::from("fuzz-findings");
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} has no value"))?;
            let invalid = |expected: &str| format!("{name} is {value}, expected {expected}");
            match name.as_str() {
                "--seconds" => seconds = value.parse::<f64>().map_err(|_| invalid("a number"))?,
                "--seed" => seed = value.parse::<u64>().map_err(|_| invalid("a whole number"))?,
                "--findings" => findings = value.into(),
                "--work" => work = Some(PathBuf::from(value)),
                "--target" => {
                    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                    chosen = Some(target(&value).ok_or_else(|| invalid(&format!("one of {}", names.join(", "))))?);
                }
                _ => return Err(format!("{name} is no option")),
            }
        }
        let duration = Duration::try_from_secs_f64(seconds).map_err(|error| format!("--seconds: {error}"))?;
        let mode = match (work, chosen) {
            (Some(work), Some(target)) => Mode::Child { target, work },
            (Some(_), None) => return Err("--work needs --target".to_owned()),
            (None, chosen) => {
                let targets = chosen.map_or_else(|| TARGETS.iter().collect(), |target| vec![target]);
                Mode::Parent { targets, findings }
            }
        };
        Ok(Self { seed, duration, mode })
    }
}
