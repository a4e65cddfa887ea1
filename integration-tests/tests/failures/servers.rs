//! Failing servers in both directions, and invalid requests.

use std::time::{Duration, Instant};

use sepal_blocks::BlockStack;
use sepal_integration_tests::golden::{Golden, TOLERANCE, Trained, cross_entropy, distance, span};
use sepal_remote::{ModelExpectation, RemoteError, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use tch::{Device, Kind, Tensor};

fn options() -> RemoteOptions {
    RemoteOptions { wait_ms: 1500, ..RemoteOptions::default() }
}

/// Returns servers of these spans with a client and its deep prompts.
fn connected(spans: &[&str]) -> (Golden, Vec<BlockServer>, RemoteSequential, Trained) {
    let golden = Golden::open("llama-gqa");
    let servers: Vec<BlockServer> = spans.iter().map(|blocks| golden.serve(blocks)).collect();
    let (remote, trained) = (golden.connect(&servers, options()), Trained::new(&golden, true));
    (golden, servers, remote, trained)
}

/// Runs the forward pass of the goldens with these deep prompts.
fn forward_error(golden: &Golden, remote: &RemoteSequential, prompts: &Tensor, deep: &Tensor) -> RemoteError {
    let session = remote.tune(vec![("deep_prompts".to_owned(), deep.shallow_clone())]).expect("tuned");
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    session.forward(Some(prompts), &tokens, &golden.rows).expect_err("it fails")
}

fn deep_prompts(trained: &Trained) -> &Tensor {
    trained.deep_prompts.as_ref().expect("deep prompts")
}

#[test]
fn server_lost_before_forward_is_replaced() {
    let (golden, mut servers, remote, trained) = connected(&["0:3", "0:2", "1:3"]);
    servers.remove(0).shutdown();
    let logits = trained.golden_logits(&golden, &remote);
    assert!(distance(&logits, &golden.get("deep.logits")) <= TOLERANCE);
}

#[test]
fn server_lost_before_backward_is_replaced_by_two() {
    let golden = Golden::open("llama-gqa");
    let mut servers = vec![golden.serve("0:3")];
    servers.extend([golden.serve("0:2"), golden.serve("1:3")]);
    let remote = golden.connect(&servers, RemoteOptions { micro_batch_tokens: 14, ..options() });
    let trained = Trained::new(&golden, true);
    let logits = trained.golden_logits(&golden, &remote);
    servers.remove(0).shutdown();
    cross_entropy(&logits, &golden.get("labels")).backward();
    golden.assert_deep_grads(&trained);
}

#[test]
fn draining_server_finishes_its_tapes_and_refuses_new_calls() {
    let (golden, mut servers, remote, trained) = connected(&["0:3"]);
    let first = servers.remove(0);
    let logits = trained.golden_logits(&golden, &remote);
    let started = Instant::now();
    let draining = std::thread::spawn(move || first.drain(Duration::from_secs(30)));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!draining.is_finished(), "a tape is left");
    let error = forward_error(&golden, &remote, &trained.prompts, deep_prompts(&trained));
    assert!(error.to_string().contains("the server is stopping"), "{error}");
    cross_entropy(&logits, &golden.get("labels")).backward();
    golden.assert_deep_grads(&trained);
    draining.join().expect("it ends");
    assert!(started.elapsed() < Duration::from_secs(15), "it did not wait for the end of its patience");
}

