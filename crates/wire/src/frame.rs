//! Frames: messages and their parts on a stream.
//!
//! A frame is a header (magic, bytes of the message, number of parts, checksum of what follows up to the parts, checksum of
//! the header before it, each 32 bits), a table with name and bytes of each part (64 bits each), the message in Cap'n
//! Proto's stream encoding, and the parts, each followed by its checksum. All numbers are little-endian, all checksums
//! are CRC-32 (IEEE).

use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::{BufMut, Bytes};
use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions};
use capnp::serialize::{self, OwnedSegments};
use crc32fast::Hasher;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::activity::Activity;
use crate::parts::PartStore;
use crate::quota::{Quota, Reservations, Reserved, reserve_when_free};
use crate::spin_reader::SpinReader;

/// Start of each frame in the layout of protocol 5.
const MAGIC: [u8; 4] = *b"SPL5";
/// Start of the answer of a server that accepts encrypted connections only. It is as long as a header.
const SECRET_NEEDED_MAGIC: [u8; 4] = *b"SPLS";
const HEADER_BYTES: usize = 20;
const ENTRY_BYTES: usize = 16;
const MAX_PARTS: usize = 1 << 12;
/// Bytes that are written or read at a time. Larger chunks leave the processor's cache before their checksum is computed.
const CHUNK_BYTES: usize = 1 << 20;
const CHECKSUM_BYTES: usize = 4;
/// Traversal limit of the smallest messages.
const MIN_TRAVERSAL_WORDS: usize = 1 << 16;
const DAMAGED: &str = "a message was damaged in transit";

pub(crate) struct Frame {
    head: Vec<u8>,
    parts: Vec<Bytes>,
}

impl Frame {
    pub(crate) fn new(message: &Builder<HeapAllocator>, parts: &PartStore) -> Result<Self, capnp::Error> {
        let parts = parts.take_referenced(&message.get_segments_for_output());
        if parts.len() > MAX_PARTS {
            return Err(too_many(parts.len()));
        }
        let table_bytes = parts.len() * ENTRY_BYTES;
        let mut head = vec![0; HEADER_BYTES];
        for (id, data) in &parts {
            head.put_u64_le(*id);
            head.put_u64_le(data.len() as u64);
        }
        serialize::write_message(&mut head, message)?;
        let too_large = |_| capnp::Error::failed("a message of more than 4 GB".to_owned());
        let message_bytes = u32::try_from(head.len() - HEADER_BYTES - table_bytes).map_err(too_large)?;
        let n_parts = u32::try_from(parts.len()).map_err(too_large)?;
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&message_bytes.to_le_bytes());
        head[8..12].copy_from_slice(&n_parts.to_le_bytes());
        let body_crc = crc32fast::hash(&head[HEADER_BYTES..]);
        head[12..16].copy_from_slice(&body_crc.to_le_bytes());
        let header_crc = crc32fast::hash(&head[..16]);
        head[16..HEADER_BYTES].copy_from_slice(&header_crc.to_le_bytes());
        Ok(Self { head, parts: parts.into_iter().map(|(_, data)| data).collect() })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.parts.iter().fold(self.head.len(), |bytes, part| bytes.saturating_add(part.len()))
    }

    pub(crate) async fn write(&self, writer: &mut (impl AsyncWrite + Unpin), activity: &Activity) -> io::Result<()> {
        let mut head = &self.head[..];
        for part in &self.parts {
            let (mut crc, mut remaining) = (Hasher::new(), &part[..]);
            while remaining.len() > CHUNK_BYTES {
                let (chunk, tail) = remaining.split_at(CHUNK_BYTES);
                write_all(writer, activity, [head, chunk]).await?;
                // After the write, so that the reader does not wait for the checksum.
                crc.update(chunk);
                (head, remaining) = (&[], tail);
            }
            crc.update(remaining);
            write_all(writer, activity, [head, remaining, &crc.finalize().to_le_bytes()]).await?;
            head = &[];
        }
        write_all(writer, activity, [head]).await?;
        writer.flush().await
    }
}

