//! Epochs of a node: the secret and the announcements of the present one, and for a time those of the one before.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::EndpointId;
use iroh::endpoint::Connection;
use iroh_gossip::api::{GossipReceiver, GossipSender};
use iroh_gossip::net::Gossip;
use sepal_core::in_one_line;
use sepal_swarm::proof::{Answer, Claim};
use sepal_swarm::{AcceptedSecrets, Rights, SecurityError, WatchedFile};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::gossip::handle_events;
use super::node::NodeError;
use super::state::{ALPN, NodeState, OLD_ALPN};
use super::ticket::{SwarmSecret, Ticket};
use crate::lock::lock;

/// Time after the adoption of a new ticket in which a node still belongs to the epoch before. It is measured by a clock that
/// does not step.
pub(super) const GRACE: Duration = Duration::from_mins(10);
/// Interval of the looks at the file of a ticket.
const TICKET_INTERVAL: Duration = Duration::from_millis(500);
/// Timeout of the departure from an epoch, whose members may be gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Secret of an epoch, and the announcements that only its members receive.
pub(super) struct Epoch {
    pub(super) secret: SwarmSecret,
    pub(super) sender: GossipSender,
    /// Number of members with which announcements are exchanged directly.
    pub(super) neighbours: watch::Sender<usize>,
    /// Cancelled when the node leaves the epoch.
    pub(super) departure: CancellationToken,
    gossip: Gossip,
}

impl Epoch {
    /// Joins the announcements of an epoch by these members.
    pub(super) async fn join(
        secret: SwarmSecret,
        endpoint: &iroh::Endpoint,
        members: Vec<EndpointId>,
    ) -> Result<(Self, GossipReceiver), NodeError> {
        let gossip = Gossip::builder().alpn(secret.gossip_alpn()).spawn(endpoint.clone());
        let topic = gossip.subscribe(secret.topic(), members).await;
        let (sender, receiver) = topic.map_err(|error| NodeError::Gossip(error.to_string()))?.split();
        let (neighbours, departure) = (watch::Sender::new(0), CancellationToken::new());
        Ok((Self { secret, sender, neighbours, departure, gossip }, receiver))
    }

    /// Leaves the announcements of the epoch, and tells its members in the background.
    fn leave(self: Arc<Self>) {
        self.departure.cancel();
        tokio::spawn(async move {
            if !matches!(tokio::time::timeout(LEAVE_TIMEOUT, self.gossip.shutdown()).await, Ok(Ok(()))) {
                tracing::debug!("the members of an earlier epoch were not told of the departure");
            }
        });
    }
}

/// Epochs to which a node belongs.
#[derive(Clone)]
pub(super) struct Epochs {
    pub(super) current: Arc<Epoch>,
    pub(super) previous: Option<Arc<Epoch>>,
}

impl Epochs {
    pub(super) fn new(current: Arc<Epoch>) -> Self {
        Self { current, previous: None }
    }

    /// The present epoch and then the one before.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Epoch>> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Secrets of the clients that the node accepts as a server.
    pub(super) fn accepted(&self) -> AcceptedSecrets {
        self.current.secret.accepted(self.previous.as_ref().map(|previous| &previous.secret))
    }

    /// Returns the secret that admits a client with this claim, the client's rights and the answer.
    pub(super) fn check_claim(
        &self,
        claim: &Claim,
        client: EndpointId,
        server: EndpointId,
    ) -> Result<(&SwarmSecret, Rights, Answer), SecurityError> {
        let current = &self.current.secret;
        match (current.check_claim(claim, client, server), &self.previous) {
            (Err(error @ SecurityError::Epoch { .. }), Some(previous)) => {
                let checked = previous.secret.check_claim(claim, client, server);
                let (rights, answer) = checked.map_err(|_| error)?;
                Ok((&previous.secret, rights, answer))
            }
            (checked, _) => checked.map(|(rights, answer)| (current, rights, answer)),
        }
    }
}

