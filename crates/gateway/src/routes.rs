use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::problem::Problem;
use crate::queue::Refusal;
use crate::request;
use crate::response::Document;
use crate::shared::{Documents, Health, Shared};

const LOADING: &str = include_str!("loading.html");
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Retry time of requests while predictions are unavailable.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Forbids the page to load other resources and other pages to embed it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct App {
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
}

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let (slots, body) = (Arc::new(Semaphore::new(shared.options.max_requests)), shared.options.max_body_bytes);
    Router::new()
        .route("/", get(page))
        .route("/classify", post(classify))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(body))
        .with_state(App { shared, slots })
}

async fn page(State(app): State<App>) -> Response {
    let page = match app.shared.documents() {
        Some(documents) => Html(documents.page.clone()).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, Html(LOADING)).into_response(),
    };
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, page).into_response()
}

async fn openapi(State(app): State<App>) -> Result<Response, Problem> {
    let documents = app.shared.documents().ok_or_else(|| unavailable(Health::Loading))?;
    Ok(as_json(StatusCode::OK, documents.openapi.clone()))
}

async fn health(State(app): State<App>) -> Response {
    let (health, since) = app.shared.health();
    let status = if health == Health::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = json!({ "status": health, "since_s": since.as_secs() });
    if health != Health::Ready {
        text["detail"] = health_detail(health).into();
    }
    as_json(status, text.to_string())
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    authorize(&app, &headers)?;
    let waiting_rows = app.shared.lock().queue.waiting_rows();
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], app.shared.metrics.to_text(waiting_rows)).into_response())
}

async fn classify(State(app): State<App>, request: Request) -> Response {
    let started_at = Instant::now();
    let response = match predict(&app, request, started_at).await {
        Ok(text) => as_json(StatusCode::OK, text),
        Err(problem) => problem.into_response(),
    };
    app.shared.metrics.record_request(response.status().as_u16(), started_at.elapsed());
    response
}

async fn predict(app: &App, request: Request, started_at: Instant) -> Result<String, Problem> {
    authorize(app, request.headers())?;
    let documents = available_documents(&app.shared)?;
    check_content(request.headers())?;
    let full = |_| {
        let detail = "too many requests are in progress";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(app.shared.backlog())
    };
    let _slot = app.slots.try_acquire().map_err(full)?;
    let deadline = (started_at + app.shared.options.timeout).into();
    let body = timeout_at(deadline, Bytes::from_request(request, &())).await.map_err(|_| {
        Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {}", seconds(app)))
    })?;
    let body = body.map_err(|rejection| unreadable(&rejection, app.shared.options.max_body_bytes))?;
    let rows = request::parse_rows(&body, &documents.info, &app.shared.options)?;
    drop(body);
    let receiver = app.shared.push(rows).map_err(|refusal| refused(&app.shared, refusal))?;
    let result = timeout_at(deadline, receiver).await.map_err(|_| {
        let detail = format!("the predictions were not ready within {}", seconds(app));
        Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
    })?;
    // The receiver fails if the worker has ended.
    let answers = result.unwrap_or(Err(Refusal::Unavailable)).map_err(|refusal| refused(&app.shared, refusal))?;
    Document::new(&documents.info, &answers)
        .to_json()
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn seconds(app: &App) -> String {
    format!("{} s", app.shared.options.timeout.as_secs_f64())
}

fn authorize(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    match &app.shared.options.token {
        Some(token) if !token.is_in(headers) => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "expected the header Authorization: Bearer with the right token",
        )),
        _ => Ok(()),
    }
}

fn available_documents(shared: &Shared) -> Result<Arc<Documents>, Problem> {
    let (health, _) = shared.health();
    match shared.documents() {
        // Requests on open connections are answered during the stop.
        Some(documents) if matches!(health, Health::Ready | Health::Stopping) => Ok(documents),
        _ => Err(unavailable(health)),
    }
}

fn unavailable(health: Health) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, health_detail(health)).retry_after(RETRY_AFTER)
}

fn refused(shared: &Shared, refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Failed => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the rows could not be computed; the log says why")
        }
        Refusal::NoToken => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "a text yields no token: it has only blanks or characters that the tokenizer does not know",
        ),
        Refusal::Unavailable => unavailable(match shared.health().0 {
            Health::Ready => Health::Unavailable,
            other => other,
        }),
    }
}

fn health_detail(health: Health) -> &'static str {
    match health {
        Health::Loading => "the classifier is being loaded",
        Health::Ready => "predictions are available",
        Health::Unavailable => "the servers that hold the model's blocks cannot be reached; the gateway keeps trying",
        Health::Stopping => "the classifier is being stopped",
    }
}

/// Accepts uncompressed JSON. JSON is UTF-8, so a charset is ignored.
fn check_content(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?").trim());
    let refuse = |detail: String| Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    let kind = text(header::CONTENT_TYPE).map(|kind| kind.split(';').next().unwrap_or_default().trim());
    match kind {
        Some(kind) if kind.eq_ignore_ascii_case("application/json") => {}
        Some(kind) => return refuse(format!("expected the content type application/json, found {kind}")),
        None => return refuse("expected the content type application/json, found none".into()),
    }
    match text(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
            refuse(format!("expected a body without content encoding, found {encoding}"))
        }
        _ => Ok(()),
    }
}

fn unreadable(rejection: &BytesRejection, max_body_bytes: usize) -> Problem {
    match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            let detail = format!("expected a body of {max_body_bytes} bytes at the most");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        }
        other => Problem::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {other}")),
    }
}

fn as_json(status: StatusCode, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, text).into_response()
}

async fn not_found() -> Problem {
    let paths = "/, /classify, /health, /metrics or /openapi.json";
    Problem::new(StatusCode::NOT_FOUND, format!("no such path; expected {paths}"))
}

async fn method_not_allowed(request: Request) -> Problem {
    let expected = if request.uri().path() == "/classify" { "POST" } else { "GET" };
    let detail = format!("expected {expected}, found {}", request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}
