//! Performance of swarms: replicas behind slow links, a slower replica, servers that die or stop in the middle of a
//! step, and the time of a plan.
//!
//! The servers are processes with an artificial computing time (`--pace-us`) on a tiny model, so that the figures show
//! losses in transport and waiting, not the speed of the machine. Prints a table and writes `docs/bench-swarm.json`.

use std::path::Path;
use std::time::{Duration, Instant};

use sepal_core::{Ragged, Span};
use sepal_integration_tests::fixture::{Fixture, Server, signal};
use sepal_integration_tests::golden::Golden;
use sepal_integration_tests::proxy::{Link, Proxy};
use sepal_remote::{RemoteOptions, RemoteSequential};
use sepal_route::{Router, Server as RouteServer};
use sepal_swarm::Endpoint;
use tch::{Device, Kind, Tensor};

mod relay;

const ROWS: usize = 64;
const ROW: usize = 16;
/// Microseconds per token and block: a forward or backward pass through one server takes about 0.3 s.
const PACE_US: u64 = 100;
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Paced servers of all blocks, each behind a link.
struct Swarm {
    golden: Golden,
    servers: Vec<Server>,
    _fixture: Fixture,
    _links: Vec<Proxy>,
    remote: RemoteSequential,
}

impl Swarm {
    /// Starts servers with these multiples of the usual pace.
    fn new(slower: &[u64], round_trip: Duration) -> Self {
        let (golden, fixture) = (Golden::open("llama-gqa"), Fixture::new("llama-gqa"));
        let serve =
            |times: &u64| fixture.serve_with("0:3", "127.0.0.1:0", &["--pace-us", &(PACE_US * times).to_string()]);
        let servers: Vec<Server> = slower.iter().map(serve).collect();
        let link = Link { delay: round_trip / 2, bytes_per_second: 0 };
        let links: Vec<Proxy> = servers.iter().map(|server| Proxy::new(&server.addr, link)).collect();
        let endpoint = |link: &Proxy| Endpoint::Addr(link.addr.parse().expect("an address"));
        let endpoints = links.iter().map(endpoint).collect();
        let remote =
            RemoteSequential::connect(endpoints, golden.expectation(), RemoteOptions::default()).expect("connected");
        Self { golden, servers, _fixture: fixture, _links: links, remote }
    }

    fn step(&self) -> Duration {
        let trained = self.golden.trained();
        let ids = Tensor::randint_low(1, 60, [(ROWS * ROW) as i64], (Kind::Int64, Device::Cpu));
        let rows = Ragged::from_lengths([ROW; ROWS]).expect("rows");
        let started = Instant::now();
        trained.logits(&self.golden, &self.remote, &ids, &rows).sum(Kind::Float).backward();
        started.elapsed()
    }

    /// Returns the median step, after several steps in which the client learns speeds and micro-batching.
    fn usual(&self) -> f64 {
        median(12, || self.step());
        median(7, || self.step()).as_secs_f64()
    }

    /// Returns the time of a step in which the first server gets a signal after a third of the usual time.
    fn hit(&self, name: &str, usual: f64) -> f64 {
        let victim = &self.servers[0].child;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs_f64(usual / 3.0));
                signal(victim, name);
            });
            self.step().as_secs_f64()
        })
    }
}

struct Row {
    what: &'static str,
    seconds: f64,
    /// Reference in words and seconds, and the limit relative to it.
    against: (&'static str, f64, f64),
}

fn main() {
    let trips = 2.0 * ROUND_TRIP.as_secs_f64();
    let compute = (ROWS * ROW + 5) as f64 * 3.0 * PACE_US as f64 * 2e-6;
    let mut rows = Vec::new();

    let equal = Swarm::new(&[1, 1], ROUND_TRIP).usual();
    let ideal = compute / 2.0 + trips;
    rows.push(Row { what: "two equal replicas, 20 ms links", seconds: equal, against: ("half + trips", ideal, 1.15) });

    let unequal = Swarm::new(&[4, 1], ROUND_TRIP).usual();
    let ideal = compute * 0.8 + trips;
    rows.push(Row { what: "one of them four times slower", seconds: unequal, against: ("4/5 + trips", ideal, 1.2) });

    let single = Swarm::new(&[1], Duration::ZERO).usual();
    for (name, what) in [("KILL", "a server is killed in mid-step"), ("STOP", "a server is stopped in mid-step")] {
        let swarm = Swarm::new(&[1, 1], Duration::ZERO);
        let usual = swarm.usual();
        // Two servers do a third of the work, and one server does the remainder.
        let cost = swarm.hit(name, usual) - (usual / 3.0 + single * 2.0 / 3.0);
        // A call is the forward or backward pass of one replica's part.
        let limit = if name == "KILL" { 1.0 } else { 3.0 * usual / 2.0 + 1.0 };
        rows.push(Row { what, seconds: cost, against: ("beyond 1/3 by two, 2/3 by one", limit, 1.0) });
    }

    let [star, relay, single] = relay::chain();
    let what = "chain of 4, 100 ms, 100 Mbit/s: relay";
    rows.push(Row { what, seconds: relay.seconds, against: ("through the client", star.seconds, 1.0 / 1.5) });
    println!(
        "chain of 4: {} bytes pass the client in a step, {} with relay; one server of all: {}\n",
        star.bytes, relay.bytes, single.bytes
    );

    let (one, eight) = (plan(1), plan(8));
    rows.push(Row { what: "plan: 10,000 servers, 100 blocks", seconds: one, against: ("one micro-batch", 0.02, 1.0) });
    rows.push(Row { what: "plan: the same, 8 micro-batches", seconds: eight, against: ("each", 0.02 * 8.0, 1.0) });
    report(&rows);
}

fn plan(micro_batches: usize) -> f64 {
    let mut router = Router::new();
    for i in 0..10_000_usize {
        let start = (i * 37) % 96;
        let span = Span::new(start, (start + 4 + i % 20).min(100)).expect("a span");
        let (round_trip, rate) = (Duration::from_micros(500 + (i * 13 % 90_000) as u64), 1e-5 * (1 + i % 17) as f64);
        router.add(RouteServer { round_trip, stated_rate: Some(rate), ..RouteServer::new(span) });
    }
    let all_blocks = Span::new(0, 100).expect("a span");
    let plan = || {
        let started = Instant::now();
        router.plan(all_blocks, &vec![512; micro_batches]).expect("a plan");
        started.elapsed()
    };
    median(21, plan).as_secs_f64()
}

fn median<T: Ord + Copy>(n: usize, measure: impl FnMut() -> T) -> T {
    let mut measured: Vec<T> = std::iter::repeat_with(measure).take(n).collect();
    measured.sort_unstable();
    measured[n / 2]
}

fn report(rows: &[Row]) {
    println!("{:<38}{:>10}{:>12}  {:<30}{:>8}", "", "measured", "against", "", "ratio");
    let mut json = serde_json::Map::new();
    for Row { what, seconds, against: (name, expected, at_most) } in rows {
        let ratio = seconds / expected;
        println!("{what:<38}{seconds:>8.4} s{expected:>10.4} s  {name:<30}{ratio:>8.3} (at most {at_most})");
        let row = serde_json::json!({ "seconds": seconds, "against": expected, "ratio": ratio, "at_most": at_most });
        json.insert((*what).to_owned(), row);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench-swarm.json");
    let text = serde_json::to_string_pretty(&json).expect("numbers") + "\n";
    std::fs::write(path, text).expect("docs/ can be written");
}
