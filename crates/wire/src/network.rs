//! Two-party network of Cap'n Proto that sends parts beside the messages.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp_rpc::rpc_capnp::{self, call::send_results_to};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Connection, IncomingMessage, OutgoingMessage, VatNetwork};
use futures::future::{FutureExt, Shared, TryFutureExt};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::{mpsc, oneshot};

use crate::frame::{self, Frame, Received};
use crate::parts::Parts;

/// Size of the read buffer. Larger reads bypass it.
const READ_AHEAD_BYTES: usize = 8 << 10;

enum Item {
    Frame(Frame, oneshot::Sender<()>),
    End(Result<(), capnp::Error>, oneshot::Sender<()>),
}

type Queue = mpsc::UnboundedSender<Item>;

pub(crate) struct Network<R> {
    side: Side,
    pending: Option<SharedState<R>>,
    open: Weak<RefCell<State<R>>>,
    writing: Shared<Promise<(), capnp::Error>>,
}

type SharedState<R> = Rc<RefCell<State<R>>>;

struct State<R> {
    side: Side,
    /// Empty while a message is being read, so that the read does not keep the connection alive.
    reader: Rc<RefCell<Option<BufReader<R>>>>,
    queue: Queue,
    parts: Parts,
    options: ReaderOptions,
    max_bytes: u64,
    failure: Shared<oneshot::Receiver<capnp::Error>>,
    /// Signals the end of the connection when it is dropped.
    _in_use: oneshot::Sender<()>,
}

impl<R> Drop for State<R> {
    fn drop(&mut self) {
        self.parts.close();
    }
}

impl<R: AsyncRead + Unpin + 'static> Network<R> {
    pub(crate) fn new(
        reader: R,
        writer: impl AsyncWrite + Unpin + 'static,
        side: Side,
        parts: Parts,
        max_bytes: u64,
    ) -> Self {
        // Prevents overflow of sums of lengths on 32-bit machines.
        let max_bytes = max_bytes.min(usize::MAX as u64 / 4);
        let (queue, items) = mpsc::unbounded_channel();
        let (in_use, unused) = oneshot::channel::<()>();
        let (failed, failure) = oneshot::channel();
        let writing = async move {
            let result = write(writer, items).await;
            if let Err(error) = &result {
                // Ends the reads that wait for answers.
                let _ = failed.send(error.clone());
            }
            // The RPC system runs until the connection is dropped.
            let _ = unused.await;
            result
        };
        let reader = Rc::new(RefCell::new(Some(BufReader::with_capacity(READ_AHEAD_BYTES, reader))));
        let (options, failure) = (reader_options(max_bytes), failure.shared());
        let state = State { side, reader, queue, parts, options, max_bytes, failure, _in_use: in_use };
        let state = Rc::new(RefCell::new(state));
        let open = Rc::downgrade(&state);
        Self { side, pending: Some(state), open, writing: Promise::from_future(writing).shared() }
    }
}

/// Returns a reader's limits. Cap'n Proto counts in words of eight bytes, and a message is traversed at most twice.
fn reader_options(max_bytes: u64) -> ReaderOptions {
    let words = usize::try_from(max_bytes / 8 * 2).unwrap_or(usize::MAX);
    ReaderOptions { traversal_limit_in_words: Some(words.max(1 << 16)), nesting_limit: 32 }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut items: mpsc::UnboundedReceiver<Item>,
) -> Result<(), capnp::Error> {
    while let Some(item) = items.recv().await {
        match item {
            Item::Frame(frame, written) => {
                frame.write(&mut writer).await?;
                let _ = written.send(());
            }
            Item::End(result, done) => {
                let _ = done.send(());
                return result;
            }
        }
    }
    Ok(())
}

