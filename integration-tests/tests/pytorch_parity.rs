//! Servers compute the outputs of PyTorch with any number of servers, micro-batches, tapes and rows.

use sepal_core::{DType, Want};
use sepal_integration_tests::golden::{Golden, TOLERANCE, Trained, assert_grad, cross_entropy, distance};
use sepal_remote::{RemoteError, RemoteOptions};
use sepal_testkit::tiny::models;
use tch::Tensor;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) servers: usize,
    pub(crate) micro_batch_tokens: usize,
    pub(crate) tape_budget_bytes: u64,
}

pub(crate) const PLAIN: Case = Case { servers: 1, micro_batch_tokens: 2048, tape_budget_bytes: 1 << 30 };

/// Compares the logits, the loss and the gradients of a mode of the goldens.
pub(crate) fn check(model: &str, golden: &Golden, mode: &str, case: Case) {
    let n = golden.n_blocks();
    let bounds: Vec<usize> = (0..=case.servers.min(n)).map(|i| i * n / case.servers.min(n)).collect();
    let servers: Vec<_> = bounds
        .windows(2)
        .map(|pair| golden.serve_with_budget(&format!("{}:{}", pair[0], pair[1]), case.tape_budget_bytes))
        .collect();
    let options = RemoteOptions { micro_batch_tokens: case.micro_batch_tokens, ..RemoteOptions::default() };
    let remote = golden.connect(&servers, options);
    let trained = Trained::new(golden, mode);
    let logits = trained.golden_logits(golden, &remote);
    let what = format!("{model} {mode} {case:?}");
    let far = distance(&logits, &golden.get(&format!("{mode}.logits")));
    assert!(far <= TOLERANCE, "{what}: logits are off by {far:.2e}");
    let (loss, expected) = (golden.loss(&logits), golden.get(&format!("{mode}.loss")));
    let far = distance(&loss, &expected) / expected.double_value(&[]).max(1.0);
    assert!(far <= TOLERANCE, "{what}: the loss is off by {far:.2e}");
    loss.backward();
    for (name, grad) in trained.grads() {
        assert_grad(&format!("{what} {name}"), &grad, &golden.get(&format!("{mode}.grad.{name}")));
    }
}

#[test]
fn servers_equal_pytorch() {
    let three = Case { servers: 3, ..PLAIN };
    let mut cases = vec![("deep", PLAIN), ("ptune", PLAIN), ("deep", three), ("ptune", three)];
    cases.extend([1, 11, 16].map(|micro_batch_tokens| ("deep", Case { micro_batch_tokens, ..PLAIN })));
    cases.push(("ptune", Case { micro_batch_tokens: 12, ..three }));
    // Without tapes.
    cases.push(("deep", Case { tape_budget_bytes: 0, ..PLAIN }));
    cases.push(("deep", Case { micro_batch_tokens: 12, tape_budget_bytes: 0, ..three }));
    for model in &models() {
        let golden = Golden::open(model);
        for &(mode, case) in &cases {
            check(model, &golden, mode, case);
        }
    }
}

#[test]
fn packed_rows_are_independent() {
    for model in &models() {
        let golden = Golden::open(model);
        let servers = [golden.serve(&golden.all_blocks())];
        let remote = golden.connect(&servers, RemoteOptions::default());
        let trained = golden.trained();
        let expected = golden.get("deep.logits");
        let check = |order: &[usize]| {
            let (ids, rows) = golden.batch(order);
            let logits = trained.logits(&golden, &remote, &ids, &rows);
            let order: Vec<i64> = order.iter().map(|&row| row as i64).collect();
            let far = distance(&logits, &expected.index_select(0, &Tensor::from_slice(&order)));
            assert!(far <= TOLERANCE, "{model}: rows {order:?} are off by {far:.2e}");
        };
        let n = golden.rows.len();
        for row in 0..n {
            check(&[row]);
        }
        check(&(0..n).rev().collect::<Vec<_>>());
        check(&[2, 2, 0, n - 1, 2]);
    }
}

#[test]
fn row_gradients_add_up() {
    for golden in [Golden::open("llama-gqa"), Golden::with_adapters("llama-gqa")] {
        let servers = [golden.serve("0:1"), golden.serve("1:3")];
        let remote = golden.connect(&servers, RemoteOptions::default());
        let in_one_batch = golden.trained();
        let labels = golden.get("labels");
        cross_entropy(&in_one_batch.golden_logits(&golden, &remote), &labels).backward();
        let row_by_row = golden.trained();
        let n = golden.rows.len();
        for row in 0..n {
            let (ids, rows) = golden.batch(&[row]);
            let logits = row_by_row.logits(&golden, &remote, &ids, &rows);
            (cross_entropy(&logits, &labels.narrow(0, row as i64, 1)) / n as f64).backward();
        }
        for ((name, found), (_, expected)) in row_by_row.grads().into_iter().zip(in_one_batch.grads()) {
            assert_grad(&name, &found, &expected);
        }
    }
}

