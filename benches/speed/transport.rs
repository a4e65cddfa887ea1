//! Overhead of a call and throughput of tensors, against bare TCP.

use sepal_server::{BlockServer, ServerOptions};

use crate::echo::{Bare, Caller, echo_server};
use crate::model::{Random, bloom, full_span};
use crate::processes::Checkpoint;
use crate::report::Target::{AtLeast, AtMost};
use crate::report::{Cell, Section};
use crate::step::identity;
use crate::turns::{Turns, seconds};

const COLUMNS: &[&str] = &["there and back", "RPC ms", "bare TCP ms", "RPC MB/s", "bare TCP MB/s"];
/// Sizes in bytes, and the number of echoes per round.
const SIZES: [(&str, usize, usize); 4] =
    [("64 KB", 64 << 10, 64), ("1 MB", 1 << 20, 16), ("16 MB", 16 << 20, 2), ("64 MB", 64 << 20, 1)];
const CALLS: usize = 500;

pub(crate) fn measure(rounds: usize, _: &Checkpoint) -> Section {
    let title = "Transport: tensors through a call of the protocol (encoded, sent, decoded, and back) against the same bytes \
                 through a socket,\nover TCP on loopback";
    let mut section = Section::new(title, COLUMNS);
    section.figure("an empty call, in microseconds", empty_call(rounds) * 1e6, AtMost(150.0));
    let caller = Caller::connect(&echo_server());
    let turns = Turns::all(rounds.max(3));
    for (name, bytes, times) in SIZES {
        let (tensor, bare) = (caller.batch(bytes), Bare::new(bytes));
        let [rpc, socket] = turns
            .medians([&|| (0..times).for_each(|_| caller.echo(&tensor)), &|| (0..times).for_each(|_| bare.echo())]);
        // Both directions count.
        let rate = |seconds: f64| Cell::Number((2 * bytes * times) as f64 / seconds / 1e6, 0);
        let per_echo = |seconds: f64| Cell::Number(seconds / times as f64 * 1e3, 3);
        section.row([name.into(), per_echo(rpc), per_echo(socket), rate(rpc), rate(socket)]);
        section.figure(format!("throughput of RPC / of bare TCP, {name}"), socket / rpc, AtLeast(0.8));
    }
    section
}

/// Returns the seconds of a call for the state of a block server.
fn empty_call(rounds: usize) -> f64 {
    let config = bloom(1, 64, 1);
    let stack = Random::new(config.clone()).stack(full_span(&config));
    let addr = "127.0.0.1:0".parse().expect("an address");
    let server = BlockServer::listen(stack, identity(&config), ServerOptions::default(), addr).expect("a server");
    let caller = Caller::connect(server.endpoint());
    let calls = || (0..CALLS).for_each(|_| caller.describe());
    calls();
    let best = (0..rounds).map(|_| seconds(&calls)).fold(f64::INFINITY, f64::min);
    best / CALLS as f64
}
