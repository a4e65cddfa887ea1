//! `sepal audit`: how much of a run's texts servers could read, and what noise against that costs.

use std::path::PathBuf;

use sepal_data::TableSpec;
use sepal_pipeline::{Audit, AuditOptions, Classifier};
use sepal_plugin::Registry;
use serde_json::{Value, json};

use crate::args::{AuditArgs, PipelineArgs};
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print, print_json};
use crate::pipeline_file::load;
use crate::table::Table;
use crate::units::grouped;

/// Validation rows of a run, and their columns.
const ROWS: &str = "predictions.parquet";

pub(crate) fn audit(registry: &Registry, args: &AuditArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after this batch")?;
    let rows = args.run.join(ROWS);
    if !rows.is_file() {
        let rows = rows.display();
        return Err(format!("audit the run: {rows} is missing; it is written by runs with validation rows").into());
    }
    // Hidden states of every block are at hand only where all blocks run in this process.
    let local = [r#"swarm={"use":"none"}"#, "model.local_blocks=0"].map(str::to_owned);
    let set = args.set.iter().cloned().chain(local).collect();
    let spec = load(registry, &PipelineArgs { file: args.run.join("pipeline.yaml"), set })?;
    let mut console = Console::default();
    let classifier = Classifier::open(&spec, &args.run, registry, &mut console, &stop)?;
    let facts = &classifier.manifest().data;
    let columns = TableSpec {
        text_pair: facts.text_pair.as_ref().map(|_| "text_pair".to_owned()),
        label: Some("label".to_owned()),
        options: if facts.options.is_empty() { Vec::new() } else { vec!["options".to_owned()] },
        words: facts.words,
        ..TableSpec::new(PathBuf::new(), "text")
    };
    let options =
        AuditOptions { local_blocks: args.local_blocks.clone(), noise: args.noise.clone(), max_rows: args.rows };
    let audit = classifier.audit(&options, &rows, &columns, &mut console, &stop)?;
    drop(console);
    match args.json {
        true => print_json(&serde_json::to_string_pretty(&to_json(&audit))?),
        false => print(table(&audit).text()),
    }
}

fn table(audit: &Audit) -> Table {
    let mut table = Table::default();
    let tokens = grouped(audit.tokens as u64);
    table.heading(&format!("tokens of {} rows that a server could recover ({tokens} measured)", audit.rows));
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut cells =
        vec![["local blocks", "noise", "nearest embedding", "linear map", &audit.headline].map(str::to_owned).to_vec()];
    cells.extend(audit.results.iter().map(|result| {
        let (local_blocks, noise) = (result.local_blocks.to_string(), result.noise.to_string());
        vec![local_blocks, noise, percent(result.nearest), percent(result.linear), format!("{:.4}", result.metric)]
    }));
    table.rows(&cells);
    table
}

fn to_json(audit: &Audit) -> Value {
    let results = audit.results.iter().map(|result| {
        json!({
            "local_blocks": result.local_blocks,
            "noise": result.noise,
            "nearest_embedding": result.nearest,
            "linear_map": result.linear,
            "metric": result.metric,
        })
    });
    json!({
        "rows": audit.rows,
        "tokens": audit.tokens,
        "metric": audit.headline,
        "results": results.collect::<Vec<_>>(),
    })
}
