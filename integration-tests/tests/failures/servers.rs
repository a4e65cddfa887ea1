//! Failing servers in both directions, and invalid requests.

use std::time::{Duration, Instant};

use sepal_blocks::BlockStack;
use sepal_core::{DEEP_PROMPTS, Want, in_one_line};
use sepal_integration_tests::golden::{Golden, TOLERANCE, Trained, distance, span};
use sepal_nn::Tunable;
use sepal_remote::{ModelExpectation, RemoteError, RemoteOptions, RemoteSequential, StepSession};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};
use tch::{Device, Kind, Tensor};

fn options() -> RemoteOptions {
    RemoteOptions { wait_ms: 1500, ..RemoteOptions::default() }
}

/// Returns servers of these spans with a client and its deep prompts.
fn connected(spans: &[&str]) -> (Golden, Vec<BlockServer>, RemoteSequential, Trained) {
    let golden = Golden::open("llama-gqa");
    let servers: Vec<BlockServer> = spans.iter().map(|blocks| golden.serve(blocks)).collect();
    let (remote, trained) = (golden.connect(&servers, options()), golden.trained());
    (golden, servers, remote, trained)
}

/// Runs the forward pass of the goldens with these tunables.
fn forward_error(golden: &Golden, remote: &RemoteSequential, prompts: &Tensor, tunables: Vec<Tunable>) -> RemoteError {
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let forward = |session: StepSession<'_>| session.forward(Some(prompts), &tokens, &golden.rows, Want::LastOfRows);
    remote.tune(tunables).and_then(forward).expect_err("it fails")
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
    for golden in [Golden::open("llama-gqa"), Golden::with_adapters("llama-gqa")] {
        let mut servers = vec![golden.serve("0:3")];
        servers.extend([golden.serve("0:2"), golden.serve("1:3")]);
        let remote = golden.connect(&servers, RemoteOptions { micro_batch_tokens: 14, ..options() });
        let trained = golden.trained();
        let logits = trained.golden_logits(&golden, &remote);
        servers.remove(0).shutdown();
        golden.loss(&logits).backward();
        golden.assert_grads(&trained);
    }
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
    let error = forward_error(&golden, &remote, trained.prompts(), trained.tunables());
    assert!(error.to_string().contains("the server is stopping"), "{error}");
    golden.loss(&logits).backward();
    golden.assert_grads(&trained);
    draining.join().expect("it ends");
    assert!(started.elapsed() < Duration::from_secs(15), "it did not wait for the end of its patience");
}

