//! Bytes of a connection: frames, calls in them, and the messages that calls contain.

use std::future::pending;
use std::io::Cursor;
use std::time::Duration;

use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions};
use capnp::serialize::{OwnedSegments, read_message, write_message_to_words};
use capnp_rpc::rpc_capnp;
use sepal_core::{DType, HostTensor, HostTunable, Ragged};
use sepal_wire::codec::{self, GradWant, Grads, InputGrad, WireBatch};
use sepal_wire::{Failure, FailureCode, Parts, Relay, RelayTarget, ServerInfo, Timing, sepal_capnp as wire};
use tokio::task::LocalSet;

const MAX_MESSAGE_BYTES: u64 = 1 << 20;
/// Time after which a connection is closed whose bytes are all read.
const TIMEOUT: Duration = Duration::from_secs(5);
const OPTIONS: ReaderOptions = ReaderOptions { traversal_limit_in_words: Some(1 << 17), nesting_limit: 32 };

/// Bytes of a client on a connection to a server that answers nothing.
pub(crate) fn frames(bytes: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    LocalSet::new().block_on(&runtime, async {
        let root = wire::block_server::Client { client: capnp_rpc::new_future_client(pending()) };
        let reader = Cursor::new(bytes.to_vec());
        let parts = Parts::default();
        let serving = sepal_wire::rpc::server(reader, tokio::io::sink(), MAX_MESSAGE_BYTES, root, &parts, None);
        let _ = tokio::time::timeout(TIMEOUT, serving).await;
    });
}

/// A message of the RPC protocol, in a frame whose lengths and checksums are valid.
pub(crate) fn calls(message: &[u8]) {
    frames(&frame(message));
}

/// A message of one of the types of the schema, which the first byte chooses.
pub(crate) fn messages(bytes: &[u8]) {
    let Some((kind, message)) = bytes.split_first() else { return };
    let Ok(message) = read_message(message, OPTIONS) else { return };
    let Some(read) = READERS.get(usize::from(*kind) % READERS.len()) else { return };
    let _ = read(&message, &Parts::default()).is_some();
}

type Message = Reader<OwnedSegments>;

