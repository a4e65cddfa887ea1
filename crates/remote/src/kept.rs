//! Batches without their prefix, for servers that have kept its keys and values.

use std::collections::HashSet;

use sepal_core::{HostTensor, Span, Want};
use sepal_wire::codec::WireBatch;

use crate::step::Step;

/// The spans whose prefix a server has kept, of one step and one connection.
#[derive(Debug, Default)]
pub(crate) struct KeptSpans {
    version: u64,
    generation: u64,
    spans: HashSet<Span>,
}

impl KeptSpans {
    pub(crate) fn has(&self, span: Span, version: u64, generation: u64) -> bool {
        (self.version, self.generation) == (version, generation) && self.spans.contains(&span)
    }

    /// The server has a new `Tuned` for the span, which has kept nothing.
    pub(crate) fn forget(&mut self, span: Span) {
        self.spans.remove(&span);
    }

    pub(crate) fn add(&mut self, span: Span, version: u64, generation: u64) {
        if (self.version, self.generation) != (version, generation) {
            *self = Self { version, generation, spans: HashSet::new() };
        }
        self.spans.insert(span);
    }
}

/// `batch` without its prefix, if what `span` makes of the prefix is known where it is wanted.
pub(crate) fn without_prefix(step: &Step, span: Span, batch: &WireBatch, want: Want) -> Option<WireBatch> {
    if batch.prefix_len == 0 {
        return None;
    }
    if want == Want::All {
        step.prefix_states.at(span.end())?;
    }
    let hidden = batch.hidden.rows(batch.prefix_len..batch.positions())?;
    Some(WireBatch { prefix_len: batch.prefix_len, prefix_cached: true, rows: batch.rows.clone(), hidden })
}

/// The output of `span` for a batch that went without its prefix, as if it had gone with it.
pub(crate) fn with_prefix(step: &Step, span: Span, output: HostTensor, want: Want) -> Option<HostTensor> {
    match want {
        Want::LastOfRows => Some(output),
        Want::All => step.prefix_states.at(span.end())?.followed_by(&output),
    }
}

/// Remembers what `span` made of the prefix.
pub(crate) fn see(step: &Step, span: Span, batch: &WireBatch, output: &HostTensor, want: Want) {
    if want == Want::All
        && let Some(states) = output.rows(0..batch.prefix_len).filter(HostTensor::is_finite)
    {
        step.prefix_states.see(span.end(), states);
    }
}
