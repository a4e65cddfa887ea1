//! What a user asks before a run: what a file means, what it will take, whether the machine is ready.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::program::{Bench, signal, static_swarm};

fn done(command: &mut Command) -> String {
    let output = command.output().expect("sepal runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn a_rendered_pipeline_says_where_values_come_from_and_is_the_same_pipeline() {
    let bench = Bench::new("llama-gqa");
    let mut command = bench.sepal(&["render", "pipeline.yaml", "--origin", "--set", "train.epochs=2"]);
    let text = done(command.env("SEPAL__TRAIN__SEED", "11"));
    let line =
        |key: &str| text.lines().find(|line| line.trim_start().starts_with(key)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("name:").ends_with("# pipeline.yaml:1"), "{text}");
    assert!(line("epochs: 2").ends_with("# --set train.epochs"), "{text}");
    assert!(line("seed: 11").ends_with("# SEPAL__TRAIN__SEED"), "{text}");
    assert!(line("prefetch:").ends_with("# default"), "{text}");

    fs::write(bench.path("again.yaml"), &text).expect("written");
    let first =
        done(bench.sepal(&["validate", "pipeline.yaml", "--set", "train.epochs=2", "train.seed=11"]).env_remove("X"));
    assert_eq!(done(&mut bench.sepal(&["validate", "again.yaml"])), first);

    let by_key = json(&done(&mut bench.sepal(&["render", "pipeline.yaml", "--json"])));
    assert_eq!(by_key["train.seed"], serde_json::json!({ "value": 7, "origin": "pipeline.yaml:10" }));
}

#[test]
fn a_plan_says_what_the_run_then_takes_and_leaves_nothing() {
    let bench = Bench::new("llama-gqa");
    let plan = json(&done(&mut bench.sepal(&["plan", "pipeline.yaml", "--json", "--probe-steps", "2"])));
    assert!(!bench.path("runs").exists(), "nothing is written");
    let run = bench.run(&[]);
    let manifest = run.manifest();
    assert_eq!(plan["steps"]["total"], manifest["steps"]);
    assert_eq!(plan["data"]["train_rows"], 192);
    let trainable: u64 = plan["trainable"]
        .as_array()
        .expect("tensors")
        .iter()
        .map(|tensor| tensor["numbers"].as_u64().expect("numbers"))
        .sum();
    assert_eq!(Some(trainable), manifest["parameters"]["trainable"].as_u64());
    assert_eq!(plan["steps"]["evaluations"], run.records("evaluation").len());
    assert_eq!(plan["time"]["probe_steps"], 2);

    // The probe's steps are the run's second and third.
    let steps = run.records("step");
    for (key, record) in [("measured_up", "bytes_up"), ("measured_down", "bytes_down")] {
        let measured = plan["bytes"][key].as_f64().expect("bytes");
        let taken = steps[1..3].iter().map(|step| step[record].as_f64().expect("bytes")).sum::<f64>() / 2.0;
        assert!((measured - taken).abs() < 0.05 * taken, "{key}: {measured}, the run {taken}");
    }
    let (counted, measured) = (&plan["bytes"]["counted_up"], &plan["bytes"]["measured_up"]);
    let ratio = measured.as_f64().expect("bytes") / counted.as_f64().expect("bytes");
    assert!((0.9..1.6).contains(&ratio), "counted {counted}, measured {measured}");
}

#[test]
fn a_plan_names_the_servers_of_the_route() {
    let bench = Bench::new("llama-gqa");
    let [first, second] = [bench.serve("0:2", "127.0.0.1:0"), bench.serve("2:3", "127.0.0.1:0")];
    let sets = static_swarm(&[&first, &second]);
    let text = done(&mut bench.sepal(&["plan", "pipeline.yaml", "--set", &sets[0], &sets[1]]));
    for place in [&first.addr, &second.addr] {
        assert!(text.contains(place.as_str()), "{place} is not in\n{text}");
    }
    for words in ["blocks 0:2", "blocks 2:3", "through 2 servers in a row", "round trip", "estimated"] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
}

#[test]
fn a_plan_without_a_probe_connects_to_nobody() {
    let bench = Bench::new("llama-gqa");
    let sets = ["swarm.use=static", "swarm.with.servers=[\"127.0.0.1:1\"]"];
    let text = done(&mut bench.sepal(&["plan", "pipeline.yaml", "--probe-steps", "0", "--set", sets[0], sets[1]]));
    assert!(text.contains("nothing was measured") && text.contains("if one server has all blocks"), "{text}");
}

#[test]
fn plan_whose_time_is_up_uses_what_was_measured_and_says_so() {
    let bench = Bench::new("llama-gqa");
    let args = ["plan", "pipeline.yaml", "--probe-steps", "50", "--probe-seconds", "0"];
    let output = bench.sepal(&[&args[..], &["--json"]].concat()).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("probe: first step, to warm up") && !said.contains("probe: step 1 of"), "{said}");
    let plan = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!((&plan["time"]["ended_by"], &plan["time"]["probe_steps"]), (&"time_limit".into(), &1.into()));
    assert!(plan["time"]["evaluation_tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{plan}");
    let text = done(&mut bench.sepal(&args));
    assert!(text.contains("ended by --probe-seconds 0 before 50 steps and evaluation were measured"), "{text}");
}

#[test]
fn plan_that_is_interrupted_shows_what_was_measured_and_saves_nothing() {
    let bench = Bench::new("llama-gqa");
    let args = ["plan", "pipeline.yaml", "--probe-steps", "1000000", "--probe-seconds", "3600"];
    let mut child = bench.sepal(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sepal runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    assert!(lines.any(|line| line == "probe: step 2 of 1000000"), "it says what it measures");
    signal(&child, "INT");
    let said: Vec<String> = lines.filter(|line| line.contains("stopping")).collect();
    assert_eq!(
        said,
        ["stopping after this batch, with a plan of what was measured; press Ctrl-C again to stop at once"]
    );
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("interrupted before all was measured") && text.contains("estimated"), "{text}");
    assert!(!bench.path("runs").exists(), "nothing is written");
}

#[test]
fn evaluation_of_uneven_classes_is_one_line_with_the_macro_f1_first() {
    let bench = Bench::new("llama-gqa");
    let text = fs::read_to_string(bench.path("train.csv")).expect("read");
    let is_kept = |(i, line): &(usize, &str)| *i < 2 || i % 8 == 0 || line.ends_with(",1");
    let kept: Vec<&str> = text.lines().enumerate().filter(is_kept).map(|(_, line)| line).collect();
    for (rows, headline) in [(text.clone(), "accuracy"), (kept.join("\n"), "f1_macro")] {
        fs::write(bench.path("train.csv"), rows).expect("written");
        let output = bench.output(&["train.max_steps=2"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().find(|line| line.starts_with("evaluated")).expect("an evaluation");
        assert!(line.starts_with(&format!("evaluated 48 rows after step 2: {headline} ")), "{line}");
        assert!(line.len() <= 80, "{line}");
    }
}

#[test]
fn completions_can_be_sourced_and_pages_are_written() {
    let bench = Bench::new("llama-gqa");
    fs::write(bench.path("sepal.bash"), done(&mut bench.sepal(&["completions", "bash"]))).expect("written");
    let script = "source sepal.bash && complete -p sepal";
    match Command::new("bash").current_dir(bench.folder.path()).args(["-c", script]).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(String::from_utf8_lossy(&output.stdout).contains("_sepal"));
        }
        Err(error) => eprintln!("skipped: bash does not run ({error})"),
    }
    done(&mut bench.sepal(&["man", "pages"]));
    for page in ["sepal.1", "sepal-run.1", "sepal-swarm-status.1"] {
        assert!(bench.path("pages").join(page).is_file(), "{page}");
    }
}

#[test]
fn the_doctor_fails_where_nothing_can_be_cached() {
    let bench = Bench::new("llama-gqa");
    fs::write(bench.path("file"), "").expect("written");
    let doctor = |cache: &str| -> Output {
        let mut command = bench.sepal(&["doctor", "--json"]);
        command.env("SEPAL_CACHE", bench.path(cache)).env("PIP_NO_INDEX", "1").output().expect("sepal runs")
    };
    let found = |output: &Output| json(&String::from_utf8_lossy(&output.stdout));
    let state = |findings: &Value, what: &str| {
        let finding = findings.as_array().expect("findings").iter().find(|finding| finding["what"] == what);
        finding.unwrap_or_else(|| panic!("no {what}"))["state"].clone()
    };
    let broken = doctor("file/below");
    assert_eq!(broken.status.code(), Some(1));
    assert_eq!(state(&found(&broken), "cache"), "problem");
    assert_eq!(state(&found(&doctor("cache")), "cache"), "ok");
    assert_eq!(state(&found(&broken), "libtorch"), "ok");
}

/// 300 sentences with such labels.
fn labelled(bench: &Bench, name: &str, labels: [&str; 2]) {
    let row =
        |i: usize| format!("the film was {} and the plot, number {i}\t{}\n", ["dull", "warm"][i % 2], labels[i % 2]);
    let rows: String = (0..300).map(row).collect();
    fs::write(bench.path(name), format!("sentence\tlabel\n{rows}")).expect("written");
}

#[test]
fn a_first_pipeline_is_right_and_can_be_planned_and_run() {
    let bench = Bench::new("llama-gqa");
    labelled(&bench, "reviews.tsv", ["bad", "good"]);
    let output = bench.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "next: sepal plan reviews.yaml");
    for words in ["text        `sentence`", "label       `label`", "bad 150, good 150", "tokenizer of model"] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    let spec = json(&done(&mut bench.sepal(&["render", "reviews.yaml", "--json"])));
    let value = |key: &str| spec[key]["value"].clone();
    assert_eq!(value("task.with.labels"), serde_json::json!(["bad", "good"]));
    assert_eq!(value("data.validation_split"), 0.1);
    // Nine words, a comma and the template's: 11 tokens and 3 more, in steps of 8.
    assert_eq!(value("data.max_length"), 16);
    done(&mut bench.sepal(&["validate", "reviews.yaml"]));
    let plan = json(&done(&mut bench.sepal(&["plan", "reviews.yaml", "--json", "--probe-steps", "1"])));
    assert_eq!(plan["data"]["train_rows"], 270);
    done(&mut bench.sepal(&["run", "reviews.yaml", "--set", "train.max_steps=4", "train.threads=1"]));

    let again = bench.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    assert_eq!(again.status.code(), Some(1), "nothing is written over");
    done(&mut bench.sepal(&["init", "reviews.tsv", "--model", "model", "--force"]));
}

