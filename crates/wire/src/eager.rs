//! Reading without sleeping at once.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long whoever waits for bytes looks for them again and again before it sleeps. To be woken takes about half as long,
/// on a virtual machine; a call that computes takes much longer, and loses no more than this.
const SPIN: Duration = Duration::from_micros(100);

/// Bytes after which it is eager for as long again. A slow link brings them so late that hardly any time goes to looking: 5 %
/// of a core at 1 Gbit/s.
const RENEWED_BY: usize = 256 << 10;

/// With one core, the other side could not get on meanwhile.
static HAS_CORES: LazyLock<bool> = LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|n| n.get() > 1));

/// A reader that is asked again for a while when it has nothing. Other tasks of the thread go on between.
pub(crate) struct Eager<'a, R> {
    reader: &'a mut R,
    until: Instant,
    /// Bytes since it was last made eager.
    read: usize,
}

impl<'a, R: AsyncRead + Unpin> Eager<'a, R> {
    /// Eager from now on.
    pub(crate) fn new(reader: &'a mut R) -> Self {
        let mut eager = Self { reader, until: Instant::now(), read: 0 };
        eager.renew();
        eager
    }

    /// Eager for a while again: something came, so that more is on its way.
    pub(crate) fn renew(&mut self) {
        self.read = 0;
        if *HAS_CORES {
            self.until = Instant::now() + SPIN;
        }
    }

    /// Reads some bytes; none where the stream ends.
    pub(crate) async fn read(&mut self, buffer: &mut impl BufMut) -> io::Result<usize> {
        let read = self.read_some(buffer).await?;
        self.read += read;
        if self.read >= RENEWED_BY {
            self.renew();
        }
        Ok(read)
    }

    async fn read_some(&mut self, buffer: &mut impl BufMut) -> io::Result<usize> {
        while Instant::now() < self.until {
            tokio::select! {
                biased;
                read = self.reader.read_buf(buffer) => return read,
                () = tokio::task::yield_now() => {}
            }
        }
        self.reader.read_buf(buffer).await
    }

    /// Reads until it is full; an error where the stream ends before.
    pub(crate) async fn fill(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            if self.read(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn bytes_are_read_whether_they_come_soon_or_late() {
        for wait in [Duration::ZERO, SPIN / 4, 50 * SPIN] {
            let (mut near, mut far) = tokio::io::duplex(64);
            let writing = async {
                for bytes in [&b"ab"[..], b"cde"] {
                    tokio::time::sleep(wait).await;
                    near.write_all(bytes).await.expect("written");
                }
                drop(near);
            };
            let reading = async {
                let (mut reader, mut five, mut more) = (Eager::new(&mut far), [0; 5], Vec::new());
                reader.fill(&mut five).await.expect("read");
                assert_eq!(&five, b"abcde");
                assert_eq!(reader.read(&mut more).await.expect("the end"), 0);
                let error = reader.fill(&mut five).await.expect_err("nothing is left");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            };
            // In one task: who looks lets the other get on.
            tokio::join!(writing, reading);
        }
    }
}
