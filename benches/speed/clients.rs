//! Many clients on one server against one client with as much work.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::model::smollm2;
use crate::processes::{Checkpoint, Process};
use crate::report::Target::{AtLeast, AtMost};
use crate::report::{Cell, Section};
use crate::step::{Inputs, Workload};
use crate::turns::{Turns, seconds};

const CLIENTS: usize = 8;
const ROWS: usize = 32;
/// Steps of a turn: at its beginning all clients ask at the same time.
const STEPS: usize = 2;
const COLUMNS: &[&str] = &["clients", "sentences each", "step s", "tokens/s", "fastest s", "slowest s"];

pub(crate) fn measure(rounds: usize, checkpoint: &Checkpoint) -> Section {
    let title = "Clients: one with a large batch, and many that share a server process, in turns";
    let mut section = Section::new(title, COLUMNS);
    let server = checkpoint.serve("0:30");
    let large = Workload::sentences(CLIENTS * ROWS);
    let tokens = large.n_tokens() as f64;
    let inputs = Inputs::new(&smollm2(), &large);
    let remote = checkpoint.connect(std::slice::from_ref(&server));
    let turns = Turn::new();
    let (one, many, each) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| turns.take(checkpoint, &server))).collect();
        let alone = || (0..STEPS).for_each(|_| inputs.remote(&remote));
        let [one, many] = Turns::all(rounds).medians([&alone, &|| turns.give()]);
        turns.end();
        let each: Vec<f64> = clients.into_iter().map(|client| client.join().expect("a client that trains")).collect();
        (one / STEPS as f64, many / STEPS as f64, each)
    });
    let (fastest, slowest) =
        (each.iter().copied().fold(f64::INFINITY, f64::min), each.iter().copied().fold(0.0, f64::max));
    let step = |n: usize, rows: usize, seconds: f64| {
        [Cell::count(n), Cell::count(rows), Cell::Number(seconds, 3), Cell::Number(tokens / seconds, 0)]
    };
    section.row(step(1, CLIENTS * ROWS, one).into_iter().chain([Cell::Nothing, Cell::Nothing]).collect::<Vec<_>>());
    let spread = [Cell::Number(fastest, 3), Cell::Number(slowest, 3)];
    section.row(step(CLIENTS, ROWS, many).into_iter().chain(spread).collect::<Vec<_>>());
    section.figure("tokens/s of 8 clients / of one client", one / many, AtLeast(0.95));
    section.figure("slowest client / fastest client", slowest / fastest, AtMost(1.5));
    section
}

/// When the clients in their threads are to take their steps.
struct Turn {
    begins_or_ends: Barrier,
    is_over: AtomicBool,
}

impl Turn {
    fn new() -> Self {
        Self { begins_or_ends: Barrier::new(CLIENTS + 1), is_over: AtomicBool::new(false) }
    }

    /// All clients take their steps.
    fn give(&self) {
        self.begins_or_ends.wait();
        self.begins_or_ends.wait();
    }

    /// No turn comes any more.
    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.begins_or_ends.wait();
    }

    /// One client, to the end: seconds for one of its steps.
    fn take(&self, checkpoint: &Checkpoint, server: &Process) -> f64 {
        let inputs = Inputs::new(&smollm2(), &Workload::sentences(ROWS));
        let remote = checkpoint.connect(std::slice::from_ref(server));
        let mut turns = Vec::new();
        loop {
            self.begins_or_ends.wait();
            if self.is_over.load(Ordering::Relaxed) {
                // The first warms up: it matters who came first.
                let counted = &turns[1..];
                return counted.iter().sum::<f64>() / (counted.len() * STEPS) as f64;
            }
            turns.push(seconds(&|| (0..STEPS).for_each(|_| inputs.remote(&remote))));
            self.begins_or_ends.wait();
        }
    }
}
