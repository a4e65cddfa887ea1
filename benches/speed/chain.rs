//! One server of all blocks against chains of servers on the same machine.

use std::time::Instant;

use sepal_remote::RemoteSequential;

use crate::model::smollm2;
use crate::processes::{Checkpoint, Process};
use crate::report::Target::AtMost;
use crate::report::{Cell, Section};
use crate::step::{Inputs, Workload};
use crate::turns::Turns;

const COLUMNS: &[&str] = &["servers", "blocks", "step s", "of one", "idle share of each"];
const CHAINS: [&[&str]; 3] = [&["0:30"], &["0:15", "15:30"], &["0:8", "8:15", "15:23", "23:30"]];
/// Steps before the measurement, in which the client learns the speeds of the servers and the best micro-batching: it
/// may try five sizes twice.
const TEACHING: usize = 12;

struct Chain {
    servers: Vec<Process>,
    remote: RemoteSequential,
}

pub(crate) fn measure(rounds: usize, checkpoint: &Checkpoint) -> Section {
    let title =
        "Servers: the usual step through processes on loopback that share the cores, each with a part of the blocks";
    let mut section = Section::new(title, COLUMNS);
    let inputs = Inputs::new(&smollm2(), &Workload::sentences(32));
    let chains = CHAINS.map(|parts| {
        let servers: Vec<Process> = parts.iter().map(|blocks| checkpoint.serve(blocks)).collect();
        let remote = checkpoint.connect(&servers);
        Chain { servers, remote }
    });
    for chain in &chains {
        (0..TEACHING).for_each(|_| inputs.remote(&chain.remote));
    }
    let step = |chain: usize| inputs.remote(&chains[chain].remote);
    let seconds = Turns::all(rounds).medians([&|| step(0), &|| step(1), &|| step(2)]);
    for ((chain, parts), seconds_of) in chains.iter().zip(CHAINS).zip(seconds) {
        let ratio = seconds_of / seconds[0];
        let idle: Vec<String> = idle(chain, &inputs, rounds).iter().map(|share| format!("{share:.2}")).collect();
        let [step, of_one] = [seconds_of, ratio].map(|value| Cell::Number(value, 3));
        let [blocks, idle] = [parts.join(" "), idle.join(" ")].map(Cell::Text);
        section.row([Cell::count(parts.len()), blocks, step, of_one, idle]);
        if parts.len() > 1 {
            let target = (parts.len() == 4).then_some(AtMost(1.1));
            section.figure(format!("{} servers / one server", parts.len()), ratio, target);
        }
    }
    section
}

/// Returns the fraction of the time in which each server of the chain computes nothing.
fn idle(chain: &Chain, inputs: &Inputs, steps: usize) -> Vec<f64> {
    let computed = || chain.servers.iter().map(Process::computed).collect::<Vec<f64>>();
    let (before, begun) = (computed(), Instant::now());
    (0..steps).for_each(|_| inputs.remote(&chain.remote));
    let wall = begun.elapsed().as_secs_f64();
    computed().iter().zip(before).map(|(after, before)| 1.0 - (after - before) / wall).collect()
}
