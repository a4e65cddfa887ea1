//! Nodes of one swarm on loopback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sepal_core::DType;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_discover::{Discovery, ServerRecord};
use sepal_swarm::{Dial, Endpoint, Listener, Sighting, Sightings, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TIMEOUT: Duration = Duration::from_secs(20);

fn node_with(identity: Identity, ticket: Option<Ticket>) -> Arc<Node> {
    let bind = Some("127.0.0.1:0".parse().expect("an address"));
    Arc::new(Node::start(NodeOptions { identity, ticket, bind, relays: Vec::new() }).expect("a node"))
}

fn node(ticket: Option<Ticket>) -> Arc<Node> {
    node_with(Identity::ephemeral(), ticket)
}

/// Returns a node that announces a server of the model `x`.
fn server_node(ticket: Option<Ticket>) -> Arc<Node> {
    let node = node(ticket);
    node.announce(|| Some(record("x")));
    node
}

/// Returns a server's node, its listener, a client's node and the client's sightings.
fn server_and_client() -> (Arc<Node>, Listener, Arc<Node>, Sightings) {
    let server = server_node(None);
    let listener = Listener::Streams(server.connections());
    let client = node(Some(server.ticket()));
    let sightings = client.sightings("x");
    (server, listener, client, sightings)
}

/// Connects a client's stream with a server's.
async fn connect(endpoint: &Endpoint, listener: &mut Listener) -> (Stream, Stream) {
    let (connected, accepted) = tokio::join!(endpoint.connect(), listener.accept());
    (connected.expect("connected"), accepted.expect("a connection").expect("accepted").stream)
}

fn record(digest: &str) -> ServerRecord {
    ServerRecord {
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
        name: None,
    }
}

fn next_sighting(sightings: &mut Sightings) -> Sighting {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        match sightings.try_recv() {
            Ok(sighting) => return sighting,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("no sighting")
}

fn next_server(sightings: &mut Sightings) -> Endpoint {
    match next_sighting(sightings) {
        Sighting::Present(endpoint) => endpoint,
        Sighting::Gone(name) => panic!("{name} has gone"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn exchange_data(client: &mut Stream, server: &mut Stream) {
    client.writer.write_all(b"hello").await.expect("written");
    client.writer.flush().await.expect("flushed");
    let mut received = [0; 5];
    server.reader.read_exact(&mut received).await.expect("read");
    assert_eq!(&received, b"hello");
    // More than the flow-control window.
    let (sent, mut received) = (vec![7; 3 << 20], vec![0; 3 << 20]);
    let (wrote, read) = tokio::join!(server.writer.write_all(&sent), client.reader.read_exact(&mut received));
    wrote.expect("written");
    read.expect("read");
    assert!(received.iter().all(|&byte| byte == 7));
}

#[test]
fn server_is_found_by_ticket_and_reached_by_name() {
    let (server, mut listener, client, mut sightings) = server_and_client();
    let endpoint = next_server(&mut sightings);
    assert_eq!(endpoint.to_string(), server.name());
    assert_eq!(client.members()[0].record, record("x"));
    runtime().block_on(async {
        for endpoint in [endpoint, client.find(&server.name()).expect("a name of a peer")] {
            let (mut connected, mut accepted) = connect(&endpoint, &mut listener).await;
            exchange_data(&mut connected, &mut accepted).await;
        }
    });
    assert!(client.find("127.0.0.1:4000").is_none());
    server.withdraw();
    loop {
        match next_sighting(&mut sightings) {
            Sighting::Gone(name) => break assert_eq!(name, server.name()),
            // Announced before the withdrawal.
            Sighting::Present(_) => {}
        }
    }
}

#[test]
fn late_reader_receives_all_data() {
    const BYTES: usize = 8 << 20;
    let (_server, mut listener, _client, mut sightings) = server_and_client();
    let endpoint = next_server(&mut sightings);
    runtime().block_on(async {
        let reading = async {
            let mut stream = endpoint.connect().await.expect("connected");
            stream.writer.write_all(b"go").await.expect("written");
            stream.writer.flush().await.expect("flushed");
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut received = vec![0; BYTES];
            stream.reader.read_exact(&mut received).await.expect("read");
            received
        };
        let writing = async {
            let mut stream = listener.accept().await.expect("a connection").expect("accepted").stream;
            stream.reader.read_exact(&mut [0; 2]).await.expect("read");
            stream.writer.write_all(&vec![7; BYTES]).await.expect("written");
            stream.writer.flush().await.expect("flushed");
            stream
        };
        let (received, _stream) = tokio::join!(reading, writing);
        assert!(received.iter().all(|&byte| byte == 7));
    });
}

#[test]
fn new_member_learns_of_all_servers() {
    let first = server_node(None);
    let second = server_node(Some(first.ticket()));
    let third = node(Some(second.ticket()));
    let mut sightings = third.sightings("x");
    let mut names = vec![next_server(&mut sightings).to_string()];
    while names.len() < 2 {
        let name = next_server(&mut sightings).to_string();
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
fn swarm_survives_departure_of_founder() {
    let founder = server_node(None);
    let second = node(Some(founder.ticket()));
    assert!(second.wait_for_neighbour(TIMEOUT));
    second.announce(|| Some(record("x")));
    let ticket = second.ticket();
    drop(founder);
    let third = node(Some(ticket));
    let mut sightings = third.sightings("x");
    while next_server(&mut sightings).to_string() != second.name() {}
}

#[test]
fn identity_in_use_is_refused_and_keeps_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("identity");
    let node = node_with(Identity::open(&path).expect("free"), None);
    assert!(Identity::open(&path).is_err(), "in use");
    let (name, ticket) = (node.name(), node.ticket().to_string());
    drop(node);
    let restarted = node_with(Identity::open(&path).expect("free"), None);
    assert_eq!(restarted.name(), name);
    // The secret is the same; the port, and with it the addresses in the ticket, may differ.
    assert_eq!(restarted.ticket().to_string()[..40], ticket[..40]);
}

#[test]
fn dropped_stream_is_flushed() {
    let (_server, mut listener, _client, mut sightings) = server_and_client();
    let endpoint = next_server(&mut sightings);
    runtime().block_on(async {
        let (mut connected, mut accepted) = connect(&endpoint, &mut listener).await;
        let writing = async move {
            accepted.writer.write_all(&vec![7; 5 << 20]).await.expect("written");
            drop(accepted);
        };
        let mut received = Vec::new();
        let ((), read) = tokio::join!(writing, connected.reader.read_to_end(&mut received));
        read.expect("read");
        assert_eq!(received.len(), 5 << 20);
    });
}
