//! HTTP interface of the hub for uploads, with the same requests as its Python tools. Large files go by Git LFS's batch
//! interface with its basic transfer, which every hub supports.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::hub::api::{Api, ApiError, RepoId, accepted};

const HUB: &str = "https://huggingface.co";
const JSON: &str = "application/json";
const LFS: &str = "application/vnd.git-lfs+json";
/// Bytes of a file's start that the hub inspects to tell text from binary files.
const SAMPLE: usize = 512;
/// Bytes that are handed to the connection at a time.
const CHUNK: usize = 1 << 16;
/// Interval of progress events.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) name: String,
    pub(crate) content: Bytes,
    pub(crate) sha256: String,
    pub(crate) git_hash: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UploadDecision {
    pub(crate) path: String,
    upload_mode: String,
    #[serde(default)]
    pub(crate) should_ignore: bool,
    /// Digest of the present file of this name.
    oid: Option<String>,
}

impl UploadDecision {
    /// Returns true if the file is stored outside of the commit, by Git LFS.
    pub(crate) fn is_large(&self) -> bool {
        self.upload_mode == "lfs"
    }

    /// Returns true if the repository has the same content under this name.
    pub(crate) fn is_unchanged(&self, file: &Upload) -> bool {
        let own = if self.is_large() { &file.sha256 } else { &file.git_hash };
        self.oid.as_ref() == Some(own)
    }
}

/// Upload and verification requests of a large file.
#[derive(Debug, Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Debug, Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Commit {
    pub(crate) commit_oid: String,
}

impl Api {
    pub(crate) fn page(&self, id: RepoId<'_>) -> Url {
        self.url(&[id.source.owner(), id.source.name()], None)
    }

    pub(crate) async fn create(&self, id: RepoId<'_>, private: bool) -> Result<(), ApiError> {
        let url = self.url(&["api", "repos", "create"], None);
        let (owner, name) = (id.source.owner(), id.source.name());
        let mut body = json!({ "name": name, "organization": owner, "type": "model" });
        // Without the key, the default of the organisation applies.
        if private {
            body["private"] = true.into();
        }
        self.post(url, JSON, &body).await.map(drop)
    }

    /// Returns true if the repository is private; none if it does not exist.
    pub(crate) async fn is_private(&self, id: RepoId<'_>) -> Result<Option<bool>, ApiError> {
        #[derive(Deserialize)]
        struct Info {
            private: bool,
        }
        let url = self.api_url(id, &[], None);
        match self.with_retries(|| self.send(self.request(Method::GET, url.clone()))).await {
            Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            answer => Ok(Some(serde_json::from_slice::<Info>(&answer?)?.private)),
        }
    }

