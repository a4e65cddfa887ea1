//! Many clients on one server against one client with the same amount of work.

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
/// Steps per round. All clients send the first step at the same time.
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
    let schedule = Rounds::new();
    let (one, many, each) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| schedule.run_client(checkpoint, &server))).collect();
        let one_client = || (0..STEPS).for_each(|_| inputs.remote(&remote));
        let [one, many] = Turns::all(rounds).medians([&one_client, &|| schedule.start_round()]);
        schedule.finish();
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

/// Schedule of the clients' steps, which run in threads.
struct Rounds {
    barrier: Barrier,
    is_finished: AtomicBool,
}

impl Rounds {
    fn new() -> Self {
        Self { barrier: Barrier::new(CLIENTS + 1), is_finished: AtomicBool::new(false) }
    }

    fn start_round(&self) {
        self.barrier.wait();
        self.barrier.wait();
    }

    fn finish(&self) {
        self.is_finished.store(true, Ordering::Relaxed);
        self.barrier.wait();
    }

    /// Runs one client to the end. Returns the seconds of one of its steps.
    fn run_client(&self, checkpoint: &Checkpoint, server: &Process) -> f64 {
        let inputs = Inputs::new(&smollm2(), &Workload::sentences(ROWS));
        let remote = checkpoint.connect(std::slice::from_ref(server));
        let mut times = Vec::new();
        loop {
            self.barrier.wait();
            if self.is_finished.load(Ordering::Relaxed) {
                // The first round is a warm-up, as its times depend on the order of the clients.
                let counted = &times[1..];
                return counted.iter().sum::<f64>() / (counted.len() * STEPS) as f64;
            }
            times.push(seconds(&|| (0..STEPS).for_each(|_| inputs.remote(&remote))));
            self.barrier.wait();
        }
    }
}
