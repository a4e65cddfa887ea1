//! Results of checks.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Ok,
    /// A feature that not every user needs does not work, or works slowly.
    Warning,
    /// Most commands will fail.
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Heading of the check.
    pub(super) part: &'static str,
    pub(super) what: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(part: &'static str, what: &'static str, found: impl Into<String>) -> Self {
        Self { part, what, state: State::Ok, found: found.into(), fix: None }
    }

    pub(super) fn warning(
        part: &'static str,
        what: &'static str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { part, what, state: State::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    pub(super) fn problem(
        part: &'static str,
        what: &'static str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { state: State::Problem, ..Self::warning(part, what, found, fix) }
    }
}
