use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::Addr;

/// Bytes that a pipe inside a process holds before its writer waits.
const PIPE_BYTES: usize = 4 << 20;

/// Bytes moved, as seen from one side. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Traffic {
    /// Bytes written so far.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Bytes read so far.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }
}

/// The reading half of a stream.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// The writing half of a stream.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection, in halves.
pub struct Stream {
    /// What comes in.
    pub reader: Reader,
    /// What goes out.
    pub writer: Writer,
    /// Grows as long as something arrives at the other side, where what was written may wait for long before it is sent.
    pub progress: Progress,
}

/// A number that grows as a connection gets on.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Progress {
    /// What `now` says.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The number now.
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    /// A connection of any kind.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), progress: Progress::new(|| 0) }
    }

    /// The same stream, with something that tells how it gets on.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // A call is one message each way: waiting to fill a packet only adds latency.
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self::new(reader, writer))
    }

    fn unix(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self::new(reader, writer)
    }

    fn pipe(stream: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self::new(reader, writer)
    }

    /// The same stream, counting what it moves.
    pub fn counted(self, traffic: &Traffic) -> Self {
        let count = |bytes: &Arc<AtomicU64>| Arc::clone(bytes);
        Self {
            reader: Box::new(Counted { inner: self.reader, bytes: count(&traffic.down) }),
            writer: Box::new(Counted { inner: self.writer, bytes: count(&traffic.up) }),
            progress: self.progress,
        }
    }
}

/// A server that is reached in a way of its own, a peer-to-peer network for example.
pub trait Connect: fmt::Debug + Send + Sync {
    /// What it is called; a [`Dial`] on another machine finds it by that.
    fn name(&self) -> String;

    /// Opens a connection.
    fn connect(&self) -> Connecting<'_>;
}

/// A connection that is being opened.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send + 'a>>;

/// Finds servers by what other machines call them.
pub trait Dial: fmt::Debug + Send + Sync {
    /// The server of that name, if names of this kind are known here.
    fn find(&self, name: &str) -> Option<Endpoint>;
}

/// Where a client finds a server.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// On a network or another process.
    Addr(Addr),
    /// In this process.
    InProcess(InProcess),
    /// In a way of its own.
    Custom(Arc<dyn Connect>),
}

/// What became known of a server while servers are looked for.
#[derive(Debug, Clone)]
pub enum Sighting {
    /// It is there; it may have been before.
    Present(Endpoint),
    /// It has not been heard of for too long, or said that it leaves; by its name.
    Gone(String),
}

/// Servers that come and go; it ends when they are no longer looked for.
pub type Sightings = mpsc::UnboundedReceiver<Sighting>;

impl Endpoint {
    /// Opens a connection.
    ///
    /// # Errors
    /// What the system says; for a server inside the process, that it has stopped.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Endpoint::Addr(Addr::Tcp(host_port)) => Stream::tcp(TcpStream::connect(host_port).await?),
            Endpoint::Addr(Addr::Unix(path)) => Ok(Stream::unix(UnixStream::connect(path).await?)),
            Endpoint::InProcess(server) => server.connect(),
            Endpoint::Custom(server) => server.connect().await,
        }
    }

    /// Whether other machines can reach it by its name.
    pub fn is_reachable(&self) -> bool {
        matches!(self, Endpoint::Addr(Addr::Tcp(_)) | Endpoint::Custom(_))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Addr(addr) => addr.fmt(f),
            Endpoint::InProcess(_) => f.write_str("embedded"),
            Endpoint::Custom(server) => f.write_str(&server.name()),
        }
    }
}

/// A server inside this process: each connection is a pair of pipes.
#[derive(Debug, Clone)]
pub struct InProcess {
    connections: mpsc::UnboundedSender<DuplexStream>,
}

impl InProcess {
    /// The client's handle, and the server's source of connections.
    pub fn new() -> (Self, Incoming) {
        let (connections, incoming) = mpsc::unbounded_channel();
        (Self { connections }, Incoming(incoming))
    }

    fn connect(&self) -> io::Result<Stream> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.connections
            .send(theirs)
            .map_err(|_| io::Error::new(io::ErrorKind::ConnectionRefused, "the embedded server has stopped"))?;
        Ok(Stream::pipe(ours))
    }
}

/// Connections to a server from inside its process.
#[derive(Debug)]
pub struct Incoming(mpsc::UnboundedReceiver<DuplexStream>);

/// Where a server takes connections from.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket; the file is removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
    /// Pipes from inside the process.
    InProcess(Incoming),
    /// Connections that something else accepts.
    Streams(Streams),
}

