//! Two-party network of Cap'n Proto that sends parts beside the messages.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::{Rc, Weak};

use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp_rpc::rpc_capnp::{self, call::send_results_to};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Connection, IncomingMessage, OutgoingMessage, VatNetwork};
use futures::future::{FutureExt, Shared, TryFutureExt};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::{mpsc, oneshot};

use crate::activity::Activity;
use crate::frame::{self, Frame, Received, Reception};
use crate::parts::{PartStore, Parts};
use crate::quota::{Quota, Reserved, reserve_answer};

/// Size of the read buffer. Larger reads bypass it.
const READ_AHEAD_BYTES: usize = 8 << 10;

/// Maximum calls of one client that are not finished.
const MAX_OPEN_CALLS: usize = 1 << 12;
/// Maximum messages to one client that wait to be written.
const MAX_QUEUED_MESSAGES: usize = 1 << 13;

enum Item {
    Frame(Frame, Option<Reserved>, oneshot::Sender<()>),
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
    sending: Sending,
    reception: Rc<Reception>,
    /// Signals the end of the connection when it is dropped.
    _in_use: oneshot::Sender<()>,
}

impl<R> Drop for State<R> {
    fn drop(&mut self) {
        self.sending.parts.close();
    }
}

/// Sending side of a connection.
#[derive(Clone)]
struct Sending {
    queue: Queue,
    parts: PartStore,
    activity: Activity,
    quota: Option<Rc<dyn Quota>>,
    calls: Rc<OpenCalls>,
}

/// Questions of the other side that are not finished.
#[derive(Default)]
struct OpenCalls(RefCell<HashSet<u32>>);

impl OpenCalls {
    fn begin(&self, question: u32, activity: &Activity) -> capnp::Result<()> {
        let mut questions = self.0.borrow_mut();
        questions.insert(question);
        if questions.len() <= MAX_OPEN_CALLS {
            return Ok(());
        }
        Err(activity.overload(format!("more than {MAX_OPEN_CALLS} calls of one connection are open")))
    }

    /// Ends the call whose answer is sent if its caller does not finish it.
    fn end_answered(&self, message: &Builder<HeapAllocator>) -> capnp::Result<()> {
        if self.0.borrow().is_empty() {
            return Ok(());
        }
        let root = message.get_root_as_reader::<rpc_capnp::message::Reader<'_>>()?;
        if let Ok(rpc_capnp::message::Return(answer)) = root.which() {
            let answer = answer?;
            if answer.get_no_finish_needed() {
                self.end(answer.get_answer_id());
            }
        }
        Ok(())
    }

    fn end(&self, question: u32) {
        self.0.borrow_mut().remove(&question);
    }
}

impl<R: AsyncRead + Unpin + 'static> Network<R> {
    pub(crate) fn new(
        reader: R,
        writer: impl AsyncWrite + Unpin + 'static,
        side: Side,
        parts: &Parts,
        max_bytes: u64,
        quota: Option<Rc<dyn Quota>>,
    ) -> Self {
        // Prevents overflow of sums of lengths on 32-bit machines.
        let max_bytes = max_bytes.min(usize::MAX as u64 / 4);
        let (queue, items) = mpsc::unbounded_channel();
        let (in_use, unused) = oneshot::channel::<()>();
        let (activity, store) = (parts.activity().clone(), parts.store.clone());
        let written = activity.clone();
        let writing = async move {
            let result = write(writer, items, &written).await;
            if let Err(error) = &result {
                // Ends the reads that wait for answers.
                written.close(error.clone());
            }
            // The RPC system runs until the connection is dropped.
            let _ = unused.await;
            result
        };
        let reader = Rc::new(RefCell::new(Some(BufReader::with_capacity(READ_AHEAD_BYTES, reader))));
        let (options, calls) = (reader_options(max_bytes), Rc::default());
        let reception =
            Reception { options, max_bytes, parts: store.clone(), activity: activity.clone(), quota: quota.clone() };
        let sending = Sending { queue, parts: store, activity, quota, calls };
        let state = State { side, reader, sending, reception: Rc::new(reception), _in_use: in_use };
        let state = Rc::new(RefCell::new(state));
        let open = Rc::downgrade(&state);
        Self { side, pending: Some(state), open, writing: Promise::from_future(writing).shared() }
    }
}

