//! Bad links and restarted servers at random moments: losses stay bit-exact.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sepal_core::{Ragged, Want};
use sepal_integration_tests::fixture::{Fixture, Server, signal, static_swarm, stdout};
use sepal_integration_tests::golden::Golden;
use sepal_integration_tests::proxy::{Fault, Link, Proxy};
use sepal_remote::{RemoteError, RemoteOptions, RemoteSequential, SwarmPath};
use sepal_server::BlockServer;
use sepal_swarm::Endpoint;
use tch::{Device, Kind, Tensor};

#[test]
fn straggler_with_hedging_is_overtaken_by_a_replica() {
    let swarm = Swarm::new(Golden::open("llama-gqa"), &["0:3", "0:3"]);
    // Without a retry, so that a detected failure ends the forward pass.
    let remote = swarm.connect_with(RemoteOptions { hedge: true, wait_ms: 0, ..options() });
    let trained = swarm.golden.trained();
    let forward = || trained.golden_logits(&swarm.golden, &remote);
    let expected = forward();
    // The expected duration is measured over several forward passes.
    (0..3).for_each(|_| assert_eq!(forward(), expected));
    for _ in 0..100 {
        swarm.proxies[0].fail_after(100, Fault::Drop);
        assert_eq!(forward(), expected, "the replica's answers are taken");
        if swarm.proxies[0].faults() > 0 {
            return;
        }
    }
    panic!("the link was never in use");
}

#[test]
fn narrow_link_sends_each_batch_once() {
    let golden = Golden::open("llama-gqa");
    let server = Swarm::serve(&golden, "0:3");
    // The upload of the batch takes about two seconds.
    let link = Link { bytes_per_second: 200_000, ..Link::default() };
    let proxy = Proxy::new(&server.endpoint().to_string(), link);
    let endpoint = Endpoint::Addr(proxy.addr.parse().expect("an address"));
    let remote = RemoteSequential::connect(vec![endpoint], golden.expectation(), RemoteOptions::default());
    let remote = remote.expect("connected");
    let up = remote.traffic().up();
    large_forward(&golden, &remote).expect("a forward").sum(Kind::Float).backward();
    let (up, batch) = (remote.traffic().up() - up, 3200 * 32 * 4);
    assert!(up < batch * 3 / 2, "{up} bytes went up: the batch of {batch} was sent more than once");
}

fn large_forward(golden: &Golden, remote: &RemoteSequential) -> Result<Tensor, RemoteError> {
    let trained = golden.trained();
    let rows = Ragged::from_lengths([100; 32]).expect("rows");
    let tokens = golden.ends.embed(&Tensor::ones([3200], (Kind::Int64, Device::Cpu))).expect("tokens");
    remote.tune(trained.tunables()).expect("tuned").forward(Some(trained.prompts()), &tokens, &rows, Want::LastOfRows)
}

