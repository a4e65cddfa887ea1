//! Damaged frames whose checksums are right: those of an honest conversation, mutated.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sepal_core::Want;
use sepal_wire::Relay;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::client::{Client, dial, forwarded};
use super::{Attack, CLOSED, OPEN, PATIENCE};

/// Start of each frame, see `crates/wire/src/frame.rs`.
const MAGIC: [u8; 4] = *b"SPL5";
const HEADER_BYTES: usize = 20;
const ENTRY_BYTES: usize = 16;
/// Numbers at the edges of sizes, counts and names.
const EXTREMES: [u64; 10] =
    [0, 1, 2, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x1_0000_0000, 0x7fff_ffff_ffff_ffff, u64::MAX];
/// Time that a connection has to answer before the next one is opened.
const ANSWER_TIME: Duration = Duration::from_millis(5);

/// Opens connections and sends `n` mutated frames in all, after honest beginnings. Counts the connections.
pub fn mutated_frames(addr: &str, n: usize, seed: u64) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let frames = record(&addr).await.map_err(|kind| tally.add(kind)).ok()?;
        let mut sent = 0;
        while sent < n {
            let Ok(mut stream) = dial(&addr).await else {
                tally.add(CLOSED);
                break;
            };
            let honest = rng.random_range(0..=frames.len());
            let mut bytes: Vec<u8> = frames[..honest].iter().flat_map(Frame::to_bytes).collect();
            for _ in 0..rng.random_range(1..20_usize).min(n - sent) {
                let frame = &frames[rng.random_range(0..frames.len())];
                bytes.extend(mutate(frame, &frames, &mut rng));
                sent += 1;
            }
            let mut answers = Vec::new();
            let (mut reader, mut writer) = stream.split();
            // The server may close the connection at any byte, and answers what it can.
            let _ = tokio::join!(
                tokio::time::timeout(PATIENCE, writer.write_all(&bytes)),
                tokio::time::timeout(ANSWER_TIME, reader.read_to_end(&mut answers)),
            );
            let mut byte = [0];
            let is_open = matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            tally.add(if is_open { OPEN } else { CLOSED });
        }
        Some(())
    })
}

/// Frame of an honest conversation.
#[derive(Clone)]
struct Frame {
    message: Vec<u8>,
    /// Names and data.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Frame {
    fn to_bytes(&self) -> Vec<u8> {
        self.with_table(&self.table())
    }

    fn table(&self) -> Vec<u8> {
        let entry = |(name, data): &(u64, Vec<u8>)| [name.to_le_bytes(), (data.len() as u64).to_le_bytes()].concat();
        self.parts.iter().flat_map(entry).collect()
    }

    /// Returns the frame with another table of its parts.
    fn with_table(&self, table: &[u8]) -> Vec<u8> {
        let body = [table, &self.message].concat();
        let n_parts = u32::try_from(table.len() / ENTRY_BYTES).unwrap_or(u32::MAX);
        let message_bytes = u32::try_from(self.message.len()).unwrap_or(u32::MAX);
        let mut bytes = [header(message_bytes, n_parts, crc32fast::hash(&body)), body].concat();
        for (_, data) in &self.parts {
            bytes.extend(data);
            bytes.extend(crc32fast::hash(data).to_le_bytes());
        }
        bytes
    }
}

/// Returns the header of a frame, with a right checksum of its own.
pub(super) fn header(message_bytes: u32, n_parts: u32, body_crc: u32) -> Vec<u8> {
    let numbers = [message_bytes, n_parts, body_crc].map(u32::to_le_bytes).concat();
    let header = [&MAGIC[..], &numbers].concat();
    let crc = crc32fast::hash(&header).to_le_bytes();
    [header, crc.to_vec()].concat()
}

