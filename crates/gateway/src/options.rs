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
    /// Token that loading and unloading of models requires; both are refused if none.
    pub admin_token: Option<Token>,
    /// Least probability of a label where rows have one, unless a request has its own: less probable ones are left out. All
    /// labels are given if none.
    pub abstain_below: Option<f32>,
    /// Maximum bytes of a request's body.
    pub max_body_bytes: usize,
    /// Maximum rows of a request.
    pub max_rows: usize,
    /// Maximum bytes of one text in UTF-8.
    pub max_text_bytes: usize,
    /// Maximum requests in progress.
    pub max_requests: usize,
    /// Maximum requests in progress of one model. If none, one model may have all of `max_requests`, and each of several
    /// half of them.
    pub max_model_requests: Option<usize>,
    /// Maximum rows of one model that wait.
    pub max_model_rows: usize,
    /// Maximum models, those that are being loaded included.
    pub max_models: usize,
    /// Maximum open connections, half of them of one address. Beyond them, a connection that is idle or slow is closed for a
    /// new one.
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

impl Options {
    /// Maximum requests in progress of one of `n_models` models.
    pub(crate) fn model_requests(&self, n_models: usize) -> usize {
        let shared = if n_models > 1 { self.max_requests.div_ceil(2) } else { self.max_requests };
        self.max_model_requests.unwrap_or(shared).min(self.max_requests)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8000).into(),
            token: None,
            admin_token: None,
            abstain_below: None,
            max_body_bytes: 1 << 20,
            max_rows: 256,
            max_text_bytes: 16 << 10,
            max_requests: 128,
            max_model_requests: None,
            max_model_rows: 1 << 14,
            max_models: 64,
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
