//! HTTP interface of the hub: commits of revisions, file listings, file contents.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, LINK, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::error::{last_cause, one_line};
use crate::options::Token;
use crate::source::checked_path;
use crate::{AssetOptions, HubSource, Kind};

/// Longest pause that the hub may request.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Most bytes of an answer other than the content of a file.
const MAX_ANSWER: usize = 64 << 20;

/// Most pages of a listing.
const MAX_PAGES: usize = 10_000;

/// Most files of a repository.
const MAX_FILES: usize = 1_000_000;

#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    pub(super) endpoint: Url,
    token: Option<HeaderValue>,
    pub(crate) stall: Duration,
    pub(crate) retries: u32,
    pub(crate) backoff: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct RepoId<'a> {
    pub(crate) source: &'a HubSource,
    pub(crate) kind: Kind,
}

/// File in a listing of the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// Size in bytes.
    pub(crate) size: u64,
    /// SHA-256 of the content of a large file, git hash of a small one.
    pub(crate) oid: String,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ApiError {
    #[error("{}", refusal(*status, message))]
    Status { status: StatusCode, message: Option<String>, retry_after: Option<Duration> },
    #[error("{}", if .0.is_connect() { last_cause(.0).to_string() } else { one_line(.0) })]
    Http(reqwest::Error),
    #[error("received nothing for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the connection ended early")]
    Short,
    #[error("it ignores byte ranges; download the model with another tool and use its folder")]
    NoRanges,
    #[error("its answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("{0} is not a valid address")]
    Address(String),
    #[error("{0}")]
    Refused(String),
    #[error("the transfer was stopped")]
    Stopped,
    #[error("its token has invalid characters")]
    Token,
}

impl ApiError {
    /// Returns true if a retry may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            Self::Http(error) => !(error.is_builder() || error.is_redirect()),
            Self::Stalled(_) | Self::Short => true,
            Self::NoRanges | Self::Answer(_) | Self::Address(_) | Self::Refused(_) | Self::Stopped | Self::Token => {
                false
            }
        }
    }

    /// Pause before the next attempt: the larger one of `pause` and the hub's request.
    pub(crate) fn pause(&self, pause: Duration) -> Duration {
        match self {
            Self::Status { retry_after: Some(requested), .. } => pause.max(*requested).min(MAX_PAUSE),
            _ => pause,
        }
    }
}

impl From<reqwest::Error> for ApiError {
    fn from(error: reqwest::Error) -> Self {
        // Download addresses are signed, so they are secrets.
        Self::Http(error.without_url())
    }
}

impl Api {
    pub(crate) fn new(options: &AssetOptions) -> Result<Self, ApiError> {
        let endpoint = &options.hub_endpoint;
        let is_http = |url: &Url| ["http", "https"].contains(&url.scheme());
        let endpoint = Url::parse(endpoint).ok().filter(is_http).ok_or_else(|| ApiError::Address(endpoint.clone()))?;
        // The provider is process-wide; an error means that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("sepal/", env!("CARGO_PKG_VERSION"));
        let mut headers = HeaderMap::new();
        // Byte ranges and progress need uncompressed content.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let client = Client::builder().user_agent(agent).default_headers(headers).build()?;
        Ok(Self {
            client,
            endpoint,
            token: options.hub_token.as_ref().map(bearer).transpose()?,
            stall: options.hub_stall_timeout,
            retries: options.hub_retries,
            backoff: options.hub_backoff,
        })
    }

