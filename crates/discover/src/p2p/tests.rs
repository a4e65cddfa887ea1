//! Attempts of machines without a ticket, and nodes that move to another epoch.

use std::io;
use std::time::{Duration, Instant};

use iroh::EndpointAddr;
use sepal_swarm::{Dial, Listener, Rights, Stream};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::discovery::Discovery;
use crate::record::ServerRecord;

const TIMEOUT: Duration = Duration::from_secs(20);

fn node(ticket: Option<Ticket>) -> Node {
    let bind = Some("127.0.0.1:0".parse().expect("an address"));
    Node::start(NodeOptions { identity: Identity::ephemeral(), ticket, bind, relays: Vec::new() }).expect("a node")
}

#[test]
fn connection_without_ticket_is_refused() {
    let server = node(None);
    let mut listener = Listener::Streams(server.connections());
    // Knows the server's address, but not the swarm's secret.
    let members: Vec<EndpointAddr> = server.ticket().members;
    let outsider = node(Some(Ticket { members, ..node(None).ticket() }));
    let endpoint = outsider.peer(&server.name()).expect("a name");
    assert!(outsider.find(&server.name()).is_none(), "not announced");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let connected = tokio::time::timeout(TIMEOUT, endpoint.connect()).await.expect("an answer");
        let error = connected.expect_err("no connection");
        assert!(format!("{error:?}").contains("not a member"), "{error:?}");
        assert!(tokio::time::timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "no connection");
    });
    assert!(!outsider.wait_for_neighbour(Duration::from_secs(1)) && outsider.members().is_empty());
}

fn runtime() -> Runtime {
    Runtime::new().expect("a runtime")
}

/// Connects a member to a server, and returns both ends.
fn connect(runtime: &Runtime, server: &mut Served, member: &Node) -> io::Result<(Stream, Stream)> {
    let endpoint = member.peer(&server.node.name()).expect("a name");
    runtime.block_on(async {
        let connected = tokio::time::timeout(TIMEOUT, endpoint.connect()).await.expect("an answer")?;
        let accepted = tokio::time::timeout(TIMEOUT, server.listener.accept()).await.expect("in time");
        Ok((connected, accepted.expect("a connection").expect("a stream").stream))
    })
}

/// Returns the rights that a server grants to a member.
fn granted(runtime: &Runtime, server: &mut Served, member: &Node) -> io::Result<Rights> {
    connect(runtime, server, member).map(|(_, accepted)| accepted.rights)
}

fn is_revoked(runtime: &Runtime, stream: &mut Stream, timeout: Duration) -> bool {
    runtime.block_on(async { tokio::time::timeout(timeout, stream.revocation.revoked()).await.is_ok() })
}

/// Waits for something that a node does in the background.
fn wait_until(expected: &str, mut is_done: impl FnMut() -> bool) {
    let started_at = Instant::now();
    while !is_done() {
        assert!(started_at.elapsed() < TIMEOUT, "{expected} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Node of a server with the file of its ticket.
struct Served {
    node: Node,
    listener: Listener,
    folder: TempDir,
}

impl Served {
    fn new() -> Self {
        let (node, folder) = (node(None), tempfile::tempdir().expect("a folder"));
        let listener = Listener::Streams(node.connections());
        node.announce(|| Some(ServerRecord::sample("x")));
        Self { node, listener, folder }
    }

    /// Writes the next ticket to the file of the server, and waits until the server has it.
    fn move_to(&self, next: &Ticket) {
        next.write(&self.folder.path().join("ticket")).expect("written");
        wait_until("the next epoch", || self.node.ticket().epoch() == next.epoch());
    }

    fn follow(&self, grace: Duration) {
        self.node.follow_ticket_with(&self.folder.path().join("ticket"), grace);
    }
}

#[test]
fn lesser_tickets_connect_with_their_rights_until_a_new_epoch() {
    let (mut server, runtime) = (Served::new(), runtime());
    for rights in Rights::ALL {
        let member = node(server.node.ticket().derive(rights));
        assert_eq!(granted(&runtime, &mut server, &member).expect("connected"), rights);
    }
    let next = server.node.ticket().next_epoch().expect("a servers' ticket");
    let early = node(next.derive(Rights::Client));
    let error = granted(&runtime, &mut server, &early).expect_err("refused");
    assert!(format!("{error:?}").contains("of epoch 1, but the server accepts epoch 0"), "{error:?}");
}

#[test]
fn running_swarm_accepts_both_epochs_for_a_time() {
    let (mut server, runtime) = (Served::new(), runtime());
    server.follow(Duration::from_secs(3600));
    let client = node(server.node.ticket().derive(Rights::Client));
    let (_connected, mut open) = connect(&runtime, &mut server, &client).expect("connected");
    let next = server.node.ticket().next_epoch().expect("a servers' ticket");
    // A client may have its new ticket before the server.
    let file = server.folder.path().join("client");
    client.follow_ticket_with(&file, Duration::from_secs(3600));
    next.derive(Rights::Client).expect("a servers' ticket").write(&file).expect("written");
    wait_until("the client's epoch", || client.ticket().epoch() == 1);
    assert_eq!(granted(&runtime, &mut server, &client).expect("by its earlier ticket"), Rights::Client);
    let late = node(server.node.ticket().derive(Rights::Client));
    server.move_to(&next);
    for member in [&client, &late, &node(next.derive(Rights::Client))] {
        assert_eq!(granted(&runtime, &mut server, member).expect("connected"), Rights::Client);
    }
    assert!(!is_revoked(&runtime, &mut open, Duration::from_millis(200)), "the earlier epoch is still accepted");
}

#[test]
fn earlier_epoch_ends_after_its_time_and_servers_stay() {
    let (mut server, runtime) = (Served::new(), runtime());
    server.follow(Duration::ZERO);
    let first = server.node.ticket();
    let members = [Rights::Client, Rights::Server].map(|rights| node(first.derive(rights)));
    let mut open = members.each_ref().map(|member| connect(&runtime, &mut server, member).expect("connected"));
    let next = first.next_epoch().expect("a servers' ticket");
    server.move_to(&next);
    assert!(is_revoked(&runtime, &mut open[0].1, TIMEOUT));
    assert!(!is_revoked(&runtime, &mut open[1].1, Duration::from_millis(200)), "servers have no epoch");
    let error = granted(&runtime, &mut server, &members[0]).expect_err("refused");
    assert!(format!("{error:?}").contains("of epoch 0, but the server accepts epoch 1"), "{error:?}");
    assert_eq!(granted(&runtime, &mut server, &members[1]).expect("connected"), Rights::Server);
    // Announcements are those of the new epoch.
    let client = node(next.derive(Rights::Client));
    wait_until("an announcement", || client.members().len() == 1);
}

#[test]
fn two_epochs_at_once_leave_no_time_for_the_first() {
    let (mut server, runtime) = (Served::new(), runtime());
    server.follow(Duration::from_secs(3600));
    let client = node(server.node.ticket().derive(Rights::Client));
    let (_connected, mut open) = connect(&runtime, &mut server, &client).expect("connected");
    let next = server.node.ticket().next_epoch().and_then(|next| next.next_epoch()).expect("a servers' ticket");
    server.move_to(&next);
    assert!(is_revoked(&runtime, &mut open, TIMEOUT));
    let error = granted(&runtime, &mut server, &client).expect_err("refused");
    assert!(format!("{error:?}").contains("of epoch 0, but the server accepts epoch 2"), "{error:?}");
}
