use askama::Template;
use sepal_track::Status;

use crate::read::Run;
use crate::text;

#[derive(Template)]
#[template(path = "headline.html")]
struct Headline {
    name: String,
    id: String,
    task: String,
    model: String,
    state: State,
    started: String,
    stamp: String,
    main: Option<Large>,
    others: Vec<Large>,
    facts: Vec<Large>,
    notices: Vec<Notice>,
}

struct Large {
    value: String,
    what: String,
}

/// Notice at the top of the page.
struct Notice {
    alarm: bool,
    title: &'static str,
    text: String,
}

/// Outcome of the run: a word, a sign and a class of the style sheet.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) word: &'static str,
    pub(crate) sign: &'static str,
    pub(crate) class: &'static str,
}

pub(crate) fn state(run: &Run) -> State {
    match (&run.manifest.status, &run.manifest.ended_early) {
        (Status::Finished, None) => State { word: "finished", sign: "✓", class: "good" },
        (Status::Finished, Some(_)) => State { word: "finished early", sign: "✓", class: "good" },
        (Status::Interrupted, _) => State { word: "interrupted", sign: "‖", class: "fair" },
        (Status::Failed { .. }, _) => State { word: "failed", sign: "✕", class: "bad" },
    }
}

/// Main metric of a run, with its value and origin.
pub(crate) fn main_metric(run: &Run) -> Option<(String, f64, String)> {
    let manifest = &run.manifest;
    if let Some(best) = manifest.best.as_ref().filter(|best| best.value.is_finite()) {
        return Some((best.metric.clone(), best.value, format!("best, after step {}", text::count(best.step))));
    }
    let name = ["accuracy", "f1", "pearson"].into_iter().find(|name| manifest.metrics.contains_key(*name));
    let name = name.map(str::to_owned).or_else(|| manifest.metrics.keys().next().cloned())?;
    let step = run.history.evaluations.last().map_or(manifest.steps, |last| last.step);
    let value = manifest.metrics[&name];
    Some((name, value, format!("last, after step {}", text::count(step))))
}

/// Head of the page: the run, its main results and notices.
pub(crate) fn html(run: &Run) -> String {
    let manifest = &run.manifest;
    crate::page::render(&Headline {
        name: text::cut(&manifest.name, 80),
        id: text::cut(&run.id(), 120),
        task: task(run),
        model: text::cut(model_name(&manifest.model.source), 160),
        state: state(run),
        started: text::moment(&manifest.started),
        stamp: manifest.started.clone(),
        main: main(run),
        others: others(run),
        facts: facts(run),
        notices: notices(run),
    })
}

/// Name of a model's source for a title: that of its file or folder, or the repository of the hub.
fn model_name(source: &str) -> &str {
    if source.starts_with("hub:") && source.matches('/').count() < 2 {
        return source;
    }
    let (path, _) = source.split_once("#sha256=").unwrap_or((source, ""));
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    // In `x.gguf.part{0..3}`, the last extension numbers the parts of the file.
    let of_part = name.split_once('{').filter(|(_, range)| source.starts_with("pypi:") && range.contains(".."));
    of_part.and_then(|(before, _)| before.rsplit_once('.')).map_or(name, |(whole, _)| whole)
}

/// Names of the task and the tuning modes in the pipeline.
fn task(run: &Run) -> String {
    let modes = run.options.flat().iter().filter(|(key, _)| is_mode(key)).map(|(_, name)| name.as_str());
    let modes = Some(modes.collect::<Vec<_>>().join(" and ")).filter(|modes| !modes.is_empty());
    let named: Vec<String> = run.options.get("task.use").map(str::to_owned).into_iter().chain(modes).collect();
    text::cut(&named.join(" by "), 120)
}

