//! Invalid HTTP requests to status pages and tasks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::client::dial;
use super::sockets::{connect, count_open};
use super::{Attack, CLOSED, WAITING};

/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Time that the server has to answer or to close the connection.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Time that a connection has to take the requests whose answers are not read.
const SEND_TIME: Duration = Duration::from_millis(100);
/// Requests whose answers are not read, of one connection.
const PIPELINED: usize = 5000;
/// Bytes of an answer that are read: the first line is counted.
const ANSWER_BYTES: u64 = 4096;

/// Sends `n` requests, most of them invalid, each on a connection of its own. Counts the statuses of the answers.
pub fn bad_http(addr: &str, n: usize, seed: u64) -> Attack {
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let rng = Rc::new(RefCell::new(ChaCha8Rng::seed_from_u64(seed)));
        let remaining = Rc::new(Cell::new(n));
        let mut workers = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (addr, tally, rng, remaining) = (addr.clone(), tally.clone(), Rc::clone(&rng), Rc::clone(&remaining));
            workers.spawn_local(async move {
                while remaining.get() > 0 {
                    remaining.set(remaining.get() - 1);
                    let request = request(&mut rng.borrow_mut());
                    tally.add(answer(&addr, &request).await);
                }
            });
        }
        while workers.join_next().await.is_some() {}
    })
}

/// Sends `times` requests of many texts, one after another, from each of `n` clients at the same time. Counts the statuses.
pub fn many_requests(addr: &str, n: usize, times: usize) -> Attack {
    let texts = vec!["\"a clever film\""; 256].join(",");
    let (request, addr) = (post(format!("{{\"texts\": [{texts}]}}").as_bytes()), addr.to_owned());
    Attack::start(move |tally| async move {
        let request = Rc::new(request);
        let mut clients = JoinSet::new();
        for _ in 0..n {
            let (addr, tally, request) = (addr.clone(), tally.clone(), Rc::clone(&request));
            clients.spawn_local(async move {
                for _ in 0..times {
                    tally.add(answer(&addr, &request).await);
                }
            });
        }
        while clients.join_next().await.is_some() {}
    })
}

/// Opens `n` connections, sends requests for this path one after another on each, and reads no answer.
pub fn unread_http(addr: &str, n: usize, path: &str) -> Attack {
    let requests = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(PIPELINED);
    let addr = addr.to_owned();
    Attack::start(move |tally| async move {
        let mut open = Vec::new();
        for _ in 0..n {
            let Some(mut stream) = connect(&addr, &tally).await else { break };
            // The server reads until its answers fill the buffers of the connection.
            let _ = tokio::time::timeout(SEND_TIME, stream.write_all(requests.as_bytes())).await;
            open.push(stream);
        }
        count_open(&tally, &mut open).await;
        open
    })
}

/// Sends a request. Returns the status of the answer.
async fn answer(addr: &str, request: &[u8]) -> String {
    let answered = async {
        let Ok(mut stream) = dial(addr).await else { return Vec::new() };
        let (reader, mut writer) = stream.split();
        let (mut reader, mut answer) = (reader.take(ANSWER_BYTES), Vec::new());
        // A server may answer and close the connection before it has read the request.
        let _ = tokio::join!(writer.write_all(request), reader.read_to_end(&mut answer));
        answer
    };
    let Ok(answer) = tokio::time::timeout(ANSWER_TIME, answered).await else { return WAITING.to_owned() };
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).filter(|status| status.len() == 3).map_or_else(|| CLOSED.to_owned(), str::to_owned)
}

fn request(rng: &mut ChaCha8Rng) -> Vec<u8> {
    match rng.random_range(0..10) {
        0 => {
            post(&nested(["[", "{\"text\":"][rng.random_range(0..2)], [10, 127, 128, 100_000][rng.random_range(0..4)]))
        }
        1 => post(&random_bytes(rng, 500)),
        2 => {
            let mut body = br#"{"texts": ["a film", "the plot"]}"#.to_vec();
            let offset = rng.random_range(0..body.len());
            body[offset] = rng.random();
            post(&body)
        }
        3 => {
            let (bytes, rows) = ([0, 1, 16_384, 16_385, 100_000], [1, 2, 256, 257]);
            let text = "x".repeat(bytes[rng.random_range(0..bytes.len())]);
            let texts = vec![format!("\"{text}\""); rows[rng.random_range(0..rows.len())]];
            post(format!("{{\"texts\": [{}]}}", texts.join(",")).as_bytes())
        }
        4 => post(&vec![b' '; [1 << 20, (1 << 20) + 1, 3 << 20][rng.random_range(0..3)]]),
        5 => {
            let values = [
                "\"\\u0000\"",
                "\"\\ud83d\"",
                "\"\\u202e x\"",
                "\" \"",
                "null",
                "1e999",
                "[]",
                "{}",
                "\"a\",\"text\":1",
            ];
            post(format!("{{\"text\": {}}}", values[rng.random_range(0..values.len())]).as_bytes())
        }
        6 => {
            let chunks = ["zz\r\n", "ffffffffffffffff\r\nx", "5\r\n{\"tex\r\n0\r\n\r\n", "-1\r\n\r\n"];
            let chunks = chunks[rng.random_range(0..chunks.len())];
            head("POST /classify", "Transfer-Encoding: chunked\r\n", chunks.as_bytes())
        }
        7 => {
            let lengths = ["-1", "99999999999999999999", "5, 6", "0x10", "1048577", "3\r\nContent-Length: 4"];
            let length = format!("Content-Length: {}\r\n", lengths[rng.random_range(0..lengths.len())]);
            head("POST /classify", &length, b"{}")
        }
        8 => {
            let paths = ["../../etc/passwd", "%2e%2e/etc/passwd", "\0", "metrics", "health", "openapi.json", ""];
            let long = ["a".repeat(70_000), format!("?{}", "q".repeat(60_000))];
            let paths: Vec<&str> = paths.into_iter().chain(long.iter().map(String::as_str)).collect();
            head(&format!("GET /{}", paths[rng.random_range(0..paths.len())]), "", b"")
        }
        _ => {
            let lines = [
                "PRI * HTTP/2.0",
                "CONNECT a:1 HTTP/1.1",
                "TRACE / HTTP/1.1",
                "DELETE /classify HTTP/1.1",
                "GET / HTTP/9.9",
            ];
            let headers: String =
                (0..[0, 50, 101, 5000][rng.random_range(0..4)]).map(|n| format!("X{n}: y\r\n")).collect();
            let line = lines[rng.random_range(0..lines.len())];
            [format!("{line}\r\nHost: a\r\nConnection: close\r\n{headers}\r\n").into_bytes(), random_bytes(rng, 100)]
                .concat()
        }
    }
}

fn post(body: &[u8]) -> Vec<u8> {
    head("POST /classify", &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()), body)
}

fn head(begin: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{begin} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn nested(open: &str, depth: usize) -> Vec<u8> {
    open.repeat(depth).into_bytes()
}

fn random_bytes(rng: &mut ChaCha8Rng, max: usize) -> Vec<u8> {
    (0..rng.random_range(0..max)).map(|_| rng.random()).collect()
}
