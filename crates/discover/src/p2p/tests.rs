//! Attempts of machines without a ticket.

use std::time::Duration;

use iroh::EndpointAddr;
use sepal_swarm::{Dial, Listener};
use tokio::io::AsyncReadExt;

use super::*;
use crate::discovery::Discovery;

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
        let mut stream = endpoint.connect().await.expect("an unproven connection");
        let read = tokio::time::timeout(TIMEOUT, stream.reader.read_u8()).await.expect("closed");
        let error = read.expect_err("no data");
        assert!(format!("{error:?}").contains("not a member"), "{error:?}");
        assert!(tokio::time::timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "no connection");
    });
    assert!(!outsider.wait_for_neighbour(Duration::from_secs(1)) && outsider.members().is_empty());
}