/// True for the key of a tuning mode's name: `tuning.use`, or `tuning.0.use` in a list.
fn is_mode(key: &str) -> bool {
    let place = key.strip_prefix("tuning.").and_then(|key| key.strip_suffix("use"));
    place.is_some_and(|place| place.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

fn main(run: &Run) -> Option<Large> {
    if let Some((name, value, place)) = main_metric(run) {
        let what = format!("{}, {place}", text::metric_name(&name));
        return Some(Large { value: text::metric(&name, value), what });
    }
    let last = run.history.steps.iter().rev().find(|step| step.loss.is_finite())?;
    let what = format!("training loss in step {}; nothing was evaluated", text::count(last.step));
    Some(Large { value: format!("{:.4}", last.loss), what })
}

/// Metrics of the kept evaluation, without the main one if it is equal.
fn others(run: &Run) -> Vec<Large> {
    let main = main_metric(run);
    let same = |name: &str, value: f64| main.as_ref().is_some_and(|(n, v, _)| n == name && *v == value);
    let step = run.manifest.best.as_ref().map(|best| best.step);
    let evaluations = &run.history.evaluations;
    let best_evaluation = evaluations.iter().rfind(|one| step.is_none_or(|step| one.step == step));
    let mut all: Vec<(String, f64)> = run.manifest.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect();
    all.extend(best_evaluation.map(|evaluation| ("loss".to_owned(), evaluation.loss)));
    let all = all.into_iter().filter(|(name, value)| !name.contains('/') && !same(name, *value)).take(4);
    let large = |(name, value): (String, f64)| {
        let is_main = main.as_ref().is_some_and(|(n, ..)| *n == name);
        let what = if name == "loss" { "Validation loss".to_owned() } else { text::metric_name(&name) };
        Large { value: text::metric(&name, value), what: if is_main { format!("{what}, last") } else { what } }
    };
    all.map(large).collect()
}

fn facts(run: &Run) -> Vec<Large> {
    let manifest = &run.manifest;
    let large = |value: String, what: &str| Large { value, what: what.to_owned() };
    let skipped =
        if manifest.skipped_steps > 0 { format!("steps, {} skipped", manifest.skipped_steps) } else { "steps".into() };
    let share = manifest.parameters.trainable as f64 / manifest.parameters.total as f64;
    let trained = format!("numbers trained, {} of all", text::percent(share, 2));
    let time = match manifest.seconds {
        ..59.5 => "in all",
        ..3600.0 => "minutes in all",
        _ => "hours in all",
    };
    let mut facts = vec![
        large(text::seconds(manifest.seconds), time),
        Large { value: text::count(manifest.steps), what: skipped },
        large(text::count(manifest.parameters.trainable), &trained),
    ];
    if manifest.train_seconds > 0.0 {
        let speed = manifest.train_tokens as f64 / manifest.train_seconds;
        facts.push(large(text::digits(speed, 3), "tokens/s in training"));
    }
    let (sent, received) = if run.is_in_process() {
        ("to the blocks, in this process", "back from them")
    } else {
        ("sent to servers", "received")
    };
    facts.push(large(text::bytes(manifest.bytes.sent), sent));
    facts.push(large(text::bytes(manifest.bytes.received), received));
    facts
}

fn notices(run: &Run) -> Vec<Notice> {
    let manifest = &run.manifest;
    let mut notices = Vec::new();
    let mut add = |alarm, title, text: String| notices.push(Notice { alarm, title, text: text::cut(&text, 2000) });
    let made = text::counted(manifest.steps, "step", "steps");
    match &manifest.status {
        Status::Failed { error } => add(true, "The run failed", format!("after {made}: {error}")),
        Status::Interrupted => {
            add(false, "The run was interrupted", format!("after {made}; what was trained until then is saved."));
        }
        Status::Finished => {}
    }
    if let Some(reason) = &manifest.ended_early {
        add(false, "Training ended early", reason.clone());
    }
    if !manifest.resumed_at.is_empty() {
        let steps: Vec<String> = manifest.resumed_at.iter().take(40).map(|step| text::count(*step)).collect();
        let more = if manifest.resumed_at.len() > steps.len() { " and others" } else { "" };
        let times = match manifest.resumed_at.len() {
            1 => String::new(),
            more => format!("{} times, ", text::count(more as u64)),
        };
        add(false, "The run went on from a checkpoint", format!("{times}after step {}{more}.", steps.join(", ")));
    }
    for problem in &run.problems {
        add(true, "Not everything could be read", problem.clone());
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuning_modes_are_named_alone_or_in_a_list() {
        for (key, expected) in [
            ("tuning.use", true),
            ("tuning.1.use", true),
            ("tuning.12.use", true),
            ("tuning.with.use", false),
            ("task.use", false),
            ("tuning.1.with.r", false),
        ] {
            assert_eq!(is_mode(key), expected, "{key}");
        }
    }

    #[test]
    fn model_has_the_name_of_its_file_or_repository() {
        for (source, expected) in [
            ("hub:a/b@v1", "hub:a/b@v1"),
            ("hub:a/b/c/d.gguf", "d.gguf"),
            ("pypi:a==1/b/c.gguf#sha256=00", "c.gguf"),
            ("pypi:a{1..2}==1/b{1..2}/c.gguf.part{0..1}#sha256=00", "c.gguf"),
            ("pypi:a==1/c-{1..2}", "c-{1..2}"),
            ("/home/me/models/tiny/", "tiny"),
            ("a#b", "a#b"),
        ] {
            assert_eq!(model_name(source), expected);
        }
    }
}
