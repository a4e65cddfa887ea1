//! `sepal plan --model`: the servers that a model needs.

use sepal_pipeline::plan::{FormatPlan, ServersPlan, ServersSpec, plan_servers};

use crate::args::{PlanArgs, ServersArgs};
use crate::downloads::Downloads;
use crate::output::{Failure, print, print_json};
use crate::table::Table;
use crate::units::{grouped, size};

pub(super) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let model: Vec<_> = args.servers.model.iter().cloned().collect();
    let (spec, mut downloads) = (spec(&args.servers), Downloads::default());
    let plan = plan_servers(&model, &spec, &mut downloads.watch())?;
    drop(downloads);
    match args.json {
        true => print_json(&serde_json::to_string_pretty(&plan)?),
        false => print(&text(&plan, &spec)),
    }
}

fn spec(args: &ServersArgs) -> ServersSpec {
    ServersSpec {
        rows: args.rows.unwrap_or(32),
        tokens: args.tokens.unwrap_or(512),
        prompts: args.prompts.unwrap_or(16),
        compute: args.compute.unwrap_or_default(),
        server_bytes: args.server_memory_gb.map(|gigabytes| (gigabytes * 1e9) as u64),
        server_flops: args.server_tflops.map(|rate| rate * 1e12),
        // Eight bits to a byte.
        link_bytes: args.link_mbit.map(|rate| rate * 1e6 / 8.0),
    }
}

fn text(plan: &ServersPlan, spec: &ServersSpec) -> String {
    let mut table = Table::default();
    table.heading("model");
    table.line("source", &plan.source);
    table.line("shape", format!("{}, {} blocks, hidden size {}", plan.family, plan.blocks, plan.hidden));
    table.line("blocks", format!("{} parameters in linear layers", grouped(plan.counted_block_parameters)));
    if let Some(bytes) = plan.file_bytes {
        let shards = plan.shards.map(|shards| format!(" in {shards} shards")).unwrap_or_default();
        table.line("files", format!("{}{shards}", size(bytes)));
    }
    table.line("ends", format!("{} of embeddings and norm at the client", size(plan.estimated_ends_bytes)));
    table.heading("step");
    let (rows, tokens, prompts) = (spec.rows, spec.tokens, spec.prompts);
    table.line("batch", format!("{rows} rows, {tokens} tokens, {prompts} deep prompts"));
    let operations = plan.counted_step_operations;
    table.line("products", format!("{operations:.3e} floating-point operations, in {}", spec.compute));
    match spec.server_bytes {
        Some(bytes) => table.heading(&format!("servers with {} of free memory", size(bytes))),
        None => table.heading("one server with all blocks (--server-memory-gb states a size)"),
    }
    let header = ["weights", "a block", "all blocks", "servers", "blocks each", "memory each", "up", "down", "time"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(plan.formats.iter().map(row));
    table.rows(&rows);
    table.text().to_owned()
}

fn row(plan: &FormatPlan) -> Vec<String> {
    let mut row = vec![plan.weights.to_string(), size(plan.counted_block_bytes), size(plan.counted_weight_bytes)];
    let Some(group) = &plan.servers else {
        row.push("not one block fits".to_owned());
        return row;
    };
    row.extend([group.servers.to_string(), group.blocks_per_server.to_string(), size(group.estimated_server_bytes)]);
    row.extend([size(group.counted_up), size(group.counted_down)]);
    row.push(match (group.estimated_compute_seconds, group.estimated_transfer_seconds) {
        (None, None) => "-".to_owned(),
        (compute, transfer) => {
            let stated = [compute.map(|s| format!("{s:.3} s products")), transfer.map(|s| format!("{s:.3} s links"))];
            stated.into_iter().flatten().collect::<Vec<_>>().join(" + ")
        }
    });
    row
}
