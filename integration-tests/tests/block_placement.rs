//! Placement of blocks in this process and on servers, and the formats of their weights.

use std::fs;

use sepal_integration_tests::fixture::{Fixture, Server, assert_close, json, static_swarm, stdout};

#[test]
fn local_blocks_match_server_blocks() {
    for model in ["llama-gqa", "gpt2", "gemma3"] {
        let fixture = Fixture::new(model);
        for tuning in ["deep-ptune", "ptune"] {
            let tuning = format!("tuning.use={tuning}");
            let usual = [tuning.as_str(), "train.max_steps=10"];
            let embedded = fixture.run(&usual);
            for more in [&["swarm.use=none"][..], &["model.local_blocks=1"], &["model.local_blocks=2"]] {
                let run = fixture.run(&[&usual, more].concat());
                assert_close(&run.losses(), &embedded.losses());
            }
            let none = fixture.run(&[&usual[..], &["swarm.use=none"]].concat());
            assert!(none.records("step").iter().all(|record| record["bytes_up"] == 0), "nothing is sent");
        }
    }
}

#[test]
fn local_first_blocks_with_remote_micro_batches_match_embedded() {
    let fixture = Fixture::new("llama-gqa");
    let usual = ["train.max_steps=8"];
    let embedded = fixture.run(&usual);
    let servers = [fixture.serve("1:2", "127.0.0.1:0"), fixture.serve("1:3", "127.0.0.1:0")];
    let addrs = format!("swarm.with.servers=[\"{}\",\"{}\"]", servers[0].addr, servers[1].addr);
    let remote = ["swarm.use=static", &addrs, "model.local_blocks=1", "swarm.with.micro_batch_tokens=40"];
    let run = fixture.run(&[&usual[..], &remote].concat());
    assert_close(&run.losses(), &embedded.losses());
    // No server holds the first block.
    let text = fixture.failure(&["swarm.use=static", &addrs, "swarm.with.wait_ms=300"]);
    assert!(text.contains("0:1"), "{text}");
}

#[test]
fn more_local_blocks_than_the_model_has_is_an_error() {
    let text = Fixture::new("llama-gqa").failure(&["model.local_blocks=4"]);
    assert!(text.contains("model.local_blocks") && text.contains("the model has 3"), "{text}");
}

#[test]
fn quantized_weights_train_and_other_formats_are_refused() {
    let fixture = Fixture::new("llama-gqa");
    let loss = |sets: &[&str]| {
        let losses = fixture.run(&[sets, &["train.max_steps=40"]].concat()).losses();
        losses[36..].iter().sum::<f64>() / 4.0
    };
    let exact = loss(&[]);
    for format in ["bf16", "f16", "int8"] {
        let rounded = loss(&[&format!("model.weights={format}")]);
        assert!((rounded - exact).abs() < 0.1, "{format}: the loss ends at {rounded}, {exact} in fp32");
    }
    let server = fixture.serve_with("0:3", "127.0.0.1:0", &["--weights", "int8"]);
    let addr = format!("swarm.with.servers=[\"{}\"]", server.addr);
    let usual = ["train.max_steps=5", "swarm.use=static", &addr];
    let remote = fixture.run(&[&usual[..], &["model.weights=int8"]].concat());
    let embedded = fixture.run(&["train.max_steps=5", "model.weights=int8"]);
    assert_close(&remote.losses(), &embedded.losses());
    let text = fixture.failure(&usual);
    assert!(text.contains("+int8") && text.contains("digest"), "{text}");
    let advice = format!("server {} has its weights as int8: set `model.weights: int8`", server.addr);
    assert!(text.contains(&advice), "{text}");
}

#[test]
fn computation_in_bf16_trains_and_other_formats_are_refused() {
    let fixture = Fixture::new("llama-gqa");
    let bf16 = ["--compute", "bf16"];
    let servers = ["0:2", "2:3"].map(|blocks| fixture.serve_with(blocks, "127.0.0.1:0", &bf16));
    let swarm = static_swarm(&[&servers[0], &servers[1]]);
    let usual = ["train.max_steps=5", &swarm[0], &swarm[1]];

    let text = fixture.failure(&usual);
    let is_advised =
        |server: &Server| text.contains(&format!("server {} computes in bf16: set `model.compute: bf16`", server.addr));
    assert!(text.contains("+compute-bf16") && servers.iter().any(is_advised), "{text}");
    let text = fixture.failure(&[&usual[..], &["model.compute=f16", "model.weights=int8"]].concat());
    let advice = "has unrounded weights and computes in bf16: set `model.weights: auto` and `model.compute: bf16`";
    assert!(text.contains(advice), "{text}");

    let remote = fixture.run(&[&usual[..], &["model.compute=bf16"]].concat());
    let local = ["train.max_steps=5", "swarm.use=none"];
    let here = fixture.run(&[&local[..], &["model.compute=bf16"]].concat()).losses();
    let exact = fixture.run(&local).losses();
    // Rows are packed alike, so that only the order of sums differs: a few numbers round to the neighbouring bf16, which is
    // 0.4 % away, in few of the products of a step.
    for (step, (remote, here)) in remote.losses().iter().zip(&here).enumerate() {
        assert!((remote - here).abs() <= 0.02, "step {}: loss {remote} on servers, {here} in this process", step + 1);
    }
    let differs = here.iter().zip(&exact).any(|(here, exact)| (here - exact).abs() > 1e-6);
    let is_close = here.iter().zip(&exact).all(|(here, exact)| (here - exact).abs() <= 0.1);
    assert!(differs && is_close, "{here:?} in bf16, {exact:?} in fp32");

    let weights = remote.manifest()["model"]["weights"].as_str().expect("a description").to_owned();
    assert!(weights.ends_with(", computed in bf16"), "{weights}");
    let pipeline = fs::read_to_string(remote.folder.join("pipeline.yaml")).expect("a pipeline file");
    assert!(pipeline.contains("compute: bf16"), "{pipeline}");
    let status = json(&stdout(fixture.sepal(&["swarm", "status", &servers[0].addr, "--json"])));
    assert_eq!(status["servers"][0]["compute"], "bf16");
}