#[test]
fn servers_without_progress_exhaust_the_deadline() {
    let swarm = Swarm::new(Golden::open("llama-gqa"), &["0:3", "0:3"]);
    let remote = swarm.connect_with(RemoteOptions { wait_ms: 1500, ..RemoteOptions::default() });
    let is_over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let proxies = &swarm.proxies;
        let is_over = &is_over;
        scope.spawn(move || {
            // The servers answer requests for their state, but no batch passes.
            while !is_over.load(Ordering::SeqCst) {
                for proxy in proxies.iter().filter(|proxy| !proxy.is_armed()) {
                    proxy.fail_after(50_000, Fault::Close);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let started = Instant::now();
        let outcome = large_forward(&swarm.golden, &remote);
        is_over.store(true, Ordering::SeqCst);
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        outcome
    });
    let error = outcome.expect_err("no batch gets through");
    assert!(matches!(&error, RemoteError::NoServer { .. }), "{error}");
    assert!(swarm.proxies.iter().all(|proxy| proxy.faults() > 1), "they were tried again");
}

/// Returns options with small micro-batches, for many calls per step, in deterministic mode.
pub(crate) fn options() -> RemoteOptions {
    RemoteOptions { micro_batch_tokens: 14, deterministic: true, ..RemoteOptions::default() }
}

pub(crate) struct Swarm {
    golden: Golden,
    proxies: Vec<Proxy>,
    _servers: Vec<BlockServer>,
}

impl Swarm {
    fn new(golden: Golden, spans: &[&str]) -> Self {
        let servers: Vec<BlockServer> = spans.iter().map(|blocks| Self::serve(&golden, blocks)).collect();
        let proxy = |server: &BlockServer| Proxy::new(&server.endpoint().to_string(), Link::default());
        let proxies = servers.iter().map(proxy).collect();
        Self { golden, proxies, _servers: servers }
    }

    pub(crate) fn serve(golden: &Golden, blocks: &str) -> BlockServer {
        golden.serve_listening(blocks, 4 << 30)
    }

    fn connect_with(&self, options: RemoteOptions) -> RemoteSequential {
        let endpoint = |proxy: &Proxy| Endpoint::Addr(proxy.addr.parse().expect("an address"));
        let endpoints = self.proxies.iter().map(endpoint).collect();
        RemoteSequential::connect(endpoints, self.golden.expectation(), options).expect("connected")
    }

    fn step(&self, remote: &RemoteSequential) -> Vec<f32> {
        let trained = self.golden.trained();
        let logits = trained.golden_logits(&self.golden, remote);
        let loss = self.golden.loss(&logits);
        loss.backward();
        let flat = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).expect("numbers");
        let grads = trained.grads();
        flat(&loss.unsqueeze(0)).into_iter().chain(grads.iter().flat_map(|(_, grad)| flat(grad))).collect()
    }
}

/// Runs steps with a fault on one link after a random number of bytes, until `times` faults have happened.
pub(crate) fn check(
    golden: Golden,
    spans: &[&str],
    options: RemoteOptions,
    fault: Fault,
    times: usize,
    at_most_s: u64,
) {
    let swarm = Swarm::new(golden, spans);
    let is_relay = options.path == SwarmPath::Relay;
    let remote = swarm.connect_with(options);
    let expected = swarm.step(&remote);
    let mut rng = ChaCha8Rng::seed_from_u64(fault as u64);
    let happened = || swarm.proxies.iter().map(Proxy::faults).sum::<usize>();
    let mut slowest = Duration::ZERO;
    for round in 0..times * 20 {
        if happened() >= times {
            break;
        }
        // A fault affects one link at a time, so that another route exists.
        swarm.proxies.iter().for_each(Proxy::disarm);
        // The client stops relaying for some time after a fault; the next fault must hit a relay again.
        let relays = remote.relay_count();
        while is_relay && remote.relay_count() == relays {
            assert_eq!(swarm.step(&remote), expected, "round {round}: a step without a fault");
        }
        let proxy = &swarm.proxies[round % swarm.proxies.len()];
        let before = proxy.faults();
        proxy.fail_after(rng.random_range(100..20_000), fault);
        let started = Instant::now();
        assert_eq!(swarm.step(&remote), expected, "round {round}: {fault:?} changes nothing");
        if proxy.faults() > before {
            slowest = slowest.max(started.elapsed());
        }
    }
    let happened = happened();
    assert!(happened >= times, "only {happened} faults of {fault:?} happened");
    assert!(slowest < Duration::from_secs(at_most_s), "a step with {fault:?} took {slowest:?}");
}

#[test]
fn faults_of_links_keep_the_losses_bit_exact() {
    for (fault, times) in [(Fault::Close, 12), (Fault::Stall, 4), (Fault::Drop, 4), (Fault::Corrupt, 12)] {
        check(Golden::open("llama-gqa"), &SPANS, options(), fault, times, 20);
    }
}

pub(crate) const SPANS: [&str; 3] = ["0:2", "1:3", "0:3"];
/// Each block is on two servers, and no server holds all.
pub(crate) const REPLICATED_SPANS: [&str; 4] = ["0:2", "2:3", "0:1", "1:3"];
/// Slow servers, so that a step is long enough to be disturbed.
const PACE: [&str; 2] = ["--pace-us", "200"];

/// Returns the losses of a run on three servers, with each block on two of them, that `disturb` interferes with.
pub(crate) fn disturbed_losses(fixture: &Fixture, steps: usize, mut disturb: impl FnMut(&mut [Server])) -> Vec<f64> {
    let ports = free_ports(SPANS.len());
    let serve = |(blocks, port): (&&str, &u16)| fixture.serve_with(blocks, &format!("127.0.0.1:{port}"), &PACE);
    let mut servers: Vec<Server> = SPANS.iter().zip(&ports).map(serve).collect();
    let [kind, addresses] = static_swarm(&servers.iter().collect::<Vec<_>>());
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", &kind, &addresses, "output.folder=disturbed"]);
    let mut child = run.args(sets(steps)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    while child.try_wait().expect("a state").is_none() {
        disturb(&mut servers);
    }
    assert!(child.wait().expect("it ends").success(), "training goes on");
    fixture.run_in("disturbed").losses()
}

fn sets(steps: usize) -> Vec<String> {
    let fixed = ["train.deterministic=true", "evaluate.every=never", "swarm.with.micro_batch_tokens=60"];
    fixed.iter().map(|set| format!("--set={set}")).chain([format!("--set=train.max_steps={steps}")]).collect()
}

/// Returns the losses of the same run on one undisturbed server process.
pub(crate) fn undisturbed_losses(fixture: &Fixture, steps: usize) -> Vec<f64> {
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", "output.folder=undisturbed"]);
    stdout(run.args(sets(steps)));
    fixture.run_in("undisturbed").losses()
}

fn free_ports(n: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect()
}

/// Returns the losses of steps of plain gradient descent on these servers. `pace` is called before each step.
fn train(
    golden: &Golden,
    servers: &[String],
    options: RemoteOptions,
    steps: usize,
    mut pace: impl FnMut(usize),
) -> Vec<f32> {
    let endpoint = |addr: &String| Endpoint::Addr(addr.parse().expect("an address"));
    let endpoints = servers.iter().map(endpoint).collect();
    let options = RemoteOptions { wait_ms: 60_000, ..options };
    let is_relay = options.path == SwarmPath::Relay && servers.len() > 1;
    let remote = RemoteSequential::connect(endpoints, golden.expectation(), options).expect("connected");
    let mut trained = golden.trained();
    let mut losses = Vec::new();
    for step in 0..steps {
        pace(step);
        let logits = trained.golden_logits(golden, &remote);
        let loss = golden.loss(&logits);
        loss.backward();
        losses.push(f32::try_from(&loss).expect("a number"));
        trained = trained.step(golden.lr);
    }
    let relays = remote.relay_count();
    assert!(!is_relay || relays > steps as u64 / 4, "only {relays} relays in {steps} steps");
    losses
}

#[test]
fn hundred_server_restarts_keep_the_losses_bit_exact() {
    check_restarts(&Golden::open("llama-gqa"), &SPANS, options(), 100);
}

#[test]
fn server_restarts_during_relays_keep_the_losses_bit_exact() {
    let options = RemoteOptions { path: SwarmPath::Relay, ..options() };
    check_restarts(&Golden::open("llama-gqa"), &REPLICATED_SPANS, options, 40);
}

/// Kills and restarts servers at random, `times` times in twice as many steps.
pub(crate) fn check_restarts(golden: &Golden, spans: &[&str], options: RemoteOptions, times: usize) {
    let fixture = Fixture::new("llama-gqa");
    let one = fixture.serve("0:3", "127.0.0.1:0");
    let expected = train(golden, std::slice::from_ref(&one.addr), options.clone(), 2 * times, |_| {});
    let serve = |(blocks, addr): (&str, &str)| fixture.serve_with(blocks, addr, &PACE);
    let mut servers: Vec<Server> = spans.iter().map(|blocks| serve((blocks, "127.0.0.1:0"))).collect();
    let addresses: Vec<String> = servers.iter().map(|server| server.addr.clone()).collect();
    let kills = AtomicUsize::new(0);
    let losses = std::thread::scope(|scope| {
        let (kills, addresses, serve) = (&kills, &addresses, &serve);
        let killer = scope.spawn(move || {
            let mut rng = ChaCha8Rng::seed_from_u64(9);
            while kills.load(Ordering::SeqCst) < times {
                std::thread::sleep(Duration::from_millis(rng.random_range(0..60)));
                let victim = rng.random_range(0..servers.len());
                servers[victim].child.kill().expect("killed");
                servers[victim].child.wait().expect("it ends");
                kills.fetch_add(1, Ordering::SeqCst);
                servers[victim] = serve((spans[victim], &addresses[victim]));
            }
            servers
        });
        // The training waits for the kills: two steps per kill.
        let pace = |step: usize| {
            while step / 2 > kills.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let losses = train(golden, addresses, options, 2 * times, pace);
        drop(killer.join().expect("it ends"));
        losses
    });
    assert_eq!(losses, expected, "to the last bit");
    assert_eq!(kills.into_inner(), times);
}

#[test]
fn stopped_server_is_abandoned_and_used_again_after_it_continues() {
    let fixture = Fixture::new("llama-gqa");
    let expected = undisturbed_losses(&fixture, 150);
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let mut stops = 0;
    let losses = disturbed_losses(&fixture, 150, |servers| {
        std::thread::sleep(Duration::from_millis(rng.random_range(0..300)));
        let victim = rng.random_range(0..servers.len());
        signal(&servers[victim].child, "STOP");
        std::thread::sleep(Duration::from_millis(rng.random_range(100..1500)));
        signal(&servers[victim].child, "CONT");
        stops += 1;
    });
    assert_eq!(losses, expected, "to the last bit");
    assert!(stops > 3, "only {stops} stops");
}
