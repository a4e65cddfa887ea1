//! `sepal predict` and `sepal evaluate` on files and streams, and the example pipelines.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use sepal_integration_tests::fixture::{Fixture, Run, failure_messages, stdout, success_messages};
use serde_json::Value;

fn trained() -> (Fixture, Run) {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=20"]);
    (fixture, run)
}

#[test]
fn evaluate_matches_the_evaluation_of_the_run() {
    let fixture = Fixture::new("llama-gqa");
    // Three rows of one class per row of the other, so that the weights differ from 1.
    let rows = fs::read_to_string(fixture.path("train.csv")).expect("rows");
    let label = |row: &str| row.rsplit(',').next().map(str::to_owned);
    let first = rows.lines().nth(1).and_then(label);
    let rows = rows.lines().enumerate().filter(|(i, row)| *i == 0 || label(row) != first || i % 3 == 1);
    fs::write(fixture.path("train.csv"), rows.map(|(_, row)| row).collect::<Vec<_>>().join("\n")).expect("written");
    let run = fixture.run(&["train.max_steps=20", "evaluate.every=end", "task.with.class_weights=balanced"]);
    let counts = run.manifest()["data"]["class_rows"].clone();
    assert_ne!(counts[0], counts[1], "{counts}");
    let folder = run.folder.to_str().expect("a path");
    let text = stdout(fixture.sepal(&["evaluate", folder, "--data", "validation.csv", "--json"]));
    let found: Value = serde_json::from_str(&text).expect("JSON");
    for (name, expected) in run.manifest()["metrics"].as_object().expect("metrics") {
        let (found, expected) = (found["metrics"][name].as_f64(), expected.as_f64());
        let far = (found.expect(name) - expected.expect("a number")).abs();
        assert!(far < 1e-6, "{name}: {found:?}, the run had {expected:?}");
    }
    let loss = run.records("evaluation")[0]["loss"].as_f64().expect("a loss");
    let far = (found["loss"].as_f64().expect("a loss") - loss).abs();
    assert!(far < 1e-6, "the loss is weighted as in training: {} and {loss}", found["loss"]);
    assert_eq!(found["rows"], 48);
}

/// The model is not needed to find that a column is missing.
#[test]
fn labelled_rows_are_read_before_the_model() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=1"]);
    let folder = run.folder.to_str().expect("a path");
    let rows = fs::read_to_string(fixture.path("validation.csv")).expect("rows");
    let (header, others) = rows.split_once('\n').expect("a header");
    fs::write(fixture.path("renamed.csv"), format!("{}\n{others}", header.replace("sentence", "body")))
        .expect("written");
    for command in ["evaluate", "calibrate"] {
        let args = [command, folder, "--data", "renamed.csv", "--set", "model.source=nowhere"];
        let messages = failure_messages(fixture.sepal(&args));
        assert!(messages.contains("`sentence`") && messages.contains("hint: --text, --text-pair"), "{messages}");
    }
    stdout(fixture.sepal(&["evaluate", folder, "--data", "renamed.csv", "--text", "body"]));
}

#[test]
fn predictions_keep_row_order_and_input_columns() {
    let (fixture, run) = trained();
    let folder = run.folder.to_str().expect("a path");
    let rows = fs::read_to_string(fixture.path("validation.csv")).expect("rows");
    let rows: Vec<&str> = rows.lines().collect();
    let with_ids = |(i, row): (usize, &&str)| if i == 0 { format!("id,{row}") } else { format!("{i},{row}") };
    let csv: Vec<String> = rows.iter().enumerate().map(with_ids).chain(["49,,good".to_owned()]).collect();
    fs::write(fixture.path("input.csv"), csv.join("\n")).expect("written");

    let args = ["predict", folder, "-i", "input.csv", "-o", "out.jsonl", "--label", "label", "--probabilities"];
    let messages = success_messages(fixture.sepal(&args));
    assert!(messages.contains("predicted 48 rows, 1 left out"), "{messages}");
    let lines = fs::read_to_string(fixture.path("out.jsonl")).expect("predictions");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 48);
    let mut right = 0;
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["id"].as_str().map(str::to_owned), Some((i + 1).to_string()), "{line}");
        let predicted = line["predicted"].as_str().expect("a name");
        let probability = line[&format!("probability_{predicted}")].as_f64().expect("its probability");
        assert!((line["probability"].as_f64().expect("one") - probability).abs() < 1e-9 && probability >= 0.5);
        right += usize::from(line["label"] == line["predicted"]);
    }
    assert!((right as f64 / 48.0 - run.accuracy()).abs() < 1e-9, "as right as the run says");

    let messages = failure_messages(fixture.sepal(&args));
    assert!(messages.contains("it exists; --overwrite replaces it") && !messages.contains("blocks "), "{messages}");
}

