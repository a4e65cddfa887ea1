use std::net::SocketAddr;
use std::time::Duration;

use crate::token::Token;

/// Address and limits of a gateway.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Token that predictions and metrics require; no authorization if none.
    pub token: Option<Token>,
    /// Maximum bytes of a request's body.
    pub max_body_bytes: usize,
    /// Maximum rows of a request.
    pub max_rows: usize,
    /// Maximum bytes of one text in UTF-8.
    pub max_text_bytes: usize,
    /// Maximum requests in progress.
    pub max_requests: usize,
    /// Maximum open connections; others wait to be accepted.
    pub max_connections: usize,
    /// Maximum rows of a batch.
    pub batch_rows: usize,
    /// Maximum bytes of text in a batch; a longer row forms its own batch.
    pub batch_bytes: usize,
    /// Timeout of a request, from its first line to its answer.
    pub timeout: Duration,
    /// Timeout of a request's head, and of silence between requests.
    pub head_timeout: Duration,
    /// Idle time after which a classifier that depends on servers is checked; no checks if none.
    pub check_interval: Option<Duration>,
    /// Interval between trials of a classifier that is unavailable.
    pub retry_interval: Duration,
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
            check_interval: Some(Duration::from_secs(15)),
            retry_interval: Duration::from_secs(1),
        }
    }
}
