//! What a server shows over HTTP: `/healthz`, `/metrics` for Prometheus, `/status.json`, and a page at `/` with a map of
//! blocks by servers.
//!
//! It shows and changes nothing, and holds no secret. It knows nothing of training.
//!
//! Invariant: the page needs nothing from anywhere else.

mod summary;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use sepal_discover::Discovery;
use sepal_server::Board;
use tokio::sync::oneshot;

pub use summary::notice_of;

const PAGE: &str = include_str!("page.html");
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is shown. The server may change while it is.
#[derive(Debug)]
pub struct View {
    /// The server's name: where clients find it.
    pub name: String,
    /// Its counts; nothing while it loads blocks.
    board: Mutex<Option<Arc<Board>>>,
    /// The other servers.
    discovery: Option<Arc<dyn Discovery>>,
    started: Instant,
}

impl View {
    /// Of a server that is to come, and of those that are found.
    pub fn new(name: String, discovery: Option<Arc<dyn Discovery>>) -> Self {
        Self { name, board: Mutex::default(), discovery, started: Instant::now() }
    }

    /// From now on this server is shown, or none.
    pub fn show(&self, board: Option<Arc<Board>>) {
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = board;
    }

    fn board(&self) -> Option<Arc<Board>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("show the server's state on http://{addr}")]
pub struct StatusError {
    /// Where.
    pub addr: SocketAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The HTTP port. Dropping it closes it.
#[derive(Debug)]
pub struct StatusServer {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusServer {
    /// Shows `view` at `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`StatusError`] if the port cannot be had.
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
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("sepal-status".into()).spawn(move || {
            // Connections that are open end with the runtime.
            runtime.block_on(async {
                tokio::select! {
                    _ = axum::serve(listener, routes) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { addr, stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }

    /// Where it is.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It shows and changes nothing: there is nothing to be lost.
            let _ = thread.join();
        }
    }
}

/// Whether the server takes work.
async fn health(State(view): State<Arc<View>>) -> impl IntoResponse {
    match view.board() {
        None => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
        Some(board) if board.info().draining => (StatusCode::SERVICE_UNAVAILABLE, "leaving\n"),
        Some(_) => (StatusCode::OK, "ok\n"),
    }
}

async fn metrics(State(view): State<Arc<View>>) -> impl IntoResponse {
    let text = view.board().map_or_else(|| "# EOF\n".to_owned(), |board| board.metrics());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
}

async fn status(State(view): State<Arc<View>>) -> impl IntoResponse {
    let others = view.discovery.as_ref().map(|discovery| discovery.members()).unwrap_or_default();
    let own = view.board().map(|board| board.info());
    let summary = summary::summary(&view.name, own.as_ref(), &others, view.started.elapsed());
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], summary.to_string())
}
