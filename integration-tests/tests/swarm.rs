//! Swarms found by ticket or on the local network: servers that choose their blocks, move, and show their state over
//! HTTP.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::server_processes::wait_for_metrics;
use sepal_integration_tests::fixture::{Fixture, Run, Server, http_get, json, signal, stdout};
use serde_json::{Value, json};

const LOOPBACK: [&str; 4] = ["--listen", "127.0.0.1:0", "--threads", "1"];

/// Starts a member of the swarm; the first one founds it. By default it chooses two blocks.
fn peer(fixture: &Fixture, name: &str, more: &[&str]) -> Server {
    let ticket = fixture.path("ticket");
    let ticket = ticket.to_str().expect("a path");
    let joins = fixture.path("ticket").exists();
    let swarm = if joins { ["--join", ticket] } else { ["--ticket-file", ticket] };
    let choice: &[&str] = if more.contains(&"--blocks") { &[] } else { &["--max-blocks", "2"] };
    let args = [&["--p2p", "--identity", name][..], &swarm, choice, &LOOPBACK, more].concat();
    let server = fixture.serve_args(&args);
    wait_for("the ticket", || fixture.path("ticket").exists().then_some(()));
    server
}

/// Waits at most half a minute for `look` to return a value.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} did not come");
}

fn p2p(fixture: &Fixture) -> [String; 3] {
    let ticket = format!("swarm.with.ticket={}", fixture.path("ticket").display());
    ["swarm.use=p2p".to_owned(), ticket, "swarm.with.bind=127.0.0.1:0".to_owned()]
}

