use std::future::Future;
use std::time::Duration;

use sepal_survey::SurveyError;
use sepal_wire::{Failure, sepal_capnp as wire};

use crate::error::CallError;

/// Turns a failure in an answer into an error.
pub(super) fn check_failure(
    has_failure: bool,
    failure: capnp::Result<wire::failure::Reader<'_>>,
) -> Result<(), CallError> {
    if has_failure { Err(CallError::Failure(Failure::read(failure?)?)) } else { Ok(()) }
}

/// Returns the result of `call`, or [`CallError::Timeout`] if it takes longer than `timeout`.
pub(super) async fn with_timeout<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(timeout, call).await.unwrap_or(Err(CallError::Timeout(timeout)))
}

impl From<SurveyError> for CallError {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Connect(error) => Self::Connect(error),
            SurveyError::Transport(error) => Self::Transport(error),
            SurveyError::Timeout(timeout) => Self::Timeout(timeout),
            SurveyError::Decode(error) => Self::Decode(error),
            other => capnp::Error::failed(other.to_string()).into(),
        }
    }
}