impl<R: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<R> {
    fn connect(&mut self, host: Side) -> Option<Box<dyn Connection<Side>>> {
        if host == self.side {
            return None;
        }
        Some(Box::new(Handle(self.open.upgrade()?)))
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, capnp::Error> {
        match self.pending.take() {
            Some(state) => Promise::ok(Box::new(Handle(state))),
            None => Promise::from_future(futures::future::pending()),
        }
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        Promise::from_future(self.writing.clone())
    }
}

struct Handle<R>(SharedState<R>);

impl<R: AsyncRead + Unpin + 'static> Connection<Side> for Handle<R> {
    fn get_peer_vat_id(&self) -> Side {
        self.0.borrow().side
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        let state = self.0.borrow();
        let message = Builder::new(HeapAllocator::new().first_segment_words(first_segment_words));
        Box::new(Outgoing { message: Some(message), queue: state.queue.clone(), parts: state.parts.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let state = self.0.borrow();
        let (slot, failure, parts) = (Rc::clone(&state.reader), state.failure.clone(), state.parts.clone());
        let (options, max_bytes) = (state.options, state.max_bytes);
        Promise::from_future(async move {
            let reader = slot.borrow_mut().take();
            let mut reader = reader.ok_or_else(|| capnp::Error::failed("a message is being read".to_owned()))?;
            let received = tokio::select! {
                biased;
                Ok(error) = failure => return Err(error),
                received = frame::read(&mut reader, options, max_bytes, &parts) => received?,
            };
            slot.replace(Some(reader));
            if let Some(received) = &received {
                check_results(received)?;
            }
            Ok(received.map(|received| Box::new(Incoming(received)) as Box<dyn IncomingMessage>))
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        enqueue(&self.0.borrow().queue, |done| Item::End(result, done))
    }
}

/// Queues an item for the writer and waits until it is done.
fn enqueue(queue: &Queue, item: impl FnOnce(oneshot::Sender<()>) -> Item) -> Promise<(), capnp::Error> {
    let (done, outcome) = oneshot::channel();
    // Without a writer, the item and its `done` are dropped, which ends the wait.
    let _ = queue.send(item(done));
    Promise::from_future(outcome.map_err(|_| capnp::Error::disconnected("the connection has ended".to_owned())))
}

struct Outgoing {
    /// None once the message is sent.
    message: Option<Builder<HeapAllocator>>,
    queue: Queue,
    parts: Parts,
}

impl Outgoing {
    /// Takes the message back and drops the parts that it names.
    fn withdraw(&mut self) -> Option<Builder<HeapAllocator>> {
        let message = self.message.take()?;
        drop(self.parts.take_referenced(&message.get_segments_for_output()));
        Some(message)
    }
}

impl OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.as_mut().ok_or_else(already_sent)?.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.as_ref().ok_or_else(already_sent)?.get_root_as_reader()
    }

    fn send(mut self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<Builder<HeapAllocator>>) {
        let message = self.message.take().unwrap_or_default();
        let written = match Frame::new(&message, &self.parts) {
            Ok(frame) => enqueue(&self.queue, |done| Item::Frame(frame, done)),
            Err(error) => {
                // Cap'n Proto ignores the result of a message, so the connection ends instead.
                drop(enqueue(&self.queue, |done| Item::End(Err(error.clone()), done)));
                Promise::err(error)
            }
        };
        (written, Rc::new(message))
    }

    fn take(mut self: Box<Self>) -> Builder<HeapAllocator> {
        self.withdraw().unwrap_or_default()
    }

    fn size_in_words(&self) -> usize {
        self.message.as_ref().map_or(0, Builder::size_in_words)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn already_sent() -> capnp::Error {
    capnp::Error::failed("the message is already sent".to_owned())
}

struct Incoming(Received);

impl IncomingMessage for Incoming {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.message.get_root()
    }
}

/// Refuses calls whose results stay with the callee. No message would send these results, so their parts would never be
/// dropped.
fn check_results(received: &Received) -> capnp::Result<()> {
    let root = received.message.get_root::<rpc_capnp::message::Reader<'_>>()?;
    let Ok(rpc_capnp::message::Call(call)) = root.which() else { return Ok(()) };
    match call?.get_send_results_to().which()? {
        send_results_to::Caller(()) => Ok(()),
        _ => Err(capnp::Error::failed("a call whose results are not sent to the caller".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::task::LocalSet;

    use super::*;
    use crate::rpc;
    use crate::sepal_capnp::block_server;

    /// Returns the result of a server's RPC system after a call that `change` modifies.
    fn serve_call(change: impl FnOnce(rpc_capnp::call::Builder<'_>)) -> Result<(), capnp::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (mut near, far) = tokio::io::duplex(1 << 12);
            let (reader, writer) = tokio::io::split(far);
            let root = block_server::Client { client: capnp_rpc::new_future_client(std::future::pending()) };
            let serving = rpc::server(reader, writer, 1 << 20, root, &Parts::default());
            let mut message = Builder::new_default();
            change(message.init_root::<rpc_capnp::message::Builder<'_>>().init_call());
            let frame = Frame::new(&message, &Parts::default()).expect("a frame");
            frame.write(&mut near).await.expect("written");
            near.shutdown().await.expect("closed");
            serving.await
        })
    }

    #[test]
    fn call_on_unwritable_connection_fails() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            // The reader stays open; only writes fail.
            let ((reader, _silent), (writer, closed)) = (tokio::io::duplex(64), tokio::io::duplex(64));
            drop(closed);
            let (root, system) = rpc::client(reader, writer, 1 << 20, &Parts::default());
            tokio::task::spawn_local(system);
            let call = root.describe_request().send().promise;
            let result = tokio::time::timeout(std::time::Duration::from_secs(10), call).await;
            assert!(result.expect("the call ends").is_err());
        });
    }

    #[test]
    fn call_with_results_kept_at_callee_is_refused() {
        let refused = "a call whose results are not sent to the caller";
        let allowed = serve_call(|_| ()).err().map(|error| error.extra);
        assert_ne!(allowed.as_deref(), Some(refused));
        let error = serve_call(|call| call.get_send_results_to().set_yourself(())).expect_err("refused");
        assert_eq!(error.extra, refused);
    }
}
