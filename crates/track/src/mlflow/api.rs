use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use crate::mlflow_config::MlflowAccess;
use crate::scalars::since_epoch;

/// Failure to show a run on an MLflow server.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum MlflowError {
    /// No address of a server is given.
    #[error("find the MLflow server: neither its options nor MLFLOW_TRACKING_URI contain an address")]
    NoServer,
    /// The text is not an address of a server.
    #[error("expected http://HOST:PORT or https://HOST, found the text {0:?}")]
    Address(String),
    /// The server is unreachable, or the connection broke.
    #[error("reach the MLflow server")]
    Http(#[source] reqwest::Error),
    /// The server refused a request.
    #[error("MLflow refused {what}: {status}: {message}")]
    Refused {
        what: String,
        status: StatusCode,
        /// MLflow's error code; empty if it gave none.
        code: String,
        message: String,
    },
    /// The answer lacks a key.
    #[error("understand MLflow's answer to {what}: it has no `{key}`")]
    Answer { what: String, key: &'static str },
    /// The server does not store artifacts itself.
    #[error(
        "store {file}: artifacts of this run go to {uri}, and only artifacts that the server stores itself are supported"
    )]
    UnsupportedStore { file: String, uri: String },
    /// A file of the run folder cannot be read.
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The server refuses some entries, each of them tried alone.
    #[error(
        "record the {kind} {} on the MLflow server, which refuses {}: dropped for the rest of the run",
        list_names(names), if names.len() == 1 { "it" } else { "them" }
    )]
    Dropped {
        /// Kind of the entries: `metrics`, `params`, `params and metrics` or `tags`.
        kind: &'static str,
        names: Vec<String>,
        source: Box<MlflowError>,
    },
    /// The run was deleted on the server during training.
    #[error("write to the run {run_id}: it was deleted on the MLflow server, and nothing more is sent")]
    Deleted { run_id: String },
    /// Some numbers were not sent.
    #[error(
        "send {n} numbers to the MLflow server before the run ended; metrics.jsonl in the run's folder has them all"
    )]
    Unsent {
        n: usize,
        /// Cause of the last failure, if a request was sent.
        source: Option<Box<MlflowError>>,
    },
    /// The run id cannot be saved in the run folder.
    #[error("save the run id of the MLflow server")]
    SaveReference(#[source] crate::WriteError),
    /// The tracker was not started.
    #[error("record to a run that was not started")]
    NotStarted,
}

impl MlflowError {
    /// Returns true if a retry of the same request may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Refused { status, .. } => status.is_server_error() || [408, 429].contains(&status.as_u16()),
            _ => false,
        }
    }

    /// Returns true if a single entry of the request may have caused the error.
    pub(super) fn may_concern_one_entry(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if [400, 413, 422, 500].contains(&status.as_u16()))
    }

    /// Returns true if the server refused the request rather than failed.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error())
    }
}

/// First five names, and the number of the others.
fn list_names(names: &[String]) -> String {
    let first = names.iter().take(5).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{first} and {} more", names.len() - 5) } else { first }
}

impl From<reqwest::Error> for MlflowError {
    fn from(error: reqwest::Error) -> Self {
        // The address may contain a password.
        Self::Http(error.without_url())
    }
}

/// Checked address of a server without a trailing slash.
pub(super) fn address(uri: &str) -> Result<String, MlflowError> {
    let is_server = |url: &Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
    match Url::parse(uri).ok().filter(is_server) {
        Some(_) => Ok(uri.trim_end_matches('/').to_owned()),
        None => Err(MlflowError::Address(uri.to_owned())),
    }
}

#[derive(Debug, Clone)]
pub(super) struct ApiRun {
    pub(super) run_id: String,
    artifact_uri: String,
}

pub(super) struct Api {
    client: Client,
    base: String,
    access: MlflowAccess,
}

/// Maximum number of attempts of a request that cannot reach the server or finds it busy.
const MAX_ATTEMPTS: u32 = 3;

impl Api {
    pub(super) fn new(access: &MlflowAccess) -> Result<Self, MlflowError> {
        // The provider is process-wide; an error means that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("sepal/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .build()?;
        let base = access.tracking_uri.clone().ok_or(MlflowError::NoServer)?;
        Ok(Self { client, base, access: access.clone() })
    }

