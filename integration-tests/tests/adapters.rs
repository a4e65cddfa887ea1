//! Adapters of linear layers through servers: PEFT's numbers on any route, bit-exact through failures, sent once a step.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::failures::links::{
    REPLICATED_SPANS, SPANS, check as check_faults, check_restarts, disturbed_losses, options, undisturbed_losses,
};
use crate::pytorch_parity::{Case, PLAIN, check};
use sepal_blocks::BlockStack;
use sepal_core::{Ragged, Want};
use sepal_integration_tests::fixture::Fixture;
use sepal_integration_tests::golden::{Golden, TOLERANCE, Trained, distance, span};
use sepal_integration_tests::proxy::Fault;
use sepal_nn::{Parameters, Tunable};
use sepal_optim::{AdamW, AdamWConfig, Optimizer};
use sepal_remote::{RemoteOptions, RemoteSequential, SwarmPath};
use sepal_server::BlockServer;
use tch::{Device, Kind, Tensor};

/// Returns the models with goldens of adapters.
fn models() -> Vec<String> {
    let adapters = sepal_testkit::tiny::goldens().join("adapters");
    let mut models = sepal_testkit::tiny::models();
    models.retain(|name| adapters.join(format!("{name}.safetensors")).is_file());
    models
}

#[test]
fn adapters_on_servers_equal_peft() {
    let three = Case { servers: 3, ..PLAIN };
    let cases = [
        PLAIN,
        three,
        Case { micro_batch_tokens: 8, ..three },
        Case { micro_batch_tokens: 8, tape_budget_bytes: 0, ..three },
    ];
    for model in models() {
        let golden = Golden::with_adapters(&model);
        for mode in golden.cases() {
            cases.iter().for_each(|&case| check(&model, &golden, &mode, case));
        }
    }
}

/// Returns the logits and the gradients of a step of low-rank factors, as lists of numbers.
fn step(golden: &Golden, remote: &RemoteSequential) -> BTreeMap<String, Vec<f32>> {
    let trained = golden.trained();
    let logits = trained.golden_logits(golden, remote);
    golden.loss(&logits).backward();
    let flat = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).expect("numbers");
    let grads = trained.grads().into_iter().map(|(name, grad)| (name, flat(&grad)));
    grads.chain([("logits".to_owned(), flat(&logits))]).collect()
}

#[test]
fn deterministic_adapters_are_bit_exact_on_every_route() {
    let golden = Golden::with_adapters("llama-gqa");
    let on = |spans: &[&str], path: SwarmPath, tape_budget_bytes: u64| {
        let serve = |blocks: &&str| golden.serve_listening(blocks, tape_budget_bytes);
        let servers: Vec<BlockServer> = spans.iter().map(serve).collect();
        step(&golden, &golden.connect(&servers, RemoteOptions { path, ..options() }))
    };
    let (chain, budget) = (["0:1", "1:2", "2:3"], 1 << 30);
    let expected = on(&["0:3"], SwarmPath::Star, budget);
    for (spans, path, tape_budget_bytes) in [
        (&["0:2", "2:3"][..], SwarmPath::Star, budget),
        (&chain, SwarmPath::Star, budget),
        (&chain, SwarmPath::Star, 0),
        (&chain, SwarmPath::Relay, budget),
        (&chain, SwarmPath::Relay, 0),
    ] {
        let found = on(spans, path, tape_budget_bytes);
        assert_eq!(found, expected, "{spans:?}, {path:?}, {tape_budget_bytes} bytes for tapes");
    }
}

/// Prompts, deep prompts, low-rank factors and scales, which one client trains together.
fn all_kinds(golden: &Golden, adapters: &Golden) -> (Trained, Vec<Tunable>) {
    let prompts = golden.trained();
    let tunables = ["lora", "ia3"].into_iter().flat_map(|mode| Trained::new(adapters, mode).tunables());
    let tunables = prompts
        .tunables()
        .into_iter()
        .chain(tunables)
        .map(|tunable| Tunable { tensor: tunable.tensor.detach().set_requires_grad(true), ..tunable.shallow_clone() });
    let tunables = tunables.collect();
    (prompts, tunables)
}

