use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use sepal_core::{NameMatching, nearest};
use serde_json::{Map, Value, json};

use crate::model::{Description, Health, Model};
use crate::openapi::openapi as openapi_document;
use crate::page::page as html_page;
use crate::problem::Problem;
use crate::queue::Refusal;
use crate::request::{RowsField, invalid_rows, single_problem};
use crate::shared::{ChoiceError, Shared};
use crate::shares::Slots;
use crate::{admin, predict};

/// Page before a model has answered, with a placeholder for the reason.
const LOADING: &str = include_str!("loading.html");
const STATE: &str = "STATE";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Retry time of requests while predictions are unavailable.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Forbids the page to load other resources and other pages to embed it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) shared: Arc<Shared>,
    pub(crate) slots: Arc<Slots>,
}

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let (slots, body) = (Arc::new(Slots::new(shared.options.max_requests)), shared.options.max_body_bytes);
    Router::new()
        .route("/", get(page))
        .route("/classify", post(predict::classify))
        .route("/v1/models", get(admin::list).post(admin::load))
        .route("/v1/models/{name}", get(admin::show).delete(admin::unload))
        .route("/v1/models/{name}/classify", post(predict::classify_with))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(body))
        .with_state(App { shared, slots })
}

async fn page(State(app): State<App>) -> Response {
    let page = match descriptions(&app.shared) {
        Some(models) => Html(html_page(&models, &app.shared.options)).into_response(),
        None => {
            let page = LOADING.replacen(STATE, availability(&app.shared), 1);
            (StatusCode::SERVICE_UNAVAILABLE, Html(page)).into_response()
        }
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
    let not_described =
        || Problem::new(StatusCode::SERVICE_UNAVAILABLE, availability(&app.shared)).retry_after(RETRY_AFTER);
    let models = descriptions(&app.shared).ok_or_else(not_described)?;
    Ok(as_json(StatusCode::OK, openapi_document(&models, &app.shared.options).to_string()))
}

/// Descriptions of the models that have answered once; none if there is no such model.
fn descriptions(shared: &Shared) -> Option<Vec<Arc<Description>>> {
    let descriptions: Vec<_> = shared.models().iter().filter_map(|model| model.status().description).collect();
    (!descriptions.is_empty()).then_some(descriptions)
}

/// Reason for which no model has answered yet.
fn availability(shared: &Shared) -> &'static str {
    match shared.health().0 {
        health if shared.models().is_empty() => no_model(health),
        // A model that has become ready in the meantime.
        Health::Ready => health_detail(Health::Loading),
        health => health_detail(health),
    }
}

async fn health(State(app): State<App>) -> Response {
    let (health, since) = app.shared.health();
    let status = if health == Health::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let models = app.shared.models();
    let states: Map<String, Value> =
        models.iter().map(|model| (model.name.to_string(), json!(model.health().0))).collect();
    let mut text = json!({ "status": health, "since_s": since.as_secs(), "models": states });
    if health != Health::Ready {
        let detail = if models.is_empty() { no_model(health) } else { health_detail(health) };
        text["detail"] = detail.into();
    }
    as_json(status, text.to_string())
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    authorize(&app, &headers)?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], app.shared.metrics_text()).into_response())
}

pub(crate) fn authorize(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    match &app.shared.options.token {
        Some(token) if !token.is_in(headers) => Err(missing_token()),
        _ => Ok(()),
    }
}

pub(crate) fn missing_token() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer with the right token")
}

/// Problem of a request whose model cannot be had.
pub(crate) fn choice_problem(error: ChoiceError) -> Problem {
    match error {
        ChoiceError::Unknown { name, known } => {
            let similar = nearest(&name, known.iter().map(String::as_str), NameMatching::Data);
            let hint = similar.map(|similar| format!("; did you mean `{similar}`?")).unwrap_or_default();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Problem::new(StatusCode::NOT_FOUND, format!("there is no model `{name}`{hint} (models: {known})"))
        }
        ChoiceError::Unnamed { known } => {
            single_problem("#/model", format!("it is missing; expected one of {}", known.join(", ")))
        }
        ChoiceError::Empty => Problem::new(StatusCode::SERVICE_UNAVAILABLE, NO_MODEL).retry_after(RETRY_AFTER),
        ChoiceError::Unavailable(health) => unavailable(health),
        ChoiceError::Full(pause) => {
            let detail = "too many requests of this model are in progress";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(pause)
        }
    }
}

fn unavailable(health: Health) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, health_detail(health)).retry_after(RETRY_AFTER)
}

/// Problem of a request that a model refuses.
pub(crate) fn refused(model: &Model, field: RowsField, refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Failed => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the rows could not be computed; the log says why")
        }
        Refusal::InvalidRows(rows) => invalid_rows(field, &rows),
        Refusal::Full => {
            let detail = "too many texts of this model wait";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(model.backlog())
        }
        Refusal::Unavailable => unavailable(match model.health().0 {
            Health::Ready => Health::Unavailable,
            other => other,
        }),
    }
}

const NO_MODEL: &str = "no model is loaded";

/// State of a gateway of this health that has no model.
fn no_model(health: Health) -> &'static str {
    if health == Health::Stopping { health_detail(health) } else { NO_MODEL }
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
pub(crate) fn check_content(headers: &HeaderMap) -> Result<(), Problem> {
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

pub(crate) fn as_json(status: StatusCode, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, text).into_response()
}

async fn not_found() -> Problem {
    let paths =
        "/, /classify, /v1/models, /v1/models/NAME, /v1/models/NAME/classify, /health, /metrics or /openapi.json";
    Problem::new(StatusCode::NOT_FOUND, format!("no such path; expected {paths}"))
}

async fn method_not_allowed(request: Request) -> Problem {
    let expected = match request.uri().path() {
        path if path.ends_with("/classify") => "POST",
        "/v1/models" => "GET or POST",
        path if path.starts_with("/v1/models/") => "GET or DELETE",
        _ => "GET",
    };
    let detail = format!("expected {expected}, found {}", request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}
