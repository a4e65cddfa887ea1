use std::future::Future;
use std::time::Duration;

use sepal_swarm::Stream;
use sepal_wire::{Failure, Parts, ServerInfo, rpc, sepal_capnp as wire};
use tokio::task::JoinHandle;

use crate::error::CallError;

/// Largest message that a client reads.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;

/// Starts the RPC system on a stream. Returns the server's root object, the tensor parts and the driving task.
pub(super) fn bootstrap(stream: Stream) -> (wire::block_server::Client, Parts, JoinHandle<()>) {
    let Stream { reader, writer, .. } = stream;
    let parts = Parts::default();
    let (root, system) = rpc::client(reader, writer, MAX_MESSAGE_BYTES, &parts);
    let driver = tokio::task::spawn_local(async move {
        if let Err(error) = system.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    (root, parts, driver)
}

/// Asks a server to describe itself.
pub(super) async fn describe(root: &wire::block_server::Client) -> Result<ServerInfo, CallError> {
    let response = root.describe_request().send().promise.await?;
    Ok(ServerInfo::read(response.get()?.get_info()?)?)
}

/// Turns a failure in an answer into an error.
pub(super) fn check_failure(
    has_failure: bool,
    failure: capnp::Result<wire::failure::Reader<'_>>,
) -> Result<(), CallError> {
    if has_failure { Err(CallError::Failure(Failure::read(failure?)?)) } else { Ok(()) }
}

/// Returns the result of `call`, or [`CallError::Timeout`] if it takes longer than `timeout`.
pub(super) async fn with_timeout<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(timeout, call).await.unwrap_or(Err(CallError::Timeout(timeout)))
}