/// Connections that something else accepts.
#[derive(Debug)]
pub struct Streams(mpsc::UnboundedReceiver<Stream>);

impl Streams {
    /// Where accepted connections go, and what a server takes them from.
    pub fn new() -> (mpsc::UnboundedSender<Stream>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Self(receiver))
    }
}

/// A socket's file, removed on drop.
#[derive(Debug)]
pub struct SocketFile(std::path::PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on `addr`. A Unix socket's file left behind by a dead server is replaced.
    ///
    /// # Errors
    /// What the system says, or that a live server listens there already.
    pub async fn bind(addr: &Addr) -> io::Result<Self> {
        match addr {
            Addr::Tcp(host_port) => Ok(Listener::Tcp(TcpListener::bind(host_port).await?)),
            Addr::Unix(path) => {
                let is_socket = std::fs::symlink_metadata(path)
                    .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
                if is_socket && UnixStream::connect(path).await.is_err() {
                    std::fs::remove_file(path)?;
                }
                Ok(Listener::Unix(UnixListener::bind(path)?, SocketFile(path.clone())))
            }
        }
    }

    /// The address with the port that the system chose; `None` inside a process.
    pub fn addr(&self) -> Option<Addr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|addr| Addr::Tcp(addr.to_string())),
            Listener::Unix(_, file) => Some(Addr::Unix(file.0.clone())),
            Listener::InProcess(_) | Listener::Streams(_) => None,
        }
    }

    /// The next connection; `None` when no more can come.
    ///
    /// # Errors
    /// What the system says of this one connection; the listener goes on.
    pub async fn accept(&mut self) -> Option<io::Result<Stream>> {
        match self {
            Listener::Tcp(listener) => Some(match listener.accept().await {
                Ok((stream, _)) => Stream::tcp(stream),
                Err(error) => Err(error),
            }),
            Listener::Unix(listener, _) => Some(listener.accept().await.map(|(stream, _)| Stream::unix(stream))),
            Listener::Streams(streams) => streams.0.recv().await.map(Ok),
            Listener::InProcess(incoming) => incoming.0.recv().await.map(|pipe| Ok(Stream::pipe(pipe))),
        }
    }
}

struct Counted<T> {
    inner: T,
    bytes: Arc<AtomicU64>,
}

impl<W> Counted<W> {
    fn note(&self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = polled {
            self.bytes.fetch_add(*written as u64, Ordering::Relaxed);
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.bytes.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Counted<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Sends a few bytes both ways and checks what was counted.
    async fn check(endpoint: Endpoint, mut listener: Listener) {
        let traffic = Traffic::default();
        let client = async {
            let mut stream = endpoint.connect().await.expect("connects").counted(&traffic);
            stream.writer.write_all(b"hello").await.expect("writes");
            stream.writer.flush().await.expect("flushes");
            let mut answer = [0; 3];
            stream.reader.read_exact(&mut answer).await.expect("reads");
            assert_eq!(&answer, b"you");
        };
        let server = async {
            let mut stream = listener.accept().await.expect("a connection").expect("a good one");
            let mut question = [0; 5];
            stream.reader.read_exact(&mut question).await.expect("reads");
            stream.writer.write_all(b"you").await.expect("writes");
            stream.writer.flush().await.expect("flushes");
        };
        tokio::join!(client, server);
        assert_eq!((traffic.up(), traffic.down()), (5, 3));
    }

    #[tokio::test]
    async fn every_transport_moves_and_counts_bytes() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("binds");
        let endpoint = Endpoint::Addr(listener.addr().expect("an address"));
        check(endpoint, listener).await;

        let folder = tempfile::tempdir().expect("a folder");
        let addr = Addr::Unix(folder.path().join("socket"));
        check(Endpoint::Addr(addr.clone()), Listener::bind(&addr).await.expect("binds")).await;
        assert!(!folder.path().join("socket").exists(), "the socket's file is removed");

        let (server, incoming) = InProcess::new();
        check(Endpoint::InProcess(server), Listener::InProcess(incoming)).await;
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "left behind");
        let addr = Addr::Unix(path);
        let _live = Listener::bind(&addr).await.expect("replaces a stale socket");
        assert!(Listener::bind(&addr).await.is_err(), "a live socket stays");
    }

    #[tokio::test]
    async fn a_stopped_embedded_server_refuses() {
        let (server, incoming) = InProcess::new();
        drop(incoming);
        let error = Endpoint::InProcess(server).connect().await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
