//! A Hugging Face Hub on loopback with the files of one repository, which notes what it is asked for and can fail. Files
//! can be pushed to it.

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

/// The one commit that the hub has; `main` stands for it.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub on loopback. Whatever the repository is called, it has the same files. As on the real one, large files
/// (`.safetensors`, `.bin`, `.gguf`) are listed with their sha256 and lie behind a redirection, small ones with their git
/// hash.
#[derive(Debug)]
pub struct LoopbackHub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

/// A request for content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The file.
    pub file: String,
    /// What `Range` says: `bytes=100-`.
    pub range: Option<String>,
    /// Bytes of content that were sent.
    pub sent: usize,
}

/// What goes wrong with one request for content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// Nothing comes after so many bytes, while the connection stays.
    Stall(usize),
    /// The first byte is another one.
    Damage,
    /// The whole file comes where a part was asked for.
    Whole,
    /// A refusal with this status.
    Refuse(u16),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    requests: Vec<Request>,
    /// By file, and whether a part of it is asked for.
    faults: BTreeMap<(String, bool), VecDeque<Fault>>,
    pushes: Pushes,
    revisions: usize,
}

impl LoopbackHub {
    /// A hub with these files.
    ///
    /// # Panics
    /// If there is no port.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State { files: files.into_iter().collect(), ..State::default() }));
        let shared = Arc::clone(&state);
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that has gone away is no matter of this server.
                std::thread::spawn(move || drop(answer(stream, &state)));
            }
        });
        Self { endpoint, state }
    }

    /// A hub with the files of a folder, not of those in it.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn of_folder(folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let read = |path: std::path::PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("a file"))
        };
        Self::new(entries.filter(|path| path.is_file()).map(read))
    }

    /// Its address, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Lets the next downloads of `file` go wrong, one after the other: requests for all of it, or for its rest.
    pub fn fail(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.entry((file.to_owned(), false)).or_default().extend(faults);
    }

    /// The same for requests for parts of it.
    pub fn fail_parts(&self, file: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.entry((file.to_owned(), true)).or_default().extend(faults);
    }

    /// The requests for content since this was asked last.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.state).requests)
    }

    /// How often it was asked since it was asked last what `main` stands for.
    pub fn revisions(&self) -> usize {
        std::mem::take(&mut lock(&self.state).revisions)
    }

    /// The files that were asked for as a whole, or from somewhere to their end, since requests were asked for last;
    /// sorted, each once.
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
    let is_seen = {
        let state = lock(state);
        // Files that are there from the start are open to all.
        state.pushes.is_seen(token) || !(state.files.is_empty() || state.pushes.private)
    };
    match parts.as_slice() {
        _ if !is_seen && lock(state).pushes.private => refuse(&mut stream, 401),
        ["api", _, _, _] if is_seen => {
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

/// The listing of a folder.
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

/// Whether a range ends before the file does, for all that whoever asks knows.
fn is_part(range: Option<&str>) -> bool {
    range.is_some_and(|range| !range.trim().ends_with('-'))
}

fn refusal(fault: Option<Fault>) -> Option<u16> {
    if let Some(Fault::Refuse(status)) = fault { Some(status) } else { None }
}

/// The first byte of a range and the one behind its last.
fn bounds(range: &str, len: usize) -> (usize, usize) {
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
    let end = end.trim().parse::<usize>().map_or(len, |last| (last + 1).min(len));
    (start.parse().expect("a number"), end)
}
