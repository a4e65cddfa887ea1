//! One connection between members: one stream, which ends without losing what was written.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, RecvStream, SendStream};
use sepal_swarm::{Progress, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;

use crate::lock;

/// How long nothing may arrive of what was written to a stream that was dropped, and how long it may take at most.
const LINGER: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(60);
/// What pings and their answers are less than: bytes at once, and for each second.
const PINGS: u64 = 400;
const PINGS_PER_SECOND: u64 = 200;

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
        let heard = Mutex::new(Heard::new(connection.stats().udp_rx.bytes));
        Stream::new(reader, writer)
            .with_progress(Progress::new(move || lock(&heard).look(connection.stats().udp_rx.bytes)))
    }
}

/// What has come from the other side, so that it shows whether there was more than pings.
#[derive(Debug)]
struct Heard {
    bytes: u64,
    at: Instant,
    steps: u64,
}

impl Heard {
    fn new(bytes: u64) -> Self {
        Self { bytes, at: Instant::now(), steps: 0 }
    }

    /// Takes in what has come by now; how often it was more than pings.
    fn look(&mut self, bytes: u64) -> u64 {
        if bytes.saturating_sub(self.bytes) > PINGS + PINGS_PER_SECOND * self.at.elapsed().as_secs() {
            *self = Self { bytes, at: Instant::now(), steps: self.steps + 1 };
        }
        self.steps
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
                let mut arrived = std::pin::pin!(send.stopped());
                let begun = Instant::now();
                let mut heard = Heard::new(connection.stats().udp_rx.bytes);
                while tokio::time::timeout(LINGER, arrived.as_mut()).await.is_err() && begun.elapsed() < LONGEST {
                    let steps = heard.steps;
                    if heard.look(connection.stats().udp_rx.bytes) == steps {
                        break;
                    }
                }
            }
            drop(connection);
        };
        self.ends.tasks.spawn_on(end, &self.ends.runtime);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_no_progress_and_acknowledgements_are() {
        let mut heard = Heard::new(1000);
        assert_eq!(heard.look(1150), 0, "a ping");
        assert_eq!(heard.look(1300), 0, "and another");
        assert_eq!(heard.look(1500), 1, "too many for pings");
        assert_eq!(heard.look(1600), 1);
        assert_eq!(heard.look(3000), 2);
    }
}
