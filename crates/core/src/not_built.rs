/// Error of using a part that the build of this program left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use {part}: this program was built without it (the cargo feature `{feature}`)")]
pub struct NotBuilt {
    /// The part as a noun with an article, for example `a peer-to-peer swarm`.
    pub part: &'static str,
    /// Cargo feature of the part.
    pub feature: &'static str,
}
