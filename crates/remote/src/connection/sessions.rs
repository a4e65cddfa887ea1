use sepal_core::Span;
use sepal_wire::codec::{self, WireBatch};
use sepal_wire::{Failure, FailureCode, Limits, sepal_capnp as wire};

use super::handle::{Handle, TunedSession};
use super::peer::{Connection, Peer};
use super::rpc::check_failure;
use crate::error::CallError;
use crate::step::Step;

impl Peer {
    /// Returns the session of `span` with the tunables of `step`. They are uploaded once, however many micro-batches
    /// need them at the same time.
    pub(crate) async fn tuned_session(
        &self,
        span: Span,
        step: &Step,
        batch: &WireBatch,
    ) -> Result<TunedSession, CallError> {
        self.with_deadline(None, self.open_tuned_session(span, step, batch)).await
    }

    async fn open_tuned_session(&self, span: Span, step: &Step, batch: &WireBatch) -> Result<TunedSession, CallError> {
        let mut guard = self.connection.lock().await;
        let connection = self.connected(&mut guard).await?;
        // The gradient of the output may be sent with the batch, and is no larger.
        check_size(2 * batch.hidden.data().len(), &connection.limits, "lower `micro_batch_tokens`")?;
        if connection.step_version != step.version {
            connection.tuned.clear();
            connection.step_version = step.version;
        }
        if let Some(tuned) = connection.tuned.get(&span) {
            return Ok(tuned.clone());
        }
        let session = session(connection, span).await?;
        let tunables = step.slice_tunables(span)?;
        let bytes = tunables.iter().map(|named| named.tensor.data().len()).sum();
        check_size(bytes, &connection.limits, "use fewer prompts, a lower rank, or servers with fewer blocks each")?;
        let mut request = session.tune_request();
        let length = u32::try_from(tunables.len()).unwrap_or(u32::MAX);
        codec::write_tunables(request.get().init_tunables(length), &tunables, &connection.parts);
        request.get().set_alone(self.shared.options.deterministic);
        let response = request.send().promise.await?;
        let results = response.get()?;
        check_failure(results.has_failure(), results.get_failure())?;
        let tuned = Handle { client: results.get_tuned()?, parts: connection.parts.clone() };
        connection.tuned.insert(span, tuned.clone());
        self.cached_prefixes.borrow_mut().remove(span);
        Ok(tuned)
    }
}

async fn session(connection: &mut Connection, span: Span) -> Result<wire::session::Client, CallError> {
    if let Some(session) = connection.sessions.get(&span) {
        return Ok(session.clone());
    }
    let mut request = connection.root.open_request();
    codec::write_span(request.get().init_span(), span);
    request.get().set_protocol(sepal_wire::PROTOCOL);
    request.get().set_oldest_protocol(sepal_wire::OLDEST_SERVER);
    let response = request.send().promise.await?;
    let results = response.get()?;
    check_failure(results.has_failure(), results.get_failure())?;
    let session = results.get_session()?;
    connection.sessions.insert(span, session.clone());
    Ok(session)
}

/// Refuses tensors larger than the server's message limit, for which it would close the connection without a reason.
fn check_size(bytes: usize, limits: &Limits, hint: &str) -> Result<(), CallError> {
    if bytes as u64 <= limits.max_message_bytes {
        return Ok(());
    }
    let message =
        format!("a message of up to {bytes} bytes exceeds the server's limit of {}; {hint}", limits.max_message_bytes);
    Err(CallError::Failure(Failure::new(FailureCode::InvalidRequest, message)))
}
