//! Proxy between a client and a server that delays, limits and disturbs the link.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Largest chunk to forward at once.
const CHUNK: usize = 16 << 10;
/// Chunks in flight per direction before the sender blocks: more than a link of 100 Mbit/s and 50 ms holds.
const WINDOW: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// Delay in one direction.
    pub delay: Duration,
    /// Bandwidth of each direction of a connection; unlimited if 0.
    pub bytes_per_second: u64,
}

/// Fault of a link. It affects only connections that are open when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No bytes move, but the connections stay open.
    Stall,
    Drop,
    Close,
    /// One bit of the next chunk is flipped.
    Corrupt,
}

/// Listens on its own port and forwards everything to a server.
pub struct Proxy {
    pub addr: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    link: Link,
    /// Bytes until the fault; `u64::MAX` for none.
    left: AtomicU64,
    fault: Mutex<Fault>,
    connections: Mutex<Vec<Arc<Connection>>>,
    hit: AtomicUsize,
    stopped: AtomicBool,
}

struct Connection {
    ends: [TcpStream; 2],
    state: Mutex<Option<Fault>>,
}

impl Proxy {
    pub fn new(server: &str, link: Link) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            link,
            left: AtomicU64::new(u64::MAX),
            fault: Mutex::new(Fault::Close),
            connections: Mutex::default(),
            hit: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.stopped.load(Ordering::Relaxed) {
                    break;
                }
                accepting.open(client);
            }
        });
        Self { addr, shared }
    }

    /// Schedules the fault after this number of bytes, possibly in the middle of a message.
    pub fn fail_after(&self, bytes: u64, fault: Fault) {
        *self.shared.fault.lock().expect("a lock") = fault;
        self.shared.left.store(bytes, Ordering::SeqCst);
    }

    pub fn disarm(&self) {
        self.shared.left.store(u64::MAX, Ordering::SeqCst);
    }

    pub fn is_armed(&self) -> bool {
        self.shared.left.load(Ordering::SeqCst) != u64::MAX
    }

    /// Returns the number of connections that a fault has affected.
    pub fn faults(&self) -> usize {
        self.shared.hit.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.hit(Fault::Close);
        // The connection wakes the accepting thread.
        let _ = TcpStream::connect(&self.addr);
    }
}

impl Shared {
    fn open(self: &Arc<Self>, client: TcpStream) {
        // Without a server, the client's connection closes at once.
        let Ok(server) = TcpStream::connect(&self.server) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("an option");
        }
        let clone = |stream: &TcpStream| stream.try_clone().expect("a handle");
        let connection = Arc::new(Connection { ends: [clone(&client), clone(&server)], state: Mutex::new(None) });
        self.connections.lock().expect("a lock").push(Arc::clone(&connection));
        self.pump(clone(&client), clone(&server), &connection);
        self.pump(server, client, &connection);
    }

    /// Forwards `from` to `to`: one thread reads and schedules each chunk, another one writes it at its time.
    fn pump(self: &Arc<Self>, mut from: TcpStream, mut to: TcpStream, connection: &Arc<Connection>) {
        let (sender, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(WINDOW);
        let (shared, connection) = (Arc::clone(self), Arc::clone(connection));
        thread::spawn(move || {
            let mut free = Instant::now();
            let mut chunk = vec![0; CHUNK];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                let mut piece = chunk[..n].to_vec();
                shared.count(n as u64);
                let mut state = connection.state.lock().expect("a lock");
                match *state {
                    Some(Fault::Close) => break,
                    Some(Fault::Drop) => continue,
                    Some(Fault::Stall) => {
                        drop(state);
                        // Without reads, the sender blocks.
                        while !shared.stopped.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_millis(20));
                        }
                        break;
                    }
                    Some(Fault::Corrupt) => {
                        piece[n / 2] ^= 1;
                        *state = None;
                    }
                    None => {}
                }
                drop(state);
                let width = shared.link.bytes_per_second;
                let takes = if width == 0 { 0.0 } else { n as f64 / width as f64 };
                free = free.max(Instant::now()) + Duration::from_secs_f64(takes);
                if sender.send((free + shared.link.delay, piece)).is_err() {
                    break;
                }
            }
        });
        thread::spawn(move || {
            for (due_time, piece) in due {
                thread::sleep(due_time.saturating_duration_since(Instant::now()));
                if to.write_all(&piece).is_err() {
                    break;
                }
            }
            // The peer may have closed the connection.
            let _ = to.shutdown(Shutdown::Write);
        });
    }

    fn count(&self, n: u64) {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            (left != u64::MAX).then(|| left.saturating_sub(n))
        });
        if before.is_ok_and(|left| left <= n) && self.left.swap(u64::MAX, Ordering::SeqCst) != u64::MAX {
            let fault = *self.fault.lock().expect("a lock");
            self.hit(fault);
        }
    }

    /// Applies the fault to all open connections. Only corruption leaves them usable.
    fn hit(&self, fault: Fault) {
        self.connections.lock().expect("a lock").retain(|connection| {
            *connection.state.lock().expect("a lock") = Some(fault);
            if fault == Fault::Close {
                for end in &connection.ends {
                    // The connection may be closed already.
                    let _ = end.shutdown(Shutdown::Both);
                }
            }
            self.hit.fetch_add(1, Ordering::SeqCst);
            fault == Fault::Corrupt
        });
    }
}