/// Functions that read one type of messages each; `None` for an error.
const READERS: [fn(&Message, &Parts) -> Option<()>; 9] = [
    |message, _| {
        let info = ServerInfo::read(message.get_root::<wire::server_info::Reader<'_>>().ok()?).ok()?;
        info.write(Builder::new_default().init_root());
        let _ = sepal_route::coverage(&[info.span], info.n_blocks);
        Some(())
    },
    |message, _| {
        let failure = Failure::read(message.get_root::<wire::failure::Reader<'_>>().ok()?).ok()?;
        failure.write(Builder::new_default().init_root());
        Some(())
    },
    |message, _| {
        let timing = Timing::read(message.get_root::<wire::timing::Reader<'_>>().ok()?);
        timing.write(Builder::new_default().init_root());
        Some(())
    },
    |message, _| {
        let relay = Relay::read(message.get_root::<wire::relay::Reader<'_>>().ok()?).ok()?;
        relay.write(Builder::new_default().init_root());
        Some(())
    },
    |message, parts| {
        let tensor = codec::read_tensor(message.get_root::<wire::tensor::Reader<'_>>().ok()?, parts).ok()?;
        let _ = tensor.to_f32().len();
        Some(())
    },
    |message, parts| {
        let batch = codec::read_batch(message.get_root::<wire::ragged_batch::Reader<'_>>().ok()?, parts).ok()?;
        let _ = (batch.positions(), batch.prefix_slots());
        Some(())
    },
    |message, _| codec::read_grad_want(message.get_root::<wire::grad_want::Reader<'_>>().ok()?).ok().map(drop),
    |message, parts| codec::read_grads(message.get_root::<wire::grads::Reader<'_>>().ok()?, parts).ok().map(drop),
    |message, parts| {
        let tensor = message.get_root::<wire::named_tensor::Reader<'_>>().ok()?.get_tensor().ok()?;
        codec::read_tensor(tensor, parts).ok().map(drop)
    },
];

/// A frame without parts around a message in Cap'n Proto's stream encoding.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
    let body_crc = crc32fast::hash(message).to_le_bytes();
    let mut frame = [&b"SPL5"[..], &length, &[0; 4], &body_crc].concat();
    frame.extend(crc32fast::hash(&frame).to_le_bytes());
    frame.extend(message);
    frame
}

fn message(write: impl FnOnce(&mut Builder<HeapAllocator>)) -> Vec<u8> {
    let mut message = Builder::new_default();
    write(&mut message);
    write_message_to_words(&message)
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = call_seeds().iter().map(|message| frame(message)).collect();
    seeds.push(seeds.concat());
    seeds
}

pub(crate) fn call_seeds() -> Vec<Vec<u8>> {
    type Root<'a> = rpc_capnp::message::Builder<'a>;
    vec![
        message(|message| message.init_root::<Root<'_>>().init_bootstrap().set_question_id(0)),
        message(|message| {
            let mut call = message.init_root::<Root<'_>>().init_call();
            call.set_question_id(1);
            call.set_method_id(2);
            call.reborrow().init_target().set_imported_cap(0);
        }),
        message(|message| message.init_root::<Root<'_>>().init_finish().set_question_id(1)),
        message(|message| message.init_root::<Root<'_>>().init_release().set_reference_count(1)),
        message(|message| message.init_root::<Root<'_>>().init_return().set_answer_id(1)),
        message(|message| message.init_root::<Root<'_>>().init_disembargo().init_target().set_imported_cap(0)),
        message(|message| message.init_root::<Root<'_>>().init_resolve().set_promise_id(1)),
    ]
}

/// A message of each type, in the order of [`READERS`].
pub(crate) fn message_seeds() -> Vec<Vec<u8>> {
    let (Ok(tensor), Ok(rows)) = (HostTensor::from_f32(vec![3, 2], &[0.5; 6]), Ragged::from_lengths([2, 1])) else {
        return Vec::new();
    };
    let parts = Parts::default();
    let Ok(batch) = WireBatch::new(0, rows, tensor.clone()) else { return Vec::new() };
    let tunable = HostTunable { name: "deep_prompts".to_owned(), first_block: 0, tensor: tensor.clone() };
    let grads = Grads { input: Some(tensor.clone()), tunables: vec![tunable], not_finite: None };
    let want = GradWant { input: InputGrad::All, tunables: true, dtype: DType::F32 };
    let next = RelayTarget { address: "127.0.0.1:4000".to_owned(), key: sepal_wire::MailboxKey([1; 16]) };
    let relay = Relay { from: Some(next.key), next: Some(next) };
    let messages = [
        message(|message| {
            let mut info = message.init_root::<wire::server_info::Builder<'_>>();
            info.set_protocol(7);
            info.set_family("llama");
            info.set_n_blocks(30);
            info.set_hidden(576);
            info.init_span().set_end(30);
        }),
        message(|message| Failure::new(FailureCode::Overloaded, "full").write(message.init_root())),
        message(|message| Timing::default().write(message.init_root())),
        message(|message| relay.write(message.init_root())),
        message(|message| codec::write_tensor(message.init_root(), &tensor, &parts)),
        message(|message| codec::write_batch(message.init_root(), &batch, &parts)),
        message(|message| codec::write_grad_want(message.init_root(), want)),
        message(|message| codec::write_grads(message.init_root(), &grads, &parts)),
        message(|message| {
            let mut named = message.init_root::<wire::named_tensor::Builder<'_>>();
            named.set_name("deep_prompts");
            codec::write_tensor(named.init_tensor(), &tensor, &parts);
        }),
    ];
    (0_u8..).zip(messages).map(|(kind, message)| [&[kind][..], &message].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_all_types_are_readable() {
        let seeds = message_seeds();
        assert_eq!(seeds.len(), READERS.len());
        for (seed, read) in seeds.iter().zip(READERS) {
            let message = read_message(&seed[1..], OPTIONS).expect("a message");
            assert!(read(&message, &Parts::default()).is_some(), "type {}", seed[0]);
        }
    }
}
