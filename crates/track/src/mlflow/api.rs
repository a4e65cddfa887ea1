use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use crate::scalars::since_epoch;

/// Where an MLflow server is and who asks, as the environment says it.
#[derive(Clone, Default)]
pub struct MlflowAccess {
    /// The server.
    pub tracking_uri: Option<String>,
    /// A user.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// A token, used if there is no user with a password.
    pub token: Option<String>,
}

impl MlflowAccess {
    /// From `MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` and `MLFLOW_TRACKING_TOKEN`.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(format!("MLFLOW_TRACKING_{name}")).ok().filter(|v| !v.is_empty());
        Self {
            tracking_uri: variable("URI"),
            username: variable("USERNAME"),
            password: variable("PASSWORD"),
            token: variable("TOKEN"),
        }
    }
}

impl fmt::Debug for MlflowAccess {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MlflowAccess").finish_non_exhaustive()
    }
}

/// Why an MLflow server does not show a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlflowError {
    /// Nothing says where the server is.
    #[error("find the MLflow server: neither `tracking_uri` nor MLFLOW_TRACKING_URI says where it is")]
    Nowhere,
    /// No address of a server.
    #[error("expected http://HOST:PORT or https://HOST, found the text {0:?}")]
    Address(String),
    /// The server was not reached, or broke off.
    #[error("reach the MLflow server")]
    Http(#[source] reqwest::Error),
    /// The server refused.
    #[error("MLflow refused {what}: {status}: {message}")]
    Refused {
        /// What it was asked for.
        what: String,
        /// The HTTP status.
        status: StatusCode,
        /// MLflow's name for the error; empty if it gave none.
        code: String,
        /// Its words.
        message: String,
    },
    /// An answer without what was asked for.
    #[error("understand MLflow's answer to {what}: it has no `{key}`")]
    Answer {
        /// What it was asked for.
        what: String,
        /// What it lacks.
        key: &'static str,
    },
    /// The server does not store artifacts itself.
    #[error(
        "store {file}: artifacts of this run go to {uri}, and only those that the server stores itself are written"
    )]
    Elsewhere {
        /// The file.
        file: String,
        /// Where artifacts go.
        uri: String,
    },
    /// A file of the run's folder that cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Items that the server refuses, each of them tried alone.
    #[error(
        "record the {kind} {} on the MLflow server, which refuses {}: left out for the rest of the run",
        listed(names), if names.len() == 1 { "it" } else { "them" }
    )]
    LeftOut {
        /// `metrics`, `params`, `params and metrics` or `tags`.
        kind: &'static str,
        /// Their names, as the run has them.
        names: Vec<String>,
        /// Refusal of the first.
        #[source]
        source: Box<MlflowError>,
    },
    /// The run was deleted on the server while it went on here.
    #[error("write to the run {run_id}: it was deleted on the MLflow server, which is told nothing more")]
    Deleted {
        /// The server's name for the run.
        run_id: String,
    },
    /// Numbers that the server did not get.
    #[error(
        "send {n} numbers to the MLflow server before the run ended; metrics.jsonl in the run's folder has them all"
    )]
    Unsent {
        /// Count of the numbers.
        n: usize,
        /// Cause of the last failure, if the server was asked.
        #[source]
        source: Option<Box<MlflowError>>,
    },
    /// The server's name for the run cannot be kept in the run's folder.
    #[error("keep the server's name for the run")]
    Mark(#[source] crate::WriteError),
    /// A tracker that was not told that its run began.
    #[error("tell of a run that was not begun")]
    NotBegun,
}

impl MlflowError {
    /// Returns true if a retry of the same request may succeed.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Refused { status, .. } => status.is_server_error() || [408, 429].contains(&status.as_u16()),
            _ => false,
        }
    }

    /// Returns true if a single item of the request may have caused the error.
    pub(super) fn may_be_an_item(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if [400, 413, 422, 500].contains(&status.as_u16()))
    }

    /// Returns true if the server refused the request rather than failed.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error())
    }
}

/// A few names, and how many more there are.
fn listed(names: &[String]) -> String {
    let mut listed = names.iter().take(5).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > 5 {
        listed.push_str(&format!(" and {} more", names.len() - 5));
    }
    listed
}

