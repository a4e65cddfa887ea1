//! Hugging Face Hub on loopback with the files of one repository. It records requests, injects faults and accepts
//! pushes.

mod push;

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use push::Pushes;
pub use push::{Commit, TOKEN};

/// Commit of the hub, to which `main` points.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Hub on loopback with the same files under every repository name. As on the real hub, large files (`.safetensors`,
/// `.bin`, `.gguf`) are listed with their sha256 and served behind a redirection, small ones with their git hash.
#[derive(Debug)]
pub struct LoopbackHub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

/// Request for content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path of the file.
    pub file: String,
    /// Value of `Range`, for example `bytes=100-`.
    pub range: Option<String>,
    /// Number of bytes of content that were sent.
    pub sent: usize,
}

/// Fault of one request for content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after this number of bytes.
    Cut(usize),
    /// The connection stalls after this number of bytes.
    Stall(usize),
    /// The first byte is changed.
    Damage,
    /// The answer is the full file instead of a range.
    Whole,
    /// The answer is this status.
    Refuse(u16),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    requests: Vec<Request>,
    /// Faults by file, and true for requests of a part.
    faults: BTreeMap<(String, bool), VecDeque<Fault>>,
    pushes: Pushes,
    revisions: usize,
}

impl LoopbackHub {
    /// Creates a hub with these files.
    ///
    /// # Panics
    /// If no port is free.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State { files: files.into_iter().collect(), ..State::default() }));
        let shared = Arc::clone(&state);
        // The thread ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that disconnects is ignored.
                std::thread::spawn(move || drop(answer(stream, &state)));
            }
        });
        Self { endpoint, state }
    }

    /// Creates a hub with the files of a folder, without its subfolders.
    ///
    /// # Panics
    /// If the files cannot be read.
    pub fn from_folder(folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let read = |path: std::path::PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("a file"))
        };
        Self::new(entries.filter(|path| path.is_file()).map(read))
    }

    /// Returns the address for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Queues faults for the next downloads of `file`, full or from an offset to its end.
    pub fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.entry((file.to_owned(), false)).or_default().extend(faults);
    }

    /// Queues faults for the next requests of parts of `file`.
    pub fn fail_parts(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.entry((file.to_owned(), true)).or_default().extend(faults);
    }

    /// Returns the requests for content since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.state).requests)
    }

    /// Returns the number of requests for the commit of `main` since the last call.
    pub fn revisions(&self) -> usize {
        std::mem::take(&mut lock(&self.state).revisions)
    }

    /// Returns the files that were requested in full, or from an offset to their end, since the last call of
    /// `requests`, sorted and without duplicates.
    pub fn downloads(&self) -> Vec<String> {
        let downloads = self.requests().into_iter().filter(|request| !is_part(request.range.as_deref()));
        let mut files: Vec<String> = downloads.map(|request| request.file).collect();
        files.sort();
        files.dedup();
        files
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    if !request.starts_with("GET ") {
        return push::answer(&mut stream, &mut lock(state), &request);
    }
    let target = request.split_whitespace().nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let token = request.lines().find_map(|line| line.strip_prefix("authorization: "));
    let is_visible = {
        let state = lock(state);
        // Initial files are public.
        state.pushes.is_visible(token) || !(state.files.is_empty() || state.pushes.private)
    };
    match parts.as_slice() {
        _ if !is_visible && lock(state).pushes.private => refuse(&mut stream, 401),
        ["api", _, _, _] if is_visible => {
            let private = lock(state).pushes.private;
            send_json(&mut stream, &json!({ "id": "x", "private": private }))
        }
        ["api", _, _, _, "revision", "main"] => {
            lock(state).revisions += 1;
            send_json(&mut stream, &json!({ "sha": COMMIT }))
        }
        ["api", _, _, _, "tree", commit, folder @ ..] if *commit == COMMIT => {
            let tree = tree(&lock(state).files, &folder.join("/"), target.ends_with("recursive=true"));
            send_json(&mut stream, &tree)
        }
        [.., "resolve", commit, _] | [.., "resolve", commit, _, _] if *commit != COMMIT => refuse(&mut stream, 404),
        [rest @ .., "resolve", _, folder, name] if rest.len() >= 2 => {
            send_file(&mut stream, state, &format!("{folder}/{name}"), &request)
        }
        [.., "resolve", _, name] if is_large(name) => {
            let head = "HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\n";
            write!(stream, "{head}location: /elsewhere/{name}\r\n\r\n")
        }
        [.., "resolve", _, name] | ["elsewhere", name] => send_file(&mut stream, state, name, &request),
        _ => refuse(&mut stream, 404),
    }
}

