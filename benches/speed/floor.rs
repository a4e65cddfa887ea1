//! The usual step against a lower bound and against other implementations.

use crate::model::{Random, smollm2};
use crate::processes::Checkpoint;
use crate::products::Products;
use crate::report::Target::{AtLeast, AtMost};
use crate::report::{Cell, Section};
use crate::step::{Embedded, Inputs, Workload};
use crate::turns::Turns;

const COLUMNS: &[&str] = &["32 sentences, 16 deep prompts, SmolLM2-135M's shape", "seconds", "of direct"];

pub(crate) fn measure(rounds: usize, checkpoint: &Checkpoint) -> Section {
    let title = "The floor: the usual step against its matrix products alone. Counted are linear layers and attention's \
                 own products,\nforward and backward, without the gradients of frozen weights";
    let mut section = Section::new(title, COLUMNS);
    let (config, work) = (smollm2(), Workload::sentences(32));
    let (inputs, products) = (Inputs::new(&config, &work), Products::new(&config, &work));
    let random = Random::new(config.clone());
    let (stack, embedded) = (random.all_blocks(), Embedded::new(&random, &config));
    let servers = [checkpoint.serve("0:30")];
    let process = checkpoint.connect(&servers);
    let turns = Turns::all(rounds);
    let [bare, direct, embedded_s, process_s, padded] = turns.medians([
        &|| products.run(),
        &|| inputs.direct(&stack),
        &|| inputs.remote(&embedded.remote),
        &|| inputs.remote(&process),
        &|| inputs.padded(&stack),
    ]);
    for (name, seconds) in [
        ("matrix products, bare", bare),
        ("direct: ragged, in process", direct),
        ("embedded: ragged, embedded server", embedded_s),
        ("process: ragged, a server process over TCP", process_s),
        ("padded to 64, prefix per row, in process", padded),
    ] {
        section.row([name.into(), Cell::Number(seconds, 4), Cell::Number(seconds / direct, 3)]);
    }
    section.figure("direct / matrix products", direct / bare, None);
    section.figure("embedded / direct", embedded_s / direct, AtMost(1.05));
    section.figure("server process over TCP / direct", process_s / direct, AtMost(1.08));
    section.figure("padded / embedded", padded / embedded_s, AtLeast(5.0));
    for len in [64, 128] {
        let inputs = Inputs::new(&config, &Workload::full(8, len));
        let [embedded_s, padded] = turns.medians([&|| inputs.remote(&embedded.remote), &|| inputs.padded(&stack)]);
        section.figure(format!("8 rows full at {len}: embedded / padded"), embedded_s / padded, AtMost(0.95));
    }
    section
}