#[test]
fn predict_on_its_own_output_keeps_column_names_and_order() {
    let (fixture, run) = trained();
    let folder = run.folder.to_str().expect("a path");
    fs::write(fixture.path("in.csv"), "id,sentence,text,label\n1,good,other,x\n2,bad,\"an,other\",y\n")
        .expect("written");
    let predict = |input: &str, output: &str| {
        let args = ["predict", folder, "-i", input, "-o", output, "--probabilities"];
        let messages = success_messages(fixture.sepal(&args));
        (fs::read_to_string(fixture.path(output)).unwrap_or_default(), messages)
    };
    let (first, messages) = predict("in.csv", "out.csv");
    let lines: Vec<&str> = first.lines().collect();
    assert!(lines[0].starts_with("id,sentence,text,label,predicted,probability,probability_"), "{first}");
    assert!(lines[1].starts_with("1,good,other,x,") && lines[2].starts_with("2,bad,\"an,other\",y,"), "{first}");
    assert!(!messages.contains("note:"), "{messages}");
    let (again, messages) = predict("out.csv", "again.csv");
    assert_eq!(again, first);
    let note = "note: the input's columns `predicted`, `probability`, `probability_";
    assert_eq!(messages.matches(note).count(), 1, "{messages}");
    predict("out.csv", "out.parquet");
    assert_eq!(predict("out.parquet", "back.csv").0, first);
    let (jsonl, _) = predict("in.csv", "out.jsonl");
    let start = r#"{"id":"1","sentence":"good","text":"other","label":"x","predicted""#;
    assert!(jsonl.starts_with(start), "{jsonl}");
}

/// Runs `sepal predict` with this standard input. Returns true on success, and both outputs.
fn predict_stdin(fixture: &Fixture, args: &[&str], text: &str) -> (bool, String, String) {
    let mut command = fixture.sepal(args);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("sepal runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn predict_from_standard_input_writes_standard_output() {
    let (fixture, run) = trained();
    let folder = run.folder.to_str().expect("a path");
    let (done, text, messages) = predict_stdin(&fixture, &["predict", folder], "one two three\nfour, \"five\"\n");
    assert!(done, "{messages}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "text,predicted,probability");
    assert!(lines[2].starts_with("\"four, \"\"five\"\"\","), "{text}");

    let table = "id,sentence\n1,good\n";
    let (done, text, messages) = predict_stdin(&fixture, &["predict", folder], table);
    assert!(!done && text.is_empty() && !messages.contains("blocks "), "{messages}");
    assert!(messages.contains("use --format csv"), "{messages}");
    let (_, text, messages) = predict_stdin(&fixture, &["predict", folder, "--format", "csv"], table);
    assert!(text.starts_with("id,sentence,predicted,probability\n1,good,"), "{text}{messages}");
    let (_, text, _) = predict_stdin(&fixture, &["predict", folder, "--format", "lines"], table);
    assert_eq!(text.lines().count(), 3, "{text}");
    for (text, expected) in [("", "it is empty"), ("id,sentence\n", "no row")] {
        let (done, text, messages) = predict_stdin(&fixture, &["predict", folder, "--format", "csv"], text);
        assert!(!done && text.is_empty() && messages.contains(expected), "{text}{messages}");
    }
}

#[test]
fn invalid_predict_arguments_fail_before_the_model_is_loaded() {
    let (fixture, run) = trained();
    let folder = run.folder.to_str().expect("a path");
    for (args, expected) in [
        (vec!["predict", "nowhere", "-i", "validation.csv"], "nowhere/manifest.json"),
        (vec!["predict", folder, "-i", "missing.csv"], "open missing.csv"),
        (vec!["predict", folder, "-i", "validation.csv", "-o", "nowhere/a.csv"], "write into the folder nowhere\n"),
        (vec!["predict", folder, "-i", "validation.csv", "--output-format", "parquet"], "that takes a file"),
        (vec!["predict", folder, "-i", "validation.csv", "--text", "sentense"], "did you mean `sentence`"),
    ] {
        let messages = failure_messages(fixture.sepal(&args));
        assert!(messages.contains(expected) && !messages.contains("blocks "), "{messages}");
    }
    let manifest = fs::read_to_string(run.folder.join("manifest.json")).expect("read");
    let digest = run.manifest()["model"]["digest"].as_str().expect("a digest").to_owned();
    fs::write(run.folder.join("manifest.json"), manifest.replace(&digest, "another")).expect("written");
    let messages = failure_messages(fixture.sepal(&["predict", folder, "-i", "validation.csv"]));
    assert!(messages.contains("it was trained with another model"), "{messages}");
}

#[test]
fn example_pipelines_are_valid() {
    let fixture = Fixture::new("llama-gqa");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines");
    let files: Vec<_> = fs::read_dir(folder).expect("pipelines").map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() >= 8);
    for file in files {
        stdout(fixture.sepal(&["validate", file.to_str().expect("a path")]));
        let text = fs::read_to_string(&file).expect("read");
        assert!(text.contains("# Time:") || text.contains("Time:") || text.contains("quarter of an hour"), "{file:?}");
    }
}

#[test]
fn predict_prefers_the_model_that_was_trained_on() {
    let fixture = Fixture::new("llama-gqa");
    let sources = "model.source=[later, model]";
    let run = fixture.run(&["train.max_steps=1", sources]);
    let folder = run.folder.to_str().expect("a path");
    let pipeline = fs::read_to_string(run.folder.join("pipeline.yaml")).expect("a pipeline");
    let (own, other) = (pipeline.find("- model"), pipeline.find("- later"));
    assert!(own.is_some() && own < other, "{pipeline}");
    // The source that was missing in training exists now, with another model.
    fs::create_dir(fixture.path("later")).expect("a folder");
    for entry in fs::read_dir(fixture.path("model")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let mut content = fs::read(&path).expect("a file");
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let last = content.len() - 2;
            content[last] ^= 1;
        }
        fs::write(fixture.path("later").join(path.file_name().expect("a name")), content).expect("written");
    }
    let args = ["evaluate", folder, "--data", "validation.csv"];
    stdout(fixture.sepal(&args));
    // A manifest of an earlier version.
    stdout(fixture.sepal(&[&args[..], &["--set", sources]].concat()));
    let messages = failure_messages(fixture.sepal(&[&args[..], &["--set", "model.source=later"]].concat()));
    assert!(messages.contains("--set model.source=SOURCE"), "{messages}");
}

