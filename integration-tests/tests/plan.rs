//! `sepal render` and `sepal plan`: origins of values, and the estimate of a run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use sepal_integration_tests::fixture::{Fixture, binary, json, signal, static_swarm, stdout};

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
fn rendered_file_keeps_labels_of_any_characters() {
    let fixture = Fixture::new("llama-gqa");
    let set = "task.with.labels=[\"م\u{200c}ش\", \"a\u{202e}b\"]";
    let labels = |file: &str, sets: &[&str]| {
        let rendered = json(&stdout(fixture.sepal(&[&["render", file, "--json"][..], sets].concat())));
        rendered["task.with.labels"]["value"].clone()
    };
    let expected = serde_json::json!(["م\u{200c}ش", "a\u{202e}b"]);
    assert_eq!(labels("pipeline.yaml", &["--set", set]), expected);
    let text = stdout(fixture.sepal(&["render", "pipeline.yaml", "--set", set]));
    fs::write(fixture.path("again.yaml"), text).expect("written");
    assert_eq!(labels("again.yaml", &[]), expected);
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
fn plan_counted_from_options_is_that_of_the_built_tensors() {
    let fixture = Fixture::new("llama-gqa");
    for tuning in [
        "{ use: deep-ptune, with: { pre_seq_len: 4 } }",
        "{ use: prefix-kv, with: { pre_seq_len: 4 } }",
        "{ use: p-tuning, with: { pre_seq_len: 4, encoder: lstm } }",
        "[{ use: ptune, with: { pre_seq_len: 3 } }, { use: lora, with: { r: 2, blocks: { last: 2 } } }, { use: ia3 }]",
    ] {
        let setting = format!("tuning={tuning}");
        let plan = |steps: &str| {
            let args = ["plan", "pipeline.yaml", "--json", "--probe-steps", steps, "--set", &setting];
            json(&stdout(fixture.sepal(&args)))
        };
        let (counted, built) = (plan("0"), plan("1"));
        for part in ["name", "model", "trainable", "data", "steps"] {
            assert_eq!(counted[part], built[part], "{part} with {tuning}");
        }
        for part in ["estimated_adapter_bytes", "estimated_checkpoint_bytes"] {
            assert_eq!(counted["disk"][part], built["disk"][part], "{part} with {tuning}");
        }
        assert!(counted["time"].is_null() && !built["time"].is_null());
    }
}

#[test]
fn plan_without_a_probe_needs_no_engine() {
    let fixture = Fixture::new("llama-gqa");
    let (built, installed) = (binary(), fixture.path("installed"));
    fs::create_dir(&installed).expect("a folder");
    fs::hard_link(&built, installed.join("sepal"))
        .or_else(|_| fs::copy(&built, installed.join("sepal")).map(drop))
        .expect("a copy");
    let plan = |program: &Path, sets: &[&str]| {
        let mut command = fixture.command(program);
        command.args(["plan", "pipeline.yaml", "--probe-steps", "0", "--set", "name=demo"]).args(sets);
        command.output().expect("it runs")
    };
    let engine = built.with_file_name("sepal-engine");
    for sets in [&[][..], &["tuning={ use: lora, with: { r: 2 } }"], &["tuning={ use: lora, with: { r: 2000 } }"]] {
        let (front, engine) = (plan(&installed.join("sepal"), sets), plan(&engine, sets));
        let text = |bytes: &[u8]| without_free_space(&String::from_utf8_lossy(bytes));
        assert_eq!(text(&front.stdout), text(&engine.stdout), "{sets:?}");
        assert_eq!(text(&front.stderr), text(&engine.stderr), "{sets:?}");
        assert_eq!(front.status.code(), engine.status.code(), "{sets:?}");
    }
    let refused = plan(&installed.join("sepal"), &["tuning={ use: lora, with: { r: 2000 } }"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("failed to build `tuning`") && message.contains("rank 2000 is larger than"), "{message}");
    // The values of an adapter are read where tensors are.
    let adapter = ["tuning={ use: ptune, with: { pre_seq_len: 4, init: { adapter: none } } }"];
    let message = String::from_utf8_lossy(&plan(&installed.join("sepal"), &adapter).stderr).into_owned();
    assert!(message.contains("find the program sepal-engine"), "{message}");
}

#[test]
fn plan_without_a_probe_reads_a_pipe_once() {
    let fixture = Fixture::new("llama-gqa");
    let pipeline = fs::read(fixture.path("pipeline.yaml")).expect("a pipeline");
    let plan = |sets: &[&str]| {
        let mut command = fixture.sepal(&["plan", "/dev/stdin", "--probe-steps", "0", "--set", "name=demo"]);
        let command = command.args(sets).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("sepal runs");
        child.stdin.take().expect("piped").write_all(&pipeline).expect("written");
        let output = child.wait_with_output().expect("it ends");
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let [text, messages] = plan(&[]);
    assert!(text.contains("nothing was measured"), "{text}{messages}");
    let [_, messages] = plan(&["tuning={ use: ptune, with: { pre_seq_len: 4, init: { adapter: none } } }"]);
    assert!(messages.contains("failed to build `tuning`"), "{messages}");
}

/// The text but for the line with the free space, which changes.
fn without_free_space(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("free ")).collect::<Vec<_>>().join("\n")
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

/// Writes the configuration of a published Llama 3.1 and an index of made-up shards into a folder of the fixture.
fn write_llama(fixture: &Fixture, name: &str, sizes: [usize; 4], total_bytes: u64, n_shards: usize) {
    let [n_blocks, hidden, n_heads, ffn] = sizes;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": n_blocks,
        "num_attention_heads": n_heads, "num_key_value_heads": 8, "intermediate_size": ffn, "vocab_size": 128_256,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500_000.0, "max_position_embeddings": 131_072,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    let shard = |index: usize| format!("model-{:05}-of-{n_shards:05}.safetensors", index % n_shards + 1);
    // At least one tensor for each block and for each shard.
    let entry = |index: usize| {
        let (block_idx, tensor) = (index % n_blocks, ["input_layernorm", "post_attention_layernorm"][index / n_blocks]);
        (format!("model.layers.{block_idx}.{tensor}.weight"), serde_json::json!(shard(index)))
    };
    let weight_map: serde_json::Map<String, serde_json::Value> = (0..n_blocks.max(n_shards)).map(entry).collect();
    let index = serde_json::json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
    fs::create_dir(fixture.path(name)).expect("a folder");
    fs::write(fixture.path(name).join("config.json"), config.to_string()).expect("written");
    fs::write(fixture.path(name).join("model.safetensors.index.json"), index.to_string()).expect("written");
}

#[test]
fn plan_of_servers_reads_the_configuration_and_the_index_alone() {
    let fixture = Fixture::new("llama-gqa");
    for (name, sizes, total_bytes, n_shards, bf16, nf4) in [
        ("8b", [32, 4096, 32, 14_336], 16_060_522_496, 4, [1, 32], [1, 32]),
        ("70b", [80, 8192, 64, 28_672], 141_107_412_992, 30, [2, 40], [1, 80]),
        ("405b", [126, 16_384, 128, 53_248], 811_706_777_600_u64, 191, [14, 9], [5, 26]),
    ] {
        write_llama(&fixture, name, sizes, total_bytes, n_shards);
        let args =
            ["plan", "--model", name, "--server-memory-gb", "80", "--link-mbit", "800", "--server-tflops", "100"];
        let plan = json(&stdout(fixture.sepal(&args).args(["--rows", "32", "--tokens", "426", "--json"])));
        assert_eq!((&plan["file_bytes"], &plan["shards"]), (&total_bytes.into(), &n_shards.into()));
        for (format, [servers, blocks]) in [("bf16", bf16), ("nf4", nf4)] {
            let formats = plan["formats"].as_array().expect("formats");
            let group = &formats.iter().find(|plan| plan["weights"] == format).expect("each format")["servers"];
            assert_eq!((&group["servers"], &group["blocks_per_server"]), (&servers.into(), &blocks.into()), "{group}");
            assert!(group["estimated_server_bytes"].as_u64().expect("bytes") <= 80_000_000_000, "{group}");
            let bytes = group["counted_up"].as_f64().expect("bytes") + group["counted_down"].as_f64().expect("bytes");
            let seconds = group["estimated_transfer_seconds"].as_f64().expect("seconds");
            assert!((seconds - bytes / 1e8).abs() < 1e-9 * bytes, "{group}");
            let operations = plan["counted_step_operations"].as_f64().expect("operations");
            let seconds = group["estimated_compute_seconds"].as_f64().expect("seconds");
            assert!((seconds / (operations / 1e14) - 1.0).abs() < 1e-9, "{group}");
        }
    }
    let text = stdout(fixture.sepal(&["plan", "--model", "405b", "--server-memory-gb", "4"]));
    assert!(text.contains("servers with 4.0 GB") && text.contains("not one block fits"), "{text}");
    let text = stdout(fixture.sepal(&["plan", "--model", "8b"]));
    assert!(text.contains("16.1 GB in 4 shards") && text.contains("6,979,321,856 parameters"), "{text}");
}

#[test]
fn plan_of_servers_refuses_wrong_input() {
    let fixture = Fixture::new("llama-gqa");
    let refused = |args: &[&str], code: i32, expected: &str| {
        let output = fixture.sepal(args).output().expect("sepal runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && text.contains(expected), "{args:?}: {text}");
    };
    refused(&["plan"], 2, "FILE");
    refused(&["plan", "pipeline.yaml", "--model", "model"], 2, "cannot be used with");
    refused(&["plan", "pipeline.yaml", "--link-mbit", "5"], 2, "cannot be used with");
    refused(&["plan", "--model", "model", "--server-memory-gb", "0"], 2, "a number above zero");
    write_llama(&fixture, "other", [2, 4096, 32, 14_336], 1, 1);
    let path = fixture.path("other/config.json");
    let config = fs::read_to_string(&path).expect("a configuration");
    fs::write(&path, config.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":3")).expect("written");
    refused(&["plan", "--model", "other"], 1, "describes 3 blocks");
}
