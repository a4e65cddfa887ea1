//! `sepal doctor`: what this machine has, and what is missing with its fix.

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::table::styled;
use crate::{Failure, print};

mod machine;
mod reach;
mod storage;

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Something does not work, or works slowly, that not everybody needs.
    Warning,
    /// Hardly anything will work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What it belongs to.
    part: &'static str,
    what: &'static str,
    state: State,
    /// What was found, or what is wrong.
    found: String,
    /// What to do, if something is missing.
    fix: Option<String>,
}

impl Finding {
    fn ok(part: &'static str, what: &'static str, found: impl Into<String>) -> Self {
        Self { part, what, state: State::Ok, found: found.into(), fix: None }
    }

    fn warning(part: &'static str, what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { part, what, state: State::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn problem(part: &'static str, what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Problem, ..Self::warning(part, what, found, fix) }
    }
}

/// What is looked at, in order.
const LOOKS: [fn() -> Finding; 13] = [
    machine::libtorch,
    machine::processor,
    machine::threads,
    machine::device,
    machine::memory,
    storage::cache,
    storage::hub_cache,
    storage::space,
    reach::hub,
    reach::index,
    reach::proxy,
    reach::open_files,
    reach::peers,
];

pub(crate) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let findings: Vec<Finding> = LOOKS.iter().map(|look| look()).collect();
    match args.json {
        true => print(&serde_json::to_string_pretty(&findings)?)?,
        false => print(&text(&findings))?,
    }
    match count(&findings, State::Problem) {
        0 => Ok(()),
        1 => Err("find this machine ready: there is 1 problem".into()),
        problems => Err(format!("find this machine ready: there are {problems} problems").into()),
    }
}

fn count(findings: &[Finding], state: State) -> usize {
    findings.iter().filter(|finding| finding.state == state).count()
}

/// Parts under headings, then the sum of it.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut part = "";
    for finding in findings {
        if finding.part != part {
            part = finding.part;
            text.push_str(&format!("{}{}\n", if text.is_empty() { "" } else { "\n" }, styled("1", part)));
        }
        let mark = match finding.state {
            State::Ok => styled("32", "ok     "),
            State::Warning => styled("33", "warning"),
            State::Problem => styled("31", "problem"),
        };
        text.push_str(&format!("  {mark}  {:<14}{}\n", finding.what, finding.found));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("  {:<7}  {:<14}{} {fix}\n", "", "", styled("1", "->")));
        }
    }
    text.push('\n');
    text.push_str(&sum(count(findings, State::Warning), count(findings, State::Problem)));
    text
}

fn sum(warnings: usize, problems: usize) -> String {
    let several = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match (warnings, problems) {
        (0, 0) => "everything is there".to_owned(),
        (warnings, 0) => format!("ready, with {}", several(warnings, "warning")),
        (0, problems) => several(problems, "problem"),
        (warnings, problems) => format!("{} and {}", several(problems, "problem"), several(warnings, "warning")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_stand_under_headings_with_fixes_below() {
        let findings = [
            Finding::ok("computing", "libtorch", "2.13.0"),
            Finding::warning("sources", "hub", "no answer", "wait"),
            Finding::problem("sources", "cache", "full", "make room"),
        ];
        let expected = "\
computing
  ok       libtorch      2.13.0

sources
  warning  hub           no answer
                         -> wait
  problem  cache         full
                         -> make room

1 problem and 1 warning";
        assert_eq!(text(&findings), expected);
    }

    #[test]
    fn every_bad_finding_has_a_fix() {
        // Hub and package index are not asked by a test.
        for look in LOOKS[..8].iter().chain(&LOOKS[10..]) {
            let finding = look();
            assert_eq!(finding.state == State::Ok, finding.fix.is_none(), "{finding:?}");
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
    }
}