/// Returns a reader's limits.
fn reader_options(max_bytes: u64) -> ReaderOptions {
    frame::limited(ReaderOptions { traversal_limit_in_words: None, nesting_limit: 32 }, max_bytes)
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut items: mpsc::UnboundedReceiver<Item>,
    activity: &Activity,
) -> Result<(), capnp::Error> {
    while let Some(item) = items.recv().await {
        match item {
            Item::Frame(frame, _reserved, written) => {
                frame.write(&mut writer, activity).await?;
                activity.unqueue_message();
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
        let message = Builder::new(HeapAllocator::new().first_segment_words(first_segment_words));
        Box::new(Outgoing { message: Some(message), sending: self.0.borrow().sending.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let state = self.0.borrow();
        let (slot, reception, calls) =
            (Rc::clone(&state.reader), Rc::clone(&state.reception), Rc::clone(&state.sending.calls));
        Promise::from_future(async move {
            let reader = slot.borrow_mut().take();
            let mut reader = reader.ok_or_else(|| capnp::Error::failed("a message is being read".to_owned()))?;
            let received = tokio::select! {
                biased;
                error = reception.activity.closed() => return Err(error),
                received = frame::read(&mut reader, &reception) => received?,
            };
            slot.replace(Some(reader));
            if let Some(received) = &received {
                record_call(received, &calls, &reception.activity)?;
            }
            Ok(received.map(|received| Box::new(Incoming(received)) as Box<dyn IncomingMessage>))
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        enqueue(&self.0.borrow().sending.queue, |done| Item::End(result, done))
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
    sending: Sending,
}

impl Outgoing {
    /// Takes the message back and drops the parts that it names.
    fn withdraw(&mut self) -> Option<Builder<HeapAllocator>> {
        let message = self.message.take()?;
        drop(self.sending.parts.take_referenced(&message.get_segments_for_output()));
        Some(message)
    }
}

impl Sending {
    /// Returns the frame of a message, and the reservation of its bytes until it is written.
    fn frame(&self, message: &Builder<HeapAllocator>) -> capnp::Result<(Frame, Option<Reserved>)> {
        self.calls.end_answered(message)?;
        let frame = Frame::new(message, &self.parts)?;
        // The last message of a connection tells the other side why it ends, and needs no quota.
        let Some(quota) = self.quota.as_deref().filter(|_| self.activity.failure().is_none()) else {
            return Ok((frame, None));
        };
        if self.activity.queued_messages() >= MAX_QUEUED_MESSAGES {
            let detail = format!("more than {MAX_QUEUED_MESSAGES} messages to one client wait to be read");
            return Err(self.activity.overload(detail));
        }
        let reserved = reserve_answer(quota, frame.n_bytes(), &self.activity)?;
        Ok((frame, Some(reserved)))
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
        let written = match self.sending.frame(&message) {
            Ok((frame, reserved)) => {
                self.sending.activity.queue_message();
                enqueue(&self.sending.queue, |done| Item::Frame(frame, reserved, done))
            }
            Err(error) => {
                // Cap'n Proto ignores the result of a message, so the connection ends instead.
                self.sending.activity.close(error.clone());
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

/// Records the beginning or end of a call. Refuses calls whose results stay with the callee: no message would send these
/// results, so their parts would never be dropped.
fn record_call(received: &Received, calls: &OpenCalls, activity: &Activity) -> capnp::Result<()> {
    use rpc_capnp::message::{Bootstrap, Call, Finish};
    let root = received.message.get_root::<rpc_capnp::message::Reader<'_>>()?;
    match root.which() {
        Ok(Call(call)) => {
            let call = call?;
            match call.get_send_results_to().which()? {
                send_results_to::Caller(()) => calls.begin(call.get_question_id(), activity),
                _ => Err(capnp::Error::failed("a call whose results are not sent to the caller".to_owned())),
            }
        }
        Ok(Bootstrap(bootstrap)) => calls.begin(bootstrap?.get_question_id(), activity),
        Ok(Finish(finish)) => {
            calls.end(finish?.get_question_id());
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::task::LocalSet;

    use std::time::Duration;

    use super::*;
    use crate::quota::tests::FixedQuota;
    use crate::rpc;
    use crate::sepal_capnp::block_server;

    /// Returns the result of a server's RPC system after a call that `change` modifies.
    fn serve_call(change: impl FnOnce(rpc_capnp::call::Builder<'_>)) -> Result<(), capnp::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (mut near, far) = tokio::io::duplex(1 << 12);
            let (reader, writer) = tokio::io::split(far);
            let root = block_server::Client { client: capnp_rpc::new_future_client(std::future::pending()) };
            let serving = rpc::server(reader, writer, 1 << 20, root, &Parts::default(), None);
            let mut message = Builder::new_default();
            change(message.init_root::<rpc_capnp::message::Builder<'_>>().init_call());
            let frame = Frame::new(&message, &Parts::default().store).expect("a frame");
            frame.write(&mut near, &Activity::default()).await.expect("written");
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
            let result = tokio::time::timeout(Duration::from_secs(10), call).await;
            assert!(result.expect("the call ends").is_err());
        });
    }

    #[test]
    fn unread_answers_beyond_quota_close_the_connection() {
        let quota = FixedQuota { limit: 20_000, ..FixedQuota::default() };
        let used = Rc::clone(&quota.used);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (mut near, far) = tokio::io::duplex(1 << 12);
            let (reader, writer) = tokio::io::split(far);
            let root = block_server::Client { client: capnp_rpc::new_future_client(std::future::pending()) };
            let parts = Parts::default();
            let serving = rpc::server(reader, writer, 1 << 20, root, &parts, Some(Rc::new(quota)));
            let serving = tokio::task::spawn_local(serving);
            // Each request is answered at once, and no answer is read.
            let sending = async {
                for question in 0.. {
                    bootstrap(question).write(&mut near, &Activity::default()).await.expect("written");
                }
            };
            let closed = tokio::time::timeout(Duration::from_secs(10), parts.activity().closed());
            let error = tokio::select! {
                error = closed => error.expect("closed by the server"),
                () = sending => panic!("it never ends"),
            };
            assert_eq!(error.kind, capnp::ErrorKind::Overloaded);
            assert!(parts.activity().is_overloaded());
            drop(near);
            assert!(serving.await.is_ok(), "no panic");
        });
        assert_eq!(used.get(), 0);
    }

    #[test]
    fn unfinished_calls_beyond_maximum_close_the_connection() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (near, far) = tokio::io::duplex(1 << 16);
            let (reader, writer) = tokio::io::split(far);
            let root = block_server::Client { client: capnp_rpc::new_future_client(std::future::pending()) };
            let parts = Parts::default();
            let serving = rpc::server(reader, writer, 1 << 20, root, &parts, None);
            assert_eq!(parts.n_handles(), 1, "messages are no handles");
            let (mut near_reader, mut near_writer) = tokio::io::split(near);
            let reading = tokio::task::spawn_local(async move {
                tokio::io::copy(&mut near_reader, &mut tokio::io::sink()).await.is_ok()
            });
            let sending = async {
                for question in 0..=MAX_OPEN_CALLS as u32 {
                    bootstrap(question).write(&mut near_writer, &Activity::default()).await.expect("written");
                }
                // The answers of all others were read.
                std::future::pending::<()>().await;
            };
            let error = tokio::select! {
                result = serving => result.expect_err("closed"),
                () = sending => panic!("it never ends"),
            };
            assert!(error.extra.contains("4096 calls of one connection are open"), "{error}");
            assert_eq!(parts.activity().received_messages(), MAX_OPEN_CALLS as u64 + 1);
            reading.abort();
        });
    }

    /// Returns a request for the bootstrap capability, which is answered at once.
    fn bootstrap(question: u32) -> Frame {
        let mut message = Builder::new_default();
        let root = message.init_root::<rpc_capnp::message::Builder<'_>>();
        root.init_bootstrap().set_question_id(question);
        Frame::new(&message, &Parts::default().store).expect("a frame")
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
