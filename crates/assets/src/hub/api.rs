//! The hub's HTTP interface: which commit a revision stands for, what files it has, and their bytes.

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

/// The longest pause that the hub may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A client of a hub.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    pub(super) endpoint: Url,
    token: Option<HeaderValue>,
    pub(crate) stall: Duration,
    pub(crate) retries: u32,
    pub(crate) backoff: Duration,
}

/// A repository on the hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RepoId<'a> {
    pub(crate) source: &'a HubSource,
    pub(crate) kind: Kind,
}

/// A file as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    /// The sha256 of its content for a large file, its git hash for a small one.
    pub(crate) oid: String,
}

/// Why the hub gave no answer, or not the one that was wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ApiError {
    #[error("{}", refusal(*status, said))]
    Status { status: StatusCode, said: Option<String>, retry_after: Option<Duration> },
    #[error("{}", if .0.is_connect() { last_cause(.0).to_string() } else { one_line(.0) })]
    Http(reqwest::Error),
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the connection ended early")]
    Short,
    #[error(
        "it sends whole files only, where a part was asked for; download the model with another tool and name its folder"
    )]
    NoRanges,
    #[error("its answer was not understood: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("{0} is no address")]
    Address(String),
    #[error("{0}")]
    Refused(String),
    #[error("it was told to stop")]
    Stopped,
    #[error("the token that is set for it has characters that no token has")]
    Token,
}

impl ApiError {
    /// Whether asking again may help.
    pub(crate) fn is_passing(&self) -> bool {
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

    /// How long to wait before asking again: what the hub says, else `pause`.
    pub(crate) fn pause(&self, pause: Duration) -> Duration {
        match self {
            Self::Status { retry_after: Some(asked), .. } => pause.max(*asked).min(LONGEST_PAUSE),
            _ => pause,
        }
    }
}

impl From<reqwest::Error> for ApiError {
    fn from(error: reqwest::Error) -> Self {
        // Addresses of downloads are signed: they are secrets, and long.
        Self::Http(error.without_url())
    }
}

impl Api {
    pub(crate) fn new(options: &AssetOptions) -> Result<Self, ApiError> {
        let endpoint = &options.hub_endpoint;
        let is_http = |url: &Url| ["http", "https"].contains(&url.scheme());
        let endpoint = Url::parse(endpoint).ok().filter(is_http).ok_or_else(|| ApiError::Address(endpoint.clone()))?;
        // For the whole process; an error says that somebody has chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("sepal/", env!("CARGO_PKG_VERSION"));
        let mut headers = HeaderMap::new();
        // Compressed bytes could not be counted, and not be asked for from the middle on.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let client = Client::builder().user_agent(agent).default_headers(headers).build()?;
        Ok(Self {
            client,
            endpoint,
            token: options.hub_token.as_ref().map(bearer).transpose()?,
            stall: options.hub_stall,
            retries: options.hub_retries,
            backoff: options.hub_backoff,
        })
    }