impl From<reqwest::Error> for MlflowError {
    fn from(error: reqwest::Error) -> Self {
        // An address may hold a password.
        Self::Http(error.without_url())
    }
}

/// The address of a server, without a slash at its end.
pub(super) fn address(uri: &str) -> Result<String, MlflowError> {
    let is_server = |url: &Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
    match Url::parse(uri).ok().filter(is_server) {
        Some(_) => Ok(uri.trim_end_matches('/').to_owned()),
        None => Err(MlflowError::Address(uri.to_owned())),
    }
}

/// A run as the server knows it.
#[derive(Debug, Clone)]
pub(super) struct ApiRun {
    pub(super) run_id: String,
    /// Where its artifacts go.
    artifact_uri: String,
}

/// The few requests that a run needs.
pub(super) struct Api {
    client: Client,
    base: String,
    access: MlflowAccess,
}

/// How often a request is made that cannot reach the server or finds it busy.
const TRIES: u32 = 3;

impl Api {
    pub(super) fn new(access: &MlflowAccess) -> Result<Self, MlflowError> {
        // For the whole process; an error says that somebody has chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("sepal/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .build()?;
        let base = access.tracking_uri.clone().ok_or(MlflowError::Nowhere)?;
        Ok(Self { client, base, access: access.clone() })
    }

    /// The server's address without user and password.
    pub(super) fn server(&self) -> String {
        let bare = |mut url: Url| {
            url.set_username("").ok()?;
            url.set_password(None).ok()?;
            Some(url.to_string())
        };
        Url::parse(&self.base).ok().and_then(bare).unwrap_or_default()
    }

    /// The id of the experiment of this name, which is made if there is none.
    pub(super) fn experiment(&self, name: &str) -> Result<String, MlflowError> {
        const WHAT: &str = "experiments/create";
        if let Some(id) = self.find_experiment(name)? {
            return Ok(id);
        }
        match self.post(WHAT, &json!({ "name": name })) {
            Ok(made) => text(&made["experiment_id"], WHAT, "experiment_id"),
            // Another run was faster.
            Err(MlflowError::Refused { code, .. }) if code == "RESOURCE_ALREADY_EXISTS" => {
                self.find_experiment(name)?.ok_or(MlflowError::Answer { what: WHAT.to_owned(), key: "experiment_id" })
            }
            Err(error) => Err(error),
        }
    }

