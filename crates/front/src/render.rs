//! `sepal render`: a pipeline with every default, and the origin of each value.

use sepal_catalog::Catalog;
use sepal_config::Rendered;
use serde_json::{Map, Value, json};

use crate::args::RenderArgs;
use crate::output::{Failure, print_json, print_progress, print_yaml};
use crate::pipeline_file::layers;

pub(crate) fn render(catalog: &Catalog, args: &RenderArgs) -> Result<(), Failure> {
    let rendered = layers(&args.pipeline)?.render(catalog)?;
    rendered.notices.iter().for_each(|notice| print_progress(notice));
    match args.json {
        true => print_json(&serde_json::to_string_pretty(&by_key(&rendered))?),
        false => print_yaml(rendered.to_yaml(args.origin).trim_end()),
    }
}

fn by_key(rendered: &Rendered) -> Value {
    let entry = |value: &sepal_config::Resolved| {
        (value.key.to_string(), json!({ "value": value.value, "origin": value.origin.to_string() }))
    };
    Value::Object(rendered.values.iter().map(entry).collect::<Map<_, _>>())
}
