//! Calls of several clients that one server computes in one batch.

use sepal_integration_tests::golden::{Golden, Trained, distance};
use sepal_remote::RemoteOptions;

/// Compares losses and gradients of clients that train at the same time, each on its own rows.
#[test]
fn cobatched_clients_do_not_affect_each_other() {
    let golden = Golden::open("llama-gqa");
    let server = golden.serve_listening(&golden.all_blocks(), 1 << 30);
    let client = |seed: i64, deterministic: bool| {
        let golden = Golden::open("llama-gqa");
        let options = RemoteOptions { deterministic, ..RemoteOptions::default() };
        let remote = golden.connect(std::slice::from_ref(&server), options);
        let mut trained = Trained::new(&golden, true);
        let mut steps = Vec::new();
        for step in 0..12 {
            let (ids, rows) = golden.batch(&[((seed + step) % 3) as usize]);
            let logits = trained.logits(&golden, &remote, &ids, &rows);
            logits.square().sum(tch::Kind::Float).backward();
            steps.push((logits.detach(), trained.prompts.grad()));
            trained = trained.step(1e-3);
        }
        steps
    };
    let separate: Vec<_> = (0..6).map(|seed| client(seed, seed % 2 == 0)).collect();
    let client = &client;
    let concurrent: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..6).map(|seed| scope.spawn(move || client(seed, seed % 2 == 0))).collect();
        running.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    for (seed, (separate, concurrent)) in separate.iter().zip(&concurrent).enumerate() {
        for (step, ((logits, grad), (concurrent_logits, concurrent_grad))) in
            separate.iter().zip(concurrent).enumerate()
        {
            let what = format!("client {seed}, step {step}");
            if seed % 2 == 0 {
                assert_eq!((logits, grad), (concurrent_logits, concurrent_grad), "{what}: not the same bits");
            } else {
                assert!(distance(logits, concurrent_logits) < 1e-4, "{what}: logits");
                let largest = f64::try_from(grad.abs().max()).expect("a number");
                assert!(distance(grad, concurrent_grad) < 1e-4 * largest.max(1.0), "{what}: gradient");
            }
        }
    }
}
