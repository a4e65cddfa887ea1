//! Endpoints that list, load and unload models.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::model::Model;
use crate::models::{AddError, LoadRequest};
use crate::name::ModelName;
use crate::options::Options;
use crate::predict::read_body;
use crate::problem::Problem;
use crate::request::{self, single_problem};
use crate::routes::{App, RETRY_AFTER, as_json, check_content, choice_problem, missing_token};
use crate::worker::Worker;

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    authorize_any(&app, &headers)?;
    let models = app.shared.models();
    let entries: Vec<Value> = models.iter().map(|model| entry(model, &app.shared.options, models.len())).collect();
    Ok(as_json(StatusCode::OK, json!({ "models": entries }).to_string()))
}

/// `GET /v1/models/NAME`
pub(crate) async fn show(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    authorize_any(&app, &headers)?;
    described(&app, &name_of(path), StatusCode::OK)
}

/// `POST /v1/models`: loads a run, in place of the model of this name if there is one. The answer comes when the model is
/// ready.
pub(crate) async fn load(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    authorize_admin(&app, request.headers())?;
    let refused = |_: &Problem| app.shared.metrics.record_refused_load();
    let (name, run) = requested_run(&app, request).await.inspect_err(refused)?;
    let status = if app.shared.model_named(name.as_str()).is_ok() { StatusCode::OK } else { StatusCode::CREATED };
    let (sender, outcome) = oneshot::channel();
    let model = app.shared.add(name.clone(), false, Some(sender));
    let model = model.map_err(|error| refused_load(&error)).inspect_err(refused)?;
    // The worker counts a load that fails from here on, also if the client has disconnected.
    let worker = Worker { shared: Arc::clone(&app.shared), model };
    let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is being stopped");
    if !app.shared.request_load(LoadRequest { worker, run }) {
        return Err(stopping());
    }
    match outcome.await {
        Ok(Ok(())) => described(&app, name.as_str(), status),
        Ok(Err(reason)) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason)),
        Err(_) => Err(stopping()),
    }
}

/// Name and run of a request to load a model.
async fn requested_run(app: &App, request: Request) -> Result<(ModelName, String), Problem> {
    check_content(request.headers())?;
    let deadline = Instant::now() + app.shared.options.timeout;
    let (name, run) = request::parse_load(&read_body(app, request, deadline).await?)?;
    let name = name.parse::<ModelName>().map_err(|error| single_problem("#/name", format!("failed to {error}")))?;
    Ok((name, run))
}

/// `DELETE /v1/models/NAME`: refuses new requests of the model; the open ones are answered.
pub(crate) async fn unload(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    authorize_admin(&app, &headers)?;
    let name = name_of(path);
    app.shared.model_named(&name).map_err(choice_problem)?;
    app.shared.unload(&name);
    Ok(as_json(StatusCode::OK, json!({ "unloaded": name }).to_string()))
}

fn refused_load(error: &AddError) -> Problem {
    let detail = format!("failed to {error}");
    match error {
        AddError::Busy { .. } => Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_AFTER),
        _ => Problem::new(StatusCode::CONFLICT, detail),
    }
}

/// Text of a path; a path that is not UTF-8 names no model.
fn name_of(path: Result<Path<String>, PathRejection>) -> String {
    path.map(|Path(name)| name).unwrap_or_default()
}

fn described(app: &App, name: &str, status: StatusCode) -> Result<Response, Problem> {
    let model = app.shared.model_named(name).map_err(choice_problem)?;
    let n_models = app.shared.models().len();
    Ok(as_json(status, entry(&model, &app.shared.options, n_models).to_string()))
}

fn entry(model: &Model, options: &Options, n_models: usize) -> Value {
    let status = model.status();
    let mut entry = json!({
        "name": model.name.as_str(),
        "status": status.health,
        "rows": status.served_rows,
        "waiting_rows": status.waiting_rows,
        "open_requests": status.open_requests,
        "limits": {
            "open_requests": options.model_requests(n_models),
            "waiting_rows": options.max_model_rows,
            "rows_of_request": options.max_rows,
            "text_bytes": options.max_text_bytes,
        },
    });
    if let Some(loaded) = status.loaded {
        entry["loaded_s"] = loaded.as_secs().into();
    }
    if let Some(description) = status.description {
        let info = &description.info;
        let facts: Map<String, Value> =
            info.facts.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        entry["predicts"] = info.kind.name().into();
        entry["labels"] = json!(info.labels);
        entry["takes_pairs"] = info.takes_pairs.into();
        entry["facts"] = facts.into();
    }
    entry
}

/// Accepts the token of clients and that of administrators.
fn authorize_any(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let options = &app.shared.options;
    let is_admin = options.admin_token.as_ref().is_some_and(|token| token.is_in(headers));
    match &options.token {
        Some(token) if !is_admin && !token.is_in(headers) => Err(missing_token()),
        _ => Ok(()),
    }
}

fn authorize_admin(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    match &app.shared.options.admin_token {
        None => {
            let detail = "models cannot be loaded or unloaded: this gateway has no token for administrators";
            Err(Problem::new(StatusCode::FORBIDDEN, detail))
        }
        Some(token) if !token.is_in(headers) => Err(missing_token()),
        Some(_) => Ok(()),
    }
}