    /// Error if the hub is unreachable; a refusal counts as an answer.
    pub(crate) async fn probe(&self, id: RepoId<'_>) -> Result<(), ApiError> {
        let url = self.api_url(id, &[], None);
        match self.get(url, None).await {
            Ok(_) | Err(ApiError::Status { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn commit(&self, id: RepoId<'_>, revision: &str) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
        }
        let url = self.api_url(id, &["revision", revision], None);
        let (_, body) = self.with_retries(|| self.get_body(url.clone())).await?;
        Ok(serde_json::from_slice::<Revision>(&body)?.sha)
    }

    /// Lists the files of a folder of a commit (`""` is the root), recursively if `deep`.
    pub(crate) async fn list(
        &self,
        id: RepoId<'_>,
        commit: &str,
        folder: &str,
        deep: bool,
    ) -> Result<Vec<Entry>, ApiError> {
        let mut url = self.api_url(id, &["tree", commit], Some(folder));
        url.set_query(deep.then_some("recursive=true"));
        let (mut entries, mut next, mut n_pages) = (Vec::new(), Some(url), 0);
        while let Some(url) = next {
            n_pages += 1;
            if n_pages > MAX_PAGES || entries.len() > MAX_FILES {
                return Err(ApiError::Refused(format!("it lists more than {MAX_FILES} files")));
            }
            let (headers, body) = self.with_retries(|| self.get_body(url.clone())).await?;
            let page: Vec<ListedEntry> = serde_json::from_slice(&body)?;
            entries.extend(page.into_iter().filter_map(ListedEntry::file));
            next = next_page(&headers, &url);
        }
        Ok(entries)
    }

    /// Returns the bytes of a range, cut at the end of the file.
    pub(crate) async fn range(&self, url: Url, range: Range<u64>) -> Result<Vec<u8>, ApiError> {
        self.with_retries(|| self.try_range(url.clone(), range.clone(), None)).await
    }

    /// Returns all bytes of a range of a file that has `size` bytes.
    pub(crate) async fn piece(&self, url: Url, range: Range<u64>, size: u64) -> Result<Vec<u8>, ApiError> {
        self.with_retries(|| self.try_piece(url.clone(), range.clone(), size)).await
    }

    /// Returns a response that streams a file from byte `from` on, and its real start: 0 if the hub ignores ranges.
    pub(crate) async fn content(&self, url: Url, from: u64) -> Result<(Response, u64), ApiError> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = self.get(url, range).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(from) => Ok((response, from)),
            StatusCode::PARTIAL_CONTENT => Err(ApiError::NoRanges),
            _ => Ok((response, 0)),
        }
    }

    /// Address of a file of a commit. Its content never changes, since the commit is a hash of it.
    pub(crate) fn file_url(&self, id: RepoId<'_>, commit: &str, path: &str) -> Url {
        let (owner, name) = (id.source.owner(), id.source.name());
        let parts = match id.kind {
            Kind::Model | Kind::Adapter => vec![owner, name, "resolve", commit],
            Kind::Dataset => vec![id.plural(), owner, name, "resolve", commit],
        };
        self.url(&parts, Some(path))
    }

    async fn try_piece(&self, url: Url, range: Range<u64>, size: u64) -> Result<Vec<u8>, ApiError> {
        let n_bytes = range.end - range.start;
        let bytes = self.try_range(url, range, Some(size)).await?;
        if bytes.len() as u64 == n_bytes { Ok(bytes) } else { Err(ApiError::Short) }
    }

    /// `size` is the expected size of the complete file.
    async fn try_range(&self, url: Url, range: Range<u64>, size: Option<u64>) -> Result<Vec<u8>, ApiError> {
        if range.is_empty() {
            // The header cannot express it.
            return Ok(Vec::new());
        }
        let n_bytes = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let mut response = self.get(url, Some(header)).await?;
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT && range_start(&response) == Some(range.start);
        // A range that starts at 0 may be read from the whole file.
        if !is_part && range.start > 0 {
            return Err(ApiError::NoRanges);
        }
        if let (Some(size), Some(found)) = (size, range_total(&response))
            && size != found
        {
            return Err(ApiError::Refused(format!("the file has {found} bytes there, and {size} in the listing")));
        }
        let mut bytes = Vec::new();
        while bytes.len() < n_bytes
            && let Some(chunk) = self.with_timeout(response.chunk()).await??
        {
            bytes.extend_from_slice(&chunk);
        }
        bytes.truncate(n_bytes);
        Ok(bytes)
    }

    async fn get_body(&self, url: Url) -> Result<(HeaderMap, Vec<u8>), ApiError> {
        let response = self.get(url, None).await?;
        Ok((response.headers().clone(), self.body(response).await?))
    }

    /// Retries transient errors with exponential backoff.
    pub(super) async fn with_retries<T, F: Future<Output = Result<T, ApiError>>>(
        &self,
        send: impl Fn() -> F,
    ) -> Result<T, ApiError> {
        let mut pause = self.backoff;
        for _ in 0..self.retries {
            match send().await {
                Err(error) if error.is_transient() => sleep(error.pause(pause)).await,
                answer => return answer,
            }
            pause *= 2;
        }
        send().await
    }

    /// Sends a GET request and returns a successful response.
    async fn get(&self, url: Url, range: Option<String>) -> Result<Response, ApiError> {
        let mut request = self.request(Method::GET, url);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        accepted(self.with_timeout(request.send()).await??)
    }

    /// Request to the hub with the token of the user.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.token {
            // reqwest drops the header after a redirection to another host.
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    /// Request to any host, without the token.
    pub(super) fn request_without_token(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request and reads the body of a successful response.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, ApiError> {
        let response = accepted(self.with_timeout(request.send()).await??)?;
        self.body(response).await
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.with_timeout(response.chunk()).await?? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(ApiError::Refused(format!("its answer has more than {MAX_ANSWER} bytes")));
            }
        }
        Ok(bytes)
    }

