use std::ops::ControlFlow;

use crate::FetchError;

/// What a fetch, or a push, tells whoever watches it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum FetchEvent<'a> {
    /// One line for people: a source that is used or passed over, a download that is tried again.
    Notice(&'a str),
    /// A file begins to come from the hub, or to go there.
    Begin {
        /// Its repository and name.
        file: &'a str,
        /// Its size in bytes.
        size: u64,
        /// Bytes of it that are there already, from a download that was interrupted.
        here: u64,
    },
    /// So many bytes of the file have come, or gone. Told about ten times a second while bytes come, and about once a second
    /// while none do.
    Progress {
        /// Bytes.
        here: u64,
    },
    /// The file is whole, and was checked, at its place.
    End {
        /// Its repository and name.
        file: &'a str,
        /// Its size in bytes.
        size: u64,
        /// Bytes that came, or went, just now.
        received: u64,
        /// How long that took, in seconds.
        seconds: f64,
    },
}

/// Watches a fetch or a push. `Break` ends it with [`FetchError::Stopped`](crate::FetchError::Stopped); what came is kept.
pub type Watch<'a> = dyn FnMut(FetchEvent<'_>) -> ControlFlow<()> + 'a;

/// Looks away.
pub fn unwatched(_: FetchEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Tells whoever watches.
pub(crate) fn tell(watch: &mut Watch<'_>, event: FetchEvent<'_>) -> Result<(), FetchError> {
    match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(FetchError::Stopped),
    }
}
