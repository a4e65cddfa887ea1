//! Calls of several clients that one server computes in one batch.

use sepal_blocks::Placement;
use sepal_integration_tests::golden::{Golden, Trained, distance, span};
use sepal_remote::RemoteOptions;
use sepal_server::{BlockServer, DeviceStacks, ModelIdentity, ServerOptions};

/// Seed of the client whose low-rank factors are in the last two of three blocks. It asks for no gradient of the input.
const LAST_BLOCKS: usize = 8;

/// Opens the goldens of a client and its trainable tensors: deep prompts, low-rank factors, scales, or none in the blocks.
fn client_of(seed: usize) -> (Golden, Trained) {
    let (golden, mode) = match seed % 4 {
        _ if seed == LAST_BLOCKS => (Golden::with_adapters("llama-gqa"), "last-two"),
        0 => (Golden::open("llama-gqa"), "deep"),
        1 => (Golden::with_adapters("llama-gqa"), "lora"),
        2 => (Golden::with_adapters("llama-gqa"), "ia3"),
        _ => (Golden::open("llama-gqa"), "ptune"),
    };
    let trained = Trained::new(&golden, mode);
    (golden, trained)
}

#[test]
fn cobatched_clients_do_not_affect_each_other() {
    let golden = Golden::open("llama-gqa");
    check_clients(&golden.serve_listening(&golden.all_blocks(), 1 << 30));
}

/// The stacks have the blocks 0:1 and 1:3, so that one client has its tensors in the last stack only.
#[test]
fn cobatched_clients_of_two_stacks_do_not_affect_each_other() {
    let golden = Golden::open("llama-gqa");
    let stacks = DeviceStacks::load(&golden.checkpoint, span(&golden.all_blocks()), &[Placement::default(); 2]);
    let identity = ModelIdentity::from_checkpoint(&golden.checkpoint);
    let options = ServerOptions { threads: Some(1), ..ServerOptions::default() };
    let addr = "127.0.0.1:0".parse().expect("an address");
    check_clients(&BlockServer::listen(stacks.expect("blocks"), identity, options, addr).expect("a server"));
}

/// Compares logits and gradients of clients that train at the same time, each its own tensors on its own rows.
fn check_clients(server: &BlockServer) {
    let client = |seed: usize, deterministic: bool| {
        let (golden, mut trained) = client_of(seed);
        let options = RemoteOptions { deterministic, ..RemoteOptions::default() };
        let remote = golden.connect(std::slice::from_ref(server), options);
        let mut steps = Vec::new();
        for step in 0..12 {
            let (ids, rows) = golden.batch(&[(seed + step) % 3]);
            let logits = trained.logits(&golden, &remote, &ids, &rows);
            logits.square().sum(tch::Kind::Float).backward();
            steps.push((logits.detach(), trained.grads()));
            trained = trained.step(1e-3);
        }
        steps
    };
    // Each kind of tensors, deterministic and not.
    let mut clients: Vec<(usize, bool)> = (0..8).map(|seed| (seed, seed < 4)).collect();
    clients.extend([(LAST_BLOCKS, true), (LAST_BLOCKS, false)]);
    let separate: Vec<_> = clients.iter().map(|&(seed, deterministic)| client(seed, deterministic)).collect();
    let client = &client;
    let concurrent: Vec<_> = std::thread::scope(|scope| {
        let running = clients.iter().map(|&(seed, deterministic)| scope.spawn(move || client(seed, deterministic)));
        let running: Vec<_> = running.collect();
        running.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    for ((seed, deterministic), (separate, concurrent)) in clients.into_iter().zip(separate.iter().zip(&concurrent)) {
        for (step, (separate, concurrent)) in separate.iter().zip(concurrent).enumerate() {
            let what = format!("client {seed}, step {step}");
            if deterministic {
                assert_eq!(separate, concurrent, "{what}: not the same bits");
                continue;
            }
            assert!(distance(&separate.0, &concurrent.0) < 1e-4, "{what}: logits");
            for ((name, grad), (_, concurrent_grad)) in separate.1.iter().zip(&concurrent.1) {
                let largest = f64::try_from(grad.abs().max()).expect("a number");
                assert!(distance(grad, concurrent_grad) < 1e-4 * largest.max(1.0), "{what}: gradient of {name}");
            }
        }
    }
}
