//! The hub's HTTP interface for whoever writes: the same requests that its Python tools make. Large files go by Git LFS's
//! batch interface with its basic transfer, which every hub knows.

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
/// The hub looks at a file's beginning to tell text from bytes.
const SAMPLE: usize = 512;
/// Bytes that are handed to the connection at a time.
const CHUNK: usize = 1 << 16;
/// How often who watches is told of bytes.
const TICK: Duration = Duration::from_millis(200);

/// A file that goes up.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) name: String,
    pub(crate) content: Bytes,
    /// Lower-case hexadecimal.
    pub(crate) sha256: String,
    pub(crate) git_hash: String,
}

/// How the hub wants a file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Wanted {
    pub(crate) path: String,
    upload_mode: String,
    #[serde(default)]
    pub(crate) should_ignore: bool,
    /// The digest of the file that is there under this name.
    oid: Option<String>,
}

impl Wanted {
    /// Whether it goes beside the commit, not in it.
    pub(crate) fn is_large(&self) -> bool {
        self.upload_mode == "lfs"
    }

    /// Whether it is there already, as it is.
    pub(crate) fn has(&self, file: &Upload) -> bool {
        let own = if self.is_large() { &file.sha256 } else { &file.git_hash };
        self.oid.as_ref() == Some(own)
    }
}

/// Where a large file goes, and who is told when it is there.
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

/// A commit that was made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Commit {
    pub(crate) commit_oid: String,
}

impl Api {
    /// The repository's page.
    pub(crate) fn page(&self, id: RepoId<'_>) -> Url {
        self.url(&[id.source.owner(), id.source.name()], None)
    }

    /// Makes the repository.
    pub(crate) async fn create(&self, id: RepoId<'_>, private: bool) -> Result<(), ApiError> {
        let url = self.url(&["api", "repos", "create"], None);
        let (owner, name) = (id.source.owner(), id.source.name());
        let mut body = json!({ "name": name, "organization": owner, "type": "model" });
        // Where it is not said, it is as the organisation has it.
        if private {
            body["private"] = true.into();
        }
        self.post(url, JSON, &body).await.map(drop)
    }

    /// Whether only some may read the repository; nothing if it is not there.
    pub(crate) async fn is_private(&self, id: RepoId<'_>) -> Result<Option<bool>, ApiError> {
        #[derive(Deserialize)]
        struct Info {
            private: bool,
        }
        let url = self.url(&["api", id.plural(), id.source.owner(), id.source.name()], None);
        match self.patiently(|| self.ask(self.request(Method::GET, url.clone()))).await {
            Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            answer => Ok(Some(serde_json::from_slice::<Info>(&answer?)?.private)),
        }
    }

