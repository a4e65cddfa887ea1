//! The thread that speaks with clients: connections, and their end.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::desk::Desk;
use crate::options::Options;
use crate::routes::routes;
use crate::shared::Shared;

/// How long it is waited when the system has no room for another connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(100);
/// Time to send an answer, after the time that a request may take.
const GRACE: Duration = Duration::from_secs(2);

/// A gateway that did not start, or broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The port cannot be had.
    #[error("listen on http://{addr}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The thread that speaks with clients panicked.
    #[error("go on speaking with clients: the thread for it panicked")]
    Panicked,
}

/// The HTTP port. Dropping it closes it, and waits for requests that have begun.
#[derive(Debug)]
pub struct Gateway {
    addr: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

/// Stops a gateway, from any thread.
#[derive(Debug, Clone)]
pub struct Stopper {
    stop: Arc<watch::Sender<bool>>,
    shared: Arc<Shared>,
}

impl Gateway {
    /// Listens. Whoever is to compute does it at the [`Desk`]; clients are told to wait until then.
    ///
    /// # Errors
    /// [`GatewayError::Listen`] if the port cannot be had.
    pub fn start(options: Options) -> Result<(Self, Desk), GatewayError> {
        let failed = |source| GatewayError::Listen { addr: options.listen, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind(options.listen)).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared::new(options.clone()));
        let (stop, stopped) = watch::channel(false);
        let stopper = Stopper { stop: Arc::new(stop), shared: Arc::clone(&shared) };
        let closing = Closing(Arc::clone(&shared));
        let routes = routes(Arc::clone(&shared));
        let on_thread = options.clone();
        let thread = thread::Builder::new().name("sepal-gateway".into()).spawn(move || {
            let _closing = closing;
            runtime.block_on(listen(listener, routes, on_thread, stopped));
        });
        let thread = Some(thread.map_err(failed)?);
        Ok((Self { addr, stopper, thread }, Desk { shared }))
    }

    /// Where it is.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What stops it.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops it, and waits for requests that have begun.
    ///
    /// # Errors
    /// [`GatewayError::Panicked`] if it stopped by itself before.
    pub fn finish(mut self) -> Result<(), GatewayError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), GatewayError> {
        self.stopper.stop();
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(GatewayError::Panicked),
            _ => Ok(()),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Whoever wants to know calls `finish`.
        let _ = self.end();
    }
}

impl Stopper {
    /// No more connections are accepted; requests that have begun are finished, and then [`Desk::serve`] returns.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.shared.stop();
    }
}

/// Tells the thread that computes that nobody asks any more, whatever the reason.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn listen(listener: TcpListener, routes: Router, options: Options, stop: watch::Receiver<bool>) {
    let mut told = stop.clone();
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((slot, stream))
        };
        tokio::select! {
            _ = told.wait_for(|is_told| *is_told) => break,
            next = next => match next {
                Ok((slot, stream)) => {
                    connections.spawn(speak(stream, routes.clone(), options.head_timeout, stop.clone(), slot));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(NO_ROOM_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    connections.close();
    // Whoever takes longer than a request may is left.
    let _ = tokio::time::timeout(options.timeout + GRACE, connections.wait()).await;
}

async fn speak(
    stream: TcpStream,
    routes: Router,
    head_timeout: Duration,
    mut stop: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
) {
    // Answers are small, and nothing follows them.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stop.wait_for(|is_told| *is_told) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
