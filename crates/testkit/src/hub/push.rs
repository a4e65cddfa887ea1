//! Uploads to the hub. Requests that the real hub refuses, or must never receive, are answered with an error: a
//! missing repository or branch, another format, a token for the storage.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{COMMIT, LoopbackHub, State, git_hash, is_large, lock, refuse, send_json, sha256};

/// Token with write access.
pub const TOKEN: &str = "hf_loopback";

/// Pushed commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Branch.
    pub branch: String,
    /// First line of the message.
    pub summary: String,
    /// Names of the pushed files.
    pub files: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Pushes {
    pub(super) private: bool,
    /// Branches, once the repository exists.
    branches: Vec<String>,
    /// Large files by digest, before a commit names them.
    store: BTreeMap<String, Vec<u8>>,
    commits: Vec<Commit>,
    /// Statuses of the next answers to large files; 0 ends the connection.
    faults: VecDeque<u16>,
    refuses_commit: Option<u16>,
    loses_answer: bool,
    stalls: bool,
    sent: usize,
}

impl Pushes {
    /// Returns true if the repository is visible with this token.
    pub(super) fn is_visible(&self, authorization: Option<&str>) -> bool {
        let is_owner = authorization == Some(&format!("Bearer {TOKEN}"));
        !self.branches.is_empty() && (!self.private || is_owner)
    }
}

impl LoopbackHub {
    /// Returns the pushed commits in order.
    pub fn commits(&self) -> Vec<Commit> {
        lock(&self.state).pushes.commits.clone()
    }

    /// Returns the current files.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        lock(&self.state).files.clone()
    }

    /// Returns true if the repository is private.
    pub fn is_private(&self) -> bool {
        lock(&self.state).pushes.private
    }

    /// Returns the number of received bytes of large files.
    pub fn stored(&self) -> usize {
        lock(&self.state).pushes.sent
    }

    /// Creates the public repository before a push, or another branch of it.
    pub fn add_branch(&self, name: &str) {
        lock(&self.state).pushes.branches.push(name.to_owned());
    }

    /// Answers the next commit with this status and does not create it.
    pub fn refuse_commit(&self, status: u16) {
        lock(&self.state).pushes.refuses_commit = Some(status);
    }

    /// Answers the next large files with these statuses; 0 ends the connection.
    pub fn fail_uploads(&self, statuses: impl IntoIterator<Item = u16>) {
        lock(&self.state).pushes.faults.extend(statuses);
    }

    /// Receives the next large file and delays the answer by some seconds.
    pub fn stall_upload(&self) {
        lock(&self.state).pushes.stalls = true;
    }

    /// Creates the next commit and ends the connection without an answer.
    pub fn lose_answer(&self) {
        lock(&self.state).pushes.loses_answer = true;
    }
}

/// Answers a request other than GET.
pub(super) fn answer(stream: &mut TcpStream, state: &mut State, request: &str) -> std::io::Result<()> {
    let header = |name: &str| {
        let value = |line: &str| {
            Some(line.split_once(": ")?).filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|it| it.1.to_owned())
        };
        request.lines().find_map(value)
    };
    let size = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; size];
    stream.read_exact(&mut body)?;
    let path = request.split_whitespace().nth(1).unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let owner = format!("Bearer {TOKEN}");
    if let ["store", oid] = parts.as_slice() {
        // The storage may belong to another party, which must not receive the hub's token.
        let is_asked = header("authorization").is_none() && header("x-amz-note").as_deref() == Some("signed");
        return if is_asked { store(stream, state, oid, body) } else { refuse(stream, 400) };
    }
    if header("authorization") != Some(owner) {
        return refuse(stream, 401);
    }
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let has = |branch: &str| state.pushes.branches.iter().any(|found| found == branch);
    let is = |format: &str| header("content-type").as_deref() == Some(format);
    match parts.as_slice() {
        ["api", "repos", "create"] => create(stream, state, &json),
        ["api", "models", _, _, "preupload" | "commit", branch] if !has(branch) => refuse(stream, 404),
        ["api", "models", _, _, "preupload", _] => send_json(stream, &wanted(state, &json)),
        [_, name, "info", "lfs", "objects", "batch"]
            if name.ends_with(".git")
                && json["transfers"] == json!(["basic"])
                && is("application/vnd.git-lfs+json") =>
        {
            let host = header("host").unwrap_or_default();
            send_json(stream, &places(state, &json, &host))
        }
        ["verify"] => {
            let found = json["oid"].as_str().and_then(|oid| state.pushes.store.get(oid));
            let is_there = found.is_some_and(|content| json["size"] == content.len());
            if is_there { send_json(stream, &json!({})) } else { refuse(stream, 404) }
        }
        ["api", "models", _, _, "commit", branch] if is("application/x-ndjson") => commit(stream, state, branch, &body),
        _ => refuse(stream, 404),
    }
}

