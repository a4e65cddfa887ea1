//! `sepal plan`: an estimate of a run.

use sepal_prepare::plan::{BytesPlan, DataPlan, DiskPlan, HopPlan, ModelPlan, Plan, ProbeEnd, StepsPlan, TensorPlan};

use crate::args::PlanArgs;
use crate::output::{Failure, print, print_json};
use crate::table::Table;
use crate::units::{clock, grouped, size};

mod count;

pub use self::count::count;

/// Prints a plan as text or as JSON.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_plan(plan: &Plan, args: &PlanArgs, is_interrupted: bool) -> Result<(), Failure> {
    match args.json {
        true => print_json(&serde_json::to_string_pretty(plan)?),
        false => print(&text(plan, args, is_interrupted)),
    }
}

fn text(plan: &Plan, args: &PlanArgs, is_interrupted: bool) -> String {
    let mut table = Table::default();
    model(&mut table, &plan.model);
    trainable(&mut table, &plan.trainable, plan.model.parameters);
    data(&mut table, &plan.data);
    steps(&mut table, &plan.steps);
    bytes(&mut table, plan.bytes.as_ref());
    route(&mut table, plan);
    time(&mut table, plan, args, is_interrupted);
    disk(&mut table, &plan.disk, &plan.model);
    table.text().to_owned()
}

fn model(table: &mut Table, model: &ModelPlan) {
    table.heading("model");
    table.line("source", &model.source);
    table.line("shape", format!("{}, {} blocks, hidden size {}", model.family, model.blocks, model.hidden));
    table.line("parameters", grouped(model.parameters));
    table.line("files", format!("{}, {}", model.stored_as, size(model.file_bytes)));
    let local = match model.estimated_bytes_here {
        0 => "none of it in this process".to_owned(),
        all if all == model.estimated_block_bytes => "in this process".to_owned(),
        some => format!("{} of it in this process", size(some)),
    };
    let blocks = size(model.estimated_block_bytes);
    let (weights, compute) = (&model.weights, &model.compute);
    table.line("blocks", format!("about {blocks} of weights as {weights}, computed in {compute}, {local}"));
    table.line("ends", format!("{} of embeddings and norm in this process", size(model.ends_bytes)));
}

fn trainable(table: &mut Table, tensors: &[TensorPlan], frozen: u64) {
    let all: u64 = tensors.iter().map(|tensor| tensor.numbers).sum();
    let share = all as f64 / (all + frozen).max(1) as f64 * 100.0;
    table.heading(&format!("trains {} numbers, {share:.3} % of all", grouped(all)));
    let row = |tensor: &TensorPlan| {
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        vec![tensor.name.clone(), shape, grouped(tensor.numbers), format!("{:.1} %", tensor.share * 100.0)]
    };
    table.rows(&tensors.iter().map(row).collect::<Vec<_>>());
}

fn data(table: &mut Table, data: &DataPlan) {
    table.heading("data");
    table.line("training", format!("{} rows of {}", grouped(data.train_rows as u64), data.train));
    if data.validation_rows > 0 {
        table.line("validation", format!("{} rows of {}", grouped(data.validation_rows as u64), data.validation));
    }
    let [median, longest] = [data.median_batch_tokens, data.longest_batch_tokens].map(|tokens| grouped(tokens as u64));
    let mean = data.mean_batch_tokens;
    table.line(
        &format!("batch of {}", data.batch_size),
        format!("{mean:.0} tokens on the mean, median {median}, longest {longest}"),
    );
    table.line("longest row", format!("{} tokens", data.longest_row_tokens));
    table.line("shortened", shortened(data));
}

fn shortened(data: &DataPlan) -> String {
    let end = if data.truncation_side == "left" { "beginning" } else { "end" };
    let tokens = |tokens: usize| format!("{} token{}", grouped(tokens as u64), if tokens == 1 { "" } else { "s" });
    let (all, most) = (tokens(data.truncated_tokens), tokens(data.most_truncated_tokens));
    match data.truncated_rows {
        0 => "no row".to_owned(),
        1 => format!("1 row, which loses the {end} of its text, {all}; a template stays whole"),
        rows => format!(
            "{} rows, which lose the {end} of their texts, {most} at the most, {all} in all; a template stays whole",
            grouped(rows as u64)
        ),
    }
}

fn steps(table: &mut Table, steps: &StepsPlan) {
    table.heading("steps");
    let passes = steps.total as f64 / steps.per_epoch.max(1) as f64;
    let accumulated = if steps.accumulate > 1 { format!(" of {} batches", steps.accumulate) } else { String::new() };
    table.line("training", format!("{} steps{accumulated}, {passes:.2} passes over the rows", grouped(steps.total)));
    let evaluations = steps.evaluations;
    table.line("evaluation", if evaluations == 1 { "once".to_owned() } else { format!("{evaluations} times") });
    if let Some(minutes) = steps.max_minutes {
        table.line("limit", format!("training ends after {minutes} minutes"));
    }
    if steps.may_stop_early {
        table.line("limit", "early stopping may end it before");
    }
}