    async fn with_timeout<T>(&self, answer: impl Future<Output = T>) -> Result<T, ApiError> {
        timeout(self.stall, answer).await.map_err(|_| ApiError::Stalled(self.stall))
    }

    pub(super) fn api_url(&self, id: RepoId<'_>, parts: &[&str], path: Option<&str>) -> Url {
        self.url(&[&["api", id.plural(), id.source.owner(), id.source.name()], parts].concat(), path)
    }

    /// Address below the endpoint; each of `parts` is one path segment, and `path` is split at slashes.
    pub(super) fn url(&self, parts: &[&str], path: Option<&str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
            segments.extend(path.into_iter().flat_map(|path| path.split('/')).filter(|part| !part.is_empty()));
        }
        url
    }
}

impl RepoId<'_> {
    fn plural(&self) -> &'static str {
        match self.kind {
            Kind::Model | Kind::Adapter => "models",
            Kind::Dataset => "datasets",
        }
    }
}

/// Error if the status is not a success.
pub(super) fn accepted(response: Response) -> Result<Response, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let message = header("x-error-message").map(str::to_owned);
    let retry_after = header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    Err(ApiError::Status { status, message, retry_after })
}

/// Entry of a listing in the hub's JSON.
#[derive(Deserialize)]
struct ListedEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
}

impl ListedEntry {
    /// Returns the entry if it is a file whose path and digest are valid names of local files.
    fn file(self) -> Option<Entry> {
        let oid = self.lfs.map_or(self.oid, |lfs| lfs.oid);
        let is_name = !oid.is_empty() && oid.chars().all(|c| c.is_ascii_alphanumeric());
        let is_file = self.kind == "file" && is_name && checked_path(&self.path).is_ok();
        is_file.then_some(Entry { path: self.path, size: self.size, oid })
    }
}

/// Address of the next page, on the host of `url`: a mirror may pass on links of the original hub.
fn next_page(headers: &HeaderMap, url: &Url) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let link = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let next = url.join(link.split_once('<')?.1.split_once('>')?.0).ok()?;
    let mut page = url.clone();
    page.set_path(next.path());
    page.set_query(next.query());
    Some(page)
}

fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// Size of the complete file in the answer to a request for a range.
fn range_total(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.rsplit_once('/')?.1.trim().parse().ok()
}

/// Authorization header, marked sensitive so that it is never printed.
fn bearer(token: &Token) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret())).map_err(|_| ApiError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn refusal(status: StatusCode, message: &Option<String>) -> impl fmt::Display {
    let mut text = format!("it answered {status}");
    if let Some(message) = message {
        text.push_str(&format!(" ({message})"));
    }
    if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) {
        text.push_str("; for a repository that is not public, set HF_TOKEN, or log in with `hf auth login`");
    }
    text
}
