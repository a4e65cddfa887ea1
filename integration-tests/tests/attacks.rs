//! Hostile clients beside honest runs: no client makes a server exceed its memory or its sockets.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use sepal_integration_tests::fixture::{Fixture, Server, http_get, static_swarm};
use sepal_integration_tests::hostile::{self, Answers, Attack, Drip, OK};
use serde_json::json;

use crate::serve_task::Task;

/// Memory that the server may use beyond that of honest work, in MB.
const MAX_MEMORY_MB: u64 = 128;
/// Memory that no quota counts, in MB: allocator, stacks, buffers of streams.
const MARGIN_MB: u64 = 48;
/// Maximum connections of a server: more than those of one address.
const MAX_CONNECTIONS: usize = 80;
/// Option of `sepal serve` for the memory.
const MEMORY_OPTION: &str = "--max-memory";
/// Option of `sepal serve` for the connections.
const CONNECTIONS_OPTION: &str = "--max-connections";
/// Metric of refusals.
const REFUSALS: &str = "sepal_refusals_total";

/// Losses and trained parameters of a run.
type Trained = (Vec<f64>, Vec<u8>);

/// Name and start of an attack.
type Start<'a> = (&'static str, &'a dyn Fn() -> Attack);

/// Server under attack, and the results of an honest run on it before any attack.
struct Defence {
    fixture: Fixture,
    server: Server,
    /// Address of the status page.
    status: String,
    expected: Trained,
    /// Peak memory of the server without an attack, in MB.
    base_mb: u64,
}

impl Defence {
    fn new() -> Self {
        let fixture = Fixture::new("llama-gqa");
        let (memory, connections) = (MAX_MEMORY_MB.to_string(), MAX_CONNECTIONS.to_string());
        let options = [MEMORY_OPTION, &memory, CONNECTIONS_OPTION, &connections, "--http", "127.0.0.1:0"];
        let mut server = fixture.serve_with("0:3", "127.0.0.1:0", &options);
        let status = server.line("status on http://").trim_end_matches('/').to_owned();
        let expected = train(&fixture, &server);
        let base_mb = peak_mb(&server);
        Self { fixture, server, status, expected, base_mb }
    }

    /// Trains while the attack goes on. Returns the answers of the attack.
    fn check(&self, name: &str, attack: &Attack) -> Answers {
        assert!(train(&self.fixture, &self.server) == self.expected, "{name}: an honest run has other results");
        let answers = attack.answers();
        let (peak_mb, limit_mb) = (peak_mb(&self.server), self.base_mb + MAX_MEMORY_MB + MARGIN_MB);
        assert!(peak_mb <= limit_mb, "{name}: {peak_mb} MB, at most {limit_mb}; answers: {answers}");
        answers
    }

    /// Returns the number of refusals that the server has counted.
    fn refusals(&self) -> f64 {
        let (status, metrics) = http_get(&self.status, "/metrics");
        assert_eq!(status, 200);
        let lines = metrics.lines().filter(|line| line.starts_with(REFUSALS));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

/// Trains a few steps on the server.
fn train(fixture: &Fixture, server: &Server) -> Trained {
    let [kind, addresses] = static_swarm(&[server]);
    let run = fixture.run(&[
        "train.max_steps=4",
        "evaluate.every=never",
        "train.deterministic=true",
        "swarm.with.micro_batch_tokens=60",
        &kind,
        &addresses,
    ]);
    (run.losses(), run.adapter())
}

/// Returns the peak memory of the process in MB.
fn peak_mb(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("the server runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a running process has a peak");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") / 1024
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.child.id())).expect("the server runs").count()
}

/// Asserts that the attack got no result, and at least one refusal or the end of its connection.
fn assert_no_result(name: &str, answers: &Answers) {
    assert!(answers.turned_away() > 0, "{name} was not limited: {answers}");
    assert_eq!(answers.count(OK), 0, "{name}: {answers}");
}

#[test]
fn tensors_of_hostile_clients_stay_within_the_memory_of_the_server() {
    let defence = Defence::new();
    let addr = &defence.server.addr;
    let answers = defence.check("uploads", &hostile::uploads(addr, 100, 4));
    assert!(answers.refused() > 0, "100 times 4 MB fit into {MAX_MEMORY_MB} MB: {answers}");
    let answers = defence.check("deliveries", &hostile::deliveries(addr, 100, 500_000));
    assert_no_result("deliveries", &answers);
    defence.check("small deliveries", &hostile::deliveries(addr, 20_000, 1));
    defence.check("sessions", &hostile::tuned_sessions(addr, 5000));
    // Older tapes expire, so that later ones are answered.
    defence.check("tapes", &hostile::stored_tapes(addr, 30, 4096));
    defence.check("tapes of dead connections", &hostile::tapes_of_dead_connections(addr, 10, 4096));
    let answers = defence.check("prefixes", &hostile::cached_prefixes(addr, 10, 8000));
    assert_no_result("prefixes beyond the positions of the model", &answers);
    defence.check("short prefixes", &hostile::cached_prefixes(addr, 1000, 100));
    assert!(defence.refusals() > 0.0, "refusals are counted");
}