async fn write_all<const N: usize>(
    writer: &mut (impl AsyncWrite + Unpin),
    activity: &Activity,
    slices: [&[u8]; N],
) -> io::Result<()> {
    let mut slices = slices.map(IoSlice::new);
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let n_written = writer.write_vectored(slices).await?;
        if n_written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        activity.count_sent(n_written);
        IoSlice::advance_slices(&mut slices, n_written);
    }
    Ok(())
}

/// Receiving side of a connection: limits of frames, their quota, and the store of their parts.
pub(crate) struct Reception {
    pub(crate) options: ReaderOptions,
    /// Maximum bytes of a message, and of all of its parts together.
    pub(crate) max_bytes: u64,
    pub(crate) parts: PartStore,
    pub(crate) activity: Activity,
    pub(crate) quota: Option<Rc<dyn Quota>>,
}

/// Received message with its parts, which are dropped with it.
pub(crate) struct Received {
    pub(crate) message: Reader<OwnedSegments>,
    _reserved: Option<Reserved>,
    _parts: ReceivedParts,
}

/// Releases the parts of a received message on drop.
struct ReceivedParts {
    parts: PartStore,
    ids: Vec<u64>,
}

impl Drop for ReceivedParts {
    fn drop(&mut self) {
        self.parts.release(&self.ids);
    }
}

struct Header {
    message_bytes: u32,
    n_parts: usize,
    /// Checksum of table and message.
    crc: u32,
}

impl Header {
    /// Reads the next header; `None` at the end of the stream.
    async fn read(reader: &mut SpinReader<'_, impl AsyncRead + Unpin>) -> Result<Option<Self>, capnp::Error> {
        let mut header = [0; HEADER_BYTES];
        let n_read = reader.read(&mut &mut header[..]).await?;
        if n_read == 0 {
            return Ok(None);
        }
        reader.begin_message();
        reader.read_exact(&mut header[n_read..]).await?;
        if header[..4] == SECRET_NEEDED_MAGIC {
            return Err(failed(
                "the server accepts only clients with its secret; name the secret's file (`--secret-file`, or `secret_file` in \
                 a pipeline)",
            ));
        }
        if header[..4] != MAGIC {
            return Err(failed(
                "received data that is no message of this protocol version; if it happens again, update the older side",
            ));
        }
        let [message_bytes, n_parts, crc, header_crc] = [4, 8, 12, 16].map(|offset| read_u32(&header, offset));
        // Checked first, since the lengths decide how much is read.
        if crc32fast::hash(&header[..16]) != header_crc {
            return Err(failed(DAMAGED));
        }
        Ok(Some(Self { message_bytes, n_parts: n_parts as usize, crc }))
    }
}

/// Reads the next frame; `None` at the end of the stream. The message, and all of its parts together, are limited to `max_bytes`
/// each, and to what `parts` admit when the frame begins.
pub(crate) async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    reception: &Reception,
) -> Result<Option<Received>, capnp::Error> {
    let Reception { options, max_bytes, parts, activity, quota } = reception;
    let mut reader = SpinReader::new(reader, activity);
    let Some(Header { message_bytes, n_parts, crc }) = Header::read(&mut reader).await? else { return Ok(None) };
    if n_parts > MAX_PARTS {
        return Err(too_many(n_parts));
    }
    let max_bytes = parts.incoming_limit().min(*max_bytes);
    let options = limited(*options, max_bytes);
    if u64::from(message_bytes) > max_bytes {
        return Err(too_large(max_bytes));
    }
    let body_bytes = n_parts * ENTRY_BYTES + message_bytes as usize;
    let (body, body_reserved) = read_data(&mut reader, body_bytes, quota.as_deref(), |_| ()).await?;
    if crc32fast::hash(&body) != crc {
        return Err(failed(DAMAGED));
    }
    let (table, message) = body.split_at(n_parts * ENTRY_BYTES);
    let _reserved = match quota.as_deref() {
        Some(quota) => Some(reserve_when_free(quota, message.len(), activity).await?),
        None => None,
    };
    let message = serialize::read_message(message, options)?;
    let _parts = read_parts(&mut reader, table, max_bytes, reception).await?;
    drop(body_reserved);
    activity.end_message();
    Ok(Some(Received { message, _reserved, _parts }))
}