/// Runs the pipeline on the swarm.
fn run(fixture: &Fixture, more: &[&str]) -> Run {
    let p2p = p2p(fixture);
    fixture.run(&p2p.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
}

fn status(fixture: &Fixture) -> Value {
    let mut command = fixture.sepal(&["swarm", "status", "--json", "--bind", "127.0.0.1:0", "--ticket"]);
    json(&stdout(command.arg(fixture.path("ticket"))))
}

#[test]
fn peer_churn_keeps_training_bit_exact() {
    let fixture = Fixture::new("llama-gqa");
    let sets = ["train.max_steps=150", "evaluate.every=end", "train.deterministic=true"];
    let embedded = fixture.run(&sets);
    // Slow enough that all events happen during the run.
    let pace = ["--pace-us", "40"];
    let mut peers: Vec<Server> = ["a", "b", "c", "d"].iter().map(|name| peer(&fixture, name, &pace)).collect();
    let spans: Vec<&str> = peers.iter().map(|peer| peer.blocks.as_str()).collect();
    assert_eq!(spans, ["0:2", "1:3", "0:2", "1:3"], "each goes where the swarm is weakest");
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", "output.folder=swarm"]);
    run.args(sets.iter().map(|set| format!("--set={set}")));
    run.args(p2p(&fixture).iter().map(|set| format!("--set={set}")));
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    wait_for_metrics(&fixture.path("swarm"), 10);
    peers[0].child.kill().expect("killed");
    peers.push(peer(&fixture, "e", &pace));
    assert!(child.wait().expect("it ends").success(), "training goes on");
    assert_eq!(fixture.run_in("swarm").losses(), embedded.losses(), "to the last bit");
}

#[test]
fn relay_between_peers_is_bit_exact() {
    let fixture = Fixture::new("llama-gqa");
    let embedded = fixture.run(&["train.max_steps=20", "train.deterministic=true"]);
    let _peers =
        [("a", "0:1"), ("b", "1:2"), ("c", "2:3")].map(|(name, span)| peer(&fixture, name, &["--blocks", span]));
    let relayed = run(&fixture, &["train.max_steps=20", "train.deterministic=true", "swarm.with.path=relay"]);
    assert_eq!(relayed.losses(), embedded.losses(), "to the last bit");
    // Less than the hidden states of one hop come back.
    let bytes =
        |run: &Run| run.records("step").iter().map(|step| step["bytes_down"].as_f64().expect("bytes")).sum::<f64>();
    let (relayed, embedded) = (bytes(&relayed), bytes(&embedded));
    assert!(relayed < 3.0 * embedded, "{relayed} bytes came from three peers, {embedded} from one server");
}

#[test]
fn returning_peer_is_used_again() {
    let fixture = Fixture::new("llama-gqa");
    // The returning peer keeps its address.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let listen = socket.local_addr().expect("an address").to_string();
    drop(socket);
    let ticket = fixture.path("ticket").display().to_string();
    let swarm = ["--p2p", "--identity", "a", "--ticket-file", &ticket, "--listen", &listen];
    let serve =
        || fixture.serve_args(&[&["--blocks", "0:3", "--pace-us", "40", "--threads", "1"], &swarm[..]].concat());
    let mut server = serve();
    wait_for("the ticket", || fixture.path("ticket").exists().then_some(()));
    let _other = peer(&fixture, "b", &["--blocks", "0:1"]);
    let mut run = fixture.sepal(&["run", "pipeline.yaml", "--set", "train.max_steps=60", "evaluate.every=never"]);
    run.args(p2p(&fixture).iter().map(|set| format!("--set={set}")));
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sepal runs");
    wait_for_metrics(&fixture.path("runs"), 10);
    signal(&server.child, "TERM");
    assert!(server.child.wait().expect("it ends").success());
    let _again = serve();
    assert!(child.wait().expect("it ends").success(), "it goes on where it stood");
    assert_eq!(fixture.only_run().losses().len(), 60);
}

#[test]
fn server_moves_to_abandoned_blocks() {
    let fixture = Fixture::new("llama-gqa");
    let balance = ["--balance-s", "1"];
    let mut peers = ["a", "b", "c"].map(|name| peer(&fixture, name, &balance));
    assert_eq!(peers.each_ref().map(|peer| peer.blocks.as_str()), ["0:2", "1:3", "0:2"]);
    signal(&peers[1].child, "TERM");
    assert!(peers[1].child.wait().expect("it ends").success());
    wait_for("a balance", || {
        let status = status(&fixture);
        (status["models"][0]["holes"] == json!([]) && status["servers"].as_array()?.len() == 2).then_some(())
    });
    run(&fixture, &["train.max_steps=5"]);
}

#[test]
fn lan_discovery_is_sufficient_for_training() {
    let fixture = Fixture::new("llama-gqa");
    let lan = ["--lan", "--interface", "127.0.0.1"];
    let serve = |blocks| fixture.serve_args(&[&["--blocks", blocks], &lan[..], &LOOPBACK].concat());
    let _servers = [serve("0:2"), serve("2:3")];
    let embedded = fixture.run(&["train.max_steps=5", "train.deterministic=true"]);
    let sets = ["train.max_steps=5", "train.deterministic=true", "swarm.use=lan", "swarm.with.interface=127.0.0.1"];
    assert_eq!(fixture.run(&sets).losses(), embedded.losses());
    let table = stdout(fixture.sepal(&["swarm", "status", "--lan", "--interface", "127.0.0.1"]));
    assert!(table.contains("0:2") && table.contains("every block on 1 server"), "{table}");
}

#[test]
fn swarm_with_missing_blocks_fails_after_the_wait() {
    let fixture = Fixture::new("llama-gqa");
    let _peer = peer(&fixture, "a", &["--blocks", "0:2"]);
    let p2p = p2p(&fixture);
    let sets: Vec<&str> = p2p.iter().map(String::as_str).chain(["swarm.with.wait_ms=3000"]).collect();
    let text = fixture.failure(&sets);
    assert!(text.contains("no server holds blocks 2:3; 1 server of this model was found"), "{text}");
    let text = fixture.failure(&["swarm.use=p2p", "swarm.with.ticket=nowhere"]);
    assert!(text.contains("swarm.with.ticket") && text.contains("neither a ticket"), "{text}");
}

#[test]
fn server_http_port_shows_health_metrics_and_status_page() {
    let fixture = Fixture::new("llama-gqa");
    let mut first = peer(&fixture, "a", &["--http", "127.0.0.1:0"]);
    let second = peer(&fixture, "b", &[]);
    let http = first.line("status on http://").trim_end_matches('/').to_owned();
    assert_eq!(http_get(&http, "/healthz"), (200, "ok\n".to_owned()));
    run(&fixture, &["train.max_steps=5"]);
    let (status, metrics) = http_get(&http, "/metrics");
    assert_eq!(status, 200);
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse::<f64>().expect("a number")
    };
    assert!(value("sepal_calls_total{method=\"forward\"}") >= 5.0);
    assert!(value("sepal_calls_total{method=\"backward\"}") >= 5.0);
    assert!(value("sepal_tokens_total{method=\"forward\"}") > 100.0);
    assert!(value("sepal_compute_seconds_sum{method=\"forward\"}") > 0.0);
    assert!(value("sepal_received_bytes_total") > 10_000.0 && value("sepal_blocks") == 2.0);
    assert!(metrics.ends_with("# EOF\n"));
    let status = json(&http_get(&http, "/status.json").1);
    assert_eq!((&status["servers_per_block"], &status["holes"]), (&json!([1, 2, 1]), &json!([])));
    assert_eq!(http_get(&http, "/elsewhere").0, 404);
    let Some(page) = in_browser(&fixture, &format!("http://{http}/"), 390) else {
        eprintln!("skipped: no Chromium was found, so that the page is not looked at");
        return;
    };
    for expected in ["serving", "2 servers", "(this one)", "block 0: 1 server", "block 1: 2 servers", &second.addr] {
        assert!(page.contains(expected), "`{expected}` is not on the page:\n{page}");
    }
}

/// Returns the document of a page in a browser window of this width.
fn in_browser(fixture: &Fixture, url: &str, width: u32) -> Option<String> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let browser = names.iter().find(|name| Command::new(name).arg("--version").output().is_ok())?;
    let profile = fixture.path("browser");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},844"))
        .args(["--virtual-time-budget=5000", "--dump-dom", url])
        .output()
        .expect("the browser runs");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
