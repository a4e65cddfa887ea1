//! Placement of blocks in this process and on servers, and the formats of their weights.

use sepal_integration_tests::fixture::{Fixture, assert_close};

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
        let expected = ["hold blocks 0:3 as f32", "of cpu are free", "Not one of them fits", "model.local_blocks"];
        refused(&[&run[..], &[swarm]].concat(), "0", &expected);
    }
    let serve = ["serve", "model", "--listen", "127.0.0.1:0", "--weights", "int8"];
    refused(&serve, "0", &["hold blocks 0:3 as int8", "--weights"]);
    refused(&[&serve[..], &["--blocks", "1:2"]].concat(), "0", &["hold blocks 1:2 as int8"]);
    refused(&[&serve[..], &["--max-blocks", "2"]].concat(), "0", &["hold blocks 0:1 as int8"]);
    refused(&serve, "much", &["SEPAL_FREE_MB: `much` is no number of megabytes"]);
    let stated = fixture.sepal(&[&run[..], &["train.max_steps=1"]].concat()).env("SEPAL_FREE_MB", "100").status();
    assert!(stated.expect("sepal runs").success());
}
