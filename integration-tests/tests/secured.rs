//! Servers with a secret: equal runs, lesser rights, strangers, and secrets that stay in their files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sepal_integration_tests::fixture::{Fixture, Server, static_swarm, stdout};

const LISTEN: &str = "127.0.0.1:0";
const STEPS: [&str; 2] = ["train.max_steps=10", "train.deterministic=true"];

fn serve(fixture: &Fixture, blocks: &str, secret: &str) -> Server {
    fixture.serve_with(blocks, LISTEN, &["--secret-file", secret])
}

/// Settings of a run on these servers.
fn sets(servers: &[&Server], more: &[&str]) -> Vec<String> {
    let swarm = static_swarm(servers);
    swarm.into_iter().chain(STEPS.iter().chain(more).map(|set| (*set).to_owned())).collect()
}

fn as_strs(sets: &[String]) -> Vec<&str> {
    sets.iter().map(String::as_str).collect()
}

fn grant(fixture: &Fixture, rights: &str) {
    let args = ["swarm", "grant", "--secret-file", "secret", "--rights", rights, "--out", rights];
    let line = stdout(fixture.sepal(&args));
    assert!(line.contains(&format!("rights `{rights}`")), "{line}");
}

fn status(fixture: &Fixture, server: &Server, more: &[&str]) -> String {
    stdout(fixture.sepal(&[&["swarm", "status", server.addr.as_str()], more].concat()))
}

/// Returns the key of a secret's file.
fn key(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a secret");
    text.split(':').nth(3).expect("a key").to_owned()
}

/// Checks that no file of a folder contains a text.
fn assert_absent(folder: &Path, text: &str) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            assert_absent(&path, text);
        } else {
            let content = String::from_utf8_lossy(&fs::read(&path).expect("a file")).into_owned();
            assert!(!content.contains(text), "{} holds a secret", path.display());
        }
    }
}

#[test]
fn secured_runs_equal_plain_runs_and_keep_the_secret() {
    let fixture = Fixture::new("llama-gqa");
    let plain = fixture.serve("0:3", LISTEN);
    let plain = fixture.run(&as_strs(&sets(&[&plain], &[])));
    let servers = [serve(&fixture, "0:1", "secret"), serve(&fixture, "1:3", "secret")];
    let mode = fs::metadata(fixture.path("secret")).expect("a secret was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    grant(&fixture, "client");
    for (secret, path) in [("secret", "star"), ("client", "star"), ("client", "relay")] {
        let more = [format!("swarm.with.secret_file={secret}"), format!("swarm.with.path={path}")];
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let run = fixture.run(&as_strs(&sets(&[&servers[0], &servers[1]], &more)));
        assert_eq!((run.losses(), run.adapter()), (plain.losses(), plain.adapter()), "{secret}, {path}");
        for file in ["secret", "client"] {
            assert_absent(&run.folder, &key(&fixture.path(file)));
        }
    }
}

#[test]
fn listed_key_of_a_server_is_compared() {
    let fixture = Fixture::new("llama-gqa");
    let server = serve(&fixture, "0:3", "secret");
    let text = status(&fixture, &server, &["--secret-file", "secret", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let key = status["servers"][0]["key"].as_str().expect("a key");
    let listed = |key: &str| format!("swarm.with.servers=[\"{}#{key}\"]", server.addr);
    let secret = "swarm.with.secret_file=secret";
    fixture.run(&["swarm.use=static", &listed(key), secret, "train.max_steps=2"]);
    let other = "ab".repeat(32);
    let error = fixture.failure(&["swarm.use=static", &listed(&other), secret, "swarm.with.wait_ms=1000"]);
    assert!(error.contains(&format!("the server has the key {key}, expected {other}")), "{error}");
    let error = fixture.failure(&["swarm.use=static", &listed("abc"), secret]);
    assert!(error.contains("64 hexadecimal digits"), "{error}");
    let text = fs::read_to_string(fixture.path("secret")).expect("a secret").trim().to_owned();
    let error = fixture.failure(&["swarm.use=static", &listed(key), &format!("swarm.with.secret_file={text}")]);
    assert!(error.contains("found the text of a secret"), "{error}");
}

#[test]
fn observer_sees_the_status_and_computes_nothing() {
    let fixture = Fixture::new("llama-gqa");
    let server = serve(&fixture, "0:3", "secret");
    grant(&fixture, "observer");
    let observer = ["--secret-file", "observer"];
    assert!(status(&fixture, &server, &observer).contains("every block on 1 server"));
    let error =
        fixture.failure(&as_strs(&sets(&[&server], &["swarm.with.secret_file=observer", "swarm.with.wait_ms=1000"])));
    assert!(error.contains("this call needs the rights `client`"), "{error}");
    let line = stdout(fixture.sepal(&["swarm", "revoke", "--secret-file", "secret"]));
    assert!(line.contains("epoch 1"), "{line}");
    let text = status(&fixture, &server, &observer);
    assert!(text.contains("the secret is of epoch 0, but the server accepts epoch 1"), "{text}");
    grant(&fixture, "observer");
    assert!(status(&fixture, &server, &observer).contains("every block on 1 server"), "a new one");
}

#[test]
fn strangers_learn_nothing_and_each_mismatch_is_named() {
    let fixture = Fixture::new("llama-gqa");
    let (secured, plain) = (serve(&fixture, "0:3", "secret"), fixture.serve("0:3", LISTEN));
    let _other = serve(&fixture, "0:3", "other");
    for (server, more, expected) in [
        (&secured, &[][..], "the server accepts only clients with its secret"),
        (&secured, &["--secret-file", "other"][..], "the secret is not that of the server"),
        (&plain, &["--secret-file", "secret"][..], "the server does not encrypt"),
    ] {
        let text = status(&fixture, server, more);
        assert!(text.contains(expected) && !text.contains("0:3") && !text.contains("llama"), "{text}");
    }
    let error = fixture.failure(&as_strs(&sets(&[&secured], &["swarm.with.wait_ms=1000"])));
    assert!(error.contains("the server accepts only clients with its secret"), "{error}");
    fs::set_permissions(fixture.path("secret"), fs::Permissions::from_mode(0o644)).expect("changed");
    let error = fixture.failure(&as_strs(&sets(&[&secured], &["swarm.with.secret_file=secret"])));
    assert!(error.contains("others can read the secret") && error.contains("chmod 600"), "{error}");
}

#[test]
fn ticket_given_as_text_is_in_no_file_of_the_run() {
    let fixture = Fixture::new("llama-gqa");
    let args = ["--p2p", "--identity", "identity", "--ticket-file", "ticket", "--blocks", "0:3", "--listen", LISTEN];
    let mut server = fixture.serve_args(&[&args[..], &["--threads", "1"]].concat());
    assert_eq!(server.line("ticket "), "in ticket", "the text is in the file alone");
    let ticket = fs::read_to_string(fixture.path("ticket")).expect("a ticket").trim().to_owned();
    let swarm = [format!("swarm.with.ticket={ticket}"), "swarm.use=p2p".to_owned()];
    let more = ["swarm.with.bind=127.0.0.1:0", "train.max_steps=2"];
    let sets: Vec<&str> = swarm.iter().map(String::as_str).chain(more).collect();
    let run = fixture.run(&sets);
    assert_absent(&run.folder, &ticket[8..40]);
    let pipeline = fs::read_to_string(run.folder.join("pipeline.yaml")).expect("a pipeline");
    assert!(pipeline.contains("(withheld)"), "{pipeline}");
}
