//! What only strangers and cheats would do.

use std::time::Duration;

use iroh::EndpointAddr;
use sepal_swarm::{Dial, Listener};
use tokio::io::AsyncReadExt;

use super::*;
use crate::Discovery;

const PATIENCE: Duration = Duration::from_secs(20);

fn node(ticket: Option<Ticket>) -> Node {
    let bind = Some("127.0.0.1:0".parse().expect("an address"));
    Node::start(NodeOptions { identity: Identity::passing(), ticket, bind, relays: Vec::new() }).expect("a node")
}

#[test]
fn who_has_no_ticket_is_not_let_in() {
    let server = node(None);
    let mut listener = Listener::Streams(server.connections());
    // It knows where the server is, but not the swarm's secret.
    let members: Vec<EndpointAddr> = server.ticket().members;
    let stranger = node(Some(Ticket { members, ..node(None).ticket() }));
    let endpoint = stranger.peer(&server.name()).expect("a name");
    assert!(stranger.find(&server.name()).is_none(), "nobody has said so");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut stream = endpoint.connect().await.expect("the connection itself is open to all");
        let read = tokio::time::timeout(PATIENCE, stream.reader.read_u8()).await.expect("it is closed at once");
        let error = read.expect_err("nothing is said");
        assert!(format!("{error:?}").contains("not a member"), "{error:?}");
        assert!(tokio::time::timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "no connection");
    });
    assert!(!stranger.wait_for_neighbour(Duration::from_secs(1)) && stranger.members().is_empty());
}
