use sepal_core::Span;
use sepal_swarm::RemoteOptions;

use crate::error::RemoteError;

/// Model that servers must serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelExpectation {
    /// Digest of its checkpoint.
    pub digest: String,
    /// Number of blocks.
    pub n_blocks: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Names of the tunables that the blocks must take. Servers that lack one are not used.
    pub tunables: Vec<String>,
}

impl ModelExpectation {
    /// Blocks that servers run.
    pub(crate) fn remote_span(&self, options: &RemoteOptions) -> Result<Span, RemoteError> {
        Span::new(options.first_block, self.n_blocks).map_err(RemoteError::local)
    }
}