fn create(stream: &mut TcpStream, state: &mut State, json: &Value) -> std::io::Result<()> {
    match json["organization"].as_str() {
        Some("locked") => refuse(stream, 403),
        _ if !state.pushes.branches.is_empty() => refuse(stream, 409),
        // Without this field, the settings of the organisation apply.
        _ if json["private"] == false => refuse(stream, 400),
        _ => {
            state.pushes.branches.push("main".to_owned());
            state.pushes.private = json["private"] == true;
            send_json(stream, &json!({ "url": "http://hub/a/b" }))
        }
    }
}

fn wanted(state: &State, json: &Value) -> Value {
    let file = |file: &Value| {
        let name = file["path"].as_str().unwrap_or_default();
        let mode = if is_large(name) { "lfs" } else { "regular" };
        let digest = if is_large(name) { sha256 } else { git_hash };
        let oid = state.files.get(name).map(|content| digest(content));
        json!({ "path": name, "uploadMode": mode, "shouldIgnore": name.ends_with(".log"), "oid": oid })
    };
    let files = json["files"].as_array().map_or(&[][..], Vec::as_slice);
    json!({ "files": files.iter().map(file).collect::<Vec<_>>() })
}

fn places(state: &State, json: &Value, host: &str) -> Value {
    let object = |object: &Value| {
        let oid = object["oid"].as_str().unwrap_or_default();
        let mut answer = json!({ "oid": oid, "size": object["size"] });
        if !state.pushes.store.contains_key(oid) {
            let header = json!({ "x-amz-note": "signed" });
            answer["actions"] = json!({
                "upload": { "href": format!("http://{host}/store/{oid}"), "header": header },
                // The address is that of a mirrored hub.
                "verify": { "href": "https://huggingface.co/verify" },
            });
        }
        answer
    };
    let objects = json["objects"].as_array().map_or(&[][..], Vec::as_slice);
    json!({ "transfer": "basic", "objects": objects.iter().map(object).collect::<Vec<_>>() })
}

fn store(stream: &mut TcpStream, state: &mut State, oid: &str, content: Vec<u8>) -> std::io::Result<()> {
    if std::mem::take(&mut state.pushes.stalls) {
        std::thread::sleep(Duration::from_secs(3));
    }
    match state.pushes.faults.pop_front() {
        Some(0) => return Ok(()),
        Some(status) => return refuse(stream, status),
        None if sha256(&content) != oid => return refuse(stream, 400),
        None => {}
    }
    state.pushes.sent += content.len();
    state.pushes.store.insert(oid.to_owned(), content);
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
}

fn commit(stream: &mut TcpStream, state: &mut State, branch: &str, body: &[u8]) -> std::io::Result<()> {
    let lines: Option<Vec<Value>> = body
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).ok())
        .collect();
    let Some((header, files)) = lines.as_deref().and_then(<[Value]>::split_first) else { return refuse(stream, 400) };
    let mut new = BTreeMap::new();
    for file in files {
        let value = &file["value"];
        let content = match file["key"].as_str() {
            Some("file") => value["content"].as_str().and_then(|text| STANDARD.decode(text).ok()),
            Some("lfsFile") => value["oid"].as_str().and_then(|oid| state.pushes.store.get(oid)).cloned(),
            _ => None,
        };
        let (Some(name), Some(content)) = (value["path"].as_str(), content) else { return refuse(stream, 400) };
        new.insert(name.to_owned(), content);
    }
    if let Some(status) = state.pushes.refuses_commit.take() {
        return refuse(stream, status);
    }
    let summary = header["value"]["summary"].as_str().unwrap_or_default().to_owned();
    let files = new.keys().cloned().collect();
    state.pushes.commits.push(Commit { branch: branch.to_owned(), summary, files });
    state.files.extend(new);
    if std::mem::take(&mut state.pushes.loses_answer) {
        return Ok(());
    }
    send_json(stream, &json!({ "commitUrl": "http://hub/a/b/commit", "commitOid": COMMIT }))
}