    /// How the hub wants these files.
    pub(crate) async fn wanted(&self, id: RepoId<'_>, branch: &str, files: &[Upload]) -> Result<Vec<Wanted>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<Wanted>,
        }
        let file = |file: &Upload| {
            let sample = STANDARD.encode(&file.content[..file.content.len().min(SAMPLE)]);
            json!({ "path": file.name, "sample": sample, "size": file.content.len() })
        };
        let body = json!({ "files": files.iter().map(file).collect::<Vec<_>>() });
        let url = self.url(&["api", id.plural(), id.source.owner(), id.source.name(), "preupload", branch], None);
        Ok(serde_json::from_slice::<Answer>(&self.post(url, JSON, &body).await?)?.files)
    }

    /// Where a large file goes; nothing if the hub has its content, under whatever name.
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
            return Err(ApiError::Refused("it wants large files in another way than was offered".to_owned()));
        }
        match answer.objects.into_iter().next() {
            Some(Object { error: Some(problem), .. }) => Err(ApiError::Refused(problem.message)),
            Some(object) => Ok(object.actions),
            None => Err(ApiError::Refused("it says nothing of the file".to_owned())),
        }
    }

    /// Brings a large file to the hub's storage, unless its content is there. `watch` is told how many bytes went.
    pub(crate) async fn bring(
        &self,
        id: RepoId<'_>,
        branch: &str,
        file: &Upload,
        watch: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let (mut pause, mut left) = (self.backoff, self.retries);
        loop {
            // Addresses are signed for a while alone.
            let Some(Actions { upload, verify }) = self.actions(id, branch, file).await? else { return Ok(()) };
            let Some(action) = upload else { return Ok(()) };
            match self.put(&action, file, watch).await {
                Err(error) if error.is_passing() && left > 0 => sleep(error.pause(pause)).await,
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

    /// Sends a file's content. It may take as long as it takes while bytes go.
    async fn put(
        &self,
        action: &Action,
        file: &Upload,
        watch: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ApiError> {
        let went = Arc::new(AtomicU64::new(0));
        let body = Counted { content: file.content.clone(), went: Arc::clone(&went) };
        let mut request = self.foreign(Method::PUT, self.address(&action.href)?);
        for (name, value) in &action.header {
            request = request.header(name, value);
        }
        let mut answer = pin!(request.body(reqwest::Body::wrap(body)).send());
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            match timeout(TICK, &mut answer).await {
                Ok(answer) => return accepted(answer?).map(drop).map_err(of_storage),
                Err(_) => {
                    let now = went.load(Ordering::Relaxed);
                    if now > seen {
                        (seen, since) = (now, Instant::now());
                    } else if since.elapsed() >= self.stall {
                        return Err(ApiError::Stalled(self.stall));
                    }
                    if watch(now).is_break() {
                        return Err(ApiError::Stopped);
                    }
                }
            }
        }
    }

    /// Makes one commit of all files. It is asked for once: a second time it might be made twice.
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
        let url = self.url(&["api", id.plural(), id.source.owner(), id.source.name(), "commit", branch], None);
        let request = self.request(Method::POST, url).header(CONTENT_TYPE, "application/x-ndjson").body(body);
        Ok(serde_json::from_slice(&self.ask(request).await?)?)
    }

    /// An address that the hub gave. A mirror may pass on those of the hub that it mirrors; they are asked for there.
    fn address(&self, text: &str) -> Result<Url, ApiError> {
        // Such addresses are signed: they are secrets.
        let refused =
            || ApiError::Refused("it names a place that is no address, or one that is not encrypted".to_owned());
        let url = Url::parse(text).map_err(|_| refused())?;
        if url.origin().ascii_serialization() == HUB {
            let mut here = self.endpoint.clone();
            // It is encoded already.
            here.set_path(&format!("{}{}", self.endpoint.path().trim_end_matches('/'), url.path()));
            here.set_query(url.query());
            return Ok(here);
        }
        let schemes: &[&str] = if self.endpoint.scheme() == "https" { &["https"] } else { &["http", "https"] };
        if schemes.contains(&url.scheme()) { Ok(url) } else { Err(refused()) }
    }

    /// Asks for something that may be asked for twice.
    async fn post(&self, url: Url, format: &'static str, body: &Value) -> Result<Vec<u8>, ApiError> {
        let body = Bytes::from(body.to_string());
        let ask = || {
            let request = if url.origin() == self.endpoint.origin() {
                self.request(Method::POST, url.clone())
            } else {
                self.foreign(Method::POST, url.clone())
            };
            self.ask(request.header(ACCEPT, format).header(CONTENT_TYPE, format).body(body.clone()))
        };
        self.patiently(ask).await
    }
}

/// A file as a line of a commit.
fn line(file: &Upload, is_large: bool) -> Value {
    let Upload { name, content, sha256, .. } = file;
    if is_large {
        let value = json!({ "path": name, "algo": "sha256", "oid": sha256, "size": content.len() });
        return json!({ "key": "lfsFile", "value": value });
    }
    let value = json!({ "path": name, "encoding": "base64", "content": STANDARD.encode(content) });
    json!({ "key": "file", "value": value })
}

/// A refusal by the storage says nothing of what whoever is logged in may do on the hub.
fn of_storage(error: ApiError) -> ApiError {
    match error {
        ApiError::Status { status, .. } if !error.is_passing() => {
            ApiError::Refused(format!("the hub's storage answered {status}"))
        }
        error => error,
    }
}

/// A body that counts what of it the connection took.
struct Counted {
    content: Bytes,
    went: Arc<AtomicU64>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.content.is_empty() {
            return Poll::Ready(None);
        }
        let chunk = this.content.split_to(this.content.len().min(CHUNK));
        this.went.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.len() as u64)
    }
}
