//! New epochs of secrets and tickets while servers and runs use them.

use std::fs;
use std::process::{Child, Output, Stdio};

use sepal_integration_tests::fixture::{Fixture, Run, Server, failure_messages, http_get, static_swarm, stdout};

use crate::server_processes::wait_for_metrics;

const STEPS: [&str; 3] = ["train.max_steps=150", "evaluate.every=end", "train.deterministic=true"];
/// Slow enough that all events happen during a run.
const SERVE: [&str; 6] = ["--listen", "127.0.0.1:0", "--threads", "1", "--pace-us", "40"];
const CLIENT: &str = "client";

fn serve(fixture: &Fixture, blocks: &str, more: &[&str]) -> Server {
    fixture.serve_args(&[&SERVE[..], &["--blocks", blocks], more].concat())
}

/// Starts a run in the folder `runs` with these settings.
fn start(fixture: &Fixture, sets: &[String]) -> Child {
    let mut run = fixture.sepal(&["run", "pipeline.yaml"]);
    run.args(sets.iter().map(|set| format!("--set={set}")));
    run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sepal runs")
}

/// Waits for the end of a run, which succeeds.
fn finish(fixture: &Fixture, child: Child) -> Run {
    let Output { status, stderr, .. } = child.wait_with_output().expect("it ends");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    fixture.only_run()
}

/// Settings of a run with a secret or ticket, beside those of all runs here.
fn sets(swarm: impl IntoIterator<Item = String>, more: &[&str]) -> Vec<String> {
    swarm.into_iter().chain(STEPS.iter().chain(more).map(|set| (*set).to_owned())).collect()
}

/// Moves the servers' secret or ticket in `file` to its next epoch.
fn revoke(fixture: &Fixture, kind: &str, file: &str) {
    stdout(fixture.sepal(&["swarm", "revoke", kind, file]));
}

/// Derives the secret or ticket of clients from that of the servers in `file`.
fn grant(fixture: &Fixture, kind: &str, file: &str) {
    stdout(fixture.sepal(&["swarm", "grant", kind, file, "--rights", "client", "--out", CLIENT]));
}

/// Number of connections that a server has ended for a revocation.
fn revoked_connections(http: &str) -> f64 {
    let (_, metrics) = http_get(http, "/metrics");
    let name = "sepal_connections_ended_total{reason=\"revoked\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |number| number.parse().expect("a number"))
}

fn http(server: &mut Server) -> String {
    server.line("status on http://").trim_end_matches('/').to_owned()
}

#[test]
fn revoked_secret_ends_the_open_connections_of_a_run() {
    let fixture = Fixture::new("llama-gqa");
    let mut server = serve(&fixture, "0:3", &["--secret-file", "secret", "--http", "127.0.0.1:0"]);
    let http = http(&mut server);
    grant(&fixture, "--secret-file", "secret");
    let more = ["train.max_steps=100000", "swarm.with.secret_file=client", "swarm.with.wait_ms=1000"];
    let child = start(&fixture, &sets(static_swarm(&[&server]), &more));
    wait_for_metrics(&fixture.path("runs"), 10);
    assert_eq!(revoked_connections(&http), 0.0);
    revoke(&fixture, "--secret-file", "secret");
    let output = child.wait_with_output().expect("it ends");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("revoked"), "{error}");
    assert!(revoked_connections(&http) >= 1.0);
}

#[test]
fn run_with_a_new_secret_continues_after_a_revocation() {
    let fixture = Fixture::new("llama-gqa");
    let embedded = fixture.run(&[&STEPS[..], &["output.folder=embedded"]].concat());
    let mut server = serve(&fixture, "0:3", &["--secret-file", "secret", "--http", "127.0.0.1:0"]);
    let http = http(&mut server);
    grant(&fixture, "--secret-file", "secret");
    let child = start(&fixture, &sets(static_swarm(&[&server]), &["swarm.with.secret_file=client"]));
    wait_for_metrics(&fixture.path("runs"), 10);
    revoke(&fixture, "--secret-file", "secret");
    grant(&fixture, "--secret-file", "secret");
    assert_eq!(finish(&fixture, child).losses(), embedded.losses(), "to the last bit");
    assert!(revoked_connections(&http) >= 1.0);
}

