//! Endpoints that predict.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody, PathRejection};
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use sepal_connections::http::Peer;
use tokio::time::timeout_at;

use crate::abstain;
use crate::classifier::{Answer, AnswerKind, Row};
use crate::model::{Model, OpenRequest};
use crate::problem::Problem;
use crate::queue::Refusal;
use crate::request::{self, Choice, Fields, RowsField, single_problem};
use crate::response::{Document, Results};
use crate::routes::{App, as_json, authorize, check_content, choice_problem, refused};

/// Retry time if no model tells a better one.
const MIN_RETRY: Duration = Duration::from_secs(1);

/// `POST /classify`: the model stands in the body, unless there is only one.
pub(crate) async fn classify(State(app): State<App>, request: Request) -> Response {
    answer(&app, None, request).await
}

/// `POST /v1/models/NAME/classify`
pub(crate) async fn classify_with(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    // A path that is not UTF-8 names no model.
    answer(&app, Some(path.map(|Path(name)| name).unwrap_or_default()), request).await
}

async fn answer(app: &App, name: Option<String>, request: Request) -> Response {
    let started_at = Instant::now();
    let mut opened = Vec::new();
    let response = match predict(app, name, request, started_at, &mut opened).await {
        Ok(text) => as_json(StatusCode::OK, text),
        Err(problem) => problem.into_response(),
    };
    let status = response.status().as_u16();
    if opened.is_empty() {
        app.shared.metrics.record_request(status);
    }
    opened.iter().for_each(|open| open.model.metrics.record_request(status, started_at.elapsed()));
    response
}

