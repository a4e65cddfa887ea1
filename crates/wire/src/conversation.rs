//! The two sides of a connection, over any stream.

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::network::Network;
use crate::parts::Parts;
use crate::sepal_capnp::block_server;

/// The server at the other end of a stream, and the conversation with it, which goes on as long as it is polled. Tensors
/// of calls are written and read with the connection's `parts`.
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

/// The conversation of a server with the client at the other end of a stream. `root` and all that it gives out write and
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