/// Prompts and adapters on one server for each block, without tapes and in small micro-batches or in one batch.
fn check_all_kinds(model: &str, want: Want) {
    let (golden, adapters) = (Golden::open(model), Golden::with_adapters(model));
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let run = |forward: &dyn Fn(&Tensor, &[Tunable]) -> Tensor| {
        let (trained, tunables) = all_kinds(&golden, &adapters);
        let output = forward(&trained.prefix(&golden).expect("prompts"), &tunables);
        output.square().sum(Kind::Float).backward();
        let grads = tunables.iter().map(|tunable| (tunable.name.clone(), tunable.tensor.grad()));
        let prompts = [("prompts".to_owned(), trained.prompts().grad())];
        [("output".to_owned(), output.detach())].into_iter().chain(prompts).chain(grads).collect::<Vec<_>>()
    };
    let stack = BlockStack::load(&golden.checkpoint, span(&golden.all_blocks())).expect("blocks");
    let expected = run(&|prefix, tunables| {
        let hidden = Tensor::cat(&[prefix, &tokens], 0);
        let prefix_len = prefix.size()[0] as usize;
        stack.forward(&hidden, prefix_len, &golden.rows, tunables, want).expect("a forward")
    });
    let whole = RemoteOptions { deterministic: true, ..RemoteOptions::default() };
    for (options, tape_budget_bytes, tolerance) in [(whole, 1 << 30, 1e-5), (options(), 0, TOLERANCE)] {
        let serve = |block: usize| golden.serve_with_budget(&format!("{block}:{}", block + 1), tape_budget_bytes);
        let servers: Vec<BlockServer> = (0..golden.n_blocks()).map(serve).collect();
        let remote = golden.connect(&servers, options);
        let found = run(&|prefix, tunables| {
            let tunables = tunables.iter().map(Tunable::shallow_clone).collect();
            let session = remote.tune(tunables).expect("tuned");
            session.forward(Some(prefix), &tokens, &golden.rows, want).expect("a forward")
        });
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            let off = distance(found, expected) / expected.abs().max().double_value(&[]);
            assert!(off < tolerance, "{model}, {want:?}: {name} is off by {off:.1e} of its largest entry");
        }
    }
}

#[test]
fn prompts_and_adapters_on_servers_equal_blocks_in_this_process() {
    for model in ["llama-gqa", "bloom", "gpt2", "gemma3"] {
        for want in [Want::LastOfRows, Want::Tokens, Want::MeanOfRows] {
            check_all_kinds(model, want);
        }
    }
}

/// Bytes of the frames of a step with few and small tensors.
const FRAMES: u64 = 4_000;

#[test]
fn adapters_travel_once_a_step_in_each_direction() {
    let golden = Golden::with_adapters("llama-gqa");
    let servers = [golden.serve_listening("0:3", 1 << 30)];
    let options = RemoteOptions { deterministic: true, ..RemoteOptions::default() };
    let remote = golden.connect(&servers, options);
    let rows = Ragged::from_lengths([20; 40]).expect("rows");
    let ids = Tensor::randint_low(1, 60, [800], (Kind::Int64, Device::Cpu));
    let trained = golden.trained();
    let traffic = || [remote.traffic().up(), remote.traffic().down()];
    let step = || {
        let before = traffic();
        trained.logits(&golden, &remote, &ids, &rows).square().sum(Kind::Float).backward();
        let after = traffic();
        [after[0] - before[0], after[1] - before[1]]
    };
    step();
    let (hidden, pooled, adapters) = (800 * 32 * 4, 40 * 32 * 4, trained.tunable_bytes());
    let [up, down] = step();
    for (bytes, expected) in [(up, hidden + pooled + adapters), (down, pooled + adapters)] {
        assert!(bytes >= expected && bytes <= expected * 11 / 10 + FRAMES, "{bytes} bytes instead of {expected}");
    }
    // An evaluation sends them once for all its batches.
    let session = remote.tune(trained.tunables()).expect("tuned");
    let tokens = golden.ends.embed(&ids).expect("tokens");
    let before = traffic()[0];
    for _ in 0..4 {
        let _ = tch::no_grad(|| session.forward(None, &tokens, &rows, Want::LastOfRows)).expect("a forward");
    }
    let (up, expected) = (traffic()[0] - before, 4 * hidden + adapters);
    assert!(up >= expected && up <= expected * 11 / 10 + FRAMES, "{up} bytes instead of {expected}");
    assert_eq!(servers[0].stats().info().load.tapes, 0);
}

