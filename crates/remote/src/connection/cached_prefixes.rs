use std::collections::HashSet;

use sepal_core::Span;

/// Spans whose prefix a server has cached, for one step and one connection.
#[derive(Debug, Default)]
pub(super) struct CachedPrefixes {
    step_version: u64,
    generation: u64,
    spans: HashSet<Span>,
}

impl CachedPrefixes {
    pub(super) fn contains(&self, span: Span, step_version: u64, generation: u64) -> bool {
        (self.step_version, self.generation) == (step_version, generation) && self.spans.contains(&span)
    }

    /// Forgets a span, because a new session of it starts with an empty cache.
    pub(super) fn remove(&mut self, span: Span) {
        self.spans.remove(&span);
    }

    pub(super) fn insert(&mut self, span: Span, step_version: u64, generation: u64) {
        if (self.step_version, self.generation) != (step_version, generation) {
            *self = Self { step_version, generation, spans: HashSet::new() };
        }
        self.spans.insert(span);
    }
}
