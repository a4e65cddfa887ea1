use askama::Template;

use crate::page::{Section, folded, missing, render};
use crate::read::Run;
use crate::text;

#[derive(Template)]
#[template(path = "facts.html")]
struct Facts {
    groups: Vec<Group>,
}

struct Group {
    title: &'static str,
    lines: Vec<Line>,
}

struct Line {
    name: &'static str,
    value: String,
    /// True for digests and paths, which are set as code.
    code: bool,
}

#[derive(Template)]
#[template(source = r#"<pre tabindex="0"><code>{{ text }}</code></pre>"#, ext = "html")]
struct Listing {
    text: String,
}

/// Maximum number of shown characters of a pipeline file.
const LISTED: usize = 40_000;

/// Section with the model, the data and the training options.
pub(crate) fn section(run: &Run) -> Option<Section> {
    let groups = vec![
        Group { title: "Model", lines: model(run) },
        Group { title: "Data", lines: data(run) },
        Group { title: "Training", lines: training(run) },
    ];
    let pipeline = match run.options.text() {
        "" => missing("There is no pipeline.yaml."),
        text => folded("pipeline.yaml, every default written out", &render(&Listing { text: text::cut(text, LISTED) })),
    };
    Some(Section::new("run", "What was run", [render(&Facts { groups }), pipeline]))
}

fn words(name: &'static str, value: impl Into<String>) -> Line {
    Line { name, value: text::cut(&value.into(), 600), code: false }
}

fn code(name: &'static str, value: &str) -> Line {
    Line { name, value: text::cut(value, 600), code: true }
}

fn model(run: &Run) -> Vec<Line> {
    let model = &run.manifest.model;
    let mut lines = vec![code("source", &model.source), words("weights", &model.weights)];
    lines.extend(model.unavailable_sources.iter().take(20).map(|source| words("passed over", source)));
    lines.extend([code("digest", &model.digest), code("tokenizer", &model.tokenizer)]);
    let parameters = run.manifest.parameters;
    let share = parameters.trainable as f64 / parameters.total as f64;
    let (trainable, total) = (text::count(parameters.trainable), text::count(parameters.total));
    lines.push(words("parameters", format!("{trainable} trained of {total}, {}", text::percent(share, 3))));
    lines
}

fn data(run: &Run) -> Vec<Line> {
    let data = &run.manifest.data;
    let rows = |rows: usize| text::counted(rows as u64, "row", "rows");
    let share = data.truncated_rows as f64 / data.train_rows.saturating_add(data.validation_rows) as f64;
    let length = run.options.get("data.max_length").map(|length| format!(" to {length} tokens")).unwrap_or_default();
    let truncated = match data.truncated_rows {
        0 => "no row".to_owned(),
        some => format!("{}{length}, {} of both", rows(some), text::percent(share, 1)),
    };
    let mut lines = vec![code("training", &data.train), words("", rows(data.train_rows))];
    lines.extend([
        words("validation", &data.validation),
        words("", rows(data.validation_rows)),
        words("cut", truncated),
    ]);
    if data.skipped_rows > 0 {
        lines.push(words("left out", format!("{} without a text or label", rows(data.skipped_rows))));
    }
    lines.extend(data.unavailable_sources.iter().take(20).map(|source| words("passed over", source)));
    if !run.manifest.labels.is_empty() {
        let shown: Vec<String> = run.manifest.labels.iter().take(30).map(|label| text::cut(label, 40)).collect();
        let rest = run.manifest.labels.len() - shown.len();
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        lines.push(words("labels", format!("{}{more}", shown.join(", "))));
    }
    lines.extend([code("training digest", &data.train_digest), code("validation digest", &data.validation_digest)]);
    lines
}

fn training(run: &Run) -> Vec<Line> {
    let manifest = &run.manifest;
    let option = |key: &str| run.options.get(key).filter(|value| *value != "none");
    let mut lines = Vec::new();
    let steps = text::counted(manifest.steps, "step", "steps");
    let epochs =
        run.history.steps.last().map(|step| format!(", {} epochs", text::trimmed(&format!("{:.2}", step.epoch))));
    lines.push(words("steps", format!("{steps}{}", epochs.unwrap_or_default())));
    if manifest.skipped_steps > 0 {
        lines.push(words("skipped", text::counted(manifest.skipped_steps, "step", "steps")));
    }
    for (name, key) in [
        ("batch", "loader.batch_size"),
        ("optimizer", "optimizer.use"),
        ("schedule", "schedule.use"),
        ("precision", "train.precision"),
    ] {
        lines.extend(option(key).map(|value| words(name, value)));
    }
    lines.extend(option("optimizer.with.lr").map(|lr| words("learning rate", lr)));
    lines.push(words("tokens", format!("{} without prompts", text::count(manifest.train_tokens))));
    lines.push(words("time", format!("{}, of it training {}", clock(manifest.seconds), clock(manifest.train_seconds))));
    let ended = manifest.ended_early.as_deref().unwrap_or_else(|| super::headline::state(run).word);
    lines.push(words("ended", ended));
    lines.push(words("seed", manifest.seed.to_string()));
    let versions = &manifest.versions;
    lines.push(words("versions", format!("Sepal {}, libtorch {}", versions.sepal, versions.libtorch)));
    lines
}

/// Duration with the unit of its colons.
fn clock(seconds: f64) -> String {
    let text = text::seconds(seconds);
    match text.matches(':').count() {
        0 => text,
        1 => format!("{text} min"),
        _ => format!("{text} h"),
    }
}
