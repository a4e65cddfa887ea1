//! RPC systems of the two sides of a connection, over any stream.

use std::rc::Rc;

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::network::Network;
use crate::parts::Parts;
use crate::quota::Quota;
use crate::sepal_capnp::block_server;

/// Returns the server at the other end of a stream, and the RPC system that must be polled while it is used. Callers write and
/// read tensors with the connection's `parts`.
pub fn client(
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    max_message_bytes: u64,
    parts: &Parts,
) -> (block_server::Client, RpcSystem<Side>) {
    let network = Network::new(reader, writer, Side::Client, parts, max_message_bytes, None);
    let mut system = RpcSystem::new(Box::new(network), None);
    (system.bootstrap(Side::Server), system)
}

/// Returns the RPC system that serves `root` to the client at the other end of a stream. `root` and its capabilities write and
/// read tensors with the connection's `parts`.
///
/// With a `quota`, bytes of a message are reserved shortly before they are read, until the message is dropped or its parts are
/// read, and bytes of answers until they are written. A connection that exceeds the quota, or has too many open calls, is
/// closed with an error.
pub fn server(
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    max_message_bytes: u64,
    root: block_server::Client,
    parts: &Parts,
    quota: Option<Rc<dyn Quota>>,
) -> RpcSystem<Side> {
    let network = Network::new(reader, writer, Side::Server, parts, max_message_bytes, quota);
    RpcSystem::new(Box::new(network), Some(root.client))
}
