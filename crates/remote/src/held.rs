use sepal_wire::{Parts, sepal_capnp as wire};

/// What a server holds for this client, and the parts of the connection that it was given out on.
#[derive(Clone)]
pub(crate) struct Held<C> {
    pub(crate) client: C,
    pub(crate) parts: Parts,
}

/// A session with the tunables of one step.
pub(crate) type Tuned = Held<wire::tuned::Client>;
/// The graph of one forward.
pub(crate) type Tape = Held<wire::tape::Client>;

impl<C> Held<C> {
    /// What came of a call to it.
    pub(crate) fn held<D>(&self, client: D) -> Held<D> {
        Held { client, parts: self.parts.clone() }
    }
}
