use std::net::SocketAddr;
use std::time::Duration;

use crate::token::Token;

/// Where a gateway listens, and how much it takes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What clients must show to ask for predictions or metrics; nothing if none.
    pub token: Option<Token>,
    /// Bytes of a request's body at the most.
    pub max_body_bytes: usize,
    /// Rows of a request at the most.
    pub max_rows: usize,
    /// Bytes of one text at the most, in UTF-8.
    pub max_text_bytes: usize,
    /// Requests that are read, wait or are computed at the same time, at the most.
    pub max_requests: usize,
    /// Connections that are open at the same time, at the most; others wait to be accepted.
    pub max_connections: usize,
    /// Rows that are computed together at the most.
    pub batch_rows: usize,
    /// Bytes of text that are computed together at the most; a longer row stands alone.
    pub batch_bytes: usize,
    /// How long a request may take, from its first line to its answer.
    pub timeout: Duration,
    /// How long a client may take to send the head of a request, or be silent between two.
    pub head_timeout: Duration,
    /// After how long without work a classifier that asks servers is tried, to learn whether they are there; never if none.
    pub check: Option<Duration>,
    /// How long it is waited before a classifier that cannot be used is tried again.
    pub retry: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8000).into(),
            token: None,
            max_body_bytes: 1 << 20,
            max_rows: 256,
            max_text_bytes: 16 << 10,
            max_requests: 128,
            max_connections: 512,
            batch_rows: 32,
            batch_bytes: 64 << 10,
            timeout: Duration::from_secs(30),
            head_timeout: Duration::from_secs(30),
            check: Some(Duration::from_secs(15)),
            retry: Duration::from_secs(1),
        }
    }
}
