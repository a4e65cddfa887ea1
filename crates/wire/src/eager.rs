//! Reading without sleeping at once.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long whoever waits for bytes looks for them again and again before it sleeps. To be woken takes about half as long,
/// on a virtual machine; a call that computes takes much longer, and loses no more than this.
const SPIN: Duration = Duration::from_micros(100);

/// With one core, the other side could not get on meanwhile.
static HAS_CORES: LazyLock<bool> = LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|n| n.get() > 1));

/// A reader that is asked again for a while when it has nothing. Other tasks of the thread go on between.
pub(crate) struct Eager<'a, R> {
    reader: &'a mut R,
    until: Instant,
}

impl<'a, R: AsyncRead + Unpin> Eager<'a, R> {
    /// Eager from now on.
    pub(crate) fn new(reader: &'a mut R) -> Self {
        let mut eager = Self { reader, until: Instant::now() };
        eager.renew();
        eager
    }

    /// Eager for a while again: something came, so that more is on its way.
    pub(crate) fn renew(&mut self) {
        if *HAS_CORES {
            self.until = Instant::now() + SPIN;
        }
    }

    /// Reads some bytes; none where the stream ends.
    pub(crate) async fn read(&mut self, buffer: &mut impl BufMut) -> io::Result<usize> {
        while Instant::now() < self.until {
            tokio::select! {
                biased;
                read = self.reader.read_buf(buffer) => return read,
                () = tokio::task::yield_now() => {}
            }
        }
        self.reader.read_buf(buffer).await
    }

    /// Reads until it is full.
    pub(crate) async fn fill(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            if self.read(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}
