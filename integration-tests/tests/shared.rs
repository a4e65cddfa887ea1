//! Work that is done once for many: prefixes that servers keep, and calls of several clients that are computed together.

use sepal_core::{Ragged, Span};
use sepal_remote::{RemoteOptions, RemoteSequential, SwarmPath, Tuned};
use sepal_testkit::tiny::models;
use tch::Tensor;

use crate::support::{Golden, Trained, distance, span};

/// What one forward gave, and how many bytes went up.
fn pooled(
    golden: &Golden,
    remote: &RemoteSequential,
    tuned: &Tuned<'_>,
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
        let run = |tuned: &Tuned<'_>, prompts: &Tensor, rows: &[usize]| pooled(&golden, &remote, tuned, prompts, rows);
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
fn evaluation_sends_text_alone() {
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
fn what_a_server_has_forgotten_is_sent_again() {
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

/// Losses and gradients of clients that train at the same time, each on rows of its own.
#[test]
fn clients_of_one_server_do_not_notice_each_other() {
    let golden = Golden::open("llama-gqa");
    let server = golden.serve_listening(span(&format!("0:{}", golden.n_blocks())), 1 << 30);
    let client = |seed: i64, deterministic: bool| {
        let golden = Golden::open("llama-gqa");
        let options = RemoteOptions { deterministic, ..RemoteOptions::default() };
        let remote = golden.connect(std::slice::from_ref(&server), options);
        let mut trained = Trained::of(&golden, true);
        let mut steps = Vec::new();
        for step in 0..12 {
            let row = ((seed + step) % 3) as usize;
            let range = golden.rows.range(row);
            let ids = golden.ids.narrow(0, range.start as i64, range.len() as i64);
            let rows = Ragged::from_lengths([range.len()]).expect("a row");
            let logits = trained.logits(&golden, &remote, &ids, &rows);
            logits.square().sum(tch::Kind::Float).backward();
            steps.push((logits.detach(), trained.prompts.grad()));
            trained = trained.step(1e-3);
        }
        steps
    };
    let alone: Vec<_> = (0..6).map(|seed| client(seed, seed % 2 == 0)).collect();
    let client = &client;
    let together: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..6).map(|seed| scope.spawn(move || client(seed, seed % 2 == 0))).collect();
        running.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    for (seed, (alone, together)) in alone.iter().zip(&together).enumerate() {
        for (step, ((logits, grad), (logits_too, grad_too))) in alone.iter().zip(together).enumerate() {
            let what = format!("client {seed}, step {step}");
            if seed % 2 == 0 {
                assert_eq!((logits, grad), (logits_too, grad_too), "{what}: not the same bits");
            } else {
                assert!(distance(logits, logits_too) < 1e-4, "{what}: logits");
                let largest = f64::try_from(grad.abs().max()).expect("a number");
                assert!(distance(grad, grad_too) < 1e-4 * largest.max(1.0), "{what}: gradient");
            }
        }
    }
}
