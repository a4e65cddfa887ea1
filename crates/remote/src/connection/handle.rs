use sepal_wire::{Parts, sepal_capnp as wire};

/// Capability of a server's object, with the tensor parts of its connection.
#[derive(Clone)]
pub(crate) struct Handle<C> {
    pub(super) client: C,
    pub(super) parts: Parts,
}

/// Session of a span with the tunables of one step.
pub(crate) type TunedSession = Handle<wire::tuned::Client>;
/// Tape that one forward pass left on a server.
pub(crate) type Tape = Handle<wire::tape::Client>;

impl<C> Handle<C> {
    /// Returns a handle of an object that a call to this one returned.
    pub(super) fn with_client<D>(&self, client: D) -> Handle<D> {
        Handle { client, parts: self.parts.clone() }
    }
}
