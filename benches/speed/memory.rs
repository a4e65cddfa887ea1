//! Peak memory of a server and a client in training.

use std::process::Command;

use sepal_blocks::Ends;
use sepal_core::ModelConfig;
use sepal_server::Limits;
use sepal_swarm::Endpoint;
use tch::{Device, Kind, Tensor};

use crate::model::{block_bytes, smollm2};
use crate::processes::{Checkpoint, peak_bytes};
use crate::report::Target::AtMost;
use crate::report::{Cell, Section};
use crate::step::{Inputs, Workload, connect};

/// First argument of the client process.
pub(crate) const CLIENT: &str = "--client";
/// Allowed memory in addition to the required one.
const SPARE: u64 = 300_000_000;
const COLUMNS: &[&str] = &["process", "peak MB", "must hold MB", "and may keep MB"];
const STEPS: usize = 4;

pub(crate) fn measure(_: usize, checkpoint: &Checkpoint) -> Section {
    let title = "Memory: the peak of a server process and of a client process over usual steps";
    let mut section = Section::new(title, COLUMNS);
    let server = checkpoint.serve("0:30");
    let output = Command::new(std::env::current_exe().expect("this is a file"))
        .args([CLIENT, &server.server.addr, checkpoint.digest()])
        .arg(checkpoint.folder())
        .output()
        .expect("the client runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let client: Option<u64> = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
    let ModelConfig { n_blocks, vocab_size, hidden, .. } = smollm2();
    let weights = (block_bytes(&smollm2()) * n_blocks) as u64;
    let embeddings = (4 * vocab_size * hidden) as u64;
    let tapes = Limits::default().tape_budget_bytes;
    for (name, peak, holds, keeps, what) in [
        ("server", server.peak_bytes(), weights, tapes, "weights + tape budget + 300 MB"),
        ("client", client, embeddings, 0, "embeddings + 300 MB"),
    ] {
        let megabytes = |bytes: u64| Cell::Number(bytes as f64 / 1e6, 0);
        let spare = megabytes(keeps + SPARE);
        section.row([name.into(), peak.map_or(Cell::Nothing, megabytes), megabytes(holds), spare]);
        if let Some(peak) = peak {
            let ratio = peak as f64 / (holds + keeps + SPARE) as f64;
            section.figure(format!("{name}'s peak / ({what})"), ratio, AtMost(1.0));
        }
    }
    section
}

/// Runs the client process: address, digest and folder of the model. Trains and prints its peak memory.
pub(crate) fn client(args: &[String]) {
    let [addr, digest, folder] = args else { panic!("an address, a digest and a folder, not {args:?}") };
    let (config, work) = (smollm2(), Workload::sentences(32));
    let checkpoint = sepal_checkpoint::Checkpoint::open(folder).expect("a checkpoint");
    let ends = Ends::load(&checkpoint).expect("ends");
    let inputs = Inputs::new(&config, &work);
    let remote = connect(vec![Endpoint::Addr(addr.parse().expect("an address"))], digest, &config);
    for _ in 0..STEPS {
        let ids = Tensor::randint(config.vocab_size as i64, [work.n_tokens() as i64], (Kind::Int64, Device::Cpu));
        inputs.remote_on(&remote, &ends.embed(&ids).expect("embedded"));
    }
    if let Some(peak) = peak_bytes("self") {
        println!("{peak}");
    }
}