#[test]
fn what_a_run_would_refuse_is_said_at_once() {
    let bench = Bench::new("llama-gqa");
    labelled(&bench, "reviews.tsv", ["bad", "good"]);
    let rows = fs::read_to_string(bench.path("reviews.tsv")).expect("rows");
    fs::write(bench.path("reviews.tsv"), format!("{rows}an hour\t\n")).expect("written");
    let output = bench.sepal(&["init", "reviews.tsv", "--model", "model"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let note = "1 row has no label, row 301: a run stops there; take it out or give it one";
    assert!(output.status.success() && said.contains(&format!("note        {note}\n")), "{said}");
    let yaml = fs::read_to_string(bench.path("reviews.yaml")).expect("written");
    assert!(yaml.contains(&format!("  # Note: {note}.\n")), "{yaml}");
    let run = bench.sepal(&["run", "reviews.yaml"]).output().expect("sepal runs");
    assert!(String::from_utf8_lossy(&run.stderr).contains("row 301 of reviews.tsv"));

    let ids: String = (0..2000).map(|i| format!("{i},it is number {i},{}\n", ["bad", "good"][i % 2])).collect();
    fs::write(bench.path("ids.csv"), format!("id,review,sentiment\n{ids}")).expect("written");
    fs::write(bench.path("empty.csv"), "").expect("written");
    fs::write(bench.path("header.csv"), "id,review\n").expect("written");
    for (args, expected) in [
        (vec!["ids.csv", "--label", "sentimnt"], "did you mean `sentiment`?"),
        (vec!["ids.csv", "--label", "sent"], "did you mean `sentiment`?"),
        (vec!["ids.csv", "--label", "id"], "it has 2000 different whole numbers"),
        (vec!["ids.csv", "--label", "review"], "it is the column of texts"),
        (vec!["empty.csv"], "it is empty"),
        (vec!["header.csv"], "it has the names of columns and no row"),
    ] {
        let args = [vec!["init"], args].concat();
        let output = bench.sepal(&args).output().expect("sepal runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(expected), "{args:?}: {said}");
    }
}

/// Drafts and runs a pipeline for 200 rows with these labels in turn; the pipeline, and the messages of `sepal init`.
fn drafted(bench: &Bench, name: &str, labels: &[&str], more: &[&str]) -> (Value, String) {
    let row = |i: usize| format!("the film was {i},\"{}\"\n", labels[i % labels.len()]);
    fs::write(bench.path(name), "text,topic\n".to_owned() + &(0..200).map(row).collect::<String>()).expect("written");
    let args = [&["init", name, "--model", "model", "--output", "p.yaml", "--force"], more].concat();
    let output = bench.sepal(&args).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    done(&mut bench.sepal(&["run", "p.yaml", "--set", "train.max_steps=1", "train.threads=1"]));
    (json(&done(&mut bench.sepal(&["render", "p.yaml", "--json"]))), said)
}

#[test]
fn tags_are_drafted_as_several_labels() {
    let bench = Bench::new("llama-gqa");
    let cells = ["Refund; Account access", "Refund", "Billing;Refund", "Billing", "Account access; Billing"];
    let task = |spec: &Value, key: &str| spec[format!("task.with.{key}")]["value"].clone();
    let (spec, said) = drafted(&bench, "tags.csv", &cells, &[]);
    assert_eq!(task(&spec, "labels"), serde_json::json!(["Account access", "Billing", "Refund"]));
    assert_eq!(task(&spec, "multi_label"), true);
    assert!(said.contains("several to a row: Account access 80, Billing 120, Refund 120"), "{said}");
    assert!(said.contains("question    does each row have several labels?"), "{said}");
    let (spec, said) = drafted(&bench, "tags.csv", &cells, &["--as", "class"]);
    assert_eq!(task(&spec, "labels").as_array().map(Vec::len), Some(5), "{said}");
}

#[test]
fn degrees_many_labels_and_rare_ones_are_questioned() {
    let bench = Bench::new("llama-gqa");
    let (spec, said) = drafted(&bench, "stars.csv", &["1", "2", "3", "4", "5"], &[]);
    assert_eq!(spec["task.with.labels"]["value"], serde_json::json!(["1", "2", "3", "4", "5"]));
    assert!(
        said.contains("question    are the labels degrees, from 1 to 5?") && said.contains("--as number"),
        "{said}"
    );
    let (spec, said) = drafted(&bench, "stars.csv", &["1", "2", "3", "4", "5"], &["--as", "number"]);
    assert_eq!(spec["task.with.labels"]["value"], serde_json::json!(["topic"]));
    assert!(!said.contains("question") && !said.contains("warning"), "{said}");
    let many: Vec<String> = (0..40).map(|i| format!("class {i}")).collect();
    let (_, said) = drafted(&bench, "many.csv", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert!(said.contains("question    are 40 labels meant? Each has 5.0 rows"), "{said}");
    let rare: Vec<&str> = (0..200).map(|i| if i == 7 { "badd" } else { ["bad", "good"][i % 2] }).collect();
    let (_, said) = drafted(&bench, "rare.csv", &rare, &[]);
    assert!(said.contains("question    is `badd` a label? It has one row"), "{said}");
}

#[test]
fn the_dialect_of_a_file_is_drafted() {
    let bench = Bench::new("llama-gqa");
    let row = |i: usize| format!("{i};un été, no {i};{}\n", ["bad", "good"][i % 2]);
    let content = "id;review;sentiment\n".to_owned() + &(0..60).map(row).collect::<String>();
    let latin: Vec<u8> = content.chars().map(|letter| u8::try_from(u32::from(letter)).expect("latin-1")).collect();
    fs::write(bench.path("reviews.csv"), &latin).expect("written");
    let output = bench.sepal(&["init", "reviews.csv", "--model", "model"]).output().expect("sepal runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("line 2: the byte 0xe9 is not valid UTF-8; set `encoding` to that of the file"), "{said}");

    done(&mut bench.sepal(&["init", "reviews.csv", "--model", "model", "--encoding", "latin-1"]));
    let yaml = fs::read_to_string(bench.path("reviews.yaml")).expect("written");
    assert!(yaml.contains("  delimiter: \";\"\n  encoding: windows-1252\n  text: review\n"), "{yaml}");
    let run = ["run", "reviews.yaml", "--set", "train.max_steps=0", "evaluate.every=end"];
    done(&mut bench.sepal(&run));
    let run = fs::read_dir(bench.path("runs")).expect("runs").next().expect("a run").expect("a run").path();
    let run = run.display().to_string();
    // as in training, unless it is UTF-8
    fs::write(bench.path("utf8.csv"), &content).expect("written");
    for input in ["reviews.csv", "utf8.csv"] {
        done(&mut bench.sepal(&["predict", &run, "--input", input, "--output", "out.csv", "--overwrite"]));
        let written = fs::read_to_string(bench.path("out.csv")).expect("written");
        assert!(written.contains("\n3,\"un été, no 3\",good,"), "{written}");
    }
}

#[test]
fn labels_that_are_numbers_get_names() {
    let bench = Bench::new("llama-gqa");
    labelled(&bench, "reviews.tsv", ["0", "1"]);
    let labels = |more: &[&str]| {
        let args = [&["init", "reviews.tsv", "--output", "p.yaml", "--force", "--model", "not-here"], more].concat();
        let output = bench.sepal(&args).output().expect("sepal runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let spec = json(&done(&mut bench.sepal(&["render", "p.yaml", "--json"])));
        (spec["task.with.labels"]["value"].clone(), said)
    };
    let (unnamed, said) = labels(&[]);
    assert_eq!(unnamed, serde_json::json!(["label_0", "label_1"]));
    assert!(said.contains("name them by --labels") && said.contains("words, taken for 1.5 tokens each"), "{said}");
    assert_eq!(labels(&["--labels", "bad,good"]).0, serde_json::json!(["bad", "good"]));
    let wrong =
        bench.sepal(&["init", "reviews.tsv", "--output", "q.yaml", "--labels", "a,b,c"]).output().expect("runs");
    assert_eq!(wrong.status.code(), Some(1));
    let values = bench.sepal(&["init", "reviews.tsv", "--output", "q.yaml", "--labels", "1,2"]).output().expect("runs");
    let said = String::from_utf8_lossy(&values.stderr).into_owned();
    assert!(values.status.code() == Some(1) && said.contains("use names with a word in them"), "{said}");
    assert!(!bench.path("q.yaml").exists());
}
