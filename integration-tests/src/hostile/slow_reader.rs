//! Clients that ask for large answers, and read them slowly or not at all.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use sepal_core::Want;
use sepal_wire::Relay;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::client::{Calls, Client, dial, forwarded, kind};
use super::{Attack, PATIENCE, Tally};

/// Bytes that a slow client reads at a time.
const SIP_BYTES: usize = 256;
/// Time between two reads of a slow client.
const SIP_INTERVAL: Duration = Duration::from_millis(20);

/// Sends `n` forward passes of this many positions on one connection, and reads none of their answers.
pub fn unread_answers(addr: &str, n: usize, positions: usize) -> Attack {
    start(addr, n, positions, Pace::Stopped)
}

/// Sends `n` forward passes of this many positions on one connection, and reads their answers at 13 kB/s.
pub fn slow_reads(addr: &str, n: usize, positions: usize) -> Attack {
    start(addr, n, positions, Pace::Slow)
}

fn start(addr: &str, n: usize, positions: usize, pace: Pace) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally: Tally| async move {
        let connected: Result<_, String> = async {
            let stream = dial(&addr).await.map_err(|_| super::CLOSED.to_owned())?;
            let (inner, writer) = stream.into_split();
            let current = Rc::new(Cell::new(Pace::Full));
            let mut interval = interval(SIP_INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let reader = PacedReader { inner, pace: Rc::clone(&current), interval };
            let client = Client::over(reader, writer).await?;
            let tuned = client.tune(None).await?;
            Ok((client, tuned, current))
        }
        .await;
        let (client, tuned, current) = connected.map_err(|kind| tally.add(kind)).ok()?;
        current.set(pace);
        let batch = client.batch(0, vec![4; positions.div_ceil(4)]);
        let mut calls = Calls::default();
        for _ in 0..n {
            let call = client.forward(&tuned, &batch, Want::All, false, &Relay::default());
            calls.add(&tally, async move { kind(&forwarded(call).await) });
            tokio::task::yield_now().await;
        }
        calls.settle(&tally, PATIENCE).await;
        Some((client, tuned, calls))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Full,
    Slow,
    Stopped,
}

/// Reading half of a connection whose pace changes while it is open.
struct PacedReader<R> {
    inner: R,
    pace: Rc<Cell<Pace>>,
    interval: Interval,
}

impl<R: AsyncRead + Unpin> AsyncRead for PacedReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.pace.get() {
            Pace::Full => Pin::new(&mut self.inner).poll_read(cx, buf),
            // Nothing wakes the task: the connection is never read again.
            Pace::Stopped => Poll::Pending,
            Pace::Slow => {
                if self.interval.poll_tick(cx).is_pending() {
                    return Poll::Pending;
                }
                let mut sip = [0; SIP_BYTES];
                let mut part = ReadBuf::new(&mut sip[..SIP_BYTES.min(buf.remaining())]);
                let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
                buf.put_slice(part.filled());
                polled
            }
        }
    }
}
