use sepal_core::{HostTensor, Span, Want};
use sepal_route::Hop;
use sepal_wire::codec::WireBatch;

use super::strategy::ForwardPass;
use crate::servers::Servers;
use crate::step::Step;

/// Returns the batch without its prefix if the servers of all `hops` have cached it for evaluation. The prefix's output of
/// the last hop must be known if it is wanted.
pub(super) fn without_prefix(servers: &Servers, pass: ForwardPass<'_>, hops: &[Hop]) -> Option<WireBatch> {
    let ForwardPass { step, batch, want, keep_tape } = pass;
    let is_cached = |hop: &Hop| servers.peer(hop.server).has_cached_prefix(hop.span, step);
    let is_allowed = !keep_tape && !servers.options().deterministic && servers.verifier.trusts_prefix_caches();
    if batch.prefix_len == 0 || !is_allowed || !hops.iter().all(is_cached) {
        return None;
    }
    if want == Want::All {
        step.prefix_states.get(hops.last()?.span.end())?;
    }
    let hidden = batch.hidden.rows(batch.prefix_len..batch.positions())?;
    Some(WireBatch { prefix_len: batch.prefix_len, prefix_cached: true, rows: batch.rows.clone(), hidden })
}

/// Completes the output of `span` for a batch that was sent without its prefix.
pub(super) fn with_prefix(step: &Step, span: Span, output: HostTensor, want: Want) -> Option<HostTensor> {
    match want {
        Want::All => step.prefix_states.get(span.end())?.followed_by(&output),
        Want::LastOfRows | Want::Tokens | Want::MeanOfRows => Some(output),
    }
}

/// Remembers the prefix's part of the output of `span`.
pub(super) fn record_prefix(step: &Step, span: Span, batch: &WireBatch, output: &HostTensor, want: Want) {
    if want == Want::All
        && let Some(states) = output.rows(0..batch.prefix_len).filter(HostTensor::is_finite)
    {
        step.prefix_states.insert(span.end(), states);
    }
}
