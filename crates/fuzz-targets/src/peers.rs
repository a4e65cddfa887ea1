//! Announcements of servers, and requests over HTTP.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use sepal_discover::ServerRecord;
use sepal_gateway::{Answer, AnswerKind, ClassifierInfo, Classify, ClassifyError, Gateway, Options};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer that are read.
const MAX_ANSWER: u64 = 1 << 20;

/// The record of a server in an announcement.
pub(crate) fn announcements(bytes: &[u8]) {
    let record = serde_json::from_slice::<ServerRecord>(bytes).ok().and_then(ServerRecord::validated);
    if let Some(record) = record {
        let _ = sepal_route::coverage(&[record.span], record.n_blocks);
        let _ = sepal_route::uncovered_spans(&[record.span], record.n_blocks);
    }
}

/// Bytes of a client on a connection to a gateway.
pub(crate) fn http(bytes: &[u8]) {
    static GATEWAY: OnceLock<Option<SocketAddr>> = OnceLock::new();
    let Some(addr) = *GATEWAY.get_or_init(start_gateway) else { return };
    let mut stream = match TcpStream::connect_timeout(&addr, TIMEOUT) {
        Ok(stream) => stream,
        // Many connections in a short time leave no port, which is no finding.
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => return,
        // It is refused only if the thread of the gateway has ended.
        Err(error) => panic!("the gateway accepts no connection any more: {error}"),
    };
    let _ = (stream.set_read_timeout(Some(TIMEOUT)), stream.set_write_timeout(Some(TIMEOUT)));
    let sent = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let _ = (sent, stream.take(MAX_ANSWER).read_to_end(&mut answer));
}

/// Classifier that answers the number of bytes of a text.
struct Length;

impl Classify for Length {
    fn classify(&mut self, texts: &[&str], _: Option<&[&str]>) -> Result<Vec<Answer>, ClassifyError> {
        Ok(texts.iter().map(|text| Answer::Value(text.len() as f32)).collect())
    }
}

/// Starts a gateway for the rest of the process; `None` if there is no port for it.
fn start_gateway() -> Option<SocketAddr> {
    let timeouts = Duration::from_secs(2);
    let options =
        Options { listen: ([127, 0, 0, 1], 0).into(), timeout: timeouts, head_timeout: timeouts, ..Options::default() };
    let (gateway, models) = Gateway::start(options).ok()?;
    let addr = gateway.addr();
    let worker = models.add("length".parse().ok()?).ok()?;
    thread::Builder::new()
        .name("fuzz-worker".to_owned())
        .spawn(move || {
            let (_gateway, _models) = (gateway, models);
            let info = ClassifierInfo::new("length", AnswerKind::Value, &["bytes"]);
            let _ = worker.serve(info, &mut Length, || ());
        })
        .ok()?;
    Some(addr)
}
