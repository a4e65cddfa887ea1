//! Hostile clients. Each wastes one resource of a server, bounded in number and time, and counts the answers.
//!
//! A function of this module returns at once: the attack runs on a thread of its own while the caller does honest work.
//! [`Attack::answers`] waits until the attack has done its work. Connections, tapes and tensors that it made stay until
//! the [`Attack`] is dropped. Addresses are `HOST:PORT`. On Linux, connections to loopback come from 127.0.0.2, so that limits per
//! address tell them from those of honest clients.

mod calls;
mod client;
mod frames;
mod http;
mod memory;
mod slow_reader;
mod sockets;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub use calls::{
    abandoned_row, broken_promises, cancelled_calls, crowded_calls, describe_flood, empty_rows, long_addresses,
    one_row, queued_calls, relays_to, slow_relays, small_calls, waiting_forwards,
};
pub use frames::mutated_frames;
pub use http::{bad_http, many_requests, unread_http};
pub use memory::{cached_prefixes, deliveries, stored_tapes, tapes_of_dead_connections, tuned_sessions, uploads};
pub use slow_reader::{slow_reads, unread_answers};
pub use sockets::{Drip, dripping_connections, half_frames, silent_connections};

/// Kind of an answer that is a result.
pub const OK: &str = "ok";
/// Kind of a connection that the server closed, and of a call that ended without a result.
pub const CLOSED: &str = "closed";
/// Kind of a call without an answer when the attack had done its work.
pub const WAITING: &str = "waiting";
/// Kind of a connection that was still open when the attack had done its work.
pub const OPEN: &str = "open";

/// Maximum duration of the work of an attack.
const WORK_LIMIT: Duration = Duration::from_secs(60);
/// Time that an attack waits for answers to its last calls.
const PATIENCE: Duration = Duration::from_secs(3);

/// Number of answers by kind: [`OK`], [`CLOSED`], [`WAITING`], [`OPEN`], the name of a
/// [`FailureCode`](sepal_wire::FailureCode), or the status of an HTTP answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers(pub BTreeMap<String, usize>);

impl Answers {
    /// Number of answers of this kind.
    pub fn count(&self, kind: &str) -> usize {
        self.0.get(kind).copied().unwrap_or(0)
    }

    /// Number of answers of all kinds.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// Number of answers with a typed refusal or failure.
    pub fn refused(&self) -> usize {
        self.turned_away() - self.count(CLOSED)
    }

    /// Number of refusals, and of connections that the server closed.
    pub fn turned_away(&self) -> usize {
        self.total() - [OK, WAITING, OPEN].map(|kind| self.count(kind)).iter().sum::<usize>()
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.0.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        f.write_str(&kinds.join(", "))
    }
}

/// Attack in progress.
pub struct Attack {
    report: Mutex<Report>,
    release: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Report {
    receiver: Receiver<Answers>,
    answers: Option<Answers>,
}

impl Attack {
    /// Runs `attack` on a thread. Its result lives until the attack is dropped, as do the tasks that it spawned.
    fn start<W, T>(attack: impl FnOnce(Tally) -> W + Send + 'static) -> Self
    where
        W: Future<Output = T> + 'static,
        T: 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let (release, released) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            LocalSet::new().block_on(&runtime, async move {
                let tally = Tally::default();
                let result = tokio::time::timeout(WORK_LIMIT, attack(tally.clone())).await;
                // The receiver may be dropped already.
                let _ = sender.send(tally.answers());
                let _ = released.await;
                drop(result);
            });
        });
        let report = Mutex::new(Report { receiver, answers: None });
        Self { report, release: Some(release), thread: Some(thread) }
    }

    /// Returns the answers, once the attack has done its work.
    pub fn answers(&self) -> Answers {
        let mut report = self.report.lock().expect("a lock");
        if let Some(answers) = &report.answers {
            return answers.clone();
        }
        let answers = report.receiver.recv().expect("the attack ends within its limit");
        report.answers.insert(answers).clone()
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the attack was reported by its answers.
            let _ = thread.join();
        }
    }
}

/// Counter of answers. Clones share the counts.
#[derive(Clone, Default)]
struct Tally(Rc<RefCell<Answers>>);

impl Tally {
    fn add(&self, kind: impl Into<String>) {
        self.add_many(kind, 1);
    }

    fn add_many(&self, kind: impl Into<String>, count: usize) {
        if count > 0 {
            *self.0.borrow_mut().0.entry(kind.into()).or_default() += count;
        }
    }

    fn answers(&self) -> Answers {
        self.0.borrow().clone()
    }
}
