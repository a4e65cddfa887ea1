//! A server that lies: it passes all calls to a real server, and alters the answers.

mod description;
mod lies;
mod service;
mod tensors;

use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use sepal_wire::{Parts, rpc};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub use lies::Lie;

use service::{Connection, RootLiar};

/// Largest message on either side of the proxy.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;
/// Size of an answer that is far too large.
const HUGE_BYTES: usize = 200 << 20;

/// Proxy that listens on loopback, and lies about what a real server answers. It stops when it is dropped.
pub struct LyingProxy {
    /// Address for clients.
    pub addr: String,
    liar: Arc<Liar>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// State that the connections of a proxy share.
struct Liar {
    lie: Lie,
    server: String,
    /// Number of true answers before the first lie.
    truths: u64,
    calls: AtomicU64,
    lies: AtomicU64,
    /// Data of answers that are far too large; empty for other lies.
    huge: Bytes,
}

impl LyingProxy {
    /// Starts a proxy before `server`, `HOST:PORT`, that lies from its first answer.
    pub fn new(lie: Lie, server: &str) -> Self {
        Self::after(lie, server, 0)
    }

    /// Starts a proxy that answers so many calls of forward and backward passes truthfully before it lies.
    pub fn after(lie: Lie, server: &str, truths: u64) -> Self {
        Self::listen(lie, "127.0.0.1:0", server, truths)
    }

    /// Starts a proxy on this address.
    pub fn listen(lie: Lie, addr: &str, server: &str, truths: u64) -> Self {
        let huge = Bytes::from(vec![0_u8; if lie == Lie::HugeAnswers { HUGE_BYTES } else { 0 }]);
        let (calls, lies) = Default::default();
        let liar = Arc::new(Liar { lie, server: server.to_owned(), truths, calls, lies, huge });
        let (stop, stopped) = oneshot::channel::<()>();
        let (sender, bound) = mpsc::channel();
        let (addr, shared) = (addr.to_owned(), Arc::clone(&liar));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            LocalSet::new().block_on(&runtime, async move {
                let listener = TcpListener::bind(&addr).await.expect("a port");
                sender.send(listener.local_addr().expect("an address").to_string()).expect("the caller waits");
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        let addr = bound.recv().expect("the proxy listens");
        Self { addr, liar, stop: Some(stop), thread: Some(thread) }
    }

    /// Number of altered answers.
    pub fn lies(&self) -> u64 {
        self.liar.lies.load(Ordering::SeqCst)
    }

    /// Number of calls of forward and backward passes.
    pub fn calls(&self) -> u64 {
        self.liar.calls.load(Ordering::SeqCst)
    }
}

impl Drop for LyingProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the proxy fails the calls of its clients.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for LyingProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} before {}", self.liar.lie, self.addr, self.liar.server)
    }
}

impl Liar {
    /// Counts a call. True if it is to be answered with a lie.
    fn begin_call(&self) -> bool {
        self.calls.fetch_add(1, Ordering::SeqCst) >= self.truths
    }

    /// True if the next call is to be answered with a lie.
    fn is_lying(&self) -> bool {
        self.calls.load(Ordering::SeqCst) >= self.truths
    }

    fn count_lie(&self) {
        self.lies.fetch_add(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, liar: Arc<Liar>) {
    while let Ok((stream, _)) = listener.accept().await {
        let liar = Arc::clone(&liar);
        tokio::task::spawn_local(async move {
            // The end of either connection ends the other one.
            let _ = serve(stream, liar).await;
        });
    }
}

/// Serves a client over a connection of its own to the real server.
async fn serve(client: TcpStream, liar: Arc<Liar>) -> Result<(), capnp::Error> {
    let server = TcpStream::connect(&liar.server).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (server_parts, parts) = (Parts::default(), Parts::default());
    let (reader, writer) = server.into_split();
    let (root, system) = rpc::client(reader, writer, MAX_MESSAGE_BYTES, &server_parts);
    let connection = Connection::new(liar, root, server_parts, parts.clone());
    let served = capnp_rpc::new_client(RootLiar(Rc::new(connection)));
    let (reader, writer) = client.into_split();
    tokio::select! {
        ended = system => ended,
        ended = rpc::server(reader, writer, MAX_MESSAGE_BYTES, served, &parts, None) => ended,
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Lie {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Lie::ALL.into_iter().find(|lie| lie.name() == text);
        found.ok_or_else(|| format!("no lie `{text}`: {}", Lie::ALL.map(Lie::name).join(", ")))
    }
}
