//! `sepal render` and `sepal plan`: origins of values, and the estimate of a run.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use sepal_integration_tests::fixture::{Fixture, json, signal, static_swarm, stdout};

#[test]
fn render_names_origins_and_keeps_the_pipeline() {
    let fixture = Fixture::new("llama-gqa");
    let mut command = fixture.sepal(&["render", "pipeline.yaml", "--origin", "--set", "train.epochs=2"]);
    let text = stdout(command.env("SEPAL__TRAIN__SEED", "11"));
    let line =
        |key: &str| text.lines().find(|line| line.trim_start().starts_with(key)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("name:").ends_with("# pipeline.yaml:1"), "{text}");
    assert!(line("epochs: 2").ends_with("# --set train.epochs"), "{text}");
    assert!(line("seed: 11").ends_with("# SEPAL__TRAIN__SEED"), "{text}");
    assert!(line("prefetch:").ends_with("# default"), "{text}");

    fs::write(fixture.path("again.yaml"), &text).expect("written");
    let first = stdout(fixture.sepal(&["validate", "pipeline.yaml", "--set", "train.epochs=2", "train.seed=11"]));
    assert_eq!(stdout(fixture.sepal(&["validate", "again.yaml"])), first);

    let by_key = json(&stdout(fixture.sepal(&["render", "pipeline.yaml", "--json"])));
    assert_eq!(by_key["train.seed"], serde_json::json!({ "value": 7, "origin": "pipeline.yaml:10" }));
}

#[test]
fn plan_matches_the_run_and_writes_nothing() {
    let fixture = Fixture::new("llama-gqa");
    let plan = json(&stdout(fixture.sepal(&["plan", "pipeline.yaml", "--json", "--probe-steps", "2"])));
    assert!(!fixture.path("runs").exists(), "nothing is written");
    let run = fixture.run(&[]);
    let manifest = run.manifest();
    assert_eq!(plan["steps"]["total"], manifest["steps"]);
    assert_eq!(plan["data"]["train_rows"], 192);
    let tensors = plan["trainable"].as_array().expect("tensors");
    let trainable: u64 = tensors.iter().map(|tensor| tensor["numbers"].as_u64().expect("numbers")).sum();
    assert_eq!(Some(trainable), manifest["parameters"]["trainable"].as_u64());
    assert_eq!(plan["steps"]["evaluations"], run.records("evaluation").len());
    assert_eq!(plan["time"]["probe_steps"], 2);
    // The probe measures the second and third step of the run.
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
fn plan_names_the_servers_of_the_route() {
    let fixture = Fixture::new("llama-gqa");
    let [first, second] = [fixture.serve("0:2", "127.0.0.1:0"), fixture.serve("2:3", "127.0.0.1:0")];
    let sets = static_swarm(&[&first, &second]);
    let text = stdout(fixture.sepal(&["plan", "pipeline.yaml", "--set", &sets[0], &sets[1]]));
    for place in [&first.addr, &second.addr] {
        assert!(text.contains(place.as_str()), "{place} is not in\n{text}");
    }
    for words in ["blocks 0:2", "blocks 2:3", "through 2 servers in a row", "round trip", "estimated"] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
}

#[test]
fn plan_without_a_probe_connects_to_no_server() {
    let fixture = Fixture::new("llama-gqa");
    let sets = ["swarm.use=static", "swarm.with.servers=[\"127.0.0.1:1\"]"];
    let text = stdout(fixture.sepal(&["plan", "pipeline.yaml", "--probe-steps", "0", "--set", sets[0], sets[1]]));
    assert!(text.contains("nothing was measured") && text.contains("if one server has all blocks"), "{text}");
}

#[test]
fn plan_past_its_time_limit_uses_the_measured_steps() {
    let fixture = Fixture::new("llama-gqa");
    let args = ["plan", "pipeline.yaml", "--probe-steps", "50", "--probe-seconds", "0"];
    let output = fixture.sepal(&[&args[..], &["--json"]].concat()).output().expect("sepal runs");
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(messages.contains("probe: first step, to warm up") && !messages.contains("probe: step 1 of"), "{messages}");
    let plan = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!((&plan["time"]["ended_by"], &plan["time"]["probe_steps"]), (&"time_limit".into(), &1.into()));
    assert!(plan["time"]["evaluation_tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{plan}");
    let text = stdout(fixture.sepal(&args));
    assert!(text.contains("ended by --probe-seconds 0 before 50 steps and evaluation were measured"), "{text}");
}

#[test]
fn plan_interrupted_shows_the_measured_steps_and_writes_nothing() {
    let fixture = Fixture::new("llama-gqa");
    let args = ["plan", "pipeline.yaml", "--probe-steps", "1000000", "--probe-seconds", "3600"];
    let mut child = fixture.sepal(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sepal runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    assert!(lines.any(|line| line == "probe: step 2 of 1000000"), "it says what it measures");
    signal(&child, "INT");
    let messages: Vec<String> = lines.filter(|line| line.contains("stopping")).collect();
    let expected = "stopping after this batch, with a plan of what was measured; press Ctrl-C again to stop at once";
    assert_eq!(messages, [expected]);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("interrupted before all was measured") && text.contains("estimated"), "{text}");
    assert!(!fixture.path("runs").exists(), "nothing is written");
}