#[test]
fn evaluation_keeps_no_tape_and_sends_tunables_once() {
    let golden = Golden::open("llama-gqa");
    let servers = [golden.serve("0:3")];
    let remote = golden.connect(&servers, RemoteOptions::default());
    let trained = golden.trained();
    let logits = tch::no_grad(|| trained.golden_logits(&golden, &remote));
    assert!(!logits.requires_grad());
    assert_eq!(servers[0].stats().info().load.tapes, 0);
    assert!(distance(&logits, &golden.get("deep.logits")) <= TOLERANCE);

    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let deep_bytes = trained.tunable_bytes();
    let tuned = remote.tune(trained.tunables()).expect("tuned");
    let before = remote.traffic().up();
    for _ in 0..4 {
        let forward = || tuned.forward(Some(trained.prompts()), &tokens, &golden.rows, Want::LastOfRows);
        let _ = tch::no_grad(forward).expect("a forward");
    }
    // The prompts are sent only with the first batch.
    let (prefix_bytes, text_bytes) = (trained.prompts().numel() as u64 * 4, golden.rows.n_tokens() as u64 * 32 * 4);
    let least = deep_bytes + prefix_bytes + 4 * text_bytes;
    let sent = remote.traffic().up() - before;
    assert!(sent >= least, "{sent} bytes cannot hold four batches");
    assert!(sent < least + deep_bytes, "{sent} bytes: the deep prompts went up more than once");
    assert_eq!(servers[0].stats().info().load.tapes, 0);
}

#[test]
fn reduced_wire_precision_is_close() {
    for wire_dtype in [DType::F16, DType::Bf16, DType::Q8] {
        let golden = Golden::open("llama-gqa");
        let servers = [golden.serve("0:2"), golden.serve("2:3")];
        let remote =
            golden.connect(&servers, RemoteOptions { wire_dtype: Some(wire_dtype), ..RemoteOptions::default() });
        let trained = golden.trained();
        let logits = trained.golden_logits(&golden, &remote);
        let far = distance(&logits, &golden.get("deep.logits"));
        assert!(far > 0.0 && far < 0.1, "{wire_dtype}: logits are off by {far:.2e}");
        golden.loss(&logits).backward();
        let (found, expected) = (trained.prompts().grad(), golden.get("deep.grad.prompts"));
        let off = distance(&found, &expected) / expected.abs().max().double_value(&[]);
        assert!(off < 0.1, "{wire_dtype}: gradients are off by {off:.2e}");
    }
}

/// Trains through three servers. Returns the losses, and the bytes sent and received.
fn train(wire_dtype: DType, steps: usize) -> (Vec<f64>, u64) {
    let golden = Golden::open("llama-gqa");
    let servers = ["0:1", "1:2", "2:3"].map(|blocks| golden.serve(blocks));
    let remote = golden.connect(&servers, RemoteOptions { wire_dtype: Some(wire_dtype), ..RemoteOptions::default() });
    let mut trained = golden.trained();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let logits = trained.golden_logits(&golden, &remote);
        let loss = golden.loss(&logits);
        loss.backward();
        losses.push(loss.double_value(&[]));
        trained = trained.step(0.05);
    }
    (losses, remote.traffic().up() + remote.traffic().down())
}

#[test]
fn training_in_eight_bits_follows_training_in_32() {
    let ((plain, plain_bytes), (q8, q8_bytes)) = (train(DType::F32, 40), train(DType::Q8, 40));
    let far = plain.iter().zip(&q8).map(|(plain, q8)| (plain - q8).abs()).fold(0.0, f64::max);
    assert!(plain[39] < 0.9 * plain[0], "it learns: {plain:?}");
    // Measured: 0.0078 in the first step, 0.0011 in the last.
    assert!(far > 0.0 && far < 0.03, "losses are off by {far:.2e}");
    assert!(q8_bytes < plain_bytes / 2, "{q8_bytes} bytes against {plain_bytes}");
}

#[test]
fn non_finite_values_are_detected_in_every_wire_format() {
    for wire_dtype in DType::ALL {
        let golden = Golden::open("llama-gqa");
        let servers = [golden.serve("0:2"), golden.serve("2:3")];
        let remote =
            golden.connect(&servers, RemoteOptions { wire_dtype: Some(wire_dtype), ..RemoteOptions::default() });
        let tokens = golden.ends.embed(&golden.ids).expect("tokens");
        let tuned = remote.tune(Vec::new()).expect("tuned");
        let prompts = golden.get("prompts").copy();
        let _ = prompts.narrow(0, 0, 1).fill_(f64::INFINITY);
        let error = tuned.forward(Some(&prompts), &tokens, &golden.rows, Want::LastOfRows).expect_err("not finite");
        assert!(matches!(error, RemoteError::NonFiniteInput { what: "prompts", .. }), "{wire_dtype}: {error}");
    }
}