/// Returns the names of the protocols that a node with these secrets accepts.
pub(super) fn alpns<'a>(secrets: impl IntoIterator<Item = &'a SwarmSecret>) -> Vec<Vec<u8>> {
    let gossip = secrets.into_iter().map(SwarmSecret::gossip_alpn);
    [ALPN.to_vec(), OLD_ALPN.to_vec()].into_iter().chain(gossip).collect()
}

/// Looks at the file of a ticket again and again, and moves the node to a later epoch that it holds.
pub(super) async fn follow_ticket(state: Arc<NodeState>, path: PathBuf, grace: Duration) {
    let mut file = WatchedFile::new(path);
    let mut grace_end: Option<Instant> = None;
    loop {
        if file.has_changed() {
            match state.adopt_file(&file).await {
                Ok(true) => grace_end = Some(Instant::now() + grace),
                Ok(false) => {}
                Err(problem) if file.retry(&problem) => {
                    let path = file.path().display();
                    tracing::warn!("continuing with the earlier ticket, without a revocation: {path}: {problem}");
                }
                Err(_) => {}
            }
        }
        if grace_end.is_some_and(|end| Instant::now() >= end) {
            grace_end = None;
            state.leave_previous();
        }
        tokio::time::sleep(TICKET_INTERVAL).await;
    }
}

impl NodeState {
    pub(super) fn epochs(&self) -> Epochs {
        lock(&self.epochs).clone()
    }

    /// Hands a neighbour's connection to the announcements of its epoch.
    pub(super) async fn accept_neighbour(&self, connection: Connection) {
        let epochs = self.epochs();
        let Some(epoch) = epochs.iter().find(|epoch| epoch.secret.gossip_alpn() == connection.alpn()) else { return };
        if let Err(error) = epoch.gossip.handle_connection(connection).await {
            tracing::debug!(%error, "a neighbour's connection ended");
        }
    }

    /// Moves to the epoch of the ticket in a file. Returns false if the node is in that epoch already.
    async fn adopt_file(self: &Arc<Self>, file: &WatchedFile) -> Result<bool, String> {
        let ticket = Ticket::read_file(file.path()).map_err(|error| in_one_line(&error))?;
        let Epochs { current, previous } = self.epochs();
        if !ticket.secret.replaces(&current.secret)? {
            return Ok(false);
        }
        for addr in ticket.members.iter().filter(|addr| addr.id != self.endpoint.id()) {
            self.addresses.add_endpoint_info(addr.clone());
            lock(&self.bootstrap).entry(addr.id).or_insert(None);
        }
        let members = lock(&self.bootstrap).keys().copied().collect();
        let joined = Epoch::join(ticket.secret, &self.endpoint, members).await;
        let (next, receiver) = joined.map_err(|error| in_one_line(&error))?;
        let next = Arc::new(next);
        let is_accepted = current.secret.is_accepted_beside(&next.secret);
        let (beside_next, ended) = if is_accepted { (Some(current), None) } else { (None, Some(current)) };
        self.set_epochs(Epochs { current: Arc::clone(&next), previous: beside_next });
        let epoch = next.secret.epoch();
        match is_accepted {
            true => tracing::info!("the ticket is of epoch {epoch} now; the one before is accepted for a time"),
            false => tracing::info!("the ticket is of epoch {epoch} now; all earlier ones have ended"),
        }
        // It announces the local server to each neighbour that it finds.
        tokio::spawn(handle_events(Arc::clone(self), next, receiver));
        previous.into_iter().chain(ended).for_each(Epoch::leave);
        Ok(true)
    }

    /// Ends the epoch before the present one.
    fn leave_previous(&self) {
        let Epochs { current, previous } = self.epochs();
        let Some(previous) = previous else { return };
        let epoch = previous.secret.epoch();
        self.set_epochs(Epochs::new(current));
        tracing::info!("tickets of epoch {epoch} have ended");
        previous.leave();
    }

    /// Replaces the epochs, which revokes the tickets of others.
    fn set_epochs(&self, epochs: Epochs) {
        self.endpoint.set_alpns(alpns(epochs.iter().map(|epoch| &epoch.secret)));
        // Before the epochs, since a client of the next one would be revoked as soon as it is admitted.
        self.accepted.send_replace(epochs.accepted());
        *lock(&self.epochs) = epochs;
    }
}
