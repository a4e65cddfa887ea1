//! Attempts of machines without a ticket.

use std::io;
use std::time::Duration;

use iroh::EndpointAddr;
use sepal_swarm::{Dial, Listener, Rights};

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
        let connected = tokio::time::timeout(TIMEOUT, endpoint.connect()).await.expect("an answer");
        let error = connected.expect_err("no connection");
        assert!(format!("{error:?}").contains("not a member"), "{error:?}");
        assert!(tokio::time::timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "no connection");
    });
    assert!(!outsider.wait_for_neighbour(Duration::from_secs(1)) && outsider.members().is_empty());
}

/// Returns the rights that a server grants to a member.
async fn granted(server: &Node, listener: &mut Listener, member: &Node) -> io::Result<Rights> {
    let endpoint = member.peer(&server.name()).expect("a name");
    let connected = tokio::time::timeout(TIMEOUT, endpoint.connect()).await.expect("an answer")?;
    let accepted = tokio::time::timeout(TIMEOUT, listener.accept()).await.expect("in time");
    drop(connected);
    Ok(accepted.expect("a connection").expect("a stream").stream.rights)
}

#[test]
fn lesser_tickets_connect_with_their_rights_until_a_new_epoch() {
    let server = node(None);
    let mut listener = Listener::Streams(server.connections());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for rights in Rights::ALL {
        let member = node(server.ticket().derive(rights));
        assert_eq!(runtime.block_on(granted(&server, &mut listener, &member)).expect("connected"), rights);
    }
    let next = server.ticket().next_epoch().expect("a servers' ticket");
    let early = node(next.derive(Rights::Client));
    let error = runtime.block_on(granted(&server, &mut listener, &early)).expect_err("refused");
    assert!(format!("{error:?}").contains("of epoch 1, but the server accepts epoch 0"), "{error:?}");
}