#[test]
fn servers_that_relay_survive_a_new_epoch() {
    let fixture = Fixture::new("llama-gqa");
    let embedded = fixture.run(&[&STEPS[..], &["output.folder=embedded"]].concat());
    let secured = ["--secret-file", "secret", "--http", "127.0.0.1:0"];
    let mut servers = ["0:1", "1:3"].map(|blocks| serve(&fixture, blocks, &secured));
    let https = servers.each_mut().map(http);
    let more = ["swarm.with.secret_file=secret", "swarm.with.path=relay"];
    let child = start(&fixture, &sets(static_swarm(&servers.each_ref()), &more));
    wait_for_metrics(&fixture.path("runs"), 10);
    revoke(&fixture, "--secret-file", "secret");
    assert_eq!(finish(&fixture, child).losses(), embedded.losses(), "to the last bit");
    for http in https {
        assert_eq!(revoked_connections(&http), 0.0, "servers and holders of their secret stay");
    }
}

/// Starts the founder of a swarm, and a server that joins it. Both follow the file `ticket`. Returns the founder's status port
/// as well.
fn swarm(fixture: &Fixture) -> ([Server; 2], String) {
    let founder = ["--p2p", "--identity", "a", "--ticket-file", "ticket", "--http", "127.0.0.1:0"];
    let mut founder = serve(fixture, "0:2", &founder);
    founder.line("ticket in");
    let http = http(&mut founder);
    ([founder, serve(fixture, "2:3", &["--p2p", "--identity", "b", "--join", "ticket"])], http)
}

fn p2p(fixture: &Fixture) -> [String; 3] {
    let ticket = format!("swarm.with.ticket={}", fixture.path(CLIENT).display());
    ["swarm.use=p2p".to_owned(), ticket, "swarm.with.bind=127.0.0.1:0".to_owned()]
}

#[test]
fn run_in_a_swarm_follows_new_epochs_of_its_ticket() {
    let fixture = Fixture::new("llama-gqa");
    let embedded = fixture.run(&[&STEPS[..], &["output.folder=embedded"]].concat());
    let (_servers, http) = swarm(&fixture);
    grant(&fixture, "--ticket", "ticket");
    let child = start(&fixture, &sets(p2p(&fixture), &[]));
    wait_for_metrics(&fixture.path("runs"), 10);
    revoke(&fixture, "--ticket", "ticket");
    grant(&fixture, "--ticket", "ticket");
    wait_for_metrics(&fixture.path("runs"), 40);
    assert_eq!(revoked_connections(&http), 0.0, "both epochs are accepted");
    // Two epochs at once leave no time in which the run's connections are still accepted.
    revoke(&fixture, "--ticket", "ticket");
    revoke(&fixture, "--ticket", "ticket");
    grant(&fixture, "--ticket", "ticket");
    assert_eq!(finish(&fixture, child).losses(), embedded.losses(), "to the last bit");
    assert!(revoked_connections(&http) >= 1.0);
}

/// Arguments of the status of the swarm, as the holder of the ticket in a file sees it.
fn status(ticket: &str) -> [&str; 6] {
    ["swarm", "status", "--bind", "127.0.0.1:0", "--ticket", ticket]
}

/// Checks that the holder of a ticket sees both servers, which may have the ticket a little later.
fn assert_covered(fixture: &Fixture, ticket: &str) {
    const ATTEMPTS: usize = 8;
    let is_covered = |_| {
        let output = fixture.sepal(&status(ticket)).output().expect("the command runs");
        String::from_utf8_lossy(&output.stdout).contains("every block on 1 server")
    };
    assert!((0..ATTEMPTS).any(is_covered), "the holder of `{ticket}` does not see both servers");
}

#[test]
fn swarm_accepts_two_epochs_for_a_time_without_a_restart() {
    let fixture = Fixture::new("llama-gqa");
    let (_servers, _) = swarm(&fixture);
    grant(&fixture, "--ticket", "ticket");
    fs::copy(fixture.path(CLIENT), fixture.path("old")).expect("copied");
    revoke(&fixture, "--ticket", "ticket");
    grant(&fixture, "--ticket", "ticket");
    // The servers have the new ticket once its holder sees them.
    assert_covered(&fixture, CLIENT);
    assert_covered(&fixture, "old");
    revoke(&fixture, "--ticket", "ticket");
    revoke(&fixture, "--ticket", "ticket");
    grant(&fixture, "--ticket", "ticket");
    assert_covered(&fixture, CLIENT);
    let error = failure_messages(fixture.sepal(&status("old")));
    assert!(error.contains("no member that the ticket names has answered"), "{error}");
}
