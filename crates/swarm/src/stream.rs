use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::Addr;
use crate::secure::{Revocation, Rights};

/// Capacity of an in-process pipe.
const PIPE_BYTES: usize = 4 << 20;

/// Silence on a TCP connection after which the system asks the other machine if it is still there.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Time after which a client that answers nothing is gone, or one that reads nothing has failed.
#[cfg(target_os = "linux")]
const GONE_AFTER: Duration = Duration::from_secs(120);

/// Byte counters of one side of connections. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Traffic {
    /// Number of bytes written.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Number of bytes read.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }
}

/// Reading half of a stream.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Writing half of a stream.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Connection, split into halves.
pub struct Stream {
    /// Incoming bytes.
    pub reader: Reader,
    /// Outgoing bytes.
    pub writer: Writer,
    /// Progress of the transfer to the other side, for transports that buffer much of what was written.
    pub progress: Progress,
    /// Rights of the client, for the server of the connection. A transport that checks no client grants all.
    pub rights: Rights,
    /// Revocation of the client's secret, for the server of the connection.
    pub revocation: Revocation,
}

/// Counter that grows while a connection transfers data.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Progress {
    /// Creates a counter that is read by `now`.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the current value.
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
    /// Creates a stream from any two halves.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
            progress: Progress::new(|| 0),
            rights: Rights::Server,
            revocation: Revocation::default(),
        }
    }

    /// Replaces the progress counter.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Replaces the rights of the client.
    #[must_use]
    pub fn with_rights(self, rights: Rights) -> Self {
        Self { rights, ..self }
    }

    /// Replaces the revocation of the client's secret.
    #[must_use]
    pub fn with_revocation(self, revocation: Revocation) -> Self {
        Self { revocation, ..self }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // A call is one message each way, so waiting for a full packet only adds latency.
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self::new(reader, writer))
    }

    /// Returns the stream of a connection that a client opened. It fails about two minutes after the client's machine is gone.
    fn accepted_tcp(stream: TcpStream) -> io::Result<Self> {
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL))?;
        // Without data in flight, keepalive finds that a client is gone; with data, this timeout does.
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(GONE_AFTER))?;
        Self::tcp(stream)
    }

    fn unix(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self::new(reader, writer)
    }

    fn pipe(stream: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self::new(reader, writer)
    }

    /// Counts the bytes of the stream in `traffic`.
    pub fn counted(self, traffic: &Traffic) -> Self {
        let Traffic { up, down } = traffic.clone();
        Self {
            reader: Box::new(Counted { inner: self.reader, bytes: down }),
            writer: Box::new(Counted { inner: self.writer, bytes: up }),
            progress: self.progress,
            rights: self.rights,
            revocation: self.revocation,
        }
    }
}

/// Server behind a transport of another crate, a peer-to-peer network for example.
pub trait Connect: fmt::Debug + Send + Sync {
    /// Name of the server. A [`Dial`] on another machine finds it by this name.
    fn name(&self) -> String;

    /// Opens a connection.
    fn connect(&self) -> Connecting<'_>;

    /// True if other machines can reach the server by its name.
    fn is_reachable(&self) -> bool {
        true
    }
}

/// Future of a new connection.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send + 'a>>;

/// Lookup of servers by the names that other machines use.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Returns the server of that name; `None` if the name is of another kind.
    fn find(&self, name: &str) -> Option<Endpoint>;
}

/// Address of a server for its clients.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// Address on a network or of another process.
    Addr(Addr),
    /// Server in this process.
    InProcess(InProcess),
    /// Server behind another transport.
    Custom(Arc<dyn Connect>),
}

/// Event of server discovery.
#[derive(Debug, Clone)]
pub enum Sighting {
    /// A server is present. It may be known already.
    Present(Endpoint),
    /// The server of this name has left or was not seen for too long.
    Gone(String),
}

/// Stream of discovery events. It ends with the discovery.
pub type Sightings = mpsc::UnboundedReceiver<Sighting>;

