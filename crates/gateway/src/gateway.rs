//! HTTP thread: connections and their end.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::models::Models;
use crate::options::Options;
use crate::routes::routes;
use crate::shared::Shared;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time to send an answer after the timeout of its request.
const GRACE: Duration = Duration::from_secs(2);

/// Error of a gateway.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum GatewayError {
    /// Address that is not available.
    #[error("listen on http://{addr}")]
    Listen { addr: SocketAddr, source: io::Error },
    /// Panic of the HTTP thread.
    #[error("serve clients: the HTTP thread panicked")]
    Panicked,
}

/// HTTP server. Dropping it closes the port and waits for requests in progress.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

/// Handle that stops a gateway from any thread.
#[derive(Debug, Clone)]
pub struct Stopper {
    stop: Arc<watch::Sender<bool>>,
    shared: Arc<Shared>,
}

impl Gateway {
    /// Starts a gateway without models.
    ///
    /// # Errors
    /// [`GatewayError::Listen`] if the address is not available.
    pub fn start(options: Options) -> Result<(Self, Models), GatewayError> {
        let failed = |source| GatewayError::Listen { addr: options.listen, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind(options.listen)).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (loader, loads) = mpsc::channel();
        let shared = Arc::new(Shared::new(options.clone(), loader));
        let (stop, stopped) = watch::channel(false);
        let stopper = Stopper { stop: Arc::new(stop), shared: Arc::clone(&shared) };
        let close_guard = CloseGuard(Arc::clone(&shared));
        let routes = routes(Arc::clone(&shared));
        let thread_options = options.clone();
        let thread = thread::Builder::new().name("sepal-gateway".into()).spawn(move || {
            let _close_guard = close_guard;
            runtime.block_on(run_loop(listener, routes, thread_options, stopped));
        });
        let thread = Some(thread.map_err(failed)?);
        Ok((Self { addr, stopper, thread }, Models { shared, loads }))
    }

    /// Address of the gateway.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns a handle that stops the gateway.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops the gateway and waits for requests in progress.
    ///
    /// # Errors
    /// [`GatewayError::Panicked`] if the HTTP thread has panicked.
    pub fn finish(mut self) -> Result<(), GatewayError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), GatewayError> {
        self.stopper.stop();
        self.thread.take().map_or(Ok(()), JoinHandle::join).map_err(|_| GatewayError::Panicked)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // `finish` reports the error.
        let _ = self.end();
    }
}

impl Stopper {
    /// Refuses new connections and finishes requests in progress, after which every [`Worker::serve`](crate::Worker::serve)
    /// returns.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.shared.stop();
    }
}

/// Closes the queues when the HTTP thread ends, even by a panic.
struct CloseGuard(Arc<Shared>);

impl Drop for CloseGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn run_loop(listener: TcpListener, routes: Router, options: Options, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((slot, stream))
        };
        tokio::select! {
            _ = stopped.wait_for(|is_stopped| *is_stopped) => break,
            next = next => match next {
                Ok((slot, stream)) => {
                    connections.spawn(serve_connection(stream, routes.clone(), options.head_timeout, stop.clone(), slot));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    connections.close();
    // Connections that exceed the timeout of a request are dropped.
    let _ = tokio::time::timeout(options.timeout + GRACE, connections.wait()).await;
}

async fn serve_connection(
    stream: TcpStream,
    routes: Router,
    head_timeout: Duration,
    mut stop: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
) {
    // Answers are small, so delayed segments would only add latency.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stop.wait_for(|is_stopped| *is_stopped) => None,
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
