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
    pub(super) part: &'static str,
    pub(super) what: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(found: impl Into<String>) -> Self {
        Self { part: "", what: "", state: State::Ok, found: found.into(), fix: None }
    }

    pub(super) fn warning(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Warning, fix: Some(fix.into()), ..Self::ok(found) }
    }

    pub(super) fn problem(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Problem, ..Self::warning(found, fix) }
    }

    /// Returns the finding of the check `what` under the heading `part`.
    pub(super) fn of(self, part: &'static str, what: &'static str) -> Self {
        Self { part, what, ..self }
    }
}
