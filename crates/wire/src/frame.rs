//! Messages and their parts on a stream.
//!
//! A frame is a header (magic, bytes of the message, number of parts, checksum of what follows up to the parts, checksum of
//! the header before it, each 32 bits), a table with name and bytes of each part (64 bits each), the message in Cap'n
//! Proto's stream encoding, and the parts, each with its checksum behind it. All numbers are little-endian, all checksums
//! are CRC-32 (IEEE).

use std::io::{self, IoSlice};

use bytes::{BufMut, Bytes};
use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions};
use capnp::serialize::{self, OwnedSegments};
use crc32fast::Hasher;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::eager::Eager;
use crate::parts::Parts;

/// Sepal's frames, in the layout of the protocol 5.
const MAGIC: [u8; 4] = *b"SPL5";
const HEADER_BYTES: usize = 20;
const ENTRY_BYTES: usize = 16;
/// No message has nearly as many tensors.
const MOST_PARTS: usize = 1 << 12;
/// What is written or read at a time: more than this leaves the processor's cache before it is summed.
const CHUNK_BYTES: usize = 1 << 20;
const SUM_BYTES: usize = 4;
const DAMAGED: &str = "a message was damaged on the way";

/// A message that goes out.
pub(crate) struct Frame {
    head: Vec<u8>,
    parts: Vec<Bytes>,
}

impl Frame {
    /// The message with the parts that it names.
    pub(crate) fn new(message: &Builder<HeapAllocator>, parts: &Parts) -> Result<Self, capnp::Error> {
        let parts = parts.named_in(&message.get_segments_for_output());
        if parts.len() > MOST_PARTS {
            return Err(too_many(parts.len()));
        }
        let table = parts.len() * ENTRY_BYTES;
        let mut head = vec![0; HEADER_BYTES];
        for (id, data) in &parts {
            head.put_u64_le(*id);
            head.put_u64_le(data.len() as u64);
        }
        serialize::write_message(&mut head, message)?;
        let too_large = |_| capnp::Error::failed("a message of more than 4 GB".to_owned());
        let message_bytes = u32::try_from(head.len() - HEADER_BYTES - table).map_err(too_large)?;
        let n_parts = u32::try_from(parts.len()).map_err(too_large)?;
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&message_bytes.to_le_bytes());
        head[8..12].copy_from_slice(&n_parts.to_le_bytes());
        let body = sum(&head[HEADER_BYTES..]);
        head[12..16].copy_from_slice(&body.to_le_bytes());
        let header = sum(&head[..16]);
        head[16..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
        Ok(Self { head, parts: parts.into_iter().map(|(_, data)| data).collect() })
    }

    pub(crate) async fn write(&self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut before = &self.head[..];
        for part in &self.parts {
            let (mut crc, mut left) = (Hasher::new(), &part[..]);
            while left.len() > CHUNK_BYTES {
                let (chunk, rest) = left.split_at(CHUNK_BYTES);
                write_all(writer, [before, chunk]).await?;
                // Now that it is on its way: whoever reads it does not wait for the sum.
                crc.update(chunk);
                (before, left) = (&[], rest);
            }
            crc.update(left);
            write_all(writer, [before, left, &crc.finalize().to_le_bytes()]).await?;
            before = &[];
        }
        write_all(writer, [before]).await?;
        writer.flush().await
    }
}

