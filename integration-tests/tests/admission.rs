//! Limits on the memory and on the calls of a server, for clients that respect them.

use std::time::{Duration, Instant};

use sepal_blocks::{BlockStack, Passes};
use sepal_core::{Ragged, Want, in_one_line};
use sepal_integration_tests::golden::{Golden, TOLERANCE, distance, span};
use sepal_remote::{RemoteError, RemoteOptions, RemoteSequential, StepSession};
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};

const MB: u64 = 1 << 20;

fn stack(golden: &Golden) -> BlockStack {
    BlockStack::load(&golden.checkpoint, span(&golden.all_blocks())).expect("blocks")
}

fn serve(golden: &Golden, options: ServerOptions) -> BlockServer {
    let identity = ModelIdentity::from_checkpoint(&golden.checkpoint);
    BlockServer::embedded(stack(golden), identity, options).expect("a server")
}

fn limited(golden: &Golden, limits: Limits) -> BlockServer {
    serve(golden, ServerOptions { limits, ..ServerOptions::default() })
}

fn connect(golden: &Golden, servers: &[BlockServer]) -> RemoteSequential {
    golden.connect(servers, RemoteOptions { wait_ms: 1500, ..RemoteOptions::default() })
}

/// Runs the forward pass of the goldens, which fails.
fn forward_error(golden: &Golden, remote: &RemoteSequential) -> RemoteError {
    let (trained, tokens) = (golden.trained(), golden.ends.embed(&golden.ids).expect("tokens"));
    let prompts = trained.prompts();
    let forward = |session: StepSession<'_>| session.forward(Some(prompts), &tokens, &golden.rows, Want::LastOfRows);
    remote.tune(trained.tunables()).and_then(forward).expect_err("it fails")
}

/// Returns the metric `name` of the kind of memory.
fn memory(server: &BlockServer, kind: &str) -> u64 {
    let prefix = format!("sepal_memory_bytes{{kind=\"{kind}\"}} ");
    let metrics = server.stats().metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
    line.unwrap_or_else(|| panic!("no {prefix} in {metrics}")).parse().expect("a number")
}

#[test]
fn row_beyond_the_positions_of_the_model_is_refused_and_counted() {
    let golden = Golden::open("llama-gqa");
    let server = limited(&golden, Limits { max_row_tokens: 5, ..Limits::default() });
    let error = in_one_line(&forward_error(&golden, &connect(&golden, std::slice::from_ref(&server))));
    assert!(error.contains("positions, prompts included, but the model takes 5"), "{error}");
    let metrics = server.stats().metrics();
    assert!(metrics.contains("sepal_refusals_total{reason=\"row_tokens\"}"), "{metrics}");
}

#[test]
fn batches_are_cut_to_the_memory_of_one_computation() {
    let golden = Golden::open("llama-gqa");
    let row = Ragged::from_lengths([150]).expect("a row");
    let stack = stack(&golden);
    let call_bytes = stack.call_memory().bytes(stack.span(), 0, &row, Passes::Backward);
    let server = limited(&golden, Limits { call_bytes, ..Limits::default() });
    let max_tokens = server.stats().info().limits.max_tokens;
    assert!((64..150).contains(&max_tokens), "{max_tokens} positions");
    let order: Vec<usize> = (0..40).flat_map(|_| 0..golden.rows.len()).collect();
    let (ids, rows) = golden.batch(&order);
    assert!(rows.n_tokens() > 2 * max_tokens as usize, "{} tokens", rows.n_tokens());
    let trained = golden.trained();
    let logits = |server: &BlockServer| {
        let remote = connect(&golden, std::slice::from_ref(server));
        let logits = trained.logits(&golden, &remote, &ids, &rows);
        logits.square().sum(tch::Kind::Float).backward();
        logits.detach()
    };
    let cut = logits(&server);
    assert!(distance(&cut, &logits(&golden.serve(&golden.all_blocks()))) <= TOLERANCE);
    let metrics = server.stats().metrics();
    assert!(!metrics.contains("sepal_refusals_total{"), "{metrics}");
}

#[test]
fn computation_beyond_the_memory_of_a_server_goes_to_another() {
    let golden = Golden::open("llama-gqa");
    let limits = Limits { call_bytes: 1, ..Limits::default() };
    let servers = [limited(&golden, limits), golden.serve(&golden.all_blocks())];
    let logits = golden.trained().golden_logits(&golden, &connect(&golden, &servers));
    assert!(distance(&logits, &golden.get("deep.logits")) <= TOLERANCE);
    let error = in_one_line(&forward_error(&golden, &connect(&golden, &servers[..1])));
    assert!(error.contains("1 bytes for one computation"), "{error}");
}

#[test]
fn step_with_more_inputs_than_a_connection_may_have_waits_for_memory() {
    let golden = Golden::open("llama-gqa");
    // Half a megabyte is left for messages, inputs and answers, and a connection has a half of it.
    let limits = Limits {
        tape_budget_bytes: 60 * MB,
        shared_bytes: 10 * MB,
        client_bytes: 10 * MB,
        call_bytes: 30 * MB - MB / 2,
        ..Limits::default()
    };
    let server = serve(&golden, ServerOptions { limits, max_memory: Some(100 * MB), ..ServerOptions::default() });
    let repeats = 10_000_usize.div_ceil(golden.rows.n_tokens());
    let order: Vec<usize> = (0..repeats).flat_map(|_| 0..golden.rows.len()).collect();
    let (ids, rows) = golden.batch(&order);
    let input_bytes = (rows.n_tokens() * golden.checkpoint.config().hidden * size_of::<f32>()) as u64;
    assert!(input_bytes > 4 * (MB / 4), "{input_bytes} bytes of inputs");
    let trained = golden.trained();
    let logits = |server: &BlockServer| {
        let options = RemoteOptions { micro_batch_tokens: 200, ..RemoteOptions::default() };
        let remote = golden.connect(std::slice::from_ref(server), options);
        let logits = trained.logits(&golden, &remote, &ids, &rows);
        logits.square().sum(tch::Kind::Float).backward();
        logits.detach()
    };
    let waiting = logits(&server);
    assert!(distance(&waiting, &logits(&golden.serve(&golden.all_blocks()))) <= TOLERANCE);
    let metrics = server.stats().metrics();
    assert!(!metrics.contains("sepal_connections_ended_total{"), "{metrics}");
}

#[test]
fn memory_of_clients_is_counted_and_freed() {
    let golden = Golden::open("llama-gqa");
    let limits = Limits {
        tape_budget_bytes: 256 * MB,
        shared_bytes: 128 * MB,
        client_bytes: 64 * MB,
        call_bytes: 256 * MB,
        ..Limits::default()
    };
    let server = serve(&golden, ServerOptions { limits, max_memory: Some(1024 * MB), ..ServerOptions::default() });
    let (trained, remote) = (golden.trained(), connect(&golden, std::slice::from_ref(&server)));
    let logits = trained.golden_logits(&golden, &remote);
    assert!(memory(&server, "tapes") > 0);
    assert!(memory(&server, "tunables") >= trained.tunable_bytes());
    assert!(memory(&server, "sessions") > 0);
    golden.loss(&logits).backward();
    golden.assert_grads(&trained);
    drop(remote);
    let kinds = ["tapes", "tunables", "prefixes", "calls", "mailbox", "sessions", "computation"];
    let deadline = Instant::now() + Duration::from_secs(20);
    while kinds.iter().any(|kind| memory(&server, kind) > 0) {
        assert!(Instant::now() < deadline, "{}", server.stats().metrics());
        std::thread::sleep(Duration::from_millis(10));
    }
}
