//! HTTP server with limits of its connections, of the time of a request's head and of the rate of its body.

mod progress;

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::metrics::{ConnectionMetrics, End};
use crate::register::{ConnectionLimits, Register, network};
use progress::{Counted, Progress, RequestBody};

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Maximum bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Limits of an HTTP server.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Maximum open connections. Beyond them, a connection that is idle or slow is closed for a new one.
    pub limits: ConnectionLimits,
    /// Timeout of a request's head, and of silence between requests.
    pub head_timeout: Duration,
    /// Time to finish requests in progress once the server stops.
    pub grace: Duration,
    /// Counts of connections.
    pub metrics: ConnectionMetrics,
}

/// Address of the client of a request, or its IPv6 network of 64 bits, in the extensions of the request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

type Connections = Arc<Mutex<Register<Arc<Progress>>>>;

/// Serves `routes` until `stop` is true or its sender is dropped, and then finishes the requests in progress.
pub async fn serve(listener: TcpListener, routes: Router, options: HttpOptions, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let connections: Connections = Arc::new(Mutex::new(Register::new(options.limits)));
    let tasks = TaskTracker::new();
    loop {
        tokio::select! {
            () = until_stopped(&mut stopped) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Some(connection) = Connection::admit(&connections, peer.ip(), &options.metrics) {
                        tasks.spawn(connection.serve(stream, routes.clone(), options.head_timeout, stop.clone()));
                    }
                }
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    tasks.close();
    // Connections that exceed the time are dropped.
    let _ = tokio::time::timeout(options.grace, tasks.wait()).await;
}

/// Waits until `stop` is true or its sender is dropped.
async fn until_stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender was dropped.
    let _ = stop.wait_for(|is_stopped| *is_stopped).await;
}

/// True for the error of one connection that its peer has left already. Others can be accepted at once.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// Open connection, which leaves the register when it is dropped.
struct Connection {
    connections: Connections,
    id: u64,
    peer: IpAddr,
    progress: Arc<Progress>,
    metrics: ConnectionMetrics,
}

impl Connection {
    fn admit(connections: &Connections, peer: IpAddr, metrics: &ConnectionMetrics) -> Option<Self> {
        let progress = Arc::new(Progress::new());
        let mut register = connections.lock().unwrap_or_else(PoisonError::into_inner);
        let id = register.admit(Some(peer), Arc::clone(&progress));
        metrics.set_open(register.len());
        drop(register);
        let id = id.inspect_err(|refusal| metrics.record_refusal(*refusal, Some(peer))).ok()?;
        Some(Self { connections: Arc::clone(connections), id, peer, progress, metrics: metrics.clone() })
    }

    async fn serve(self, stream: TcpStream, routes: Router, head_timeout: Duration, stop: watch::Receiver<bool>) {
        // Answers are small, so delayed segments would only add latency.
        let _ = stream.set_nodelay(true);
        let stream = Counted::new(stream, Arc::clone(&self.progress));
        let peer = Peer(network(self.peer));
        let served = serve_requests(stream, peer, routes, head_timeout, Arc::clone(&self.progress), stop);
        tokio::select! {
            () = served => {}
            end = self.progress.watch() => self.metrics.record_end(end, Some(self.peer)),
            () = self.progress.replaced() => self.metrics.record_end(End::Replaced, Some(self.peer)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut register = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        register.remove(self.id);
        self.metrics.set_open(register.len());
    }
}

async fn serve_requests(
    stream: Counted,
    peer: Peer,
    routes: Router,
    head_timeout: Duration,
    progress: Arc<Progress>,
    mut stop: watch::Receiver<bool>,
) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Body::new(RequestBody::new(body, Arc::clone(&progress))));
        request.extensions_mut().insert(peer);
        let (answer, progress) = (routes.call(request), Arc::clone(&progress));
        async move {
            let answer = answer.await;
            progress.end_request();
            answer
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = until_stopped(&mut stop) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HONEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    struct Server {
        addr: std::net::SocketAddr,
        _stop: watch::Sender<bool>,
    }

    impl Server {
        async fn start(total: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let addr = listener.local_addr().expect("an address");
            let options = HttpOptions {
                limits: ConnectionLimits { total, per_address: total },
                head_timeout: Duration::from_secs(600),
                grace: Duration::ZERO,
                metrics: ConnectionMetrics::default(),
            };
            let hello = get(|| async { "hello" });
            let routes = Router::new().route("/", hello).route("/echo", post(|text: String| async move { text }));
            let routes = routes.route("/peer", get(peer));
            let (stop, stopped) = watch::channel(false);
            tokio::spawn(serve(listener, routes, options, stopped));
            Self { addr, _stop: stop }
        }

        async fn send(&self, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.addr).await.expect("connected");
            stream.write_all(bytes).await.expect("sent");
            stream
        }

        async fn ask(&self) -> String {
            let mut text = String::new();
            self.send(HONEST).await.read_to_string(&mut text).await.expect("answered");
            text
        }
    }

    async fn peer(request: axum::extract::Request) -> String {
        request.extensions().get::<Peer>().map_or_else(String::new, |Peer(address)| address.to_string())
    }

    #[tokio::test]
    async fn request_carries_the_address_of_its_client() {
        let (server, mut answer) = (Server::start(2).await, String::new());
        let mut stream = server.send(b"GET /peer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.ends_with("\r\n127.0.0.1"), "{answer}");
    }

    #[tokio::test]
    async fn silent_and_dripping_connections_do_not_keep_out_a_request() {
        let server = Server::start(4).await;
        let mut others = Vec::new();
        for begin in [&b""[..], b"GET / HT", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"].repeat(4)
        {
            others.push(server.send(begin).await);
        }
        for _ in 0..10 {
            let answer = server.ask().await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        }
        let first = &mut others[0];
        assert_eq!(first.read(&mut [0; 9]).await.ok().unwrap_or(0), 0, "closed");
    }

    #[tokio::test]
    async fn answered_connection_stays_open_for_its_next_request() {
        let server = Server::start(2).await;
        let mut stream = server.send(b"").await;
        for _ in 0..3 {
            stream.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nthere").await.expect("sent");
            let mut answer = vec![0; 1024];
            let mut n = 0;
            while !answer[..n].ends_with(b"there") {
                let n_read = stream.read(&mut answer[n..]).await.expect("an answer");
                assert!(n_read > 0, "{}", String::from_utf8_lossy(&answer[..n]));
                n += n_read;
            }
        }
        assert!(server.ask().await.ends_with("hello"));
    }

    #[tokio::test]
    async fn head_beyond_maximum_is_refused() {
        let server = Server::start(2).await;
        let head = [b"GET / HTTP/1.1\r\nHost: ".to_vec(), vec![b'a'; 2 * MAX_HEAD_BYTES]].concat();
        let mut stream = TcpStream::connect(server.addr).await.expect("connected");
        // The server may close the connection before all is sent.
        let _ = stream.write_all(&head).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        assert!(server.ask().await.ends_with("hello"));
    }
}
