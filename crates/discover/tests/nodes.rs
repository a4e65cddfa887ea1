//! Nodes of one swarm on loopback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sepal_core::DType;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_discover::{Discovery, Notice};
use sepal_swarm::{Dial, Endpoint, Listener, Sighting, Sightings, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);

fn node(ticket: Option<Ticket>) -> Arc<Node> {
    let bind = Some("127.0.0.1:0".parse().expect("an address"));
    let options = NodeOptions { identity: Identity::passing(), ticket, bind, relays: Vec::new() };
    Arc::new(Node::start(options).expect("a node"))
}

fn notice(digest: &str) -> Notice {
    Notice {
        digest: digest.into(),
        family: "llama".into(),
        n_blocks: 3,
        span: "0:3".parse().expect("a span"),
        dtype: DType::F32,
        rate: 1e-5,
        queue: 0,
        free_tape_bytes: 7,
        draining: false,
        software: "sepal".into(),
    }
}

/// The next thing that is seen.
fn next(sightings: &mut Sightings) -> Sighting {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match sightings.try_recv() {
            Ok(sighting) => return sighting,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("nothing was seen")
}

fn here(sightings: &mut Sightings) -> Endpoint {
    match next(sightings) {
        Sighting::Present(endpoint) => endpoint,
        Sighting::Gone(name) => panic!("{name} has gone"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Says something each way.
async fn converse(client: &mut Stream, server: &mut Stream) {
    client.writer.write_all(b"hello").await.expect("written");
    client.writer.flush().await.expect("flushed");
    let mut heard = [0; 5];
    server.reader.read_exact(&mut heard).await.expect("read");
    assert_eq!(&heard, b"hello");
    // More than may be under way unread.
    let (said, mut heard) = (vec![7; 3 << 20], vec![0; 3 << 20]);
    let (wrote, read) = tokio::join!(server.writer.write_all(&said), client.reader.read_exact(&mut heard));
    wrote.expect("written");
    read.expect("read");
    assert!(heard.iter().all(|&byte| byte == 7));
}

#[test]
fn servers_are_found_by_ticket_and_reached_by_name() {
    let server = node(None);
    server.announce(|| Some(notice("x")));
    let mut listener = Listener::Streams(server.connections());
    let client = node(Some(server.ticket()));
    let mut sightings = client.sightings("x");
    let endpoint = here(&mut sightings);
    assert_eq!(endpoint.to_string(), server.name());
    assert_eq!(client.members()[0].notice, notice("x"));
    runtime().block_on(async {
        for endpoint in [endpoint, client.find(&server.name()).expect("a name of a peer")] {
            let (connected, accepted) = tokio::join!(endpoint.connect(), listener.accept());
            converse(&mut connected.expect("connected"), &mut accepted.expect("one").expect("a good one")).await;
        }
    });
    assert!(client.find("127.0.0.1:4000").is_none());
    server.withdraw();
    loop {
        match next(&mut sightings) {
            Sighting::Gone(name) => break assert_eq!(name, server.name()),
            // Said before it left.
            Sighting::Present(_) => {}
        }
    }
}

#[test]
fn a_reader_that_is_late_loses_nothing() {
    const BYTES: usize = 8 << 20;
    let server = node(None);
    server.announce(|| Some(notice("x")));
    let mut listener = Listener::Streams(server.connections());
    let client = node(Some(server.ticket()));
    let endpoint = here(&mut client.sightings("x"));
    runtime().block_on(async {
        let reading = async {
            let mut stream = endpoint.connect().await.expect("connected");
            stream.writer.write_all(b"go").await.expect("written");
            stream.writer.flush().await.expect("flushed");
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut heard = vec![0; BYTES];
            stream.reader.read_exact(&mut heard).await.expect("read");
            heard
        };
        let writing = async {
            let mut stream = listener.accept().await.expect("one").expect("a good one");
            stream.reader.read_exact(&mut [0; 2]).await.expect("read");
            stream.writer.write_all(&vec![7; BYTES]).await.expect("written");
            stream.writer.flush().await.expect("flushed");
            stream
        };
        let (heard, _stream) = tokio::join!(reading, writing);
        assert!(heard.iter().all(|&byte| byte == 7));
    });
}

#[test]
fn a_third_member_hears_of_all_and_a_newcomer_of_who_was_there() {
    let first = node(None);
    first.announce(|| Some(notice("x")));
    let second = node(Some(first.ticket()));
    second.announce(|| Some(notice("x")));
    let third = node(Some(second.ticket()));
    let mut sightings = third.sightings("x");
    let mut names = vec![here(&mut sightings).to_string()];
    while names.len() < 2 {
        let name = here(&mut sightings).to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut expected = vec![first.name(), second.name()];
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn the_swarm_outlives_its_founder() {
    let founder = node(None);
    founder.announce(|| Some(notice("x")));
    let second = node(Some(founder.ticket()));
    assert!(second.wait_for_neighbour(PATIENCE));
    second.announce(|| Some(notice("x")));
    let ticket = second.ticket();
    drop(founder);
    let third = node(Some(ticket));
    let mut sightings = third.sightings("x");
    while here(&mut sightings).to_string() != second.name() {}
}

#[test]
fn one_identity_is_in_one_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("identity");
    let options = || NodeOptions {
        identity: Identity::open(&path).expect("free"),
        ticket: None,
        bind: Some("127.0.0.1:0".parse().expect("an address")),
        relays: Vec::new(),
    };
    let node = Node::start(options()).expect("a node");
    assert!(Identity::open(&path).is_err(), "it is in use");
    let (name, ticket) = (node.name(), node.ticket().to_string());
    drop(node);
    let again = Node::start(options()).expect("a node");
    assert_eq!(again.name(), name);
    // The swarm is the same; only the port, and so the addresses in the ticket, may differ.
    assert_eq!(again.ticket().to_string()[..40], ticket[..40]);
}

#[test]
fn what_was_written_arrives_after_the_stream_is_dropped() {
    let server = node(None);
    server.announce(|| Some(notice("x")));
    let mut listener = Listener::Streams(server.connections());
    let client = node(Some(server.ticket()));
    let endpoint = here(&mut client.sightings("x"));
    runtime().block_on(async {
        let (connected, accepted) = tokio::join!(endpoint.connect(), listener.accept());
        let (mut connected, mut accepted) =
            (connected.expect("connected"), accepted.expect("one").expect("a good one"));
        let saying = async move {
            accepted.writer.write_all(&vec![7; 5 << 20]).await.expect("written");
            drop(accepted);
        };
        let mut heard = Vec::new();
        let ((), read) = tokio::join!(saying, connected.reader.read_to_end(&mut heard));
        read.expect("read");
        assert_eq!(heard.len(), 5 << 20);
    });
}