    /// Whether the hub is there at all; a refusal is an answer, too.
    pub(crate) async fn probe(&self, id: RepoId<'_>) -> Result<(), ApiError> {
        let url = self.url(&["api", id.plural(), id.source.owner(), id.source.name()], None);
        match self.get(url, None).await {
            Ok(_) | Err(ApiError::Status { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The commit that a branch or tag stands for.
    pub(crate) async fn commit(&self, id: RepoId<'_>, revision: &str) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
        }
        let (owner, name) = (id.source.owner(), id.source.name());
        let url = self.url(&["api", id.plural(), owner, name, "revision", revision], None);
        let (_, body) = self.patiently(|| self.small(url.clone())).await?;
        Ok(serde_json::from_slice::<Revision>(&body)?.sha)
    }

    /// The files of a folder of a commit (`""` is the whole repository's), and of those below it if `deep`.
    pub(crate) async fn list(
        &self,
        id: RepoId<'_>,
        commit: &str,
        folder: &str,
        deep: bool,
    ) -> Result<Vec<Entry>, ApiError> {
        let (owner, name) = (id.source.owner(), id.source.name());
        let mut url = self.url(&["api", id.plural(), owner, name, "tree", commit], Some(folder));
        url.set_query(deep.then_some("recursive=true"));
        let (mut entries, mut next) = (Vec::new(), Some(url));
        while let Some(url) = next {
            let (headers, body) = self.patiently(|| self.small(url.clone())).await?;
            let page: Vec<Listed> = serde_json::from_slice(&body)?;
            entries.extend(page.into_iter().filter_map(Listed::file));
            next = next_page(&headers, &url);
        }
        Ok(entries)
    }

    /// Bytes of a file; fewer than asked for where it ends.
    pub(crate) async fn part(&self, url: Url, range: Range<u64>) -> Result<Vec<u8>, ApiError> {
        self.patiently(|| self.part_once(url.clone(), range.clone())).await
    }

    /// The content of a file from byte `from` on, and where it really begins: at 0 if the hub does not send parts.
    pub(crate) async fn content(&self, url: Url, from: u64) -> Result<(Response, u64), ApiError> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = self.get(url, range).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(from) => Ok((response, from)),
            StatusCode::PARTIAL_CONTENT => Err(ApiError::NoRanges),
            _ => Ok((response, 0)),
        }
    }

    /// Where a file of a commit lies. What lies there does not change: a commit is made of its content.
    pub(crate) fn file_url(&self, id: RepoId<'_>, commit: &str, path: &str) -> Url {
        let (owner, name) = (id.source.owner(), id.source.name());
        let parts = match id.kind {
            Kind::Model | Kind::Adapter => vec![owner, name, "resolve", commit],
            Kind::Dataset => vec![id.plural(), owner, name, "resolve", commit],
        };
        self.url(&parts, Some(path))
    }

    async fn part_once(&self, url: Url, range: Range<u64>) -> Result<Vec<u8>, ApiError> {
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let mut response = self.get(url, Some(header)).await?;
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT && range_start(&response) == Some(range.start);
        // The beginning of the whole file is as good, but nobody wants to read to its middle.
        if !is_part && range.start > 0 {
            return Err(ApiError::NoRanges);
        }
        let mut bytes = Vec::new();
        while bytes.len() < wanted
            && let Some(chunk) = self.in_time(response.chunk()).await??
        {
            bytes.extend_from_slice(&chunk);
        }
        bytes.truncate(wanted);
        Ok(bytes)
    }

    /// A small answer as a whole.
    async fn small(&self, url: Url) -> Result<(HeaderMap, Vec<u8>), ApiError> {
        let response = self.get(url, None).await?;
        Ok((response.headers().clone(), self.body(response).await?))
    }

    /// Asks again where that may help.
    pub(super) async fn patiently<T, F: Future<Output = Result<T, ApiError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, ApiError> {
        let mut pause = self.backoff;
        for _ in 0..self.retries {
            match ask().await {
                Err(error) if error.is_passing() => sleep(error.pause(pause)).await,
                answer => return answer,
            }
            pause *= 2;
        }
        ask().await
    }

    /// An answer that is no refusal, once its headers are there.
    async fn get(&self, url: Url, range: Option<String>) -> Result<Response, ApiError> {
        let mut request = self.request(Method::GET, url);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        accepted(self.in_time(request.send()).await??)
    }

    /// A request to the hub itself, in the name of whoever is logged in.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.token {
            // After a redirection to another host it is not sent.
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    /// A request to whatever host, in nobody's name.
    pub(super) fn foreign(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request and reads its small answer.
    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Vec<u8>, ApiError> {
        let response = accepted(self.in_time(request.send()).await??)?;
        self.body(response).await
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.in_time(response.chunk()).await?? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, ApiError> {
        timeout(self.stall, answer).await.map_err(|_| ApiError::Stalled(self.stall))
    }

    /// An address below the endpoint; each of `parts` is one segment, whatever is in it, and `path` one or more.
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
    pub(super) fn plural(&self) -> &'static str {
        match self.kind {
            Kind::Model | Kind::Adapter => "models",
            Kind::Dataset => "datasets",
        }
    }
}

/// The answer, if it is no refusal.
pub(super) fn accepted(response: Response) -> Result<Response, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let said = header("x-error-message").map(str::to_owned);
    let retry_after = header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    Err(ApiError::Status { status, said, retry_after })
}

/// An entry of a listing as the hub writes it.
#[derive(Deserialize)]
struct Listed {
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

impl Listed {
    /// The entry, if it is a file whose name and digest can be names of files here.
    fn file(self) -> Option<Entry> {
        let oid = self.lfs.map_or(self.oid, |lfs| lfs.oid);
        let is_name = !oid.is_empty() && oid.chars().all(|c| c.is_ascii_alphanumeric());
        let is_file = self.kind == "file" && is_name && checked_path(&self.path).is_ok();
        is_file.then_some(Entry { path: self.path, size: self.size, oid })
    }
}

/// Where the listing goes on: on the same hub, whatever host the link names, as a mirror may pass on those of the hub.
fn next_page(headers: &HeaderMap, url: &Url) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let link = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let next = url.join(link.split_once('<')?.1.split_once('>')?.0).ok()?;
    let mut here = url.clone();
    here.set_path(next.path());
    here.set_query(next.query());
    Some(here)
}

/// The first byte that a part says that it has.
fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// The token as a header that is not shown by whoever prints it.
fn bearer(token: &Token) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret())).map_err(|_| ApiError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn refusal(status: StatusCode, said: &Option<String>) -> impl fmt::Display {
    let mut text = format!("it answered {status}");
    if let Some(said) = said {
        text.push_str(&format!(" ({said})"));
    }
    if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) {
        text.push_str("; if the repository is not open to all, set HF_TOKEN, or log in with `hf auth login`");
    }
    text
}
