//! Connection of a hostile client: calls of the protocol with contents that no honest client sends.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use sepal_core::{DEEP_PROMPTS, DType, HostTensor, HostTunable, Ragged, Span, Want};
use sepal_wire::codec::{self, DecodeError, WireBatch};
use sepal_wire::{Failure, MailboxKey, Parts, Relay, ServerInfo, rpc, sepal_capnp as wire};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::{CLOSED, OK, Tally, WAITING};

/// Largest message that a hostile client reads.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;

/// Forward pass in flight.
pub(super) type ForwardCall = capnp::capability::RemotePromise<wire::tuned::forward_results::Owned>;

/// Connection to a server.
pub(super) struct Client {
    pub(super) root: wire::block_server::Client,
    pub(super) info: ServerInfo,
    parts: Parts,
    driver: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Connects and reads the description of the server. Errors are kinds of answers.
    pub(super) async fn connect(addr: &str) -> Result<Self, String> {
        let stream = dial(addr).await.map_err(closed)?;
        let (reader, writer) = stream.into_split();
        Self::over(reader, writer).await
    }

    /// Connects over the halves of a stream.
    pub(super) async fn over(
        reader: impl AsyncRead + Unpin + 'static,
        writer: impl AsyncWrite + Unpin + 'static,
    ) -> Result<Self, String> {
        let parts = Parts::default();
        let (root, system) = rpc::client(reader, writer, MAX_MESSAGE_BYTES, &parts);
        let driver = tokio::task::spawn_local(async move {
            // The end of the connection is the end of its calls.
            let _ = system.await;
        });
        let described = root.describe_request().send().promise.await.and_then(|answer| {
            let info = answer.get()?.get_info()?;
            ServerInfo::read(info).map_err(|error| capnp::Error::failed(error.to_string()))
        });
        match described {
            Ok(info) => Ok(Self { root, info, parts, driver }),
            Err(error) => {
                driver.abort();
                Err(closed(error))
            }
        }
    }

    /// Parts of the connection, for messages that a caller writes itself.
    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Opens a session with these deep prompts, `[blocks, prefix_len, hidden]`.
    pub(super) async fn tune(&self, deep_prompts: Option<HostTensor>) -> Result<wire::tuned::Client, String> {
        let session = self.open(self.info.span).await?;
        self.tune_session(&session, deep_prompts).await
    }

    pub(super) async fn open(&self, span: Span) -> Result<wire::session::Client, String> {
        let answer = self.open_request(span).send().promise.await.map_err(closed)?;
        let results = answer.get().map_err(closed)?;
        check(results.has_failure(), results.get_failure())?;
        results.get_session().map_err(closed)
    }

    pub(super) fn open_request(
        &self,
        span: Span,
    ) -> capnp::capability::Request<wire::block_server::open_params::Owned, wire::block_server::open_results::Owned>
    {
        let mut request = self.root.open_request();
        codec::write_span(request.get().init_span(), span);
        request.get().set_protocol(sepal_wire::PROTOCOL);
        request.get().set_oldest_protocol(sepal_wire::OLDEST_SERVER);
        request
    }

    pub(super) async fn tune_session(
        &self,
        session: &wire::session::Client,
        deep_prompts: Option<HostTensor>,
    ) -> Result<wire::tuned::Client, String> {
        let mut request = session.tune_request();
        let first_block = self.info.span.start();
        let tunable = |tensor| HostTunable { name: DEEP_PROMPTS.to_owned(), first_block, tensor };
        let tunables: Vec<HostTunable> = deep_prompts.into_iter().map(tunable).collect();
        let length = u32::try_from(tunables.len()).unwrap_or(u32::MAX);
        codec::write_tunables(request.get().init_tunables(length), &tunables, &self.parts);
        let answer = request.send().promise.await.map_err(closed)?;
        let results = answer.get().map_err(closed)?;
        check(results.has_failure(), results.get_failure())?;
        results.get_tuned().map_err(closed)
    }

    /// Sends a forward pass. Its hidden states are left out if another server is to send them.
    pub(super) fn forward(
        &self,
        tuned: &wire::tuned::Client,
        batch: &WireBatch,
        want: Want,
        keep_tape: bool,
        relay: &Relay,
    ) -> ForwardCall {
        let mut request = tuned.forward_request();
        let mut params = request.get();
        match relay.from {
            None => codec::write_batch(params.reborrow().init_batch(), batch, &self.parts),
            Some(_) => codec::write_rows(params.reborrow().init_batch(), batch),
        }
        params.set_want(codec::want_to_wire(want));
        params.set_keep_tape(keep_tape);
        params.set_dtype(codec::dtype_to_wire(DType::F32));
        relay.write(params.init_relay());
        request.send()
    }

