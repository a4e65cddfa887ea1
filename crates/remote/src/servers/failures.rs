use std::rc::Rc;

use sepal_route::{Hop, ServerId};
use sepal_wire::Retry;

use super::registry::Servers;
use crate::error::{CallError, RemoteError};
use crate::retry::RetryBudget;

impl Servers {
    /// Prepares the next attempt after a failed call: waits before a retry on the same server, or takes the server out
    /// of all routes until it has answered again.
    ///
    /// # Errors
    /// [`RemoteError::Refused`] if the call must not be repeated; [`RemoteError::NoServer`] if the budget is used up.
    pub(crate) async fn handle_failure(
        self: &Rc<Self>,
        hop: Hop,
        error: CallError,
        budget: &mut RetryBudget,
    ) -> Result<(), RemoteError> {
        let server = self.label(hop.server);
        let retry = match error {
            CallError::Failure(failure) if failure.retry == Retry::Never => {
                return Err(RemoteError::Refused { server, span: hop.span, failure });
            }
            ref other => other.retry(),
        };
        let is_own_failure = !matches!(error, CallError::Disconnected);
        if is_own_failure {
            self.shared.router.usage()[hop.server.0].failures += 1;
        }
        budget.record(format!("server {server}: {error}"));
        budget.check(self.options().wait(), hop.span)?;
        if let Some(delay) = budget.next_delay(retry) {
            tracing::debug!(%server, span = %hop.span, %error, "retrying on the same server");
            tokio::time::sleep(delay).await;
            return Ok(());
        }
        // Another call's failure may be the cause of this one and is handled first.
        tokio::task::yield_now().await;
        if is_own_failure && self.router().is_available(hop.server) {
            tracing::warn!(%server, span = %hop.span, %error, "a server failed");
            self.disconnect(hop.server, &error);
        }
        Ok(())
    }

    /// Takes a server out of all routes and starts reconnecting. Its calls in flight end, unless it still answers with
    /// failures: then they may finish.
    fn disconnect(self: &Rc<Self>, server: ServerId, error: &CallError) {
        let now = self.started.elapsed();
        match error.is_late() {
            true => self.router().mark_late(server, now),
            false => self.router().mark_failed(server, now),
        }
        if !matches!(error, CallError::Failure(_)) {
            self.peer(server).disconnect();
        }
        // There is one such task per server: only an available server is disconnected, and this task makes it available.
        tokio::task::spawn_local(Rc::clone(self).reconnect(server));
    }

    async fn reconnect(self: Rc<Self>, server: ServerId) {
        let peer = self.peer(server);
        loop {
            let Some(probe_at) = self.router().probe_at(server) else { return };
            peer.until_probe(self.started + probe_at).await;
            match peer.connect().await {
                Ok(info) => {
                    tracing::info!(server = %peer.endpoint, span = %info.span, "a server has returned");
                    self.router().mark_returned(server, info.span);
                    self.arrivals.notify_waiters();
                    return;
                }
                Err(error) => {
                    tracing::debug!(server = %peer.endpoint, %error, "a server is still unreachable");
                    self.router().mark_failed(server, self.started.elapsed());
                }
            }
        }
    }
}
