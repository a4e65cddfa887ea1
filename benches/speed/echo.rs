//! A server that returns tensors, its client, and the same over a bare socket.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use bytes::Bytes;
use capnp::capability::Rc;
use sepal_core::{DType, HostTensor, Ragged, Want};
use sepal_swarm::{Endpoint, Listener, Stream};
use sepal_wire::codec::{self, WireBatch};
use sepal_wire::sepal_capnp::{block_server, tuned};
use sepal_wire::{Limits, Parts, rpc};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

const ROW: usize = 1024;

struct Echo(Parts);

impl tuned::Server for Echo {
    async fn forward(
        self: Rc<Self>,
        params: tuned::ForwardParams,
        mut results: tuned::ForwardResults,
    ) -> Result<(), capnp::Error> {
        let batch = codec::read_batch(params.get()?.get_batch()?, &self.0);
        let batch = batch.map_err(|error| capnp::Error::failed(error.to_string()))?;
        codec::write_tensor(results.get().init_output(), &batch.hidden, &self.0);
        Ok(())
    }
}

/// Starts the server, which ends with its only connection.
pub(crate) fn echo_server() -> Endpoint {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        LocalSet::new().block_on(&runtime(), async {
            let mut listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("bound");
            sender.send(listener.addr().expect("an address")).expect("somebody waits");
            let accepted = listener.accept().await.expect("a client").expect("a connection");
            let Stream { reader, writer, .. } = accepted.stream;
            let parts = Parts::default();
            let echo = capnp_rpc::new_client::<tuned::Client, _>(Echo(parts.clone()));
            let root = block_server::Client { client: echo.client };
            let limit = Limits::default().max_message_bytes;
            // The conversation ends when the client disconnects.
            let _ = rpc::server(reader, writer, limit, root, &parts, None).await;
        });
    });
    Endpoint::Addr(receiver.recv().expect("an address"))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Client of the protocol that makes one call at a time.
pub(crate) struct Caller {
    root: block_server::Client,
    parts: Parts,
    tasks: LocalSet,
    runtime: Runtime,
}

impl Caller {
    pub(crate) fn connect(endpoint: &Endpoint) -> Self {
        let (runtime, tasks) = (runtime(), LocalSet::new());
        let parts = Parts::default();
        let root = tasks.block_on(&runtime, async {
            let Stream { reader, writer, .. } = endpoint.connect().await.expect("connected");
            let limit = Limits::default().max_message_bytes;
            let (root, conversation) = rpc::client(reader, writer, limit, &parts);
            tokio::task::spawn_local(conversation);
            root
        });
        Self { root, parts, tasks, runtime }
    }

    pub(crate) fn describe(&self) {
        let call = async { self.root.describe_request().send().promise.await.map(|_| ()) };
        self.tasks.block_on(&self.runtime, call).expect("described");
    }

    pub(crate) fn batch(&self, bytes: usize) -> WireBatch {
        let n_tokens = bytes / 4 / ROW;
        let data: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let hidden = HostTensor::new(DType::F32, vec![n_tokens, ROW], Bytes::from(data)).expect("it fits");
        WireBatch::new(0, Ragged::from_lengths([n_tokens]).expect("rows"), hidden).expect("a batch")
    }

    pub(crate) fn echo(&self, batch: &WireBatch) {
        let echo = tuned::Client { client: self.root.client.clone() };
        let call = async {
            let mut request = echo.forward_request();
            codec::write_batch(request.get().init_batch(), batch, &self.parts);
            request.get().set_want(codec::want_to_wire(Want::All));
            let answer = request.send().promise.await?;
            let tensor = codec::read_tensor(answer.get()?.get_output()?, &self.parts);
            tensor.map_err(|error| capnp::Error::failed(error.to_string()))
        };
        let back = self.tasks.block_on(&self.runtime, call).expect("sent back");
        assert_eq!(back.shape(), batch.hidden.shape());
    }
}

/// Sends bytes through a socket and receives them.
pub(crate) struct Bare(RefCell<(TcpStream, Vec<u8>)>);

impl Bare {
    pub(crate) fn new(bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let addr = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            send_back(stream, bytes)
        });
        let stream = TcpStream::connect(addr).expect("connected");
        stream.set_nodelay(true).expect("set");
        Self(RefCell::new((stream, vec![1; bytes])))
    }

    pub(crate) fn echo(&self) {
        let (stream, buffer) = &mut *self.0.borrow_mut();
        stream.write_all(buffer).expect("sent");
        stream.read_exact(buffer).expect("sent back");
    }
}

fn send_back(mut stream: TcpStream, bytes: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; bytes];
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
    }
}