    /// Address of the server without user and password.
    pub(super) fn server(&self) -> String {
        let bare = |mut url: Url| {
            url.set_username("").ok()?;
            url.set_password(None).ok()?;
            Some(url.to_string())
        };
        Url::parse(&self.base).ok().and_then(bare).unwrap_or_default()
    }

    /// Returns the id of an experiment, which is created if missing.
    pub(super) fn experiment(&self, name: &str) -> Result<String, MlflowError> {
        const ENDPOINT: &str = "experiments/create";
        if let Some(id) = self.find_experiment(name)? {
            return Ok(id);
        }
        match self.post(ENDPOINT, &json!({ "name": name })) {
            Ok(made) => string(&made["experiment_id"], ENDPOINT, "experiment_id"),
            // Another run created it first.
            Err(MlflowError::Refused { code, .. }) if code == "RESOURCE_ALREADY_EXISTS" => self
                .find_experiment(name)?
                .ok_or(MlflowError::Answer { what: ENDPOINT.to_owned(), key: "experiment_id" }),
            Err(error) => Err(error),
        }
    }

    fn find_experiment(&self, name: &str) -> Result<Option<String>, MlflowError> {
        const ENDPOINT: &str = "experiments/get-by-name";
        let url = Url::parse_with_params(&self.url(ENDPOINT), [("experiment_name", name)])
            .map_err(|_| MlflowError::Address(self.server()))?;
        let found = self.send(ENDPOINT, || self.with_auth(self.client.get(url.clone())));
        match missing_as_none(found)? {
            Some(found) => string(&found["experiment"]["experiment_id"], ENDPOINT, "experiment_id").map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn create_run(&self, experiment: &str, name: &str, id: &str) -> Result<ApiRun, MlflowError> {
        const ENDPOINT: &str = "runs/create";
        let tag = |key: &str, value: &str| json!({ "key": key, "value": value });
        let body = json!({
            "experiment_id": experiment,
            "run_name": name,
            "start_time": now(),
            "tags": [tag("mlflow.source.name", "sepal"), tag("mlflow.source.type", "LOCAL"), tag("sepal.run", id)],
        });
        parse_run(&self.post(ENDPOINT, &body)?["run"]["info"], ENDPOINT)
    }

    /// Sets a run to running; none if the server does not know it.
    pub(super) fn reopen_run(&self, run_id: &str) -> Result<Option<ApiRun>, MlflowError> {
        const ENDPOINT: &str = "runs/update";
        let answer = match self.post(ENDPOINT, &json!({ "run_id": run_id, "status": "RUNNING" })) {
            // A deleted run is refused like an invalid request.
            Err(error) if error.is_refusal() && self.check_active(run_id).is_err() => return Ok(None),
            answer => missing_as_none(answer)?,
        };
        answer.map(|answer| parse_run(&answer["run_info"], ENDPOINT)).transpose()
    }

    pub(super) fn end_run(&self, run_id: &str, status: &str) -> Result<(), MlflowError> {
        self.post("runs/update", &json!({ "run_id": run_id, "status": status, "end_time": now() })).map(drop)
    }

    /// `kind` is `metrics`, `params` or `tags`.
    pub(super) fn log_batch(&self, run_id: &str, kind: &str, entries: &[Value]) -> Result<(), MlflowError> {
        let answer = self.post("runs/log-batch", &json!({ "run_id": run_id, kind: entries }));
        missing_as_none(answer)?.map(drop).ok_or_else(|| MlflowError::Deleted { run_id: run_id.to_owned() })
    }

    /// Error if the run was deleted. An answer without that information counts as active.
    pub(super) fn check_active(&self, run_id: &str) -> Result<(), MlflowError> {
        const ENDPOINT: &str = "runs/get";
        let url = Url::parse_with_params(&self.url(ENDPOINT), [("run_id", run_id)])
            .map_err(|_| MlflowError::Address(self.server()))?;
        let answer = self.send(ENDPOINT, || self.with_auth(self.client.get(url.clone())));
        let is_deleted = match missing_as_none(answer) {
            Ok(Some(answer)) => answer["run"]["info"]["lifecycle_stage"] == "deleted",
            Ok(None) => true,
            Err(error) if error.is_refusal() => false,
            Err(error) => return Err(error),
        };
        if is_deleted { Err(MlflowError::Deleted { run_id: run_id.to_owned() }) } else { Ok(()) }
    }

    pub(super) fn store(&self, run: &ApiRun, name: &str, path: &Path) -> Result<(), MlflowError> {
        let unsupported = || MlflowError::UnsupportedStore { file: name.to_owned(), uri: run.artifact_uri.clone() };
        let root = proxied_path(&run.artifact_uri).ok_or_else(unsupported)?;
        let content = std::fs::read(path).map_err(|source| MlflowError::Read { path: path.to_owned(), source })?;
        let url = format!("{}/api/2.0/mlflow-artifacts/artifacts/{root}/{name}", self.base);
        let put = || self.with_auth(self.client.put(&url)).timeout(Duration::from_secs(120)).body(content.clone());
        self.send(name, put).map(drop)
    }

    fn post(&self, what: &str, body: &Value) -> Result<Value, MlflowError> {
        let body = body.to_string();
        let request = || self.with_auth(self.client.post(self.url(what))).header("content-type", "application/json");
        self.send(what, || request().body(body.clone()))
    }

    fn url(&self, what: &str) -> String {
        format!("{}/api/2.0/mlflow/{what}", self.base)
    }

    fn with_auth(&self, request: RequestBuilder) -> RequestBuilder {
        match (&self.access.username, &self.access.password, &self.access.token) {
            (Some(username), Some(password), _) => request.basic_auth(username, Some(password)),
            (_, _, Some(token)) => request.bearer_auth(token),
            _ => request,
        }
    }

    fn send(&self, what: &str, request: impl Fn() -> RequestBuilder) -> Result<Value, MlflowError> {
        let mut attempts = 1;
        loop {
            let error = match request().send() {
                Ok(response) if response.status().is_success() => return Ok(body_json(response)),
                Ok(response) if is_transient(response.status()) => refusal(what, response),
                Ok(response) => return Err(refusal(what, response)),
                Err(error) if error.is_connect() => error.into(),
                Err(error) => return Err(error.into()),
            };
            if attempts == MAX_ATTEMPTS {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(300) * attempts);
            attempts += 1;
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("server", &self.server()).finish_non_exhaustive()
    }
}

/// Path of an artifact address, if the server stores artifacts itself.
fn proxied_path(artifact_uri: &str) -> Option<&str> {
    let rest = artifact_uri.strip_prefix("mlflow-artifacts:")?;
    let path = match rest.strip_prefix("//") {
        Some(with_host) => with_host.split_once('/')?.1,
        None => rest,
    };
    Some(path.trim_matches('/'))
}

fn is_transient(status: StatusCode) -> bool {
    [429, 502, 503, 504].contains(&status.as_u16())
}

/// JSON of an answer; null if it is not JSON.
fn body_json(response: Response) -> Value {
    response.bytes().ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null)
}

fn refusal(what: &str, response: Response) -> MlflowError {
    let status = response.status();
    let text = response.text().unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let message = body["message"].as_str().unwrap_or(&text).chars().take(300).collect();
    let code = body["error_code"].as_str().unwrap_or_default().to_owned();
    MlflowError::Refused { what: what.to_owned(), status, code, message }
}

/// Maps the error for a missing resource to none.
fn missing_as_none(answer: Result<Value, MlflowError>) -> Result<Option<Value>, MlflowError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(MlflowError::Refused { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_run(info: &Value, what: &str) -> Result<ApiRun, MlflowError> {
    let run_id = string(&info["run_id"], what, "run_id")?;
    Ok(ApiRun { run_id, artifact_uri: info["artifact_uri"].as_str().unwrap_or_default().to_owned() })
}

fn string(value: &Value, what: &str, key: &'static str) -> Result<String, MlflowError> {
    value.as_str().map(str::to_owned).ok_or_else(|| MlflowError::Answer { what: what.to_owned(), key })
}

/// Milliseconds since 1970.
fn now() -> u64 {
    since_epoch().as_millis() as u64
}
