//! Servers that check each other: honest ones never differ, and one with other weights is found and left out.

use std::sync::{Arc, Mutex, PoisonError};

use sepal_blocks::{BlockStack, BoxError, Weights};
use sepal_checkpoint::Checkpoint;
use sepal_core::{HostTensor, ModelConfig, Ragged, Span, Want};
use sepal_nn::Tunable;
use sepal_remote::{Evidence, ModelExpectation, RemoteError, RemoteOptions, RemoteSequential, SwarmPath};
use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
use sepal_swarm::{Endpoint, IdentityKey};
use tch::{Device, Kind, Tensor};

const N_BLOCKS: usize = 3;
const HIDDEN: i64 = 32;
const PREFIX_LEN: i64 = 4;
static DRAWING: Mutex<()> = Mutex::new(());

/// The weights of a checkpoint, of which those of one layer are multiplied.
struct Altered(Checkpoint, f32);

impl Weights for Altered {
    fn config(&self) -> &ModelConfig {
        Weights::config(&self.0)
    }

    fn has(&self, name: &str) -> bool {
        Weights::has(&self.0, name)
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        let tensor = Weights::tensor(&self.0, name)?;
        if !name.ends_with("down_proj.weight") {
            return Ok(tensor);
        }
        let others: Vec<f32> = tensor.to_f32().iter().map(|number| self.1 * number).collect();
        Ok(HostTensor::from_f32(tensor.shape().to_vec(), &others)?)
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open("../testkit/goldens/tiny-llama-gqa").expect("a checkpoint")
}

fn span(blocks: &str) -> Span {
    blocks.parse().expect("a span")
}

fn start(stack: BlockStack, threads: u32) -> BlockServer {
    start_with(stack, threads, Arc::new(IdentityKey::generate().expect("a key")))
}

fn start_with(stack: BlockStack, threads: u32, key: Arc<IdentityKey>) -> BlockServer {
    let options = ServerOptions { threads: Some(threads), key: Some(key), ..ServerOptions::default() };
    let identity = ModelIdentity::from_checkpoint(&checkpoint());
    BlockServer::listen(stack, identity, options, "127.0.0.1:0".parse().expect("an address")).expect("a server")
}

fn honest(blocks: &str, threads: u32) -> BlockServer {
    start(BlockStack::load(&checkpoint(), span(blocks)).expect("blocks"), threads)
}

/// Returns a server that states the model of the others and has other weights.
fn liar(blocks: &str) -> BlockServer {
    liar_by(blocks, -30.0)
}

fn liar_by(blocks: &str, factor: f32) -> BlockServer {
    start(BlockStack::load(&Altered(checkpoint(), factor), span(blocks)).expect("blocks"), 1)
}

fn connect(servers: &[&BlockServer], options: RemoteOptions) -> RemoteSequential {
    let endpoints: Vec<Endpoint> = servers.iter().map(|server| server.endpoint().clone()).collect();
    let digest = checkpoint().digest().to_owned();
    let expected = ModelExpectation { digest, n_blocks: N_BLOCKS, hidden: 32, tunables: Vec::new() };
    RemoteSequential::connect(endpoints, expected, options).expect("connected")
}

/// Options with which every call is checked.
fn check_all() -> RemoteOptions {
    RemoteOptions { verify: 1.0, deterministic: true, wait_ms: 2_000, ..RemoteOptions::default() }
}

/// Makes one step and returns its output and gradients as numbers.
fn step(remote: &RemoteSequential, seed: i64) -> Result<Vec<f32>, RemoteError> {
    let rows = Ragged::from_lengths([3, 5, 2]).expect("rows");
    let [prompts, deep, tokens] = {
        // The generator is that of all tests.
        let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
        tch::manual_seed(seed);
        let sizes = [vec![PREFIX_LEN, HIDDEN], vec![N_BLOCKS as i64, PREFIX_LEN, HIDDEN], vec![10, HIDDEN]];
        sizes.map(|size| Tensor::randn(size, (Kind::Float, Device::Cpu)))
    };
    let [prompts, deep] = [prompts, deep].map(|tensor| tensor.set_requires_grad(true));
    let session = remote.tune(vec![Tunable::new("deep_prompts", deep.shallow_clone())])?;
    let pooled = session.forward(Some(&prompts), &tokens, &rows, Want::LastOfRows)?; // [rows, hidden]
    remote.backward(&pooled.square().sum(Kind::Float))?;
    let parts = [pooled, prompts.grad(), deep.grad()].map(|tensor| tensor.detach().flatten(0, -1));
    Ok(Vec::try_from(Tensor::cat(&parts, 0)).expect("numbers"))
}

/// Makes a step, again after each quarantine. Returns its numbers and the quarantined servers.
fn repeated_step(remote: &RemoteSequential, seed: i64) -> (Vec<f32>, Vec<String>) {
    let mut liars = Vec::new();
    loop {
        match step(remote, seed) {
            Ok(numbers) => return (numbers, liars),
            Err(RemoteError::Quarantined { servers }) => liars.extend(servers),
            Err(error) => panic!("{error}"),
        }
        assert!(liars.len() <= 3, "{liars:?}");
    }
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |max, number| max.max(number.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= 1e-4 * scale, "{difference} of {scale}");
}

/// Returns the evidence that will be found.
fn collect_evidence(remote: &RemoteSequential) -> Arc<Mutex<Vec<Evidence>>> {
    let found: Arc<Mutex<Vec<Evidence>>> = Arc::default();
    let sink = Arc::clone(&found);
    remote.on_evidence(Box::new(move |evidence| sink.lock().expect("evidence").push(evidence.clone())));
    found
}

/// Checks that the liar is named and left out, and that the steps are those of honest servers.
fn check_liar(remote: &RemoteSequential, liar: &BlockServer, honest: &RemoteSequential) {
    let name = liar.endpoint().to_string();
    let mut named = Vec::new();
    for seed in 0..50 {
        let (numbers, liars) = repeated_step(remote, seed);
        assert_close(&numbers, &step(honest, seed).expect("an honest step"));
        named.extend(liars);
        // It is found once a route or a check passes through it.
        if seed >= 3 && !named.is_empty() {
            break;
        }
    }
    assert!(named.contains(&name) && named.iter().all(|server| *server == name), "{named:?} instead of {name}");
    for usage in remote.server_usage() {
        assert_eq!(usage.quarantined, usage.server == name, "{usage:?}");
    }
}

#[test]
fn honest_servers_never_differ() {
    let servers = [honest("0:3", 1), honest("0:3", 2), honest("0:2", 1), honest("1:3", 2)];
    for path in [SwarmPath::Star, SwarmPath::Relay] {
        let remote = connect(&servers.each_ref(), RemoteOptions { path, ..check_all() });
        for seed in 0..10 {
            step(&remote, seed).expect("a step");
        }
        let usage = remote.server_usage();
        assert!(usage.iter().map(|usage| usage.checks).sum::<u64>() >= 20, "{usage:?}");
        assert!(usage.iter().all(|usage| usage.differences == 0 && !usage.quarantined), "{usage:?}");
    }
}

#[test]
fn honest_servers_outvote_a_liar_and_the_evidence_is_signed() {
    // The route with the fewest hops is that of the liar.
    let wrong = liar("0:3");
    let [a, b, c, d] = [honest("0:2", 1), honest("2:3", 1), honest("0:1", 2), honest("1:3", 2)];
    let remote = connect(&[&wrong, &a, &b, &c, &d], check_all());
    let found = collect_evidence(&remote);
    check_liar(&remote, &wrong, &connect(&[&a, &b], check_all()));
    let found = found.lock().expect("evidence");
    let [evidence] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(evidence.accused.server, wrong.endpoint().to_string());
    assert_eq!(evidence.accused.key, wrong.stats().info().key);
    assert!(evidence.accused.receipt.is_some() && evidence.accused.is_signed());
    assert!(
        !evidence.disputed
            && !evidence.checkers.is_empty()
            && evidence.checkers.iter().all(|checker| checker.is_signed())
    );
    assert!(evidence.difference > evidence.tolerance);
    assert!(wrong.stats().info().receipts > 0);
}

#[test]
fn key_that_signed_a_wrong_result_is_left_out_at_every_address() {
    let key = Arc::new(IdentityKey::generate().expect("a key"));
    let altered = BlockStack::load(&Altered(checkpoint(), -30.0), span("0:3")).expect("blocks");
    let wrong = start_with(altered, 1, Arc::clone(&key));
    let twin = start_with(BlockStack::load(&checkpoint(), span("0:2")).expect("blocks"), 1, key);
    let [a, b, c, d] = [honest("0:2", 1), honest("2:3", 1), honest("0:1", 2), honest("1:3", 2)];
    let remote = connect(&[&wrong, &a, &b, &c, &d, &twin], check_all());
    let reference = connect(&[&a, &b], check_all());
    let is_found = || remote.server_usage().iter().any(|usage| usage.quarantined);
    // It is found once a route or a check passes through it.
    for seed in (0..50).take_while(|_| !is_found()) {
        let (numbers, _) = repeated_step(&remote, seed);
        assert_close(&numbers, &step(&reference, seed).expect("an honest step"));
    }
    let expected = [&wrong, &twin].map(|server| server.endpoint().to_string());
    for usage in remote.server_usage() {
        assert_eq!(usage.quarantined, expected.contains(&usage.server), "{usage:?}");
    }
}

#[test]
fn own_blocks_decide_where_there_is_no_third_server() {
    let (wrong, own) = (liar("0:3"), honest("0:3", 2));
    let [first, second] = [honest("0:2", 1), honest("2:3", 1)];
    let remote = connect(&[&wrong, &first, &second], check_all());
    remote.check_with(own.endpoint().clone());
    check_liar(&remote, &wrong, &connect(&[&first, &second], check_all()));
}

#[test]
fn two_servers_that_differ_end_the_run_with_both_names() {
    let (good, wrong) = (honest("0:3", 1), liar("0:3"));
    let remote = connect(&[&wrong, &good], check_all());
    let found = collect_evidence(&remote);
    let error = step(&remote, 0).expect_err("nothing tells which one is right");
    let RemoteError::Disputed { mut servers, .. } = error else { panic!("{error}") };
    let mut expected = Vec::from([&good, &wrong].map(|server| server.endpoint().to_string()));
    servers.sort();
    expected.sort();
    assert_eq!(servers, expected);
    assert!(remote.server_usage().iter().all(|usage| !usage.quarantined));
    let found = found.lock().expect("evidence");
    let [evidence] = found.as_slice() else { panic!("{found:?}") };
    let [checker] = evidence.checkers.as_slice() else { panic!("{evidence:?}") };
    let mut named = vec![evidence.accused.server.clone(), checker.server.clone()];
    named.sort();
    assert!(evidence.disputed && named == expected && evidence.accused.is_signed() && checker.is_signed());
}

#[test]
fn two_liars_that_differ_from_each_other_end_no_run_of_two_honest_servers() {
    let (first, second) = (liar("0:3"), liar_by("0:3", 20.0));
    let [a, b] = [1, 2].map(|threads| honest("0:3", threads));
    let remote = connect(&[&first, &second, &a, &b], check_all());
    let reference = connect(&[&a, &b], RemoteOptions { verify: 0.0, ..check_all() });
    let mut named = Vec::new();
    for seed in 0..4 {
        let (numbers, liars) = repeated_step(&remote, seed);
        assert_close(&numbers, &step(&reference, seed).expect("an honest step"));
        named.extend(liars);
    }
    let wrong = [&first, &second].map(|server| server.endpoint().to_string());
    assert!(named.iter().all(|server| wrong.contains(server)), "{named:?} instead of {wrong:?}");
}

#[test]
fn liar_in_the_middle_of_a_relay_is_found() {
    let honest_servers = [honest("0:1", 1), honest("1:2", 1), honest("1:2", 2), honest("2:3", 1), honest("0:1", 2)];
    let (wrong, last) = (liar("1:2"), honest("2:3", 2));
    let mut servers: Vec<&BlockServer> = honest_servers.iter().collect();
    servers.extend([&wrong, &last]);
    let remote = connect(&servers, RemoteOptions { path: SwarmPath::Relay, ..check_all() });
    let reference = connect(&honest_servers.each_ref(), RemoteOptions { verify: 0.0, ..check_all() });
    let mut named = Vec::new();
    for seed in 0..8 {
        let (numbers, liars) = repeated_step(&remote, seed);
        assert_close(&numbers, &step(&reference, seed).expect("an honest step"));
        named.extend(liars);
    }
    // It is found once a route passes through it, as a hop or as a checker.
    let name = wrong.endpoint().to_string();
    assert!(named.iter().all(|server| *server == name), "{named:?} instead of {name}");
}

#[test]
fn single_server_is_not_checked() {
    let server = honest("0:3", 1);
    let remote = connect(&[&server], check_all());
    step(&remote, 0).expect("a step");
    assert_eq!(remote.server_usage()[0].checks, 0);
    assert_eq!(server.stats().info().receipts, 0, "nothing is signed where nothing can be checked");
}
