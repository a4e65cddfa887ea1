//! Many clients on one server against one client with as much work.

use std::sync::Barrier;
use std::time::Instant;

use crate::model::smollm2;
use crate::processes::{Checkpoint, Process};
use crate::report::Target::{AtLeast, AtMost};
use crate::report::{Cell, Section};
use crate::step::{Inputs, Workload};
use crate::turns::seconds;

const CLIENTS: usize = 8;
const ROWS: usize = 32;
const COLUMNS: &[&str] = &["clients", "sentences each", "step s", "tokens/s", "fastest s", "slowest s"];

pub(crate) fn measure(rounds: usize, checkpoint: &Checkpoint) -> Section {
    let title = "Clients: one with a large batch, and many that share a server process";
    let mut section = Section::new(title, COLUMNS);
    // In a client's first step it matters who came first.
    let rounds = rounds.max(3);
    let server = checkpoint.serve("0:30");
    let large = Workload::sentences(CLIENTS * ROWS);
    let tokens = large.n_tokens() as f64;
    let inputs = Inputs::new(&smollm2(), &large);
    let remote = checkpoint.connect(std::slice::from_ref(&server));
    inputs.remote(&remote);
    let one = seconds(&|| (0..rounds).for_each(|_| inputs.remote(&remote))) / rounds as f64;
    let (many, each) = together(rounds, checkpoint, &server);
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

/// Seconds for a step of all clients, and for a step of each.
fn together(rounds: usize, checkpoint: &Checkpoint, server: &Process) -> (f64, Vec<f64>) {
    let (endpoint, digest) = (server.endpoint(), checkpoint.digest());
    let start = Barrier::new(CLIENTS + 1);
    let client = || {
        let inputs = Inputs::new(&smollm2(), &Workload::sentences(ROWS));
        let remote = crate::step::connect(vec![endpoint.clone()], digest, &smollm2());
        inputs.remote(&remote);
        start.wait();
        seconds(&|| (0..rounds).for_each(|_| inputs.remote(&remote))) / rounds as f64
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        start.wait();
        let begun = Instant::now();
        let each = clients.into_iter().map(|client| client.join().expect("a client that trains")).collect();
        (begun.elapsed().as_secs_f64() / rounds as f64, each)
    })
}
