//! One connection between members: one stream, which ends without losing what was written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use sepal_swarm::{Progress, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;

/// How long what was written may take to arrive after its stream was dropped.
const LINGER: Duration = Duration::from_secs(3);

/// Where streams end in the background.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) runtime: tokio::runtime::Handle,
    tasks: TaskTracker,
}

impl Ends {
    pub(super) fn new(runtime: tokio::runtime::Handle) -> Self {
        Self { runtime, tasks: TaskTracker::new() }
    }

    /// Waits until what was written to streams that were dropped has arrived, or cannot any more.
    pub(super) async fn all(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Both directions of a connection.
    pub(super) fn stream(&self, connection: Connection, send: SendStream, recv: RecvStream) -> Stream {
        let reader = Reader { inner: recv, _connection: connection.clone() };
        let writer = Writer { inner: Some(send), connection: connection.clone(), ends: self.clone() };
        // Written is not sent, and sent has not arrived: what the other side acknowledges says that something moves.
        Stream::new(reader, writer).with_progress(Progress::new(move || connection.stats().udp_rx.bytes))
    }
}

/// Keeps its connection open.
struct Reader {
    inner: RecvStream,
    _connection: Connection,
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buf)
    }
}

/// Keeps its connection open until all has arrived.
struct Writer {
    inner: Option<SendStream>,
    connection: Connection,
    ends: Ends,
}

impl Writer {
    fn inner(&mut self) -> io::Result<Pin<&mut SendStream>> {
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(self.inner()?, cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(self.inner()?, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(self.inner()?, cx)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(mut send) = self.inner.take() else { return };
        let connection = self.connection.clone();
        let end = async move {
            // Errors mean that the other side is gone, or has said that it wants no more.
            if send.finish().is_ok() {
                let _ = tokio::time::timeout(LINGER, send.stopped()).await;
            }
            drop(connection);
        };
        self.ends.tasks.spawn_on(end, &self.ends.runtime);
    }
}
