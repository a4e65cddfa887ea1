//! The usual step, and steps that differ from it in one property.

use std::cell::Cell as Value;

use sepal_blocks::BlockStack;
use sepal_core::ModelConfig;

use crate::model::{Random, bloom, smollm2};
use crate::processes::Checkpoint;
use crate::report::{Cell, Section};
use crate::step::{Embedded, Inputs, Workload, moved};
use crate::turns::Turns;

const COLUMNS: &[&str] = &[
    "step",
    "tokens",
    "positions",
    "direct s",
    "embedded s",
    "padded s",
    "tokens/s",
    "padded/embedded",
    "embedded/direct",
    "MB moved",
];
const ONCE_BEYOND: f64 = 4.0;

pub(crate) fn measure(rounds: usize, _: &Checkpoint) -> Section {
    let title = "Steps: forward and backward, fp32, in seconds. `direct` calls the blocks, `embedded` goes through the \
                 embedded server,\n`padded` pads the rows and computes the prefix for each; SmolLM2-135M's shape, 16 deep \
                 prompts, 32 sentences, but for what is said";
    let mut section = Section::new(title, COLUMNS);
    let turns = Turns { rounds, once_beyond: ONCE_BEYOND };
    for (config, steps) in [
        (smollm2(), of_smollm2()),
        (bloom(8, 512, 8), vec![("BLOOM 8 x 512".to_owned(), Workload::sentences(32))]),
        (bloom(24, 1024, 16), vec![("BLOOM 24 x 1024".to_owned(), Workload::sentences(32))]),
    ] {
        let random = Random::new(config.clone());
        let (stack, embedded) = (random.all_blocks(), Embedded::new(&random, &config));
        for (name, work) in steps {
            section.row(row(turns, name, &work, &config, &stack, &embedded));
        }
    }
    section
}

fn of_smollm2() -> Vec<(String, Workload)> {
    let usual = Workload::sentences(32);
    let mut steps = vec![("usual".to_owned(), usual.clone())];
    for n_rows in [1, 8, 128] {
        steps.push((format!("sentences: {n_rows}"), Workload::sentences(n_rows)));
    }
    for prefix_len in [8, 64] {
        steps.push((format!("prompts: {prefix_len}"), Workload { prefix_len, ..usual.clone() }));
    }
    steps.push(("ptune".to_owned(), Workload { is_deep: false, ..usual }));
    for (n_rows, len) in [(8, 64), (8, 128), (2, 512)] {
        steps.push((format!("full rows: {n_rows} x {len}"), Workload::full(n_rows, len)));
    }
    steps
}

fn row(
    turns: Turns,
    name: String,
    work: &Workload,
    config: &ModelConfig,
    stack: &BlockStack,
    embedded: &Embedded,
) -> Vec<Cell> {
    let inputs = Inputs::new(config, work);
    let bytes = Value::new(0);
    let through_server = || {
        let before = moved(&embedded.remote);
        inputs.remote(&embedded.remote);
        bytes.set(moved(&embedded.remote) - before);
    };
    let [direct, remote, padded] = turns.medians([&|| inputs.direct(stack), &through_server, &|| inputs.padded(stack)]);
    vec![
        Cell::Text(name),
        Cell::count(work.n_tokens()),
        Cell::count(work.positions()),
        Cell::Number(direct, 3),
        Cell::Number(remote, 3),
        Cell::Number(padded, 3),
        Cell::Number(work.n_tokens() as f64 / remote, 0),
        Cell::Number(padded / remote, 2),
        Cell::Number(remote / direct, 3),
        Cell::Number(bytes.get() as f64 / 1e6, 2),
    ]
}
