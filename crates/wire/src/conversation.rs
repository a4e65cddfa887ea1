//! The two sides of a connection, over any stream.

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty};
use futures::{AsyncRead, AsyncWrite};

use crate::sepal_capnp::block_server;

/// The server at the other end of a stream, and the conversation with it, which goes on as long as it is polled.
pub fn client(
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    max_message_bytes: u64,
) -> (block_server::Client, RpcSystem<Side>) {
    let options = reader_options(max_message_bytes);
    let network = twoparty::VatNetwork::new(reader, writer, Side::Client, options);
    let mut system = RpcSystem::new(Box::new(network), None);
    (system.bootstrap(Side::Server), system)
}

/// The conversation of a server with the client at the other end of a stream.
pub fn server(
    reader: impl AsyncRead + Unpin + 'static,
    writer: impl AsyncWrite + Unpin + 'static,
    max_message_bytes: u64,
    root: block_server::Client,
) -> RpcSystem<Side> {
    let options = reader_options(max_message_bytes);
    let network = twoparty::VatNetwork::new(reader, writer, Side::Server, options);
    RpcSystem::new(Box::new(network), Some(root.client))
}

/// Reader limits for a connection: the largest message that is read, and how deep it may nest.
///
/// Cap'n Proto counts in words of eight bytes; a message is traversed at most twice.
fn reader_options(max_message_bytes: u64) -> capnp::message::ReaderOptions {
    let words = usize::try_from(max_message_bytes / 8 * 2).unwrap_or(usize::MAX);
    capnp::message::ReaderOptions { traversal_limit_in_words: Some(words.max(1 << 16)), nesting_limit: 32 }
}