async fn read_parts(
    reader: &mut SpinReader<'_, impl AsyncRead + Unpin>,
    table: &[u8],
    max_bytes: u64,
    Reception { parts, quota, .. }: &Reception,
) -> Result<ReceivedParts, capnp::Error> {
    let table = || table.chunks_exact(ENTRY_BYTES).map(|entry| (read_u64(entry, 0), read_u64(entry, 8)));
    let total = table().try_fold(0_u64, |total, (_, bytes)| total.checked_add(bytes));
    if total.is_none_or(|total| total > max_bytes) {
        return Err(too_large(max_bytes));
    }
    let mut received = ReceivedParts { parts: parts.clone(), ids: Vec::new() };
    for (id, bytes) in table() {
        let bytes = usize::try_from(bytes).map_err(|_| too_large(max_bytes))?;
        let (data, reserved) = read_part(reader, bytes, quota.as_deref()).await?;
        if !parts.receive(id, data, reserved) {
            return Err(failed("two parts have the same name"));
        }
        received.ids.push(id);
    }
    Ok(received)
}

/// Lowers the traversal limit of a reader. Cap'n Proto counts in words of eight bytes, and a message is traversed at most
/// twice.
pub(crate) fn limited(options: ReaderOptions, max_bytes: u64) -> ReaderOptions {
    let words = usize::try_from(max_bytes / 8 * 2).unwrap_or(usize::MAX).max(MIN_TRAVERSAL_WORDS);
    let limit = options.traversal_limit_in_words.map_or(words, |limit| limit.min(words));
    ReaderOptions { traversal_limit_in_words: Some(limit), ..options }
}

/// Reads a part; `None` if its checksum is wrong.
async fn read_part(
    reader: &mut SpinReader<'_, impl AsyncRead + Unpin>,
    bytes: usize,
    quota: Option<&dyn Quota>,
) -> Result<(Option<Bytes>, Vec<Reserved>), capnp::Error> {
    let (mut crc, mut n_checked) = (Hasher::new(), 0);
    let check = |data: &[u8]| {
        let end = data.len().min(bytes);
        crc.update(&data[n_checked..end]);
        n_checked = end;
    };
    let (mut data, reserved) = read_data(reader, bytes + CHECKSUM_BYTES, quota, check).await?;
    let is_intact = read_u32(&data, bytes) == crc.finalize();
    data.truncate(bytes);
    Ok((is_intact.then(|| data.into()), reserved))
}

/// Reads `total` bytes, which are reserved as they arrive. `read` is called with all data so far after each read.
async fn read_data(
    reader: &mut SpinReader<'_, impl AsyncRead + Unpin>,
    total: usize,
    quota: Option<&dyn Quota>,
    mut read: impl FnMut(&[u8]),
) -> Result<(Vec<u8>, Vec<Reserved>), capnp::Error> {
    let mut data = Vec::<u8>::new();
    let mut reservations = Reservations::new(quota, reader.activity());
    while data.len() < total {
        let readable = reservations.readable(data.len(), total).await?;
        // No more than is reserved: memory that was written to stays with the process even after it is freed.
        data.try_reserve_exact(readable).map_err(|_| no_memory(total))?;
        if reader.read(&mut (&mut data).limit(readable.min(CHUNK_BYTES))).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        read(&data);
    }
    Ok((data, reservations.into_reserved()))
}

fn read_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

fn read_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from(read_u32(bytes, offset)) | u64::from(read_u32(bytes, offset + 4)) << 32
}

fn failed(message: &str) -> capnp::Error {
    capnp::Error::failed(message.to_owned())
}

fn too_large(max_bytes: u64) -> capnp::Error {
    failed(&format!("a message of more than {max_bytes} bytes"))
}

fn no_memory(bytes: usize) -> capnp::Error {
    capnp::Error::overloaded(format!("no memory for a message of {bytes} bytes"))
}

