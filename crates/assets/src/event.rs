use std::ops::ControlFlow;

use crate::FetchError;

/// Progress event of a fetch or a push.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum FetchEvent<'a> {
    /// Line for people: the source that is used, an unavailable source, a retry.
    Notice(&'a str),
    /// The transfer of a file begins.
    Begin {
        /// Repository and name of the file.
        file: &'a str,
        /// Size of the file in bytes.
        size: u64,
        /// Bytes that an interrupted transfer left.
        bytes_done: u64,
    },
    /// Bytes transferred so far, about ten times a second while bytes arrive and once a second while none do.
    Progress {
        /// Number of bytes.
        bytes_done: u64,
    },
    /// The file is complete, verified and in place.
    End {
        /// Repository and name of the file.
        file: &'a str,
        /// Size of the file in bytes.
        size: u64,
        /// Bytes transferred by this call.
        received: u64,
        /// Duration in seconds.
        seconds: f64,
    },
}

/// Receiver of the events of a fetch or a push. `Break` ends it with
/// [`FetchError::Stopped`](crate::FetchError::Stopped); received bytes are kept.
pub type EventHandler<'a> = dyn FnMut(FetchEvent<'_>) -> ControlFlow<()> + 'a;

/// Event handler that ignores all events.
pub fn ignore_events(_: FetchEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn emit(on_event: &mut EventHandler<'_>, event: FetchEvent<'_>) -> Result<(), FetchError> {
    match on_event(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(FetchError::Stopped),
    }
}
