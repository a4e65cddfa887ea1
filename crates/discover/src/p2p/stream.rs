//! Streams between members. A dropped stream is flushed in the background.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, RecvStream, SendStream};
use sepal_swarm::{Progress, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::TaskTracker;

use crate::lock::lock;

/// Time without progress after which the flush of a dropped stream ends.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// Upper bounds of the traffic of pings and their answers: bytes at once, and bytes per second.
const PING_BYTES: u64 = 400;
const PING_BYTES_PER_SECOND: u64 = 200;

/// Creates streams and flushes them in the background after they are dropped.
#[derive(Debug, Clone)]
pub(super) struct StreamFlusher {
    pub(super) runtime: tokio::runtime::Handle,
    tasks: TaskTracker,
}

impl StreamFlusher {
    pub(super) fn new(runtime: tokio::runtime::Handle) -> Self {
        Self { runtime, tasks: TaskTracker::new() }
    }

    /// Waits until all dropped streams are flushed or lost.
    pub(super) async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(super) fn stream(&self, connection: Connection, send: SendStream, recv: RecvStream) -> Stream {
        let reader = Reader { inner: recv, _connection: connection.clone() };
        let writer = Writer { inner: Some(send), connection: connection.clone(), flusher: self.clone() };
        // Acknowledgements of the other side are the only proof of progress.
        let meter = Mutex::new(ProgressMeter::new(connection.stats().udp_rx.bytes));
        Stream::new(reader, writer)
            .with_progress(Progress::new(move || lock(&meter).update(connection.stats().udp_rx.bytes)))
    }
}

/// Counts received bytes and detects more traffic than pings.
#[derive(Debug)]
struct ProgressMeter {
    bytes: u64,
    measured_at: Instant,
    steps: u64,
}

impl ProgressMeter {
    fn new(bytes: u64) -> Self {
        Self { bytes, measured_at: Instant::now(), steps: 0 }
    }

    /// Records the total of received bytes and returns the number of steps of progress so far.
    fn update(&mut self, bytes: u64) -> u64 {
        if bytes.saturating_sub(self.bytes) > PING_BYTES + PING_BYTES_PER_SECOND * self.measured_at.elapsed().as_secs()
        {
            *self = Self { bytes, measured_at: Instant::now(), steps: self.steps + 1 };
        }
        self.steps
    }
}

/// Read half, which keeps the connection open.
struct Reader {
    inner: RecvStream,
    _connection: Connection,
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buf)
    }
}

/// Write half, which keeps the connection open until all data has arrived.
struct Writer {
    inner: Option<SendStream>,
    connection: Connection,
    flusher: StreamFlusher,
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
        let flush = async move {
            // An error means that the other side is gone or refuses more data.
            if send.finish().is_ok() {
                let mut arrived = std::pin::pin!(send.stopped());
                let started_at = Instant::now();
                let mut meter = ProgressMeter::new(connection.stats().udp_rx.bytes);
                while tokio::time::timeout(STALL_TIMEOUT, arrived.as_mut()).await.is_err()
                    && started_at.elapsed() < FLUSH_TIMEOUT
                {
                    let steps = meter.steps;
                    if meter.update(connection.stats().udp_rx.bytes) == steps {
                        break;
                    }
                }
            }
            drop(connection);
        };
        self.flusher.tasks.spawn_on(flush, &self.flusher.runtime);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_acknowledgements_but_not_pings() {
        let mut meter = ProgressMeter::new(1000);
        assert_eq!(meter.update(1150), 0, "a ping");
        assert_eq!(meter.update(1300), 0, "another ping");
        assert_eq!(meter.update(1500), 1, "more than pings");
        assert_eq!(meter.update(1600), 1);
        assert_eq!(meter.update(3000), 2);
    }
}
