//! `sepal doctor`: checks of this machine, with a fix for each problem.

use crate::args::DoctorArgs;
use crate::engine::Engine;
use crate::output::{Failure, print, print_json};
use crate::table::styled;

mod cuda;
mod finding;
mod machine;
mod reach;
mod storage;
mod torch;

use self::finding::{Finding, State};
use self::torch::Torch;

/// Heading, name and function of a check.
type Check = (&'static str, &'static str, fn(&Torch) -> Finding);

const CHECKS: [Check; 13] = [
    ("computing", "libtorch", torch::libtorch),
    ("computing", "processor", |_| machine::processor()),
    ("computing", "threads", machine::threads),
    ("computing", "device", cuda::device),
    ("computing", "memory", |_| machine::memory()),
    ("storage", "cache", |_| storage::cache()),
    ("storage", "hub cache", |_| storage::hub_cache()),
    ("storage", "space", |_| storage::space()),
    ("sources", "hub", |_| reach::hub()),
    ("sources", "package index", |_| reach::index()),
    ("sources", "proxy", |_| reach::proxy()),
    ("swarm", "open files", |_| reach::open_files()),
    ("swarm", "peers", |_| reach::peers()),
];

pub(crate) fn doctor(args: &DoctorArgs, engine: Engine) -> Result<(), Failure> {
    let torch = Torch::of_engine(engine);
    let findings: Vec<Finding> = CHECKS.iter().map(|&(part, what, check)| check(&torch).of(part, what)).collect();
    match args.json {
        true => print_json(&serde_json::to_string_pretty(&findings)?)?,
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
    text.push_str(&totals(count(findings, State::Warning), count(findings, State::Problem)));
    text
}

fn totals(warnings: usize, problems: usize) -> String {
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
            Finding::ok("2.13.0").of("computing", "libtorch"),
            Finding::warning("no answer", "wait").of("sources", "hub"),
            Finding::problem("full", "make room").of("sources", "cache"),
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
        // Tests do not connect to the hub and the package index.
        let torch = Torch::Missing(vec!["libtorch_cpu.so".to_owned()]);
        for &(part, what, check) in CHECKS[..8].iter().chain(&CHECKS[10..]) {
            let finding = check(&torch).of(part, what);
            assert_eq!(finding.state == State::Ok, finding.fix.is_none(), "{finding:?}");
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
    }
}