#[test]
fn missing_server_error_names_the_blocks() {
    let (golden, mut servers, remote, trained) = connected(&["0:2", "2:3"]);
    servers.pop().expect("a server").shutdown();
    let started = Instant::now();
    let error = forward_error(&golden, &remote, trained.prompts(), trained.tunables());
    assert!(matches!(&error, RemoteError::NoServer { span: s, .. } if *s == span("2:3")), "{error}");
    assert!(error.to_string().contains("no server answered for blocks 2:3"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "it gave up after {:?}", started.elapsed());
}

#[test]
fn failed_backward_is_an_error_of_the_graph() {
    let (golden, mut servers, remote, trained) = connected(&["0:3"]);
    let logits = trained.golden_logits(&golden, &remote);
    servers.pop().expect("a server").shutdown();
    let error = golden.loss(&logits).f_backward().expect_err("no server");
    assert!(error.to_string().contains("no server answered for blocks 0:3"), "{error}");
}

#[test]
fn graph_outlives_its_servers() {
    let (golden, servers, remote, trained) = connected(&["0:3"]);
    let logits = trained.golden_logits(&golden, &remote);
    drop((remote, servers));
    let error = golden.loss(&logits).f_backward().expect_err("nobody is there");
    assert!(error.to_string().contains("has stopped"), "{error}");
}

/// Returns a server of all blocks with these limits.
fn limited(golden: &Golden, limits: Limits) -> BlockServer {
    let stack = BlockStack::load(&golden.checkpoint, span("0:3")).expect("blocks");
    let options = ServerOptions { limits, ..ServerOptions::default() };
    BlockServer::embedded(stack, ModelIdentity::from_checkpoint(&golden.checkpoint), options).expect("a server")
}

#[test]
fn adapters_beyond_the_memory_of_a_server_go_to_another() {
    let golden = Golden::with_adapters("llama-gqa");
    let trained = golden.trained();
    let servers = [limited(&golden, Limits { client_bytes: 1000, ..Limits::default() }), golden.serve("0:3")];
    let logits = trained.golden_logits(&golden, &golden.connect(&servers, options()));
    assert!(distance(&logits, &golden.get("lora.logits")) <= TOLERANCE);
    let remote = golden.connect(&servers[..1], options());
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let session = remote.tune(trained.tunables()).expect("tuned");
    let error = session.forward(None, &tokens, &golden.rows, Want::LastOfRows).expect_err("no memory for them");
    assert!(in_one_line(&error).contains("this server keeps 1000 bytes of one client"), "{error}");
}

#[test]
fn batch_over_server_limits_is_refused_before_it_is_sent() {
    let golden = Golden::open("llama-gqa");
    for (limits, expected) in [
        (Limits { max_message_bytes: 1000, ..Limits::default() }, "lower `micro_batch_tokens`"),
        (Limits { max_rows: 3, ..Limits::default() }, "7 rows, but this server accepts 3"),
        (Limits { max_tokens: 9, ..Limits::default() }, "tokens, but this server accepts 9"),
    ] {
        let server = limited(&golden, limits);
        let remote = golden.connect(std::slice::from_ref(&server), options());
        let trained = Trained::new(&golden, "ptune");
        let tokens = golden.ends.embed(&golden.ids).expect("tokens");
        let tuned = remote.tune(Vec::new()).expect("tuned");
        let result = tuned.forward(Some(trained.prompts()), &tokens, &golden.rows, Want::LastOfRows);
        let error = result.expect_err("too large");
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
    assert!(matches!(&error, RemoteError::WrongModel { what: "the digest of the model", .. }), "{error}");

    let tunables = vec![DEEP_PROMPTS.to_owned(), "lora_A:other".to_owned()];
    let more = ModelExpectation { tunables, ..golden.expectation() };
    let error = RemoteSequential::connect(endpoints(), more, options()).expect_err("another layer");
    assert!(error.to_string().contains("do not take `lora_A:other`"), "{error}");
}

#[test]
fn invalid_requests_are_refused_and_the_servers_go_on() {
    let (golden, _servers, remote, trained) = connected(&["0:3", "0:3"]);
    let tokens = golden.ends.embed(&golden.ids).expect("tokens");
    let zeros = |name: &str, shape: &[i64]| Tunable::new(name, Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
    let (a, b) = ("lora_A:self_attn.q_proj", "lora_B:self_attn.q_proj");
    for (tunables, expected) in [
        (vec![zeros("adapters", &[3, 2])], "`adapters`"),
        (vec![zeros(DEEP_PROMPTS, &[3, 9, 32])], "9"),
        (vec![zeros(DEEP_PROMPTS, &[4, 5, 32])], "[4, 5, 32]"),
        (vec![zeros("lora_A:self_attn.q_prj", &[3, 4, 32])], "self_attn.q_prj"),
        (vec![zeros(a, &[3, 4, 32])], b),
        (vec![zeros(a, &[3, 4, 32]), zeros(b, &[3, 32, 3])], a),
        (vec![zeros("scale_output:mlp.up_proj", &[3, 55])], "scale_output:mlp.up_proj"),
    ] {
        let error = forward_error(&golden, &remote, trained.prompts(), tunables);
        assert!(!matches!(&error, RemoteError::NoServer { .. }), "{error}");
        let text = in_one_line(&error);
        assert!(text.contains(expected), "{expected} in {text}");
    }

    let tuned = remote.tune(trained.tunables()).expect("tuned");
    let few = tokens.narrow(0, 0, 3);
    let result = tuned.forward(Some(trained.prompts()), &few, &golden.rows, Want::LastOfRows);
    let error = result.expect_err("too few");
    assert!(matches!(&error, RemoteError::Shape { what: "the tokens", .. }), "{error}");
    // The servers still answer.
    let logits = trained.golden_logits(&golden, &remote);
    assert!(distance(&logits, &golden.get("deep.logits")) <= TOLERANCE);
}

#[test]
fn non_finite_values_name_their_origin() {
    let (golden, _servers, remote, trained) = connected(&["0:1", "1:3"]);
    let error = forward_error(&golden, &remote, &(trained.prompts() * f64::NAN), trained.tunables());
    assert!(matches!(&error, RemoteError::NonFiniteInput { .. }), "{error}");

    let poison = golden.get(DEEP_PROMPTS).copy();
    let _ = poison.get(2).fill_(f64::INFINITY);
    let error = forward_error(&golden, &remote, trained.prompts(), vec![Tunable::new(DEEP_PROMPTS, poison)]);
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
                    let trained = golden.trained();
                    let logits = trained.golden_logits(&golden, &remote);
                    golden.loss(&logits).backward();
                    golden.assert_grads(&trained);
                }
            });
        }
    });
}