fn tree(files: &BTreeMap<String, Vec<u8>>, folder: &str, deep: bool) -> Value {
    let is_in = |name: &str| match name.strip_prefix(folder) {
        Some(rest) => deep || !rest.trim_start_matches('/').contains('/'),
        None => false,
    };
    let entry = |(name, content): (&String, &Vec<u8>)| {
        let mut entry = json!({ "type": "file", "oid": git_hash(content), "size": content.len(), "path": name });
        if is_large(name) {
            entry["lfs"] = json!({ "oid": sha256(content), "size": content.len(), "pointerSize": 135 });
        }
        entry
    };
    files.iter().filter(|(name, _)| is_in(name)).map(entry).collect()
}

fn git_hash(content: &[u8]) -> String {
    hex::encode(Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".gguf"].iter().any(|ending| name.ends_with(ending))
}

fn send_json(stream: &mut TcpStream, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len())
}

fn refuse(stream: &mut TcpStream, status: u16) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
}

fn send_file(stream: &mut TcpStream, state: &Mutex<State>, name: &str, request: &str) -> std::io::Result<()> {
    let header = |line: &str| line.to_ascii_lowercase().strip_prefix("range: ").map(str::to_owned);
    let range = request.lines().find_map(header);
    let (content, fault) = {
        let mut state = lock(state);
        let fault = state.faults.get_mut(&(name.to_owned(), is_part(range.as_deref()))).and_then(VecDeque::pop_front);
        (state.files.get(name).cloned(), fault)
    };
    let note = |sent| lock(state).requests.push(Request { file: name.to_owned(), range: range.clone(), sent });
    let (Some(mut content), None) = (content, refusal(fault)) else {
        note(0);
        return refuse(stream, refusal(fault).unwrap_or(404));
    };
    if fault == Some(Fault::Damage) {
        content[0] ^= 1;
    }
    let (start, end) = match &range {
        Some(range) if fault != Some(Fault::Whole) => bounds(range, content.len()),
        _ => (0, content.len()),
    };
    if start >= content.len() && start > 0 {
        note(0);
        return refuse(stream, 416);
    }
    let body = &content[start..end];
    let sent = match fault {
        Some(Fault::Cut(n) | Fault::Stall(n)) => n.min(body.len()),
        _ => body.len(),
    };
    note(sent);
    let total = content.len();
    if body.len() == total {
        write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n")?;
    } else {
        let last = end.saturating_sub(1);
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nconnection: close\r\ncontent-range: bytes {start}-{last}/{total}\r\n"
        )?;
    }
    write!(stream, "content-length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body[..sent])?;
    stream.flush()?;
    if let Some(Fault::Stall(_)) = fault {
        std::thread::sleep(Duration::from_secs(20));
    }
    Ok(())
}

/// Returns true if the range has an end, so that the client may expect more bytes after it.
fn is_part(range: Option<&str>) -> bool {
    range.is_some_and(|range| !range.trim().ends_with('-'))
}

fn refusal(fault: Option<Fault>) -> Option<u16> {
    if let Some(Fault::Refuse(status)) = fault { Some(status) } else { None }
}

/// Returns the first byte of a range and the one after its last.
fn bounds(range: &str, len: usize) -> (usize, usize) {
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
    let end = end.trim().parse::<usize>().map_or(len, |last| (last + 1).min(len));
    (start.parse().expect("a number"), end)
}
