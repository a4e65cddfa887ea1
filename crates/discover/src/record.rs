use sepal_core::{DType, MAX_BLOCKS, ServerName, Span, visible};
use serde::{Deserialize, Serialize};

/// Public description of a server, which it announces to others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Digest of the model.
    pub digest: String,
    /// Name of the architecture.
    pub family: String,
    /// Number of blocks in the model.
    pub n_blocks: usize,
    /// Blocks that the server holds.
    pub span: Span,
    /// Format of the computation.
    pub dtype: DType,
    /// Measured seconds per token and block of a forward pass; 0 before the first.
    pub rate: f64,
    /// Number of calls that wait or run.
    pub queue: u32,
    /// Bytes that are free for tapes.
    pub free_tape_bytes: u64,
    /// True if the server accepts no new calls.
    pub draining: bool,
    /// Name and version of the program.
    pub software: String,
    /// Name of the server for people, if it has one.
    #[serde(default, deserialize_with = "ServerName::deserialize_from_peer")]
    pub name: Option<ServerName>,
}

impl ServerRecord {
    /// Returns the record of another machine with texts that are safe to show and a rate that is a duration; `None` for
    /// blocks that no model has.
    pub fn validated(self) -> Option<Self> {
        let text = |text: String| visible(&text).into_owned();
        let is_possible = (1..=MAX_BLOCKS).contains(&self.n_blocks) && self.span.end() <= self.n_blocks;
        is_possible.then(|| Self {
            digest: text(self.digest),
            family: text(self.family),
            software: text(self.software),
            rate: Some(self.rate).filter(|rate| rate.is_finite() && *rate > 0.0).unwrap_or_default(),
            ..self
        })
    }
}

#[cfg(test)]
impl ServerRecord {
    /// Returns the record of a server that holds all three blocks of a model.
    pub(crate) fn sample(digest: &str) -> Self {
        Self {
            digest: digest.into(),
            family: "llama".into(),
            n_blocks: 3,
            span: "0:3".parse().expect("a span"),
            dtype: DType::F32,
            rate: 1.5e-5,
            queue: 2,
            free_tape_bytes: 7,
            draining: false,
            software: "sepal".into(),
            name: "lab-3".parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_peers_are_bounded_and_visible() {
        let record = ServerRecord::sample("x");
        assert_eq!(record.clone().validated(), Some(record.clone()));
        let span = |span: &str| span.parse().expect("a span");
        let too_many = MAX_BLOCKS + 1;
        for (n_blocks, span) in [(0, span("0:1")), (2, span("0:3")), (too_many, span("0:3")), (3, span("4:9"))] {
            assert_eq!(ServerRecord { n_blocks, span, ..record.clone() }.validated(), None, "{n_blocks} {span}");
        }
        let hostile = ServerRecord { family: "a\u{1b}[2J\n".into(), rate: f64::NAN, ..record };
        let read = hostile.validated().expect("a record");
        assert_eq!((read.family.as_str(), read.rate), ("a\\u{1b}[2J\\u{a}", 0.0));
    }
}
