//! Reader that spins before it parks.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::activity::Activity;

/// Time for which a reader spins before it parks. A wake-up takes about half as long on a virtual machine; a call that
/// computes takes much longer, so spinning costs it little.
const SPIN: Duration = Duration::from_micros(100);

/// Number of received bytes that restart the spinning. A slow link delivers them so rarely that spinning takes little time:
/// 5 % of a core at 1 Gbit/s.
const RESTART_BYTES: usize = 256 << 10;

/// False on a single core, where spinning would stop the other side.
static HAS_CORES: LazyLock<bool> = LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|n| n.get() > 1));

/// Reader that polls an empty stream for a while before it parks. Other tasks of the thread run between polls.
pub(crate) struct SpinReader<'a, R> {
    reader: &'a mut R,
    activity: &'a Activity,
    spins_until: Instant,
    n_read: usize,
}

impl<'a, R: AsyncRead + Unpin> SpinReader<'a, R> {
    pub(crate) fn new(reader: &'a mut R, activity: &'a Activity) -> Self {
        let mut spin_reader = Self { reader, activity, spins_until: Instant::now(), n_read: 0 };
        spin_reader.restart();
        spin_reader
    }

    pub(crate) fn activity(&self) -> &'a Activity {
        self.activity
    }

    /// Restarts the spinning after the first bytes of a message, as more are expected at once.
    pub(crate) fn begin_message(&mut self) {
        self.activity.begin_message();
        self.restart();
    }

    fn restart(&mut self) {
        self.n_read = 0;
        if *HAS_CORES {
            self.spins_until = Instant::now() + SPIN;
        }
    }

    /// Reads some bytes; 0 at the end of the stream.
    pub(crate) async fn read(&mut self, buffer: &mut impl BufMut) -> io::Result<usize> {
        let n_read = self.read_some(buffer).await?;
        self.activity.count_received(n_read);
        self.n_read += n_read;
        if self.n_read >= RESTART_BYTES {
            self.restart();
        }
        Ok(n_read)
    }

    async fn read_some(&mut self, buffer: &mut impl BufMut) -> io::Result<usize> {
        while Instant::now() < self.spins_until {
            tokio::select! {
                biased;
                n_read = self.reader.read_buf(buffer) => return n_read,
                () = tokio::task::yield_now() => {}
            }
        }
        self.reader.read_buf(buffer).await
    }

    pub(crate) async fn read_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
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
    async fn read_early_and_late_bytes_is_exact() {
        for delay in [Duration::ZERO, SPIN / 4, 50 * SPIN] {
            let (mut near, mut far) = tokio::io::duplex(64);
            let writing = async {
                for bytes in [&b"ab"[..], b"cde"] {
                    tokio::time::sleep(delay).await;
                    near.write_all(bytes).await.expect("written");
                }
                drop(near);
            };
            let reading = async {
                let activity = Activity::default();
                let (mut reader, mut five, mut more) = (SpinReader::new(&mut far, &activity), [0; 5], Vec::new());
                reader.read_exact(&mut five).await.expect("read");
                assert_eq!((&five, activity.received_bytes()), (b"abcde", 5));
                assert_eq!(reader.read(&mut more).await.expect("the end"), 0);
                let error = reader.read_exact(&mut five).await.expect_err("end of stream");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            };
            // One task runs both, so a spinning reader must yield.
            tokio::join!(writing, reading);
        }
    }
}