impl Endpoint {
    /// Opens a connection.
    ///
    /// # Errors
    /// Error of the operating system; [`io::ErrorKind::ConnectionRefused`] if a server in this process has stopped.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Endpoint::Addr(Addr::Tcp(host_port)) => Stream::tcp(TcpStream::connect(host_port).await?),
            Endpoint::Addr(Addr::Unix(path)) => Ok(Stream::unix(UnixStream::connect(path).await?)),
            Endpoint::InProcess(server) => server.connect(),
            Endpoint::Custom(server) => server.connect().await,
        }
    }

    /// True if other machines can reach the server by its name.
    pub fn is_reachable(&self) -> bool {
        match self {
            Endpoint::Addr(addr) => matches!(addr, Addr::Tcp(_)),
            Endpoint::InProcess(_) => false,
            Endpoint::Custom(server) => server.is_reachable(),
        }
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

/// Server in this process. Each connection is a pair of pipes.
#[derive(Debug, Clone)]
pub struct InProcess {
    connections: mpsc::UnboundedSender<DuplexStream>,
}

impl InProcess {
    /// Returns the client's handle and the server's source of connections.
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

/// Source of connections from inside the process.
#[derive(Debug)]
pub struct Incoming(mpsc::UnboundedReceiver<DuplexStream>);

/// Source of a server's connections.
#[derive(Debug)]
pub enum Listener {
    /// TCP port.
    Tcp(TcpListener),
    /// Unix socket. Its file is removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
    /// Pipes from inside the process.
    InProcess(Incoming),
    /// Connections that another transport accepts.
    Streams(Streams),
}

/// Connection that a listener accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Stream of the connection.
    pub stream: Stream,
    /// IP address of the other machine; `None` for other transports than TCP.
    pub peer: Option<IpAddr>,
}

impl Accepted {
    fn without_address(stream: Stream) -> Self {
        Self { stream, peer: None }
    }
}

/// Source of connections that another transport accepts.
#[derive(Debug)]
pub struct Streams(mpsc::UnboundedReceiver<Stream>);

impl Streams {
    /// Returns the sender for accepted connections and the server's source of them.
    pub fn new() -> (mpsc::UnboundedSender<Stream>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Self(receiver))
    }
}

/// File of a Unix socket, removed on drop.
#[derive(Debug)]
pub struct SocketFile(std::path::PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on `addr`. A stale file of a Unix socket is replaced.
    ///
    /// # Errors
    /// Error of the operating system, also if another server listens on the address.
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

    /// Address with the port that the system chose; `None` for other transports.
    pub fn addr(&self) -> Option<Addr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|addr| Addr::Tcp(addr.to_string())),
            Listener::Unix(_, file) => Some(Addr::Unix(file.0.clone())),
            Listener::InProcess(_) | Listener::Streams(_) => None,
        }
    }

    /// Waits for the next connection; `None` if there will be no more.
    ///
    /// # Errors
    /// Error of the operating system for this connection. The listener continues.
    pub async fn accept(&mut self) -> Option<io::Result<Accepted>> {
        let stream = match self {
            Listener::Tcp(listener) => {
                return Some(listener.accept().await.and_then(|(stream, peer)| {
                    Ok(Accepted { stream: Stream::accepted_tcp(stream)?, peer: Some(peer.ip()) })
                }));
            }
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Stream::unix(stream)),
            Listener::Streams(streams) => Ok(streams.0.recv().await?),
            Listener::InProcess(incoming) => Ok(Stream::pipe(incoming.0.recv().await?)),
        };
        Some(stream.map(Accepted::without_address))
    }
}

struct Counted<T> {
    inner: T,
    bytes: Arc<AtomicU64>,
}

impl<T> Counted<T> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &written {
            self.bytes.fetch_add(*written as u64, Ordering::Relaxed);
        }
        written
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
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count(written)
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

    /// Sends a few bytes both ways and checks the counters.
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
            let Accepted { mut stream, peer } = listener.accept().await.expect("a connection").expect("a good one");
            let is_tcp = matches!(listener, Listener::Tcp(_));
            assert_eq!(peer, is_tcp.then_some(IpAddr::from([127, 0, 0, 1])));
            let mut question = [0; 5];
            stream.reader.read_exact(&mut question).await.expect("reads");
            stream.writer.write_all(b"you").await.expect("writes");
            stream.writer.flush().await.expect("flushes");
        };
        tokio::join!(client, server);
        assert_eq!((traffic.up(), traffic.down()), (5, 3));
    }

    #[tokio::test]
    async fn all_transports_move_and_count_bytes() {
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
    async fn stale_socket_is_replaced_and_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "left behind");
        let addr = Addr::Unix(path);
        let _live = Listener::bind(&addr).await.expect("replaces a stale socket");
        assert!(Listener::bind(&addr).await.is_err(), "a live socket stays");
    }

    #[tokio::test]
    async fn stopped_embedded_server_refuses_connections() {
        let (server, incoming) = InProcess::new();
        drop(incoming);
        let error = Endpoint::InProcess(server).connect().await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
