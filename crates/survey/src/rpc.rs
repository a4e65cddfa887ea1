use std::time::Duration;

use sepal_swarm::Stream;
use sepal_wire::codec::DecodeError;
use sepal_wire::{Parts, RpcError, ServerInfo, rpc, sepal_capnp as wire};
use tokio::task::JoinHandle;

/// Largest message that a client reads, however large an answer it expects.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;

/// Starts the RPC system on a stream. Returns the server's root object, the tensor parts and the driving task. It must be
/// called on a [`LocalSet`](tokio::task::LocalSet).
pub fn bootstrap(stream: Stream) -> (wire::block_server::Client, Parts, JoinHandle<()>) {
    let Stream { reader, writer, .. } = stream;
    let parts = Parts::of_client();
    let (root, system) = rpc::client(reader, writer, MAX_MESSAGE_BYTES, &parts);
    let driver = tokio::task::spawn_local(async move {
        if let Err(error) = system.await.map_err(RpcError::from) {
            tracing::debug!(%error, "a connection ended");
        }
    });
    (root, parts, driver)
}

/// Asks a server to describe itself.
///
/// # Errors
/// [`SurveyError::Transport`], [`SurveyError::Decode`].
pub async fn describe(root: &wire::block_server::Client) -> Result<ServerInfo, SurveyError> {
    let response = root.describe_request().send().promise.await?;
    Ok(ServerInfo::read(response.get()?.get_info()?)?)
}

/// A server that does not describe itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurveyError {
    /// No connection.
    #[error("could not connect: {0}")]
    Connect(std::io::Error),
    /// Connection that ended.
    #[error("the connection failed: {0}")]
    Transport(RpcError),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// Answer that cannot be read.
    #[error("unreadable answer: {0}")]
    Decode(#[from] DecodeError),
}

impl From<capnp::Error> for SurveyError {
    fn from(error: capnp::Error) -> Self {
        Self::Transport(error.into())
    }
}