fn bytes(table: &mut Table, bytes: Option<&BytesPlan>) {
    let Some(bytes) = bytes else { return };
    table.heading("bytes of a step");
    let servers = match (bytes.servers, bytes.of_the_route) {
        (1, true) => "through 1 server".to_owned(),
        (n, true) => format!("through {n} servers in a row"),
        (_, false) => "if one server has all blocks".to_owned(),
    };
    let more = match bytes.counted_per_server {
        0 => String::new(),
        more => format!("; each further server {} more either way", size(more)),
    };
    let (up, down) = (size(bytes.counted_up), size(bytes.counted_down));
    table.line("counted", format!("{up} up, {down} down, {servers}{more}"));
    if let (Some(up), Some(down)) = (bytes.measured_up, bytes.measured_down) {
        table.line("measured", format!("{} up, {} down", size(up), size(down)));
    }
}

fn route(table: &mut Table, plan: &Plan) {
    let Some(route) = &plan.route else { return };
    table.heading("route");
    let row = |hop: &HopPlan| {
        let blocks = format!("blocks {}", hop.blocks);
        let memory = format!("about {}", size(hop.estimated_bytes));
        match hop.server.and_then(|server| plan.servers.get(server)) {
            Some(server) => {
                let round_trip = format!("round trip {:.2} ms", server.round_trip_ms);
                vec![blocks, server.place.clone(), memory, round_trip]
            }
            None => vec![blocks, "in this process, without a server".to_owned(), memory],
        }
    };
    table.rows(&route.iter().map(row).collect::<Vec<_>>());
    let used = |server: usize| route.iter().any(|hop| hop.server == Some(server));
    let spare = (0..plan.servers.len()).filter(|&server| !used(server)).count();
    if spare > 0 {
        table.line("others", format!("{spare} more servers of the model, which are used when these fail or are slow"));
    }
}

fn time(table: &mut Table, plan: &Plan, args: &PlanArgs, is_interrupted: bool) {
    table.heading("time");
    let steps = &plan.steps;
    let Some(time) = &plan.time else {
        let why = match (is_interrupted, args.probe_steps) {
            (true, _) => "it was interrupted before a step was measured",
            (false, 0) => "nothing was measured; --probe-steps 3 measures three steps",
            (false, _) => "no step could be measured: numbers overflowed in each of them",
        };
        return table.line("unknown", why);
    };
    let n = time.probe_steps;
    let measured = if n == 1 { "1 step".to_owned() } else { format!("{n} steps") };
    table.line(
        "measured",
        format!(
            "{:.2} s a step of {:.0} tokens ({measured}; the first took {:.2} s), {:.0} tokens/s",
            time.step_seconds, time.step_tokens, time.first_step_seconds, time.tokens_per_second
        ),
    );
    match time.evaluation_tokens_per_second {
        Some(rate) => table.line("", format!("{rate:.0} tokens/s in evaluation")),
        None if steps.evaluations > 0 => {
            table.line("", "evaluation was not measured and is taken to be as fast as training");
        }
        None => {}
    }
    match time.ended_by {
        Some(ProbeEnd::Interrupted) => {
            table.line("", "interrupted before all was measured that was asked for, so a rougher estimate")
        }
        Some(_) => {
            let (steps, seconds) = (args.probe_steps, args.probe_seconds);
            let why = format!("ended by --probe-seconds {seconds} before {steps} steps and evaluation were measured");
            table.line("", why);
        }
        None => {}
    }
    let mut parts = vec![format!("{} of training", clock(time.estimated_training_seconds))];
    if steps.evaluations > 0 {
        parts.push(format!("{} x {} of evaluation", steps.evaluations, clock(time.estimated_evaluation_seconds)));
    }
    table.line("estimated", format!("{} for the run: {}", clock(time.estimated_seconds), parts.join(", ")));
}

fn disk(table: &mut Table, disk: &DiskPlan, model: &ModelPlan) {
    table.heading("disk");
    table.line("model", format!("{} in the cache or where it lies", size(model.file_bytes)));
    let (adapter, checkpoints) = (size(disk.estimated_adapter_bytes), size(disk.estimated_checkpoint_bytes));
    table.line("run folder", format!("about {adapter} for the adapter, {checkpoints} for checkpoints"));
    if let Some(free) = disk.free_bytes {
        let needed = disk.estimated_adapter_bytes + disk.estimated_checkpoint_bytes;
        let verdict = if free < needed { ", which is too little" } else { "" };
        table.line("free", format!("{}{verdict}", size(free)));
    }
}