/// A filter is that of the rows of the command line; other keys of the run's rows have no effect, so they are refused.
#[test]
fn keys_of_rows_have_an_effect_or_are_refused() {
    let fixture = Fixture::new("llama-gqa");
    let labelled = fs::read_to_string(fixture.path("train.csv")).expect("rows");
    let folds = labelled.lines().enumerate().map(|(i, row)| format!("{row},{}", if i == 0 { "fold" } else { "train" }));
    fs::write(fixture.path("folds.csv"), folds.collect::<Vec<_>>().join("\n")).expect("written");
    let run = fixture.run(&[
        "train.max_steps=2",
        "data.train=folds.csv",
        "data.validation=folds.csv",
        "data.where.fold=train",
    ]);
    let folder = run.folder.to_str().expect("a path");
    let rows = fs::read_to_string(fixture.path("validation.csv")).expect("rows");
    let grouped =
        rows.lines().enumerate().map(|(i, row)| if i == 0 { format!("{row},g") } else { format!("{row},{}", i % 3) });
    fs::write(fixture.path("grouped.csv"), grouped.collect::<Vec<_>>().join("\n")).expect("written");
    let args = ["evaluate", folder, "--data", "grouped.csv", "--json"];
    let evaluated = |sets: &[&str]| -> Value {
        serde_json::from_str(&stdout(fixture.sepal(&[&args[..], sets].concat()))).expect("JSON")
    };
    assert_eq!(evaluated(&[])["rows"], 48);
    for set in ["data.where={g: 1}", "data.where.g=1", "data={where: {g: 1}}"] {
        assert_eq!(evaluated(&["--set", set])["rows"], 16, "{set}");
    }
    for set in
        ["data.validation=other.csv", "data.few_shot.per_class=2", "data.text=g", "data.words=true", "data.delimiter=;"]
    {
        let messages = failure_messages(fixture.sepal(&[&args[..], &["--set", set]].concat()));
        let key = set.split('=').next().and_then(|key| key.split('.').nth(1)).expect("a key");
        assert!(messages.contains(&format!("set data.{key}: ")), "{set}: {messages}");
    }
    let messages = failure_messages(fixture.sepal(&[&args[..], &["--set", "task.with.labels=[b, a]"]].concat()));
    assert!(messages.contains("set task: predictions need the head of the training"), "{messages}");
    let predict = ["predict", folder, "-i", "grouped.csv", "-o", "out.csv", "--set", "data.where.g=1"];
    let messages = failure_messages(fixture.sepal(&predict));
    assert!(messages.contains("set data.where: predictions are of all rows that have a text"), "{messages}");
}