#[test]
fn missing_server_error_names_the_blocks() {
    let (golden, mut servers, remote, trained) = connected(&["0:2", "2:3"]);
    servers.pop().expect("a server").shutdown();
    let started = Instant::now();
    let error = forward_error(&golden, &remote, &trained.prompts, deep_prompts(&trained));
    assert!(matches!(&error, RemoteError::NoServer { span: s, .. } if *s == span("2:3")), "{error}");
    assert!(error.to_string().contains("no server answered for blocks 2:3"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "it gave up after {:?}", started.elapsed());
}

#[test]
fn failed_backward_is_an_error_of_the_graph() {
    let (golden, mut servers, remote, trained) = connected(&["0:3"]);
    let logits = trained.golden_logits(&golden, &remote);
    servers.pop().expect("a server").shutdown();
    let error = cross_entropy(&logits, &golden.get("labels")).f_backward().expect_err("no server");
    assert!(error.to_string().contains("no server answered for blocks 0:3"), "{error}");
}

#[test]
fn graph_outlives_its_servers() {
    let (golden, servers, remote, trained) = connected(&["0:3"]);
    let logits = trained.golden_logits(&golden, &remote);
    drop((remote, servers));
    let error = cross_entropy(&logits, &golden.get("labels")).f_backward().expect_err("nobody is there");
    assert!(error.to_string().contains("has stopped"), "{error}");
}

#[test]
fn batch_over_server_limits_is_refused_before_it_is_sent() {
    let golden = Golden::open("llama-gqa");
    for (limits, expected) in [
        (Limits { max_message_bytes: 1000, ..Limits::default() }, "lower `micro_batch_tokens`"),
        (Limits { max_rows: 3, ..Limits::default() }, "7 rows, but this server accepts 3"),
        (Limits { max_tokens: 9, ..Limits::default() }, "tokens, but this server accepts 9"),
    ] {
        let stack = BlockStack::load(&golden.checkpoint, span("0:3")).expect("blocks");
        let options_there = ServerOptions { limits, ..ServerOptions::default() };
        let identity = ModelIdentity::from_checkpoint(&golden.checkpoint);
        let server = BlockServer::embedded(stack, identity, options_there).expect("a server");
        let remote = golden.connect(std::slice::from_ref(&server), options());
        let trained = Trained::new(&golden, false);
        let tokens = golden.ends.embed(&golden.ids).expect("tokens");
        let tuned = remote.tune(Vec::new()).expect("tuned");
        let error = tuned.forward(Some(&trained.prompts), &tokens, &golden.rows).expect_err("too large");
        assert!(matches!(&error, RemoteError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn missing_blocks_and_other_models_are_refused_at_once() {
    let golden = Golden::open("llama-gqa");
    let servers = [golden.serve("0:1"), golden.serve("2:3")];
    let endpoints = || servers.iter().map(|server| server.endpoint().clone()).collect::<Vec<_>>();
    let error = RemoteSequential::connect(endpoints(), golden.expectation(), options()).expect_err("a hole");
    assert!(error.to_string().starts_with("no server holds blocks 1:2"), "{error}");

    let other = ModelExpectation { digest: "sha256:0000".into(), ..golden.expectation() };
    let error = RemoteSequential::connect(endpoints(), other, options()).expect_err("another model");
    assert!(matches!(&error, RemoteError::WrongModel { what: "the digest of the weights", .. }), "{error}");
}

#[test]
fn invalid_requests_are_refused_without_a_retry() {
    let (golden, _servers, remote, trained) = connected(&["0:3", "0:3"]);
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let float = (Kind::Float, Device::Cpu);

    let unknown = remote.tune(vec![("adapters".into(), Tensor::zeros([3, 2], float))]).expect("tuned");
    let error = unknown.forward(Some(&trained.prompts), &tokens, &golden.rows).expect_err("no such tunable");
    assert!(matches!(&error, RemoteError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("unknown tunable `adapters`"), "{error}");

    let error = forward_error(&golden, &remote, &trained.prompts, &Tensor::zeros([3, 9, 32], float));
    assert!(matches!(&error, RemoteError::Refused { .. }), "{error}");

    let error = remote.tune(vec![("deep_prompts".into(), Tensor::zeros([2, 5, 32], float))]).expect_err("two blocks");
    assert!(matches!(&error, RemoteError::Shape { .. }), "{error}");

    let tunables = vec![("deep_prompts".into(), deep_prompts(&trained).shallow_clone())];
    let tuned = remote.tune(tunables).expect("tuned");
    let error = tuned.forward(Some(&trained.prompts), &tokens.narrow(0, 0, 3), &golden.rows).expect_err("too few");
    assert!(matches!(&error, RemoteError::Shape { what: "the tokens", .. }), "{error}");
    // The servers still answer.
    let logits = trained.golden_logits(&golden, &remote);
    assert!(distance(&logits, &golden.get("deep.logits")) <= TOLERANCE);
}

#[test]
fn non_finite_values_name_their_origin() {
    let (golden, _servers, remote, trained) = connected(&["0:1", "1:3"]);
    let error = forward_error(&golden, &remote, &(&trained.prompts * f64::NAN), deep_prompts(&trained));
    assert!(matches!(&error, RemoteError::NonFiniteInput { .. }), "{error}");

    let poison = golden.get("deep_prompts").copy();
    let _ = poison.get(2).fill_(f64::INFINITY);
    let error = forward_error(&golden, &remote, &trained.prompts, &poison);
    // The server holds two blocks and names the failing one.
    assert!(matches!(&error, RemoteError::NonFinite { span: s, .. } if *s == span("2:3")), "{error}");
}

#[test]
fn many_clients_share_a_server() {
    let golden = Golden::open("llama-gqa");
    let server = golden.serve("0:3");
    let endpoint = server.endpoint().clone();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let endpoint = endpoint.clone();
            scope.spawn(move || {
                let golden = Golden::open("llama-gqa");
                let remote =
                    RemoteSequential::connect(vec![endpoint], golden.expectation(), options()).expect("connected");
                for _ in 0..3 {
                    let trained = Trained::new(&golden, true);
                    let logits = trained.golden_logits(&golden, &remote);
                    cross_entropy(&logits, &golden.get("labels")).backward();
                    golden.assert_deep_grads(&trained);
                }
            });
        }
    });
}
