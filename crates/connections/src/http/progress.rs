//! Progress of one connection: what arrives, what is answered, and the end of those that make none.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::checks::check_regularly;
use crate::metrics::End;
use crate::register::{Standing, Tracked};

/// Interval of the checks of a connection.
const TICK: Duration = Duration::from_secs(5);
/// Minimum bytes of an arriving request per interval.
const MIN_TICK_BYTES: u64 = 4 << 10;
/// Checks before a request must arrive at the minimum rate: a request that arrives at once needs none.
const SLOW_TICKS: u32 = 2;
/// Checks without a written byte after which the peer does not read.
const UNREAD_TICKS: u32 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request has arrived completely since the connection was opened, or since the last one.
    Arriving,
    /// A request is being answered.
    Answering,
    /// The last request is answered.
    Idle,
}

/// Progress of one connection.
#[derive(Debug)]
pub(super) struct Progress {
    phase: Mutex<(Phase, Instant)>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// True while data waits to be written.
    is_unread: AtomicBool,
    replaced: Notify,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            phase: Mutex::new((Phase::Arriving, Instant::now())),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            is_unread: AtomicBool::new(false),
            replaced: Notify::new(),
        }
    }

    fn phase(&self) -> (Phase, Instant) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the phase if it is `from`.
    fn change(&self, from: Phase, to: Phase) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if phase.0 == from {
            *phase = (to, Instant::now());
        }
    }

    /// Records that the answer of a request is known.
    pub(super) fn end_request(&self) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = (Phase::Idle, Instant::now());
    }

    /// Waits until another connection replaces this one.
    pub(super) async fn replaced(&self) {
        self.replaced.notified().await;
    }

    /// Returns once the connection is too slow.
    pub(super) async fn watch(&self) -> End {
        let mut watchdog = Watchdog::default();
        check_regularly(TICK, || watchdog.check(self.observe())).await
    }

    fn observe(&self) -> Observed {
        Observed {
            is_arriving: self.phase().0 == Phase::Arriving,
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            is_unread: self.is_unread.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Tracked for Progress {
    fn standing(&self) -> Standing {
        let (phase, since) = self.phase();
        match phase {
            Phase::Arriving => Standing::Unproven(since.elapsed()),
            Phase::Answering => Standing::InUse,
            Phase::Idle => Standing::Idle(since.elapsed()),
        }
    }

    fn replace(&self) {
        self.replaced.notify_one();
    }
}

/// Counters of a connection at one check.
#[derive(Debug, Clone, Copy, Default)]
struct Observed {
    is_arriving: bool,
    received_bytes: u64,
    is_unread: bool,
    sent_bytes: u64,
}

/// Finds connections without progress, from their counters at regular checks.
#[derive(Debug, Default)]
struct Watchdog {
    last: Observed,
    arriving_ticks: u32,
    unread_ticks: u32,
}

impl Watchdog {
    fn check(&mut self, now: Observed) -> Option<End> {
        let last = std::mem::replace(&mut self.last, now);
        self.arriving_ticks = if now.is_arriving { self.arriving_ticks + 1 } else { 0 };
        let is_unread = now.is_unread && last.is_unread && now.sent_bytes == last.sent_bytes;
        self.unread_ticks = if is_unread { self.unread_ticks + 1 } else { 0 };
        let is_slow = now.received_bytes - last.received_bytes < MIN_TICK_BYTES;
        if self.arriving_ticks > SLOW_TICKS && is_slow {
            return Some(if now.received_bytes == 0 { End::Silent } else { End::Slow });
        }
        (self.unread_ticks >= UNREAD_TICKS).then_some(End::Unread)
    }
}

/// Connection whose bytes are counted.
pub(super) struct Counted {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl Counted {
    pub(super) fn new(stream: TcpStream, progress: Arc<Progress>) -> Self {
        Self { stream, progress }
    }

    fn count_write(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.progress.is_unread.store(polled.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(n)) = &polled {
            self.progress.sent_bytes.fetch_add(*n as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let n = (buf.filled().len() - before) as u64;
        if n > 0 {
            self.progress.received_bytes.fetch_add(n, Ordering::Relaxed);
            self.progress.change(Phase::Idle, Phase::Arriving);
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count_write(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Body of a request, which has arrived when it is dropped.
pub(super) struct RequestBody {
    body: Incoming,
    progress: Arc<Progress>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, progress: Arc<Progress>) -> Self {
        // The head may have come with the end of another request.
        progress.change(Phase::Idle, Phase::Arriving);
        if body.is_end_stream() {
            progress.change(Phase::Arriving, Phase::Answering);
        }
        Self { body, progress }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.progress.change(Phase::Arriving, Phase::Answering);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arriving(received_bytes: u64) -> Observed {
        Observed { is_arriving: true, received_bytes, ..Observed::default() }
    }

    /// Returns the number of checks until the connection is ended, of 20.
    fn checks(observed: impl Fn(u64) -> Observed) -> (u64, Option<End>) {
        let mut watchdog = Watchdog::default();
        let found = (1..=20).find_map(|tick| watchdog.check(observed(tick)).map(|end| (tick, Some(end))));
        found.unwrap_or((20, None))
    }

    #[test]
    fn silent_and_dripping_requests_are_ended() {
        assert_eq!(checks(|_| arriving(0)), (3, Some(End::Silent)));
        assert_eq!(checks(|tick| arriving(100 * tick)), (3, Some(End::Slow)));
        assert_eq!(checks(|tick| arriving(MIN_TICK_BYTES * tick)), (20, None));
        assert_eq!(checks(|tick| arriving(MIN_TICK_BYTES * tick.min(8))), (9, Some(End::Slow)));
    }

    #[test]
    fn idle_and_computing_connections_are_not_ended() {
        assert_eq!(checks(|_| Observed { received_bytes: 200, ..Observed::default() }), (20, None));
    }

    #[test]
    fn unread_answer_ends_the_connection_and_a_slow_reader_does_not() {
        let unread = |sent_bytes: u64| Observed { is_unread: true, sent_bytes, ..Observed::default() };
        assert_eq!(checks(|_| unread(9)).1, Some(End::Unread));
        assert_eq!(checks(unread), (20, None));
    }
}