#[test]
fn backward_passes_end_on_the_first_server_with_an_adapter() {
    let golden = Golden::with_adapters("llama-gqa");
    let (last, tokens) = (golden.n_blocks() - 1, golden.ends.embed(&golden.ids).expect("tokens"));
    let part = |tunable: Tunable| {
        let start = (last - tunable.first_block) as i64;
        let tensor = tunable.tensor.narrow(0, start, 1).detach().set_requires_grad(true);
        Tunable { first_block: last, ..Tunable::new(tunable.name, tensor) }
    };
    let grads = |forward: &dyn Fn(&[Tunable]) -> Tensor| {
        let tunables: Vec<Tunable> = golden.trained().tunables().into_iter().map(part).collect();
        forward(&tunables).square().sum(Kind::Float).backward();
        tunables.iter().map(|tunable| tunable.tensor.grad()).collect::<Vec<Tensor>>()
    };
    let stack = BlockStack::load(&golden.checkpoint, span(&golden.all_blocks())).expect("blocks");
    let expected =
        grads(&|tunables| stack.forward(&tokens, 0, &golden.rows, tunables, Want::LastOfRows).expect("a forward"));
    for path in [SwarmPath::Star, SwarmPath::Relay] {
        let servers = ["0:1", "1:2", "2:3"].map(|blocks| golden.serve_listening(blocks, 1 << 30));
        let remote = golden.connect(&servers, RemoteOptions { path, deterministic: true, ..RemoteOptions::default() });
        let found = grads(&|tunables| {
            let session = remote.tune(tunables.iter().map(Tunable::shallow_clone).collect()).expect("tuned");
            session.forward(None, &tokens, &golden.rows, Want::LastOfRows).expect("a forward")
        });
        for (found, expected) in found.iter().zip(&expected) {
            assert!(distance(found, expected) < 1e-5 * expected.abs().max().double_value(&[]).max(1.0), "{path:?}");
        }
        let [first, second, third] = servers.each_ref().map(|server| server.stats().info().load.completed);
        assert_eq!(
            (second, third),
            (first, 2 * first),
            "{path:?}: forward passes and those of the last server backward"
        );
    }
}

#[test]
fn adapters_with_faults_of_links_are_bit_exact() {
    let golden = || Golden::with_adapters("llama-gqa");
    for (fault, times) in [(Fault::Close, 6), (Fault::Corrupt, 6), (Fault::Drop, 2)] {
        check_faults(golden(), &SPANS, options(), fault, times, 20);
    }
    let relay = RemoteOptions { path: SwarmPath::Relay, ..options() };
    check_faults(golden(), &REPLICATED_SPANS, relay, Fault::Close, 6, 20);
}

#[test]
fn server_restarts_keep_the_losses_of_adapters_bit_exact() {
    let golden = Golden::with_adapters("llama-gqa");
    check_restarts(&golden, &SPANS, options(), 20);
    check_restarts(&golden, &REPLICATED_SPANS, RemoteOptions { path: SwarmPath::Relay, ..options() }, 10);
}

#[test]
fn run_of_low_rank_factors_survives_a_killed_server_bit_for_bit() {
    let fixture = Fixture::new("llama-gqa");
    fixture.set_tuning("{ use: lora, with: { r: 4, alpha: 6.0 } }");
    let expected = undisturbed_losses(&fixture, 60);
    let sum = |losses: &[f64]| losses.iter().sum::<f64>();
    assert!(sum(&expected[48..]) < 0.9 * sum(&expected[..12]), "it learns: {expected:?}");
    let n_records = || {
        let runs = fs::read_dir(fixture.path("disturbed")).into_iter().flatten().flatten();
        let records = runs.filter_map(|run| fs::read_to_string(run.path().join("metrics.jsonl")).ok());
        records.map(|records| records.lines().count()).sum::<usize>()
    };
    let mut is_killed = false;
    let losses = disturbed_losses(&fixture, 60, |servers| {
        std::thread::sleep(Duration::from_millis(20));
        // The only server with all blocks.
        if !is_killed && n_records() > 5 {
            servers[2].child.kill().expect("killed");
            is_killed = true;
        }
    });
    assert!(is_killed, "the run ended before the kill");
    assert_eq!(losses, expected, "to the last bit");
}

/// PEFT's initial factors, of which the second are zero, and twenty steps of PyTorch's AdamW.
#[test]
fn replay_of_twenty_steps_equals_peft() {
    let golden = Golden::replay();
    let servers = ["0:2", "2:3"].map(|blocks| golden.serve(blocks));
    let remote = golden.connect(&servers, RemoteOptions::default());
    let initial = golden.trained();
    let mut params = Parameters::new();
    for (name, tensor) in initial.parameters() {
        drop(params.add(name, tensor).expect("a new name"));
    }
    let mut optimizer = AdamW::new(AdamWConfig { lr: 1e-2, weight_decay: 0.01, ..AdamWConfig::default() });
    let mut losses = Vec::new();
    for _ in 0..20 {
        params.zero_grad();
        let trained = initial.with_parameters(&params);
        let loss = golden.loss(&trained.golden_logits(&golden, &remote));
        loss.backward();
        losses.push(loss.double_value(&[]));
        optimizer.step(&params, 1e-2).expect("a step");
    }
    let losses = Tensor::from_slice(&losses).to_kind(Kind::Float);
    let mut worst = distance(&losses, &golden.get("losses"));
    assert!(worst <= TOLERANCE, "the losses are off by {worst:.1e}");
    for (name, tensor) in params.iter() {
        let expected = golden.get(&format!("final.{name}"));
        let off = tch::no_grad(|| distance(tensor, &expected)) / expected.abs().max().double_value(&[]);
        assert!(off <= TOLERANCE, "{name} is off by {off:.1e} of its largest entry");
        worst = worst.max(off);
    }
    println!("off by {worst:.1e}");
}