/// Returns bytes in place of the frame.
fn mutate(frame: &Frame, frames: &[Frame], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut frame = frame.clone();
    let extreme = |rng: &mut ChaCha8Rng| EXTREMES[rng.random_range(0..EXTREMES.len())];
    match rng.random_range(0..12) {
        0 => {
            let bit = rng.random_range(0..frame.message.len() * 8);
            frame.message[bit / 8] ^= 1 << (bit % 8);
        }
        1 => {
            for _ in 0..rng.random_range(2..40) {
                let offset = rng.random_range(0..frame.message.len());
                frame.message[offset] = rng.random();
            }
        }
        2 | 3 => {
            // A word is a pointer, two 32-bit numbers or one of 64 bits.
            let word = rng.random_range(0..frame.message.len() / 8) * 8;
            frame.message[word..word + 8].copy_from_slice(&extreme(rng).to_le_bytes());
        }
        4 => {
            let half = rng.random_range(0..frame.message.len() / 4) * 4;
            let number = extreme(rng).to_le_bytes();
            frame.message[half..half + 4].copy_from_slice(&number[..4]);
        }
        5 => frame.message.truncate(rng.random_range(0..frame.message.len())),
        6 => frame.message.extend(vec![0_u8; 8 * rng.random_range(1..4000_usize)]),
        7 => frame.parts = frames[rng.random_range(0..frames.len())].parts.clone(),
        8 => {
            for (name, data) in &mut frame.parts {
                *name = if rng.random() { *name } else { extreme(rng) };
                data.truncate(rng.random_range(0..=data.len()));
            }
        }
        9 => {
            let entries = rng.random_range(1..6);
            let table: Vec<u8> = (0..entries * 2).flat_map(|_| extreme(rng).to_le_bytes()).collect();
            return frame.with_table(&table);
        }
        10 => {
            let numbers = [(); 3].map(|()| extreme(rng)).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
            return [header(numbers[0], numbers[1], numbers[2]), frame.message].concat();
        }
        _ => {
            let bytes = frame.to_bytes();
            return bytes[..rng.random_range(0..bytes.len())].to_vec();
        }
    }
    frame.to_bytes()
}

/// Holds an honest conversation with the server, and returns the frames that it sent.
async fn record(addr: &str) -> Result<Vec<Frame>, String> {
    let stream = dial(addr).await.map_err(|_| CLOSED.to_owned())?;
    let (reader, inner) = stream.into_split();
    let written = Rc::new(RefCell::new(Vec::new()));
    let client = Client::over(reader, Recorder { inner, written: Rc::clone(&written) }).await?;
    let tuned = client.tune(Some(client.deep_prompts(0))).await?;
    for (lengths, keep_tape) in [(vec![3, 1, 4], false), (vec![5; 8], true)] {
        let call = client.forward(&tuned, &client.batch(1, lengths), Want::LastOfRows, keep_tape, &Relay::default());
        drop(forwarded(call).await?);
    }
    client.flush().await;
    drop(client);
    let written = written.borrow();
    Ok(parse(&written))
}

/// Returns the complete frames of a stream.
fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let number = |bytes: &[u8], offset: usize| {
        let word = bytes.get(offset..offset + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
        word.map(|word| u32::from_le_bytes(word) as usize)
    };
    let mut frames = Vec::new();
    while let Some((message_bytes, n_parts)) = number(bytes, 4).zip(number(bytes, 8)) {
        let (head, table_end) = (HEADER_BYTES, HEADER_BYTES + n_parts * ENTRY_BYTES);
        let mut end = table_end + message_bytes;
        let Some(message) = bytes.get(table_end..end) else { break };
        let mut frame = Frame { message: message.to_vec(), parts: Vec::new() };
        for entry in bytes[head..table_end].chunks_exact(ENTRY_BYTES) {
            let (name, length) = entry.split_at(8);
            let number = |word: &[u8]| u64::from_le_bytes(word.try_into().unwrap_or_default());
            let length = usize::try_from(number(length)).unwrap_or(usize::MAX);
            let Some(data) = bytes.get(end..end + length) else { return frames };
            frame.parts.push((number(name), data.to_vec()));
            end += length + 4;
        }
        frames.push(frame);
        bytes = bytes.get(end..).unwrap_or(&[]);
    }
    frames
}

/// Writing half of a connection that keeps a copy of what was written.
struct Recorder<W> {
    inner: W,
    written: Rc<RefCell<Vec<u8>>>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Recorder<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = polled {
            self.written.borrow_mut().extend(&bytes[..n]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_and_mutated_ones_differ() {
        let plain = Frame { message: vec![3; 32], parts: Vec::new() };
        let frames = [Frame { message: (0..64).collect(), parts: vec![(7, vec![1; 9]), (8, Vec::new())] }, plain];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let again: Vec<u8> = parse(&bytes).iter().flat_map(Frame::to_bytes).collect();
        assert_eq!(again, bytes);
        assert_eq!(parse(&bytes[..bytes.len() - 1]).len(), 1, "the last frame is incomplete");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let differing = (0..200).filter(|_| mutate(&frames[0], &frames, &mut rng) != frames[0].to_bytes()).count();
        assert!(differing > 180, "only {differing} of 200 frames were changed");
    }
}
