//! HTTP status of a server: `/healthz`, `/metrics` for Prometheus, `/status.json`, and a page at `/` with a map of blocks by
//! servers.
//!
//! The crate is read-only, holds no secret and knows nothing of training. In the crate graph it stands on `server`, `discover`
//! and `route`, and only `cli` uses it. HTTP is served by `connections`.
//!
//! Invariant: the page loads no other resources.
//!
//! ```
//! use std::sync::Arc;
//!
//! use sepal_status::{StatusServer, View};
//!
//! let view = Arc::new(View::new("127.0.0.1:4000".into(), None));
//! let status = StatusServer::start("127.0.0.1:0".parse()?, Arc::clone(&view))?;
//! println!("status on http://{}/", status.addr());
//! // `view.show(Some(Arc::clone(server.stats())))` follows once the server is loaded.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod summary;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use sepal_connections::http::{self, HttpOptions};
use sepal_connections::{ConnectionLimits, ConnectionMetrics};
use sepal_discover::Discovery;
use sepal_server::ServerStats;
use tokio::sync::watch;

pub use summary::server_record;

const PAGE: &str = include_str!("page.html");
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Limits of connections, so that they leave the open files of the process to its clients.
const LIMITS: ConnectionLimits = ConnectionLimits { total: 64, per_address: 32 };
/// Timeout of a request's head, and of silence between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Server that the status describes. It may be replaced at any time.
#[derive(Debug)]
pub struct View {
    /// Name of the server, under which clients find it.
    pub name: String,
    stats: Mutex<Option<Arc<ServerStats>>>,
    discovery: Option<Arc<dyn Discovery>>,
    started_at: Instant,
}

impl View {
    /// Returns the view of a server that is not loaded yet, and of the servers that `discovery` finds.
    pub fn new(name: String, discovery: Option<Arc<dyn Discovery>>) -> Self {
        Self { name, stats: Mutex::default(), discovery, started_at: Instant::now() }
    }

    /// Sets the statistics of the server; none while it loads blocks.
    pub fn show(&self, stats: Option<Arc<ServerStats>>) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    fn stats(&self) -> Option<Arc<ServerStats>> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Error of an address that is not available.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("show the server's status on http://{addr}")]
pub struct StatusError {
    pub addr: SocketAddr,
    pub source: io::Error,
}

/// HTTP server of the status. Dropping it closes the port.
#[derive(Debug)]
pub struct StatusServer {
    addr: SocketAddr,
    stop: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusServer {
    /// Serves `view` on `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`StatusError`] if the address is not available.
    pub fn start(addr: SocketAddr, view: Arc<View>) -> Result<Self, StatusError> {
        let failed = |source| StatusError { addr, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(addr)).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let routes = Router::new()
            .route("/", get(|| async { Html(PAGE) }))
            .route("/healthz", get(health))
            .route("/metrics", get(metrics))
            .route("/status.json", get(status))
            .with_state(view);
        let (stop, stopped) = watch::channel(false);
        let options = HttpOptions {
            limits: LIMITS,
            head_timeout: HEAD_TIMEOUT,
            grace: Duration::ZERO,
            metrics: ConnectionMetrics::default(),
        };
        let thread = thread::Builder::new().name("sepal-status".into()).spawn(move || {
            // Open connections end with the runtime.
            runtime.block_on(http::serve(listener, routes, options, stopped));
        });
        Ok(Self { addr, stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }

    /// Address of the status.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the read-only thread loses no data.
            let _ = thread.join();
        }
    }
}

async fn health(State(view): State<Arc<View>>) -> impl IntoResponse {
    match view.stats() {
        None => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
        Some(stats) if stats.info().draining => (StatusCode::SERVICE_UNAVAILABLE, "leaving\n"),
        Some(_) => (StatusCode::OK, "ok\n"),
    }
}

async fn metrics(State(view): State<Arc<View>>) -> impl IntoResponse {
    let text = view.stats().map_or_else(|| "# EOF\n".to_owned(), |stats| stats.metrics());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
}

async fn status(State(view): State<Arc<View>>) -> impl IntoResponse {
    let others = view.discovery.as_ref().map(|discovery| discovery.members()).unwrap_or_default();
    let info = view.stats().map(|stats| stats.info());
    let summary = summary::summary(&view.name, info.as_ref(), &others, view.started_at.elapsed());
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], summary.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn silent_connections_do_not_keep_out_a_request() {
        let view = Arc::new(View::new("a:1".into(), None));
        let status = StatusServer::start(([127, 0, 0, 1], 0).into(), view).expect("it listens");
        let connect = || TcpStream::connect(status.addr()).expect("connected");
        let _silent: Vec<TcpStream> = (0..3 * LIMITS.total).map(|_| connect()).collect();
        let (mut stream, mut answer) = (connect(), String::new());
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("loading\n"), "{answer}");
    }
}
