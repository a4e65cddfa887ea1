//! Problem documents of RFC 9457 for clients.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidValue {
    /// JSON pointer (RFC 6901) to the value as the fragment of a URI, such as `#/texts/3`.
    pub(crate) pointer: String,
    pub(crate) detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    pub(crate) errors: Vec<InvalidValue>,
    retry_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), errors: Vec::new(), retry_after: None }
    }

    pub(crate) fn from_invalid_values(status: StatusCode, errors: Vec<InvalidValue>) -> Self {
        let detail = match errors.as_slice() {
            [only] => format!("{}: {}", only.pointer, only.detail),
            [first, others @ ..] => format!("{}: {} (and {} more)", first.pointer, first.detail, others.len()),
            [] => String::new(),
        };
        Self { errors, ..Self::new(status, detail) }
    }

    /// Names the model of the problem, among several.
    pub(crate) fn of_model(self, name: &str) -> Self {
        Self { detail: format!("model `{name}`: {}", self.detail), ..self }
    }

    pub(crate) fn retry_after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        // A document without a type has the type `about:blank`, whose meaning is the status.
        let mut document = json!({ "title": title, "status": self.status.as_u16(), "detail": self.detail });
        if !self.errors.is_empty() {
            let errors = self.errors.iter().map(|value| json!({ "pointer": value.pointer, "detail": value.detail }));
            document["errors"] = errors.collect();
        }
        let mut response = (self.status, document.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(pause) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(pause.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sepal\""));
        }
        response
    }
}
