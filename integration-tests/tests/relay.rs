//! Servers that forward to each other: equal numbers, and the traffic of one hop for the client.

use crate::failures::links::{REPLICATED_SPANS, Swarm, check, options};
use sepal_core::{DType, Ragged};
use sepal_integration_tests::golden::Golden;
use sepal_integration_tests::proxy::Fault;
use sepal_remote::{RemoteOptions, SwarmPath};
use sepal_server::BlockServer;
use tch::{Device, Kind, Tensor};

const CHAIN: [&str; 3] = ["0:1", "1:2", "2:3"];

fn relay_options() -> RemoteOptions {
    RemoteOptions { path: SwarmPath::Relay, ..options() }
}

#[test]
fn relay_is_bit_exact_and_moves_one_hop_through_the_client() {
    let golden = Golden::open("llama-gqa");
    let servers: Vec<BlockServer> = CHAIN.iter().map(|blocks| Swarm::serve(&golden, blocks)).collect();
    let rows = Ragged::from_lengths([20; 40]).expect("rows");
    let ids = Tensor::randint_low(1, 60, [800], (Kind::Int64, Device::Cpu));
    for wire_dtype in [DType::F32, DType::Q8] {
        // Gradients, bytes up and bytes down of the second of two steps.
        let step = |path: SwarmPath| {
            let remote = golden.connect(
                &servers,
                RemoteOptions { path, wire_dtype: Some(wire_dtype), deterministic: true, ..RemoteOptions::default() },
            );
            let run = || {
                let trained = golden.trained();
                trained.logits(&golden, &remote, &ids, &rows).square().sum(Kind::Float).backward();
                trained.grads()
            };
            run();
            let before = (remote.traffic().up(), remote.traffic().down());
            let grads = run();
            (grads, remote.traffic().up() - before.0, remote.traffic().down() - before.1)
        };
        let (star, star_up, star_down) = step(SwarmPath::Star);
        let (relay, relay_up, relay_down) = step(SwarmPath::Relay);
        assert_eq!(star, relay, "the gradients as {wire_dtype}");
        // The batch and the gradient of its pooled rows; deep prompts and their gradients; the remaining bytes are
        // frames.
        let hop = wire_dtype.n_bytes((5 + 800) * 32).expect("few") as u64;
        let small = 40 * 32 * 4 + 3 * 5 * 32 * 4 + 8_000;
        assert!(relay_up < hop + small && star_up > 4 * hop, "up: {relay_up} relayed, {star_up} through the client");
        assert!(relay_down < 2 * small, "down: {relay_down} relayed");
        assert!(star_down > 4 * hop, "down: {star_down} through the client");
    }
}

#[test]
fn relay_without_tapes_repeats_the_micro_batch_through_the_client() {
    let golden = Golden::open("llama-gqa");
    let step = |tape_budget_bytes: u64, path: SwarmPath| {
        let servers: Vec<BlockServer> =
            CHAIN.iter().map(|blocks| golden.serve_listening(blocks, tape_budget_bytes)).collect();
        let remote = golden.connect(&servers, RemoteOptions { path, ..options() });
        let trained = golden.trained();
        trained.golden_logits(&golden, &remote).square().sum(Kind::Float).backward();
        trained.grads()
    };
    assert_eq!(step(0, SwarmPath::Relay), step(1 << 30, SwarmPath::Star));
}

#[test]
fn relay_with_faults_of_links_is_bit_exact() {
    // If nothing arrives, each connection of a link fails and is detected separately: two of servers and one of the
    // client, each within five seconds.
    for (fault, times, at_most_s) in
        [(Fault::Close, 12, 20), (Fault::Stall, 4, 40), (Fault::Drop, 4, 40), (Fault::Corrupt, 12, 20)]
    {
        check(Golden::open("llama-gqa"), &REPLICATED_SPANS, relay_options(), fault, times, at_most_s);
    }
}