    /// Delivers a tensor to a mailbox. Returns the kind of the answer.
    pub(super) async fn deliver(&self, key: MailboxKey, tensor: &HostTensor) -> String {
        let mut request = self.root.deliver_request();
        request.get().set_key(&key.0);
        codec::write_tensor(request.get().init_tensor(), tensor, &self.parts);
        let delivered = async {
            let answer = request.send().promise.await.map_err(closed)?;
            let results = answer.get().map_err(closed)?;
            check(results.has_failure(), results.get_failure())
        };
        kind(&delivered.await)
    }

    /// Waits until the server has read what was sent before.
    pub(super) async fn flush(&self) {
        // The connection may be closed.
        let _ = self.root.describe_request().send().promise.await;
    }

    /// Returns a batch of rows of these lengths.
    pub(super) fn batch(&self, prefix_len: usize, lengths: Vec<usize>) -> WireBatch {
        let rows = Ragged::from_lengths(lengths).expect("rows");
        let positions = prefix_len + rows.n_tokens();
        WireBatch::new(prefix_len, rows, wave(vec![positions, self.info.hidden])).expect("a state for each position")
    }

    /// Returns deep prompts of about this many megabytes.
    pub(super) fn deep_prompts(&self, megabytes: usize) -> HostTensor {
        let (blocks, hidden) = (self.info.span.len(), self.info.hidden);
        zeros(vec![blocks, ((megabytes << 20) / (4 * blocks * hidden)).max(1), hidden])
    }
}

/// Opens a connection, to a server on loopback from 127.0.0.2 where the system allows it.
pub(super) async fn dial(addr: &str) -> io::Result<TcpStream> {
    let Ok(server @ SocketAddr::V4(_)) = addr.parse::<SocketAddr>() else { return TcpStream::connect(addr).await };
    let socket = TcpSocket::new_v4()?;
    if server.ip().is_loopback() {
        // Elsewhere than on Linux, the interface has one address.
        let _ = socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)));
    }
    socket.connect(server).await
}

/// Waits for a forward pass. Returns its tape, if it has one; errors are kinds of answers.
pub(super) async fn forwarded(call: ForwardCall) -> Result<Option<wire::tape::Client>, String> {
    let answer = call.promise.await.map_err(closed)?;
    let results = answer.get().map_err(closed)?;
    check(results.has_failure(), results.get_failure())?;
    if results.has_tape() { results.get_tape().map(Some).map_err(closed) } else { Ok(None) }
}

/// Kind of an answer.
pub(super) fn kind<T>(answer: &Result<T, String>) -> String {
    answer.as_ref().err().map_or_else(|| OK.to_owned(), Clone::clone)
}

/// Refuses an answer with a failure, by the name of its code.
fn check(has_failure: bool, failure: capnp::Result<wire::failure::Reader<'_>>) -> Result<(), String> {
    if !has_failure {
        return Ok(());
    }
    let failure = failure.map_err(DecodeError::from).and_then(Failure::read);
    Err(failure.map_or_else(|_| "unreadable".to_owned(), |failure| format!("{:?}", failure.code)))
}

fn closed<E>(_: E) -> String {
    CLOSED.to_owned()
}

/// Returns a tensor of zeros.
pub(super) fn zeros(shape: Vec<usize>) -> HostTensor {
    let numbers: usize = shape.iter().product();
    HostTensor::new(DType::F32, shape, Bytes::from(vec![0_u8; numbers * 4])).expect("as many bytes as the shape has")
}

/// Returns a tensor of small numbers of both signs.
fn wave(shape: Vec<usize>) -> HostTensor {
    let numbers: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..numbers).map(|index| ((index % 13) as f32 - 6.0) * 0.1).collect();
    HostTensor::from_f32(shape, &numbers).expect("as many numbers as the shape has")
}

/// Returns a mailbox key that no other call uses.
pub(super) fn mailbox_key(index: usize) -> MailboxKey {
    let words = [index as u64, RandomState::new().hash_one(index)];
    let mut key = [0; 16];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    MailboxKey(key)
}

/// Calls in flight. Dropping them cancels those without an answer.
#[derive(Default)]
pub(super) struct Calls {
    tasks: JoinSet<()>,
}

impl Calls {
    /// Adds a call that returns the kind of its answer.
    pub(super) fn add(&mut self, tally: &Tally, call: impl Future<Output = String> + 'static) {
        let tally = tally.clone();
        self.tasks.spawn_local(async move { tally.add(call.await) });
    }

    /// Waits for the answers, for a limited time. Counts the calls that still wait.
    pub(super) async fn settle(&mut self, tally: &Tally, patience: Duration) {
        // Calls that are left over are counted below.
        let _ = tokio::time::timeout(patience, async { while self.tasks.join_next().await.is_some() {} }).await;
        tally.add_many(WAITING, self.tasks.len());
    }
}