    fn find_experiment(&self, name: &str) -> Result<Option<String>, MlflowError> {
        const WHAT: &str = "experiments/get-by-name";
        let url = Url::parse_with_params(&self.url(WHAT), [("experiment_name", name)])
            .map_err(|_| MlflowError::Address(self.server()))?;
        let found = self.send(WHAT, || self.with_auth(self.client.get(url.clone())));
        match unless_missing(found)? {
            Some(found) => text(&found["experiment"]["experiment_id"], WHAT, "experiment_id").map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn create_run(&self, experiment: &str, name: &str, id: &str) -> Result<ApiRun, MlflowError> {
        const WHAT: &str = "runs/create";
        let tag = |key: &str, value: &str| json!({ "key": key, "value": value });
        let body = json!({
            "experiment_id": experiment,
            "run_name": name,
            "start_time": now(),
            "tags": [tag("mlflow.source.name", "sepal"), tag("mlflow.source.type", "LOCAL"), tag("sepal.run", id)],
        });
        run_of(&self.post(WHAT, &body)?["run"]["info"], WHAT)
    }

    /// Makes a run one that goes on; none if the server does not know it any more.
    pub(super) fn reopen_run(&self, run_id: &str) -> Result<Option<ApiRun>, MlflowError> {
        const WHAT: &str = "runs/update";
        let answer = match self.post(WHAT, &json!({ "run_id": run_id, "status": "RUNNING" })) {
            // A run that was deleted is refused like any other mistake.
            Err(error) if error.is_refusal() && self.check_active(run_id).is_err() => return Ok(None),
            answer => unless_missing(answer)?,
        };
        answer.map(|answer| run_of(&answer["run_info"], WHAT)).transpose()
    }

    pub(super) fn end_run(&self, run_id: &str, status: &str) -> Result<(), MlflowError> {
        self.post("runs/update", &json!({ "run_id": run_id, "status": status, "end_time": now() })).map(drop)
    }

    /// `kind` is `metrics`, `params` or `tags`.
    pub(super) fn log_batch(&self, run_id: &str, kind: &str, entries: &[Value]) -> Result<(), MlflowError> {
        let answer = self.post("runs/log-batch", &json!({ "run_id": run_id, kind: entries }));
        unless_missing(answer)?.map(drop).ok_or_else(|| MlflowError::Deleted { run_id: run_id.to_owned() })
    }

    /// Asks the server if the run is still there. An answer that does not say so counts as yes.
    pub(super) fn check_active(&self, run_id: &str) -> Result<(), MlflowError> {
        const WHAT: &str = "runs/get";
        let url = Url::parse_with_params(&self.url(WHAT), [("run_id", run_id)])
            .map_err(|_| MlflowError::Address(self.server()))?;
        let answer = self.send(WHAT, || self.with_auth(self.client.get(url.clone())));
        let is_deleted = match unless_missing(answer) {
            Ok(Some(answer)) => answer["run"]["info"]["lifecycle_stage"] == "deleted",
            Ok(None) => true,
            Err(error) if error.is_refusal() => false,
            Err(error) => return Err(error),
        };
        if is_deleted { Err(MlflowError::Deleted { run_id: run_id.to_owned() }) } else { Ok(()) }
    }

    /// Stores a file with a run.
    pub(super) fn store(&self, run: &ApiRun, name: &str, path: &Path) -> Result<(), MlflowError> {
        let elsewhere = || MlflowError::Elsewhere { file: name.to_owned(), uri: run.artifact_uri.clone() };
        let root = proxied(&run.artifact_uri).ok_or_else(elsewhere)?;
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
        let mut tries = 1;
        loop {
            let again = match request().send() {
                Ok(response) if response.status().is_success() => return Ok(json_of(response)),
                Ok(response) if is_passing(response.status()) => refusal(what, response),
                Ok(response) => return Err(refusal(what, response)),
                Err(error) if error.is_connect() => error.into(),
                Err(error) => return Err(error.into()),
            };
            if tries == TRIES {
                return Err(again);
            }
            std::thread::sleep(Duration::from_millis(300) * tries);
            tries += 1;
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("server", &self.server()).finish_non_exhaustive()
    }
}

/// What a run's artifact address says after the server, if the server stores artifacts itself.
fn proxied(artifact_uri: &str) -> Option<&str> {
    let rest = artifact_uri.strip_prefix("mlflow-artifacts:")?;
    let path = match rest.strip_prefix("//") {
        Some(with_host) => with_host.split_once('/')?.1,
        None => rest,
    };
    Some(path.trim_matches('/'))
}

fn is_passing(status: StatusCode) -> bool {
    [429, 502, 503, 504].contains(&status.as_u16())
}

/// An answer's JSON; what is none is nothing.
fn json_of(response: Response) -> Value {
    response.bytes().ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null)
}

fn refusal(what: &str, response: Response) -> MlflowError {
    let status = response.status();
    let text = response.text().unwrap_or_default();
    let said: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let message = said["message"].as_str().unwrap_or(&text).chars().take(300).collect();
    let code = said["error_code"].as_str().unwrap_or_default().to_owned();
    MlflowError::Refused { what: what.to_owned(), status, code, message }
}

/// Nothing where the server says that there is no such thing.
fn unless_missing(answer: Result<Value, MlflowError>) -> Result<Option<Value>, MlflowError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(MlflowError::Refused { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => Ok(None),
        Err(error) => Err(error),
    }
}

fn run_of(info: &Value, what: &str) -> Result<ApiRun, MlflowError> {
    let run_id = text(&info["run_id"], what, "run_id")?;
    Ok(ApiRun { run_id, artifact_uri: info["artifact_uri"].as_str().unwrap_or_default().to_owned() })
}

fn text(value: &Value, what: &str, key: &'static str) -> Result<String, MlflowError> {
    value.as_str().map(str::to_owned).ok_or_else(|| MlflowError::Answer { what: what.to_owned(), key })
}

/// Milliseconds since 1970.
fn now() -> u64 {
    since_epoch().as_millis() as u64
}