#[test]
fn quantized_file_is_served_as_it_is() {
    let fixture = Fixture::new("mistral");
    let golden = sepal_testkit::tiny::goldens().join("tiny-mistral.gguf");
    fs::copy(golden, fixture.path("mistral.gguf")).expect("copied");
    let serve = |blocks: &str, weights: &str| {
        let args = ["serve", "mistral.gguf", "--blocks", blocks, "--threads", "1", "--weights", weights];
        Server::start(fixture.sepal(&args).args(["--listen", "127.0.0.1:0"]))
    };
    // The numbers are the same, so that the formats serve one run together.
    let servers = [serve("0:2", "auto"), serve("2:3", "f32")];
    let swarm = static_swarm(&[&servers[0], &servers[1]]);
    let usual = ["model.source=mistral.gguf", "train.max_steps=8"];
    let expected = fixture.run(&[&usual[..], &["model.weights=f32", "swarm.use=none"]].concat()).losses();
    for more in [&[swarm[0].as_str(), swarm[1].as_str()][..], &["swarm.use=none"], &["model.weights=auto"]] {
        assert_close(&fixture.run(&[&usual[..], more].concat()).losses(), &expected);
    }
    let bytes = |weights: &str| {
        let sets = format!("model.weights={weights}");
        let args = ["plan", "pipeline.yaml", "--probe-steps", "0", "--json", "--set", usual[0], &sets];
        json(&stdout(fixture.sepal(&args)))["model"]["estimated_block_bytes"].as_u64().expect("bytes")
    };
    let (auto, full) = (bytes("auto"), bytes("f32"));
    assert!(auto < full * 6 / 10, "Q8_0 takes about a quarter of fp32: {auto} of {full} bytes");
}

#[test]
fn rows_over_the_position_limit_are_an_error() {
    let fixture = Fixture::new("llama-gqa");
    let config = std::fs::read_to_string(fixture.path("model/config.json")).expect("a configuration");
    let short = config.replace("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 12");
    assert_ne!(config, short);
    std::fs::write(fixture.path("model/config.json"), short).expect("written");
    let text = fixture.failure(&[]);
    assert!(text.contains("9 tokens and 4 prompts, 13 positions: the model takes 12"), "{text}");
    assert!(text.contains("`data.max_length` to at most 8"), "{text}");
    fixture.run(&["data.max_length=8", "train.max_steps=2"]);
}

#[test]
fn blocks_beyond_the_free_memory_are_refused_everywhere() {
    let fixture = Fixture::new("llama-gqa");
    let refused = |args: &[&str], free_mb: &str, expected: &[&str]| {
        let output = fixture.sepal(args).env("SEPAL_FREE_MB", free_mb).output().expect("sepal runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in expected {
            assert!(text.contains(part), "{args:?}: expected `{part}` in\n{text}");
        }
        assert!(!fixture.path("runs").exists(), "{args:?}: no run folder is made");
    };
    let run = ["run", "pipeline.yaml", "--set"];
    for swarm in ["swarm.use=embedded", "swarm.use=none"] {
        let expected = ["hold blocks 0:3 as auto", "of cpu are free", "Not one of them fits", "model.local_blocks"];
        refused(&[&run[..], &[swarm]].concat(), "0", &expected);
    }
    let serve = ["serve", "model", "--listen", "127.0.0.1:0", "--weights", "int8"];
    refused(&serve, "0", &["hold blocks 0:3 as int8", "--weights"]);
    refused(&[&serve[..], &["--blocks", "1:2"]].concat(), "0", &["hold blocks 1:2 as int8"]);
    refused(&[&serve[..], &["--max-blocks", "2"]].concat(), "0", &["hold blocks 0:1 as int8"]);
    refused(&[&serve[..], &["--device", "cpu,cpu"]].concat(), "0", &["hold blocks 0:1 as int8", "of cpu are free"]);
    refused(&serve, "much", &["SEPAL_FREE_MB: `much` is no number of megabytes"]);
    let stated = fixture.sepal(&[&run[..], &["train.max_steps=1"]].concat()).env("SEPAL_FREE_MB", "100").status();
    assert!(stated.expect("sepal runs").success());
}