#[test]
fn calls_of_hostile_clients_stay_within_the_memory_of_the_server() {
    let defence = Defence::new();
    let addr = &defence.server.addr;
    let answers = defence.check("one row", &hostile::one_row(addr, 16_384));
    assert_eq!((answers.count(OK), answers.refused()), (0, 1), "{answers}");
    defence.check("rows of dead callers", &hostile::abandoned_row(addr, 4, 16_384));
    let answers = defence.check("forwards that wait", &hostile::waiting_forwards(addr, 10_000));
    assert_no_result("forwards that wait", &answers);
    let answers = defence.check("calls of many connections", &hostile::crowded_calls(addr, 6, 256));
    assert!(answers.refused() > 0, "1536 calls are more than all connections may have: {answers}");
    let answers = defence.check("long addresses", &hostile::long_addresses(addr, 40, 3_000_000));
    assert_no_result("long addresses", &answers);
    let answers = defence.check("small calls", &hostile::small_calls(addr, 3000));
    assert_eq!(answers.count(OK), 3000, "small calls are slower, not refused: {answers}");
    // Their connection waits until earlier calls have freed its memory.
    defence.check("queued calls", &hostile::queued_calls(addr, 300, 16_000));
    defence.check("cancelled calls", &hostile::cancelled_calls(addr, 50, 4096));
    let answers = defence.check("empty rows", &hostile::empty_rows(addr, 10, 1_000_000));
    assert_no_result("empty rows", &answers);
    let answers = defence.check("broken promises", &hostile::broken_promises(addr, 1000));
    assert_no_result("broken promises", &answers);
    let ports = (1100..1300).map(|port| format!("127.0.0.3:{port}")).chain(["unix:/nowhere".to_owned()]);
    let answers = defence.check("relays to closed ports", &hostile::relays_to(addr, ports.collect()));
    assert_no_result("relays to closed ports", &answers);
    let answers = defence.check("slow relays", &hostile::slow_relays(addr, 200));
    assert_no_result("slow relays", &answers);
    defence.check("descriptions", &hostile::describe_flood(addr, 20_000));
    defence.check("unread answers", &hostile::unread_answers(addr, 150, 16_000));
    defence.check("slow reads", &hostile::slow_reads(addr, 150, 16_000));
    assert!(defence.refusals() > 0.0, "refusals are counted");
}

#[test]
fn connections_of_hostile_clients_leave_room_for_honest_ones() {
    let defence = Defence::new();
    let addr = &defence.server.addr;
    let many = 3 * MAX_CONNECTIONS;
    let base = descriptors(&defence.server);
    let sockets: [Start<'_>; 2] = [
        ("silent connections", &|| hostile::silent_connections(addr, many)),
        ("dripping connections", &|| hostile::dripping_connections(addr, many, Drip::Frame)),
    ];
    for (name, start) in sockets {
        let attack = start();
        let answers = defence.check(name, &attack);
        let found = descriptors(&defence.server);
        assert!(found <= base + MAX_CONNECTIONS, "{name}: {found} descriptors, {base} before; answers: {answers}");
    }
    defence.check("half frames", &hostile::half_frames(addr, 60, 3));
    defence.check("mutated frames", &hostile::mutated_frames(addr, 3000, 7));
    let requests: [Start<'_>; 4] = [
        ("silent HTTP connections", &|| hostile::silent_connections(&defence.status, many)),
        ("dripping HTTP headers", &|| hostile::dripping_connections(&defence.status, many, Drip::HttpHeaders)),
        ("unread HTTP answers", &|| hostile::unread_http(&defence.status, MAX_CONNECTIONS, "/metrics")),
        ("bad HTTP requests", &|| hostile::bad_http(&defence.status, 60, 3)),
    ];
    for (name, start) in requests {
        let attack = start();
        defence.check(name, &attack);
        let (status, _) = http_get(&defence.status, "/healthz");
        assert_eq!(status, 200, "{name}: the status page answers");
    }
}

#[test]
fn hostile_http_clients_leave_room_for_honest_requests() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=2"]);
    // Fewer requests than connections, so that one client can have all of them in progress.
    let connections = MAX_CONNECTIONS.to_string();
    let task = Task::start(&fixture, &run, &["--max-connections", &connections, "--max-requests", "8"]);
    task.until("ready");
    // The last digits depend on the rows that are computed together, here those of valid requests of an attack.
    let ask = || {
        let (status, answer) = task.ask(&json!({ "texts": ["a clever film", "a dull plot"] }), "");
        let probability = |row: &serde_json::Value| row["probabilities"]["good"].as_f64().map(|p| (p * 1e5).round());
        let rows = answer["predictions"].as_array().map(|rows| rows.iter().map(probability).collect::<Vec<_>>());
        (status, rows)
    };
    let expected = ask();
    assert_eq!((expected.0, expected.1.as_ref().map(Vec::len)), (200, Some(2)));
    let many = 3 * MAX_CONNECTIONS;
    let attacks: [Start<'_>; 6] = [
        ("silent connections", &|| hostile::silent_connections(&task.addr, many)),
        ("dripping headers", &|| hostile::dripping_connections(&task.addr, many, Drip::HttpHeaders)),
        ("dripping bodies", &|| hostile::dripping_connections(&task.addr, many, Drip::HttpBody)),
        ("unread answers", &|| hostile::unread_http(&task.addr, MAX_CONNECTIONS, "/openapi.json")),
        ("bad requests", &|| hostile::bad_http(&task.addr, 100, 5)),
        ("many requests", &|| hostile::many_requests(&task.addr, 40, 50)),
    ];
    for (name, start) in attacks {
        let attack = start();
        // Requests before, while and after the attack reaches its full extent.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            assert_eq!(ask(), expected, "{name}");
            thread::sleep(Duration::from_millis(100));
        }
        let answers = attack.answers();
        assert_eq!(ask(), expected, "{name}: {answers}");
        assert!(answers.total() > 0, "{name}: the attack did nothing");
    }
}
