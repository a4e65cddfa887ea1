//! HTTP thread: connections and their end.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sepal_connections::ConnectionLimits;
use sepal_connections::http::{self, HttpOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::models::Models;
use crate::options::Options;
use crate::routes::routes;
use crate::shared::Shared;

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
        let (routes, http_options) = (routes(Arc::clone(&shared)), http_options(&options, &shared));
        let thread = thread::Builder::new().name("sepal-gateway".into()).spawn(move || {
            let _close_guard = close_guard;
            runtime.block_on(http::serve(listener, routes, http_options, stopped));
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

fn http_options(options: &Options, shared: &Shared) -> HttpOptions {
    HttpOptions {
        limits: ConnectionLimits { total: options.max_connections, per_address: options.max_connections.div_ceil(2) },
        head_timeout: options.head_timeout,
        grace: options.timeout + GRACE,
        metrics: shared.metrics.connections().clone(),
    }
}