/// Computes the predictions. The requests of the chosen models are added to `opened`.
async fn predict(
    app: &App,
    name: Option<String>,
    request: Request,
    started_at: Instant,
    opened: &mut Vec<OpenRequest>,
) -> Result<String, Problem> {
    authorize(app, request.headers())?;
    check_content(request.headers())?;
    let address = request.extensions().get::<Peer>().map(|Peer(address)| *address);
    let full = || {
        let pause = app.shared.models().iter().map(|model| model.backlog()).max();
        let detail = "too many requests are in progress";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(pause.unwrap_or(MIN_RETRY))
    };
    let deadline = started_at + app.shared.options.timeout;
    let body = read_body(app, request, deadline).await?;
    // After the body, so that requests that arrive slowly take no slot. Their number is that of connections.
    let _slot = app.slots.try_acquire(address).ok_or_else(full)?;
    let (choice, fields) = request::parse_body(&body)?;
    drop(body);
    let is_list = matches!(choice, Choice::Several(_) | Choice::All);
    let is_named_by_path = name.is_some();
    for name in chosen_names(app, name, choice)? {
        opened.push(app.shared.open(name.as_deref(), address).map_err(|error| {
            let problem = choice_problem(error);
            match name {
                // A problem of the request names the model itself.
                Some(name) if is_list && problem.status.is_server_error() => problem.of_model(&name),
                _ => problem,
            }
        })?);
    }
    let Rows { field, rows, abstain_below } = parse_rows(app, fields, is_named_by_path, opened)?;
    let abstain_below = abstain_below.or(app.shared.options.abstain_below);
    let answers = wait_for_answers(app, field, rows, opened, deadline).await?;
    let opened_answers = opened.iter().zip(&answers);
    let mut documents: Vec<Document<'_>> =
        opened_answers.map(|(open, answers)| Document::new(&open.description.info, answers, abstain_below)).collect();
    let text = match documents.pop() {
        Some(document) if !is_list => document.to_json(),
        last => {
            documents.extend(last);
            serde_json::to_string(&Results { results: documents })
        }
    };
    text.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Reads the body of a request until the deadline.
pub(crate) async fn read_body(app: &App, request: Request, deadline: Instant) -> Result<Bytes, Problem> {
    let body = timeout_at(deadline.into(), Bytes::from_request(request, &())).await.map_err(|_| {
        Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {}", seconds(app)))
    })?;
    body.map_err(|rejection| unreadable(&rejection, app.shared.options.max_body_bytes))
}

/// Names of the chosen models; none for the only one.
fn chosen_names(app: &App, path: Option<String>, choice: Choice) -> Result<Vec<Option<String>>, Problem> {
    match (path, choice) {
        (Some(name), Choice::Default) => Ok(vec![Some(name)]),
        (Some(_), Choice::One(_)) => Err(single_problem("#/model", "the path names the model")),
        (Some(_), _) => Err(single_problem("#/models", "the path names the model")),
        (None, Choice::Default) => Ok(vec![None]),
        (None, Choice::One(name)) => Ok(vec![Some(name)]),
        (None, Choice::Several(names)) => Ok(names.into_iter().map(Some).collect()),
        (None, Choice::All) => {
            let models = app.shared.models();
            let offered = models.iter().filter(|model| model.is_offered());
            let names: Vec<Option<String>> = offered.map(|model| Some(model.name.to_string())).collect();
            // The error of a gateway without models is that of the only one.
            Ok(if names.is_empty() { vec![None] } else { names })
        }
    }
}

/// Rows of a request and the least probability of their labels.
struct Rows {
    field: RowsField,
    rows: Vec<Row>,
    abstain_below: Option<f32>,
}

/// Parses the rows for all opened models, which take the same kind of rows.
fn parse_rows(app: &App, mut fields: Fields, is_named_by_path: bool, opened: &[OpenRequest]) -> Result<Rows, Problem> {
    let [first, others @ ..] = opened else {
        return Ok(Rows { field: RowsField::Texts, rows: Vec::new(), abstain_below: None });
    };
    let kind = |open: &OpenRequest| if open.description.info.takes_pairs { "pairs of texts" } else { "single texts" };
    if let Some(other) = others.iter().find(|other| kind(other) != kind(first)) {
        let detail = format!(
            "expected models of the same inputs: `{}` takes {} and `{}` {}",
            first.model.name,
            kind(first),
            other.model.name,
            kind(other)
        );
        return Err(single_problem("#/models", detail));
    }
    let abstain_below = abstain::take(&mut fields, opened.iter().map(|open| &open.description.info))?;
    let expected = known_fields(is_named_by_path, opened.iter().map(|open| open.description.info.kind));
    let (field, rows) = request::parse_rows(fields, &first.description.info, &app.shared.options, &expected)?;
    Ok(Rows { field, rows, abstain_below })
}

/// Names of the fields of a request for models that give answers of these kinds.
fn known_fields(is_named_by_path: bool, mut kinds: impl Iterator<Item = AnswerKind>) -> String {
    let choice = (!is_named_by_path).then_some("model or models");
    let abstaining = kinds.all(|kind| kind == AnswerKind::Class).then_some(abstain::FIELD);
    let fields: Vec<&str> = ["texts or text"].into_iter().chain(choice).chain(abstaining).collect();
    fields.join(", ")
}

/// Queues the rows with all opened models at once and waits for the answers of each.
async fn wait_for_answers(
    app: &App,
    field: RowsField,
    rows: Vec<Row>,
    opened: &[OpenRequest],
    deadline: Instant,
) -> Result<Vec<Vec<Answer>>, Problem> {
    let limit = app.shared.options.max_model_rows;
    let problem = |model: &Arc<Model>, refusal: Refusal| {
        let problem = refused(model, field, refusal);
        if opened.len() > 1 { problem.of_model(model.name.as_str()) } else { problem }
    };
    let mut receivers = Vec::with_capacity(opened.len());
    for (open, rows) in opened.iter().zip(std::iter::repeat_n(rows, opened.len())) {
        receivers.push(open.push(rows, limit).map_err(|refusal| problem(&open.model, refusal))?);
    }
    let mut answers = Vec::with_capacity(opened.len());
    for (open, receiver) in opened.iter().zip(receivers) {
        let result = timeout_at(deadline.into(), receiver).await.map_err(|_| {
            let detail = format!("the predictions were not ready within {}", seconds(app));
            Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
        })?;
        // The receiver fails if the worker has ended.
        let result = result.unwrap_or(Err(Refusal::Unavailable));
        answers.push(result.map_err(|refusal| problem(&open.model, refusal))?);
    }
    Ok(answers)
}

fn seconds(app: &App) -> String {
    format!("{} s", app.shared.options.timeout.as_secs_f64())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_depend_on_the_path_and_the_answers() {
        let fields = |is_named_by_path, kinds: &[AnswerKind]| known_fields(is_named_by_path, kinds.iter().copied());
        assert_eq!(fields(false, &[AnswerKind::Class]), "texts or text, model or models, abstain_below");
        assert_eq!(fields(true, &[AnswerKind::Class]), "texts or text, abstain_below");
        assert_eq!(fields(false, &[AnswerKind::Class, AnswerKind::Value]), "texts or text, model or models");
        assert_eq!(fields(true, &[AnswerKind::Labels]), "texts or text");
    }
}