async fn write_all<const N: usize>(writer: &mut (impl AsyncWrite + Unpin), slices: [&[u8]; N]) -> io::Result<()> {
    let mut slices = slices.map(IoSlice::new);
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let written = writer.write_vectored(slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

fn sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The message of a frame that came in, and its parts, which go with it.
pub(crate) struct Received {
    pub(crate) message: Reader<OwnedSegments>,
    /// Held for its end.
    _arrived: Arrived,
}

/// Parts that are there until this is dropped.
struct Arrived {
    parts: Parts,
    ids: Vec<u64>,
}

impl Drop for Arrived {
    fn drop(&mut self) {
        self.parts.forget(&self.ids);
    }
}

/// What a frame says of itself.
struct Header {
    message_bytes: u32,
    n_parts: usize,
    /// Of table and message.
    crc: u32,
}

impl Header {
    /// `None` where the stream ends before it.
    async fn read(reader: &mut Eager<'_, impl AsyncRead + Unpin>) -> Result<Option<Self>, capnp::Error> {
        let mut header = [0; HEADER_BYTES];
        let began = reader.read(&mut &mut header[..]).await?;
        if began == 0 {
            return Ok(None);
        }
        reader.renew();
        reader.fill(&mut header[began..]).await?;
        if header[..4] != MAGIC {
            return Err(failed(
                "what came is no message of this version of the protocol; if it is so again, update the older side",
            ));
        }
        let [message_bytes, n_parts, crc, header_crc] = [4, 8, 12, 16].map(|at| number(&header, at));
        // Before it is waited for as much as it says.
        if sum(&header[..16]) != header_crc {
            return Err(failed(DAMAGED));
        }
        Ok(Some(Self { message_bytes, n_parts: n_parts as usize, crc }))
    }
}

/// The next frame, whose message and whose parts together have at most `max_bytes` each. `None` where the stream ends
/// between two.
pub(crate) async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    options: ReaderOptions,
    max_bytes: u64,
    parts: &Parts,
) -> Result<Option<Received>, capnp::Error> {
    let mut reader = Eager::new(reader);
    let Some(Header { message_bytes, n_parts, crc }) = Header::read(&mut reader).await? else { return Ok(None) };
    if n_parts > MOST_PARTS {
        return Err(too_many(n_parts));
    }
    if u64::from(message_bytes) > max_bytes {
        return Err(too_large(max_bytes));
    }
    let mut body = vec![0; n_parts * ENTRY_BYTES + message_bytes as usize];
    reader.fill(&mut body).await?;
    if sum(&body) != crc {
        return Err(failed(DAMAGED));
    }
    let (table, message) = body.split_at(n_parts * ENTRY_BYTES);
    let message = serialize::read_message(message, options)?;
    let _arrived = read_parts(&mut reader, table, max_bytes, parts).await?;
    Ok(Some(Received { message, _arrived }))
}

/// The parts that a frame's table tells of.
async fn read_parts(
    reader: &mut Eager<'_, impl AsyncRead + Unpin>,
    table: &[u8],
    max_bytes: u64,
    parts: &Parts,
) -> Result<Arrived, capnp::Error> {
    let table = || table.chunks_exact(ENTRY_BYTES).map(|entry| (word(entry, 0), word(entry, 8)));
    let total = table().try_fold(0_u64, |total, (_, bytes)| total.checked_add(bytes));
    if total.is_none_or(|total| total > max_bytes) {
        return Err(too_large(max_bytes));
    }
    let mut arrived = Arrived { parts: parts.clone(), ids: Vec::new() };
    for (id, bytes) in table() {
        let bytes = usize::try_from(bytes).map_err(|_| too_large(max_bytes))?;
        let data = read_part(reader, bytes).await?;
        if !parts.arrive(id, data) {
            return Err(failed("two parts of one name"));
        }
        arrived.ids.push(id);
    }
    Ok(arrived)
}

/// A part, unless its checksum is wrong.
async fn read_part(reader: &mut Eager<'_, impl AsyncRead + Unpin>, bytes: usize) -> io::Result<Option<Bytes>> {
    let total = bytes + SUM_BYTES;
    let (mut data, mut crc) = (Vec::with_capacity(total), Hasher::new());
    while data.len() < total {
        let have = data.len();
        let room = (total - have).min(CHUNK_BYTES);
        if reader.read(&mut (&mut data).limit(room)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        crc.update(&data[have.min(bytes)..data.len().min(bytes)]);
    }
    let is_whole = number(&data, bytes) == crc.finalize();
    data.truncate(bytes);
    Ok(is_whole.then(|| data.into()))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from(number(bytes, at)) | u64::from(number(bytes, at + 4)) << 32
}

fn failed(message: &str) -> capnp::Error {
    capnp::Error::failed(message.to_owned())
}

fn too_large(max_bytes: u64) -> capnp::Error {
    failed(&format!("a message of more than {max_bytes} bytes"))
}

fn too_many(n_parts: usize) -> capnp::Error {
    failed(&format!("a message with {n_parts} tensors"))
}

#[cfg(test)]
mod tests {
    use sepal_core::{DType, HostTensor};

    use super::*;
    use crate::codec::{self, DecodeError};
    use crate::sepal_capnp::{named_tensor, tensor};

    const LIMIT: u64 = 1 << 24;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    /// So many bytes.
    fn bytes(n: usize) -> HostTensor {
        let data: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
        HostTensor::new(DType::F16, vec![n / 2], data.into()).expect("it fits")
    }

    /// A message with one tensor in a frame.
    fn framed(tensor: &HostTensor) -> Vec<u8> {
        let (mut message, parts) = (Builder::new_default(), Parts::default());
        codec::write_tensor(message.init_root(), tensor, &parts);
        let mut written = Vec::new();
        run(Frame::new(&message, &parts).expect("a frame").write(&mut written)).expect("written");
        written
    }

    /// What the tensor in a frame is read as.
    fn read_back(mut bytes: &[u8], max_bytes: u64) -> Result<Option<Result<HostTensor, DecodeError>>, capnp::Error> {
        let parts = Parts::default();
        let received = run(read(&mut bytes, ReaderOptions::new(), max_bytes, &parts));
        let tensor = received.map(|received| {
            received.map(|received| {
                let root = received.message.get_root::<tensor::Reader<'_>>();
                root.map_err(DecodeError::from).and_then(|root| codec::read_tensor(root, &parts))
            })
        });
        assert_eq!(format!("{parts:?}"), "Parts(0 leaving, 0 arrived)");
        tensor
    }

    #[test]
    fn tensors_survive_beside_and_inside_their_message() {
        let sizes = [CHUNK_BYTES / 2, CHUNK_BYTES].map(|n| [n - 2, n, n + 2]);
        for n in [0, 2, 1022, 1024, 3 * CHUNK_BYTES - 2].into_iter().chain(sizes.concat()) {
            let tensor = bytes(n);
            let frame = framed(&tensor);
            assert_eq!(read_back(&frame, LIMIT).expect("whole").expect("a frame").expect("a tensor"), tensor);
            assert!(frame.len() < n + 200, "{} bytes for {n}", frame.len());
        }
    }

    #[test]
    fn a_stream_ends_between_frames_alone() {
        let frame = framed(&bytes(2000));
        for end in 0..frame.len() {
            match read_back(&frame[..end], LIMIT) {
                Ok(None) => assert_eq!(end, 0),
                Ok(Some(tensor)) => panic!("{tensor:?} of {end} bytes"),
                Err(_) => assert!(end > 0),
            }
        }
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let tensor = bytes(1500);
        let frame = framed(&tensor);
        let body = frame.len() - 1500 - 4;
        for at in 0..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 4;
            // So that nothing ends where too much is waited for.
            damaged.extend(&frame);
            match read_back(&damaged, LIMIT) {
                // The call fails, and what follows can be read.
                Ok(Some(Err(DecodeError::Damaged))) => assert!(at >= body, "byte {at}"),
                Ok(read) => panic!("{read:?} with byte {at} damaged"),
                Err(error) => {
                    let is_said = error.extra == DAMAGED || error.extra.contains("no message of this version");
                    assert!(at < body && is_said, "byte {at}: {error}");
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let frame = framed(&bytes(2000));
        let error = read_back(&frame, 1999).expect_err("too large");
        assert_eq!(error.extra, "a message of more than 1999 bytes");
        let error = read_back(&[0; 64], LIMIT).expect_err("not ours");
        assert!(error.extra.contains("update the older side"), "{error}");
    }

    #[test]
    fn a_frame_has_the_parts_that_its_message_names() {
        let parts = Parts::default();
        let named = |n: usize| {
            let mut message = Builder::new_default();
            let mut root = message.init_root::<named_tensor::Builder<'_>>();
            root.set_name("x".repeat(n % 9));
            codec::write_tensor(root.init_tensor(), &bytes(n), &parts);
            message
        };
        let messages = [2000, 3000, 4000, 12].map(named);
        // In another order than they were written in.
        for (i, expected) in [(2, &[4000][..]), (0, &[2000]), (3, &[]), (1, &[3000])] {
            let frame = Frame::new(&messages[i], &parts).expect("a frame");
            assert_eq!(frame.parts.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
        }
    }
}
