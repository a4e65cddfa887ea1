//! `sepal render`: a pipeline with every default, and where each value comes from.

use clap::Args as ClapArgs;
use sepal_pipeline::Rendered;
use sepal_plugin::Registry;
use serde_json::{Map, Value, json};

use crate::args::PipelineArgs;
use crate::run::layers;
use crate::{Failure, print};

#[derive(Debug, ClapArgs)]
pub(crate) struct RenderArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Say after each value where it comes from: the file and its line, a variable, --set, or a default
    #[arg(long)]
    origin: bool,
    /// Print {KEY: {value, origin}} as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn render(registry: &Registry, args: &RenderArgs) -> Result<(), Failure> {
    let rendered = layers(&args.pipeline)?.render(registry)?;
    rendered.notices.iter().for_each(|notice| eprintln!("{notice}"));
    match args.json {
        true => print(&serde_json::to_string_pretty(&by_key(&rendered))?),
        false => print(rendered.to_yaml(args.origin).trim_end()),
    }
}

fn by_key(rendered: &Rendered) -> Value {
    let entry = |value: &sepal_pipeline::Resolved| {
        (value.key.to_string(), json!({ "value": value.value, "origin": value.origin.to_string() }))
    };
    Value::Object(rendered.values.iter().map(entry).collect::<Map<_, _>>())
}
