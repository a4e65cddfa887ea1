//! RPC systems of the two sides of a connection, over any stream.

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::network::Network;
use crate::parts::Parts;
use crate::sepal_capnp::block_server;

/// Returns the server at the other end of a stream, and the RPC system that must be polled while it is used. Callers write and
/// read tensors with the connection's `parts`.
pub fn client(
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    max_message_bytes: u64,
    parts: &Parts,
) -> (block_server::Client, RpcSystem<Side>) {
    let network = Network::new(reader, writer, Side::Client, parts.clone(), max_message_bytes);
    let mut system = RpcSystem::new(Box::new(network), None);
    (system.bootstrap(Side::Server), system)
}

/// Returns the RPC system that serves `root` to the client at the other end of a stream. `root` and its capabilities write and
/// read tensors with the connection's `parts`.
pub fn server(
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    max_message_bytes: u64,
    root: block_server::Client,
    parts: &Parts,
) -> RpcSystem<Side> {
    let network = Network::new(reader, writer, Side::Server, parts.clone(), max_message_bytes);
    RpcSystem::new(Box::new(network), Some(root.client))
}
