//! Prefixes that servers cache across the batches of an evaluation.

use sepal_core::{Ragged, Span};
use sepal_remote::{RemoteOptions, RemoteSequential, StepSession, SwarmPath};
use sepal_testkit::tiny::models;
use tch::Tensor;

use sepal_integration_tests::golden::{Golden, Trained, distance, span};

/// What one forward gave, and how many bytes went up.
fn pooled(
    golden: &Golden,
    remote: &RemoteSequential,
    tuned: &StepSession<'_>,
    prompts: &Tensor,
    rows: &[usize],
) -> (Tensor, u64) {
    let up = remote.traffic().up();
    let part = |&row: &usize| {
        let range = golden.rows.range(row);
        golden.ids.narrow(0, range.start as i64, range.len() as i64)
    };
    let ids = Tensor::cat(&rows.iter().map(part).collect::<Vec<_>>(), 0);
    let lengths: Vec<usize> = rows.iter().map(|&row| golden.rows.row_len(row)).collect();
    let prefix = golden.ends.embed_prompts(prompts).expect("a prefix");
    let tokens = golden.ends.embed(&ids).expect("tokens");
    let rows = Ragged::from_lengths(lengths).expect("rows");
    let output = tuned.forward(Some(&prefix), &tokens, &rows).expect("a forward");
    (output, remote.traffic().up() - up)
}

/// Checks what batches of one evaluation give; says how many bytes a batch after the first sends.
fn check(model: &str, options: RemoteOptions, n_servers: usize) -> u64 {
    let golden = Golden::open(model);
    let n = golden.n_blocks();
    let bounds: Vec<usize> = (0..=n_servers).map(|i| i * n / n_servers).collect();
    let part = |pair: &[usize]| Span::new(pair[0], pair[1]).expect("a span");
    let servers: Vec<_> = bounds.windows(2).map(|pair| golden.serve_listening(part(pair), 1 << 30)).collect();
    let remote = golden.connect(&servers, options.clone());
    let trained = Trained::of(&golden, true);
    let deep = trained.deep_prompts.as_ref().expect("deep prompts");
    tch::no_grad(|| {
        let tune = || remote.tune(vec![("deep_prompts".to_owned(), deep.shallow_clone())]).expect("tuned");
        let run =
            |tuned: &StepSession<'_>, prompts: &Tensor, rows: &[usize]| pooled(&golden, &remote, tuned, prompts, rows);
        let kept = tune();
        let (first, _) = run(&kept, &trained.prompts, &[0, 1]);
        let (again, up_again) = run(&kept, &trained.prompts, &[0, 1]);
        let what = format!("{model}, {n_servers} servers, {:?}", options.path);
        assert!(distance(&first, &again) < 1e-5, "{what}: {}", distance(&first, &again));
        // Rows that came first without a prefix, and another prefix with the same tunables.
        let other = &trained.prompts * 1.5;
        for (prompts, rows) in [(&trained.prompts, vec![2, 0]), (&other, vec![1, 2]), (&other, vec![0])] {
            let (found, _) = run(&kept, prompts, &rows);
            let (expected, _) = run(&tune(), prompts, &rows);
            assert!(distance(&found, &expected) < 1e-5, "{what}: rows {rows:?}");
        }
        up_again
    })
}

/// The name, the length and the checksum of numbers that go beside a message.
const BESIDE: u64 = 20;

#[test]
fn evaluation_sends_the_prefix_once() {
    let prefix = Golden::open("llama-gqa").get("prompts").numel() as u64 * 4;
    // Through the client, each server is sent what the one before it gave.
    for (n_servers, path, times) in [(1, SwarmPath::Star, 1), (2, SwarmPath::Star, 2), (2, SwarmPath::Relay, 1)] {
        let options = RemoteOptions { path, ..RemoteOptions::default() };
        let text = check("llama-gqa", options.clone(), n_servers);
        // In deterministic mode every batch is computed alike, so that its bits do not depend on those before.
        let whole = check("llama-gqa", RemoteOptions { deterministic: true, ..options.clone() }, n_servers);
        // What is larger goes beside its message, which takes a few bytes more.
        let (found, expected) = (whole - text, times * prefix..=times * (prefix + BESIDE));
        assert!(expected.contains(&found), "{found} of {expected:?}: {n_servers} servers, {path:?}");
        for model in &models() {
            check(model, options.clone(), n_servers);
        }
    }
}

#[test]
fn evicted_prefix_is_sent_again() {
    let golden = Golden::open("llama-gqa");
    let server = golden.serve_listening(span(&format!("0:{}", golden.n_blocks())), 1 << 30);
    let remote = golden.connect(std::slice::from_ref(&server), RemoteOptions::default());
    let trained = Trained::of(&golden, true);
    let deep = trained.deep_prompts.as_ref().expect("deep prompts");
    let kept = remote.tune(vec![("deep_prompts".to_owned(), deep.shallow_clone())]).expect("tuned");
    let evaluate = || tch::no_grad(|| pooled(&golden, &remote, &kept, &trained.prompts, &[0, 2]).0);
    let first = evaluate();
    // A step of training between: its tunables replace those of the evaluation.
    trained.logits(&golden, &remote, &golden.ids, &golden.rows).sum(tch::Kind::Float).backward();
    assert!(distance(&evaluate(), &first) < 1e-5);
    // And a call that has no prefix at all.
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let none = tch::no_grad(|| kept.forward(None, &tokens, &golden.rows)).expect("a forward without a prefix");
    assert_eq!(none.size()[0] as usize, golden.rows.len());
    assert!(distance(&evaluate(), &first) < 1e-5);
}