    pub(crate) async fn upload_decisions(
        &self,
        id: RepoId<'_>,
        branch: &str,
        files: &[Upload],
    ) -> Result<Vec<UploadDecision>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<UploadDecision>,
        }
        let file = |file: &Upload| {
            let sample = STANDARD.encode(&file.content[..file.content.len().min(SAMPLE)]);
            json!({ "path": file.name, "sample": sample, "size": file.content.len() })
        };
        let body = json!({ "files": files.iter().map(file).collect::<Vec<_>>() });
        let url = self.api_url(id, &["preupload", branch], None);
        Ok(serde_json::from_slice::<Answer>(&self.post(url, JSON, &body).await?)?.files)
    }

    /// Returns the requests of a large file; none if the hub has its content under any name.
    async fn actions(&self, id: RepoId<'_>, branch: &str, file: &Upload) -> Result<Option<Actions>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            transfer: Option<String>,
            objects: Vec<Object>,
        }
        #[derive(Deserialize)]
        struct Object {
            actions: Option<Actions>,
            error: Option<Problem>,
        }
        #[derive(Deserialize)]
        struct Problem {
            message: String,
        }
        let name = format!("{}.git", id.source.name());
        let url = self.url(&[id.source.owner(), &name, "info", "lfs", "objects", "batch"], None);
        let body = json!({
            "operation": "upload", "transfers": ["basic"], "hash_algo": "sha256", "ref": { "name": branch },
            "objects": [{ "oid": file.sha256, "size": file.content.len() }],
        });
        let answer: Answer = serde_json::from_slice(&self.post(url, LFS, &body).await?)?;
        if answer.transfer.is_some_and(|transfer| transfer != "basic") {
            return Err(ApiError::Refused("it requires an unsupported transfer for large files".to_owned()));
        }
        match answer.objects.into_iter().next() {
            Some(Object { error: Some(problem), .. }) => Err(ApiError::Refused(problem.message)),
            Some(object) => Ok(object.actions),
            None => Err(ApiError::Refused("it does not answer for the file".to_owned())),
        }
    }

    /// Uploads a large file unless the hub has its content. `on_event` receives the number of sent bytes.
    pub(crate) async fn upload(
        &self,
        id: RepoId<'_>,
        branch: &str,
        file: &Upload,
        on_event: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let (mut pause, mut left) = (self.backoff, self.retries);
        loop {
            // The signature of an address expires, so each attempt requests a new one.
            let Some(Actions { upload, verify }) = self.actions(id, branch, file).await? else { return Ok(()) };
            let Some(action) = upload else { return Ok(()) };
            match self.put(&action, file, on_event).await {
                Err(error) if error.is_transient() && left > 0 => sleep(error.pause(pause)).await,
                answer => {
                    answer?;
                    let Some(action) = verify else { return Ok(()) };
                    let body = json!({ "oid": file.sha256, "size": file.content.len() });
                    return self.post(self.address(&action.href)?, LFS, &body).await.map(drop);
                }
            }
            (pause, left) = (pause * 2, left - 1);
        }
    }

    /// Sends the content of a file, without a time limit as long as bytes are sent.
    async fn put(
        &self,
        action: &Action,
        file: &Upload,
        on_event: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let n_sent = Arc::new(AtomicU64::new(0));
        let body = CountingBody { content: file.content.clone(), n_sent: Arc::clone(&n_sent) };
        let mut request = self.request_without_token(Method::PUT, self.address(&action.href)?);
        for (name, value) in &action.header {
            request = request.header(name, value);
        }
        let mut answer = pin!(request.body(reqwest::Body::wrap(body)).send());
        let (mut last, mut since) = (0, Instant::now());
        loop {
            match timeout(TICK, &mut answer).await {
                Ok(answer) => return accepted(answer?).map(drop).map_err(storage_error),
                Err(_) => {
                    let sent = n_sent.load(Ordering::Relaxed);
                    if sent > last {
                        (last, since) = (sent, Instant::now());
                    } else if since.elapsed() >= self.stall {
                        return Err(ApiError::Stalled(self.stall));
                    }
                    if on_event(sent).is_break() {
                        return Err(ApiError::Stopped);
                    }
                }
            }
        }
    }

    /// Commits all files. There is no retry, since a retry might commit twice.
    pub(crate) async fn make_commit(
        &self,
        id: RepoId<'_>,
        branch: &str,
        message: &str,
        files: &[(&Upload, bool)],
    ) -> Result<Commit, ApiError> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        lines.extend(files.iter().map(|(file, is_large)| line(file, *is_large)));
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = self.api_url(id, &["commit", branch], None);
        let request = self.request(Method::POST, url).header(CONTENT_TYPE, "application/x-ndjson").body(body);
        Ok(serde_json::from_slice(&self.send(request).await?)?)
    }

    /// Parses an address from the hub. A mirror may pass on addresses of the original hub; they are redirected to the
    /// mirror.
    fn address(&self, text: &str) -> Result<Url, ApiError> {
        // The address is signed, so the error does not show it.
        let refused = || ApiError::Refused("it sent an upload address that is invalid or not encrypted".to_owned());
        let url = Url::parse(text).map_err(|_| refused())?;
        if url.origin().ascii_serialization() == HUB {
            let mut mirrored = self.endpoint.clone();
            // The path is percent-encoded already.
            mirrored.set_path(&format!("{}{}", self.endpoint.path().trim_end_matches('/'), url.path()));
            mirrored.set_query(url.query());
            return Ok(mirrored);
        }
        let schemes: &[&str] = if self.endpoint.scheme() == "https" { &["https"] } else { &["http", "https"] };
        if schemes.contains(&url.scheme()) { Ok(url) } else { Err(refused()) }
    }

    /// Sends an idempotent POST request, with retries.
    async fn post(&self, url: Url, format: &'static str, body: &Value) -> Result<Vec<u8>, ApiError> {
        let body = Bytes::from(body.to_string());
        let send = || {
            let request = if url.origin() == self.endpoint.origin() {
                self.request(Method::POST, url.clone())
            } else {
                self.request_without_token(Method::POST, url.clone())
            };
            self.send(request.header(ACCEPT, format).header(CONTENT_TYPE, format).body(body.clone()))
        };
        self.with_retries(send).await
    }
}

fn line(file: &Upload, is_large: bool) -> Value {
    let Upload { name, content, sha256, .. } = file;
    if is_large {
        let value = json!({ "path": name, "algo": "sha256", "oid": sha256, "size": content.len() });
        return json!({ "key": "lfsFile", "value": value });
    }
    let value = json!({ "path": name, "encoding": "base64", "content": STANDARD.encode(content) });
    json!({ "key": "file", "value": value })
}

/// A refusal by the storage does not concern the rights of the user on the hub, so its status is hidden.
fn storage_error(error: ApiError) -> ApiError {
    match error {
        ApiError::Status { status, .. } if !error.is_transient() => {
            ApiError::Refused(format!("the hub's storage answered {status}"))
        }
        error => error,
    }
}

/// Request body that counts the bytes taken by the connection.
struct CountingBody {
    content: Bytes,
    n_sent: Arc<AtomicU64>,
}

impl Body for CountingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.content.is_empty() {
            return Poll::Ready(None);
        }
        let chunk = this.content.split_to(this.content.len().min(CHUNK));
        this.n_sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.len() as u64)
    }
}
