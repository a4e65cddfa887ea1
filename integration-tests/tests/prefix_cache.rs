//! Prefixes that servers cache across the batches of an evaluation.

use sepal_core::Want;
use sepal_integration_tests::golden::{Golden, distance};
use sepal_remote::{RemoteError, RemoteOptions, RemoteSequential, StepSession, SwarmPath};
use sepal_testkit::tiny::models;
use tch::Tensor;

/// Returns the output of a forward pass and the bytes sent for it.
fn pooled(
    golden: &Golden,
    remote: &RemoteSequential,
    tuned: &StepSession<'_>,
    prompts: &Tensor,
    rows: &[usize],
) -> (Tensor, u64) {
    let up = remote.traffic().up();
    let (ids, rows) = golden.batch(rows);
    let prefix = golden.ends.embed_prompts(prompts).expect("a prefix");
    let tokens = golden.ends.embed(&ids).expect("tokens");
    let output = tuned.forward(Some(&prefix), &tokens, &rows, Want::LastOfRows).expect("a forward");
    (output, remote.traffic().up() - up)
}

/// Checks the outputs of the batches of an evaluation. Returns the bytes of a batch after the first.
fn check(model: &str, options: RemoteOptions, n_servers: usize) -> u64 {
    let golden = Golden::open(model);
    let n = golden.n_blocks();
    let bounds: Vec<usize> = (0..=n_servers).map(|i| i * n / n_servers).collect();
    let part = |pair: &[usize]| format!("{}:{}", pair[0], pair[1]);
    let servers: Vec<_> = bounds.windows(2).map(|pair| golden.serve_listening(&part(pair), 1 << 30)).collect();
    let remote = golden.connect(&servers, options.clone());
    let trained = golden.trained();
    let prompts = trained.prompts();
    tch::no_grad(|| {
        let tune = || remote.tune(trained.tunables()).expect("tuned");
        let run =
            |tuned: &StepSession<'_>, prompts: &Tensor, rows: &[usize]| pooled(&golden, &remote, tuned, prompts, rows);
        let session = tune();
        let (first, _) = run(&session, prompts, &[0, 1]);
        let (again, up_again) = run(&session, prompts, &[0, 1]);
        let what = format!("{model}, {n_servers} servers, {:?}", options.path);
        assert!(distance(&first, &again) < 1e-5, "{what}: {}", distance(&first, &again));
        // Rows that were computed without a prefix before, and another prefix with the same tunables.
        let other = prompts * 1.5;
        for (prompts, rows) in [(prompts, vec![2, 0]), (&other, vec![1, 2]), (&other, vec![0])] {
            let (found, _) = run(&session, prompts, &rows);
            let (expected, _) = run(&tune(), prompts, &rows);
            assert!(distance(&found, &expected) < 1e-5, "{what}: rows {rows:?}");
        }
        up_again
    })
}

/// Size of the name, length and checksum of a tensor beside a message.
const TENSOR_FRAME_BYTES: u64 = 20;

#[test]
fn evaluation_sends_the_prefix_once() {
    let prefix = Golden::open("llama-gqa").get("prompts").numel() as u64 * 4;
    // Through the client, each server receives the output of the previous one.
    for (n_servers, path, times) in [(1, SwarmPath::Star, 1), (2, SwarmPath::Star, 2), (2, SwarmPath::Relay, 1)] {
        let options = RemoteOptions { path, ..RemoteOptions::default() };
        let text = check("llama-gqa", options.clone(), n_servers);
        // In deterministic mode every batch is computed in the same way, so that its bits do not depend on earlier
        // ones.
        let deterministic = check("llama-gqa", RemoteOptions { deterministic: true, ..options.clone() }, n_servers);
        // Larger tensors are sent beside their message, which adds a few bytes.
        let (found, expected) = (deterministic - text, times * prefix..=times * (prefix + TENSOR_FRAME_BYTES));
        assert!(expected.contains(&found), "{found} of {expected:?}: {n_servers} servers, {path:?}");
        for model in &models() {
            check(model, options.clone(), n_servers);
        }
    }
}

#[test]
fn evicted_prefix_is_sent_again() {
    let golden = Golden::open("llama-gqa");
    let server = golden.serve_listening(&golden.all_blocks(), 1 << 30);
    let remote = golden.connect(std::slice::from_ref(&server), RemoteOptions::default());
    let trained = golden.trained();
    let session = remote.tune(trained.tunables()).expect("tuned");
    let evaluate = || tch::no_grad(|| pooled(&golden, &remote, &session, trained.prompts(), &[0, 2]).0);
    let first = evaluate();
    // A training step replaces the tunables of the evaluation.
    trained.golden_logits(&golden, &remote).sum(tch::Kind::Float).backward();
    assert!(distance(&evaluate(), &first) < 1e-5);
    // Calls without a prefix: deep prompts need one.
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let without_prefix =
        |session: &StepSession<'_>| tch::no_grad(|| session.forward(None, &tokens, &golden.rows, Want::LastOfRows));
    assert!(matches!(without_prefix(&session), Err(RemoteError::PrefixLen { found: 0, .. })));
    let plain = remote.tune(Vec::new()).expect("tuned");
    let none = without_prefix(&plain).expect("a forward without a prefix");
    assert_eq!(none.size()[0] as usize, golden.rows.len());
    assert!(distance(&evaluate(), &first) < 1e-5);
}