fn too_many(n_parts: usize) -> capnp::Error {
    failed(&format!("a message with {n_parts} tensors"))
}

#[cfg(test)]
mod tests {
    use sepal_core::{DType, HostTensor};

    use super::*;
    use crate::codec::{self, DecodeError};
    use crate::parts::Parts;
    use crate::quota::tests::FixedQuota;
    use crate::sepal_capnp::{named_tensor, tensor};

    const LIMIT: u64 = 1 << 24;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().expect("a runtime").block_on(work)
    }

    fn tensor_of_bytes(n: usize) -> HostTensor {
        let data: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
        HostTensor::new(DType::F16, vec![n / 2], data.into()).expect("a tensor")
    }

    fn frame_of(tensor: &HostTensor) -> Vec<u8> {
        let (mut message, parts) = (Builder::new_default(), Parts::default());
        codec::write_tensor(message.init_root(), tensor, &parts);
        let mut written = Vec::new();
        let frame = Frame::new(&message, &parts.store).expect("a frame");
        let activity = Activity::default();
        block_on(frame.write(&mut written, &activity)).expect("written");
        assert_eq!(activity.sent_bytes(), written.len() as u64);
        written
    }

    fn reception(parts: &Parts, max_bytes: u64, quota: Option<FixedQuota>) -> Reception {
        Reception {
            options: ReaderOptions::new(),
            max_bytes,
            parts: parts.store.clone(),
            activity: parts.activity().clone(),
            quota: quota.map(|quota| Rc::new(quota) as Rc<dyn Quota>),
        }
    }

    fn read_tensor(mut bytes: &[u8], max_bytes: u64) -> Result<Option<Result<HostTensor, DecodeError>>, capnp::Error> {
        let parts = Parts::default();
        let received = block_on(read(&mut bytes, &reception(&parts, max_bytes, None)));
        let tensor = received.map(|received| {
            received.map(|received| {
                let root = received.message.get_root::<tensor::Reader<'_>>();
                root.map_err(DecodeError::from).and_then(|root| codec::read_tensor(root, &parts))
            })
        });
        assert_eq!(format!("{parts:?}"), "Parts(0 outgoing, 0 incoming)");
        tensor
    }

    #[test]
    fn tensor_round_trip_is_exact_inline_and_as_part() {
        let sizes = [CHUNK_BYTES / 2, CHUNK_BYTES].map(|n| [n - 2, n, n + 2]);
        for n in [0, 2, 1022, 1024, 3 * CHUNK_BYTES - 2].into_iter().chain(sizes.concat()) {
            let tensor = tensor_of_bytes(n);
            let frame = frame_of(&tensor);
            assert_eq!(read_tensor(&frame, LIMIT).expect("whole").expect("a frame").expect("a tensor"), tensor);
            assert!(frame.len() < n + 200, "{} bytes for {n}", frame.len());
        }
    }

    #[test]
    fn stream_end_inside_a_frame_is_an_error() {
        let frame = frame_of(&tensor_of_bytes(2000));
        for end in 0..frame.len() {
            match read_tensor(&frame[..end], LIMIT) {
                Ok(None) => assert_eq!(end, 0),
                Ok(Some(tensor)) => panic!("{tensor:?} of {end} bytes"),
                Err(_) => assert!(end > 0),
            }
        }
    }

    #[test]
    fn damaged_byte_is_detected_at_every_offset() {
        let tensor = tensor_of_bytes(1500);
        let frame = frame_of(&tensor);
        let body = frame.len() - 1500 - 4;
        for offset in 0..frame.len() {
            let mut damaged = frame.clone();
            damaged[offset] ^= 4;
            // Data for lengths that are read too large.
            damaged.extend(&frame);
            match read_tensor(&damaged, LIMIT) {
                // The call fails, and the next frame can be read.
                Ok(Some(Err(DecodeError::Damaged))) => assert!(offset >= body, "byte {offset}"),
                Ok(read) => panic!("{read:?} with byte {offset} damaged"),
                Err(error) => {
                    let is_expected =
                        error.extra == DAMAGED || error.extra.contains("no message of this protocol version");
                    assert!(offset < body && is_expected, "byte {offset}: {error}");
                }
            }
        }
    }

    #[test]
    fn answer_of_a_server_with_a_secret_is_named() {
        // The bytes that such a server sends: `sepal_swarm::SECRET_NEEDED`.
        let error = read_tensor(b"SPLS\0secret needed\0\n", LIMIT).expect_err("no frame");
        assert!(error.extra.starts_with("the server accepts only clients with its secret;"), "{error}");
    }

    #[test]
    fn frame_beyond_limit_is_refused() {
        let frame = frame_of(&tensor_of_bytes(2000));
        let error = read_tensor(&frame, 1999).expect_err("too large");
        assert_eq!(error.extra, "a message of more than 1999 bytes");
        let error = read_tensor(&[0; 64], LIMIT).expect_err("no frame");
        assert!(error.extra.contains("update the older side"), "{error}");
    }

    #[test]
    fn client_reads_no_more_than_it_expects() {
        let frame = frame_of(&tensor_of_bytes(2 * CHUNK_BYTES));
        let parts = Parts::of_client();
        let read_frame = || block_on(read(&mut &frame[..], &reception(&parts, LIMIT, None))).map(drop);
        assert!(read_frame().expect_err("too large").extra.starts_with("a message of more than"));
        parts.expect_answer(CHUNK_BYTES - 1);
        read_frame().expect_err("one byte too large");
        parts.expect_answer(CHUNK_BYTES);
        parts.expect_answer(1);
        read_frame().expect("as large as the largest answer");
    }

    #[test]
    fn frame_contains_only_parts_of_its_message() {
        let parts = Parts::default();
        let message_of = |n: usize| {
            let mut message = Builder::new_default();
            let mut root = message.init_root::<named_tensor::Builder<'_>>();
            root.set_name("x".repeat(n % 9));
            codec::write_tensor(root.init_tensor(), &tensor_of_bytes(n), &parts);
            message
        };
        let messages = [2000, 3000, 4000, 12].map(message_of);
        // Not in the order in which they were written.
        for (i, expected) in [(2, &[4000][..]), (0, &[2000]), (3, &[]), (1, &[3000])] {
            let frame = Frame::new(&messages[i], &parts.store).expect("a frame");
            assert_eq!(frame.parts.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn frame_bytes_are_reserved_until_the_tensor_is_read() {
        let (parts, tensor, n) = (Parts::default(), tensor_of_bytes(300_000), 300_000);
        let quota = FixedQuota { limit: 400_000, ..FixedQuota::default() };
        let used = Rc::clone(&quota.used);
        let reception = reception(&parts, LIMIT, Some(quota));
        let received = block_on(read(&mut &frame_of(&tensor)[..], &reception)).expect("whole").expect("a frame");
        assert!((n..n + 1000).contains(&used.get()), "{} bytes", used.get());
        let root = received.message.get_root::<tensor::Reader<'_>>().expect("a tensor");
        let found = codec::read_tensor(root, &parts).expect("a tensor");
        // The reader of the tensor accounts for its bytes.
        assert!(used.get() < 1000, "{} bytes", used.get());
        drop(received);
        assert_eq!((found, used.get()), (tensor, 0));
    }

    #[test]
    fn frame_beyond_quota_is_refused_before_its_data_is_read() {
        let frame = frame_of(&tensor_of_bytes(300_000));
        let (parts, quota) = (Parts::default(), FixedQuota { limit: 100_000, ..FixedQuota::default() });
        let used = Rc::clone(&quota.used);
        let reception = reception(&parts, LIMIT, Some(quota));
        let error = block_on(read(&mut &frame[..], &reception)).err().expect("refused");
        assert_eq!(error.kind, capnp::ErrorKind::Overloaded);
        assert!(reception.activity.received_bytes() < 100_000 && reception.activity.is_receiving());
        assert!(reception.activity.is_overloaded());
        assert_eq!(used.get(), 0);
    }
}
