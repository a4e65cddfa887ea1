//! State of a node, shared by its tasks and its peers.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{ConnectOptions, Connection};
use iroh::{EndpointAddr, EndpointId};
use sepal_core::in_one_line;
use sepal_swarm::proof::{ANSWER_BYTES, CLAIM_BYTES};
use sepal_swarm::{AcceptedSecrets, Connect, Connecting, Endpoint, SecurityError, Stream};
use tokio::sync::{mpsc, watch};

use super::announcement::Sequence;
use super::epochs::Epochs;
use super::stream::StreamFlusher;
use super::ticket::{OLD_PROOF_BYTES, SwarmSecret};
use crate::members::Members;
use crate::record::ServerRecord;

/// Name of Sepal's protocol among those of an endpoint.
pub(super) const ALPN: &[u8] = b"sepal/5";
/// Name of the protocol in which a client proves the servers' secret, and the server nothing.
pub(super) const OLD_ALPN: &[u8] = b"sepal/4";
/// Prefix of a peer's name among addresses.
const SCHEME: &str = "p2p:";

pub(super) struct NodeState {
    pub(super) endpoint: iroh::Endpoint,
    pub(super) flusher: StreamFlusher,
    /// Receiver of the connections to the local server.
    pub(super) server: Mutex<Option<mpsc::UnboundedSender<Stream>>>,
    pub(super) epochs: Mutex<Epochs>,
    /// Secrets of the clients that the local server accepts.
    pub(super) accepted: watch::Sender<AcceptedSecrets>,
    pub(super) addresses: MemoryLookup,
    pub(super) members: Mutex<Members>,
    /// Members to contact when no neighbour is left, with the time of the last announcement; none for those of the ticket.
    pub(super) bootstrap: Mutex<HashMap<EndpointId, Option<Instant>>>,
    /// Last sequence number of each sender and its time.
    pub(super) sequences: Mutex<HashMap<EndpointId, (u64, Instant)>>,
    pub(super) local_server: Mutex<LocalServer>,
}

pub(super) type Describe = Arc<dyn Fn() -> Option<ServerRecord> + Send + Sync>;

#[derive(Default)]
pub(super) struct LocalServer {
    pub(super) describe: Option<Describe>,
    pub(super) sequence: Sequence,
    pub(super) announced_at: Option<Instant>,
    pub(super) is_answer_scheduled: bool,
}

impl NodeState {
    /// Returns the stream of a client that proves its membership, with its rights.
    pub(super) async fn admit(&self, connection: &Connection) -> Result<Stream, SecurityError> {
        let (client, server) = (connection.remote_id(), self.endpoint.id());
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|_| SecurityError::Refused)?;
        if connection.alpn() == OLD_ALPN {
            let mut proof = [0; OLD_PROOF_BYTES];
            recv.read_exact(&mut proof).await.map_err(|_| SecurityError::Refused)?;
            let Epochs { current, .. } = self.epochs();
            let secret = &current.secret;
            if !secret.verify_old_proof(&proof, client, server) {
                return Err(SecurityError::Refused);
            }
            let revocation = secret.old_revocation(self.accepted.subscribe());
            return Ok(self.flusher.stream(connection.clone(), send, recv).with_revocation(revocation));
        }
        let mut claim = [0; CLAIM_BYTES];
        recv.read_exact(&mut claim).await.map_err(|_| SecurityError::Refused)?;
        let epochs = self.epochs();
        let (secret, rights, answer) = epochs.check_claim(&claim, client, server)?;
        send.write_all(&answer).await.map_err(|_| SecurityError::Refused)?;
        let revocation = secret.revocation(rights, self.accepted.subscribe());
        let stream = self.flusher.stream(connection.clone(), send, recv);
        Ok(stream.with_rights(rights).with_revocation(revocation))
    }

    async fn open(&self, id: EndpointId) -> io::Result<Stream> {
        let Epochs { current, previous } = self.epochs();
        let connection = self.connect(id, current.secret.admits_old_peers()).await?;
        match (self.prove(connection, id, &current.secret).await, previous) {
            // The server may not have the new ticket yet.
            (Err(_), Some(previous)) => {
                let connection = self.connect(id, false).await?;
                self.prove(connection, id, &previous.secret).await
            }
            (proven, _) => proven,
        }
    }

    async fn connect(&self, id: EndpointId, admits_old_peers: bool) -> io::Result<Connection> {
        let old = if admits_old_peers { vec![OLD_ALPN.to_vec()] } else { Vec::new() };
        let options = ConnectOptions::new().with_additional_alpns(old);
        let connecting = self.endpoint.connect_with_opts(id, ALPN, options).await.map_err(|error| failed(&error))?;
        connecting.await.map_err(|error| failed(&error))
    }

    /// Proves the membership to a server, and checks that the server is a member.
    async fn prove(&self, connection: Connection, id: EndpointId, secret: &SwarmSecret) -> io::Result<Stream> {
        let (client, server) = (self.endpoint.id(), id);
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
        if connection.alpn() == OLD_ALPN {
            let proof = secret.old_proof(client, server).ok_or(SecurityError::Stranger)?;
            send.write_all(&proof).await.map_err(|error| failed(&error))?;
            return Ok(self.flusher.stream(connection, send, recv));
        }
        send.write_all(&secret.claim(client, server)).await.map_err(|error| failed(&error))?;
        let mut answer = [0; ANSWER_BYTES];
        recv.read_exact(&mut answer).await.map_err(|error| failed(&error))?;
        secret.check_answer(&answer, client, server)?;
        Ok(self.flusher.stream(connection, send, recv))
    }

    /// Addresses of this machine. An endpoint that is bound to one address is reachable there only.
    pub(super) fn addr(&self) -> EndpointAddr {
        let bound = self.endpoint.bound_sockets().into_iter().filter(|addr| !addr.ip().is_unspecified());
        bound.fold(self.endpoint.addr(), EndpointAddr::with_ip_addr)
    }
}

fn failed(error: &dyn std::error::Error) -> io::Error {
    io::Error::other(in_one_line(error))
}

pub(super) fn peer_name(id: EndpointId) -> String {
    format!("{SCHEME}{id}")
}

pub(super) fn parse_peer_name(name: &str) -> Option<EndpointId> {
    name.strip_prefix(SCHEME)?.parse().ok()
}

pub(super) fn peer(state: &Arc<NodeState>, id: EndpointId) -> Endpoint {
    Endpoint::Custom(Arc::new(Peer { state: Arc::downgrade(state), id }))
}

struct Peer {
    /// Weak, because the node's state holds the endpoints of its members.
    state: Weak<NodeState>,
    id: EndpointId,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Connect for Peer {
    fn name(&self) -> String {
        peer_name(self.id)
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let left = || io::Error::new(io::ErrorKind::NotConnected, "this machine has left the swarm");
            let (state, id) = (self.state.upgrade().ok_or_else(left)?, self.id);
            // The endpoint's operations run on its own runtime.
            let opened = state.flusher.runtime.clone().spawn(async move { state.open(id).await });
            opened.await.map_err(|_| left())?
        })
    }
}
