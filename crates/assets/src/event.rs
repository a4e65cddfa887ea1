use std::ops::ControlFlow;

/// What a fetch tells whoever watches it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum FetchEvent<'a> {
    /// One line for people: a source that is used or passed over, a download that is tried again.
    Notice(&'a str),
    /// A file begins to come from the hub.
    Begin {
        /// Its repository and name.
        file: &'a str,
        /// Its size in bytes.
        size: u64,
        /// Bytes of it that are here already, from a download that was interrupted.
        here: u64,
    },
    /// So many bytes of the file are here. Told about ten times a second while bytes come, and about once a second
    /// while none do.
    Progress {
        /// Bytes.
        here: u64,
    },
    /// The file is whole, checked and in its place.
    End {
        /// Its repository and name.
        file: &'a str,
        /// Its size in bytes.
        size: u64,
        /// Bytes that came just now.
        received: u64,
        /// How long that took, in seconds.
        seconds: f64,
    },
}

/// Watches a fetch. `Break` ends it with [`FetchError::Stopped`](crate::FetchError::Stopped); what came is kept.
pub type Watch<'a> = dyn FnMut(FetchEvent<'_>) -> ControlFlow<()> + 'a;

/// Looks away.
pub fn unwatched(_: FetchEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
