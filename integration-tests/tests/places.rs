//! Where blocks run, and how their weights are kept.

use crate::program::{Bench, assert_close};

#[test]
fn blocks_of_this_process_give_what_servers_give() {
    for model in ["llama-gqa", "gpt2", "gemma3"] {
        let bench = Bench::new(model);
        for tuning in ["deep-ptune", "ptune"] {
            let tuning = format!("tuning.use={tuning}");
            let usual = [tuning.as_str(), "train.max_steps=10"];
            let embedded = bench.run(&usual);
            for more in [&["swarm.use=none"][..], &["model.local_blocks=1"], &["model.local_blocks=2"]] {
                let run = bench.run(&[&usual, more].concat());
                assert_close(&run.losses(), &embedded.losses());
            }
            let none = bench.run(&[&usual[..], &["swarm.use=none"]].concat());
            assert!(none.records("step").iter().all(|record| record["bytes_up"] == 0), "nothing is sent");
        }
    }
}

#[test]
fn the_first_blocks_here_and_the_others_on_servers_with_micro_batches() {
    let bench = Bench::new("llama-gqa");
    let usual = ["train.max_steps=8"];
    let embedded = bench.run(&usual);
    let servers = [bench.serve("1:2", "127.0.0.1:0"), bench.serve("1:3", "127.0.0.1:0")];
    let addrs = format!("swarm.with.servers=[\"{}\",\"{}\"]", servers[0].addr, servers[1].addr);
    let remote = ["swarm.use=static", &addrs, "model.local_blocks=1", "swarm.with.micro_batch_tokens=40"];
    let run = bench.run(&[&usual[..], &remote].concat());
    assert_close(&run.losses(), &embedded.losses());
    // No server has the first block.
    let text = bench.failure(&["swarm.use=static", &addrs, "swarm.with.wait_ms=300"]);
    assert!(text.contains("0:1"), "{text}");
}

#[test]
fn more_blocks_here_than_there_are_is_an_error() {
    let text = Bench::new("llama-gqa").failure(&["model.local_blocks=4"]);
    assert!(text.contains("model.local_blocks") && text.contains("the model has 3"), "{text}");
}

#[test]
fn weights_of_fewer_bits_train_and_are_not_mixed_with_others() {
    let bench = Bench::new("llama-gqa");
    let loss = |sets: &[&str]| {
        let losses = bench.run(&[sets, &["train.max_steps=40"]].concat()).losses();
        losses[36..].iter().sum::<f64>() / 4.0
    };
    let exact = loss(&[]);
    for format in ["bf16", "f16", "int8"] {
        let rounded = loss(&[&format!("model.weights={format}")]);
        assert!((rounded - exact).abs() < 0.1, "{format}: the loss ends at {rounded}, {exact} in fp32");
    }
    let server = bench.serve_with("0:3", "127.0.0.1:0", &["--weights", "int8"]);
    let addr = format!("swarm.with.servers=[\"{}\"]", server.addr);
    let usual = ["train.max_steps=5", "swarm.use=static", &addr];
    let remote = bench.run(&[&usual[..], &["model.weights=int8"]].concat());
    let embedded = bench.run(&["train.max_steps=5", "model.weights=int8"]);
    assert_close(&remote.losses(), &embedded.losses());
    let text = bench.failure(&usual);
    assert!(text.contains("+int8") && text.contains("digest"), "{text}");
}

#[test]
fn rows_longer_than_the_model_takes_are_an_error() {
    let bench = Bench::new("llama-gqa");
    let config = std::fs::read_to_string(bench.path("model/config.json")).expect("a configuration");
    let short = config.replace("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 12");
    assert_ne!(config, short);
    std::fs::write(bench.path("model/config.json"), short).expect("written");
    let text = bench.failure(&[]);
    assert!(text.contains("9 tokens and 4 prompts, 13 positions: the model takes 12"), "{text}");
    assert!(text.contains("`data.max_length` to at most 8"), "{text}");
    bench.run(&["data.max_length=8", "train.max_steps=2"]);
}
