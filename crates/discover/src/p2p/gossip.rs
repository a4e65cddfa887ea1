//! Announcements that a node sends and receives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use iroh::{EndpointAddr, EndpointId};
use iroh_gossip::api::{Event, GossipReceiver};

use super::announcement::{Announcement, Message};
use super::epochs::Epoch;
use super::state::{NodeState, peer, peer_name};
use crate::lock::lock;

/// Interval between announcements of a server, and their lifetime.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
const ANNOUNCEMENT_TTL: Duration = Duration::from_secs(16);
/// Time for which a silent member is remembered.
const MEMORY: Duration = Duration::from_mins(10);
const MAX_CONTACTS: usize = 4;
/// Minimum time between an announcement and an answer to a request.
const ANSWER_DELAY: Duration = Duration::from_millis(500);

/// Handles the announcements of an epoch until the node leaves it.
pub(super) async fn handle_events(state: Arc<NodeState>, epoch: Arc<Epoch>, mut receiver: GossipReceiver) {
    while let Some(Some(event)) = epoch.departure.run_until_cancelled(receiver.next()).await {
        match event {
            Ok(Event::NeighborUp(_)) => {
                epoch.neighbours.send_modify(|n| *n += 1);
                // Either side may be new to the swarm, so the node both asks and announces.
                state.broadcast(Message::Hello).await;
                state.announce().await;
            }
            Ok(Event::NeighborDown(_)) => epoch.neighbours.send_modify(|n| *n = n.saturating_sub(1)),
            Ok(Event::Received(message)) => state.handle(&epoch, &message.content),
            Ok(Event::Lagged) => tracing::warn!("some announcements of the swarm were missed"),
            Err(error) => {
                tracing::warn!(%error, "the swarm's announcements are no longer received");
                return;
            }
        }
    }
}

/// Announces the local server, expires members and contacts lost ones, at intervals.
pub(super) async fn run_loop(state: Arc<NodeState>) {
    loop {
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
        state.announce().await;
        lock(&state.members).remove_expired(Instant::now());
        state.forget_silent_members();
        // Lost members may have returned, or form the other half of a swarm that was split.
        for epoch in state.epochs().iter() {
            let peers = state.lost_members(epoch);
            if !peers.is_empty()
                && let Err(error) = epoch.sender.join_peers(peers).await
            {
                tracing::debug!(%error, "no neighbour");
            }
        }
    }
}

impl NodeState {
    /// Returns members to contact: all without a neighbour in the epoch, else some that are silent.
    fn lost_members(&self, epoch: &Epoch) -> Vec<EndpointId> {
        let has_neighbour = *epoch.neighbours.borrow() > 0;
        let known: Vec<EndpointId> = lock(&self.bootstrap).keys().copied().collect();
        let members = lock(&self.members);
        let lost = known.into_iter().filter(|id| !has_neighbour || !members.contains(&peer_name(*id)));
        lost.take(if has_neighbour { MAX_CONTACTS } else { usize::MAX }).collect()
    }

    /// Forgets members that were silent for long, except those of the ticket.
    fn forget_silent_members(&self) {
        let is_recent = |time: Instant| time.elapsed() < MEMORY;
        lock(&self.sequences).retain(|_, (_, time)| is_recent(*time));
        lock(&self.bootstrap).retain(|id, announced_at| {
            let is_kept = announced_at.is_none_or(is_recent);
            if !is_kept {
                self.addresses.remove_endpoint_info(*id);
            }
            is_kept
        });
    }

    pub(super) async fn announce(&self) {
        let describe = lock(&self.local_server).describe.clone();
        let Some(record) = describe.and_then(|describe| describe()) else { return };
        lock(&self.local_server).announced_at = Some(Instant::now());
        let addrs = self.addr().addrs.into_iter().collect();
        self.broadcast(Message::Here { record, addrs, ttl_ms: ANNOUNCEMENT_TTL.as_millis() as u64 }).await;
    }

    /// Schedules one announcement for all requests within a short time.
    fn schedule_answer(self: &Arc<Self>) {
        let mut local_server = lock(&self.local_server);
        if std::mem::replace(&mut local_server.is_answer_scheduled, true) {
            return;
        }
        let announced_at = local_server.announced_at;
        let delay = announced_at.map_or(Duration::ZERO, |time| ANSWER_DELAY.saturating_sub(time.elapsed()));
        let state = Arc::clone(self);
        self.flusher.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            lock(&state.local_server).is_answer_scheduled = false;
            state.announce().await;
        });
    }

    /// Sends a message to the members of all epochs of the node. Those of several use it once, as its sequence number is the
    /// same.
    pub(super) async fn broadcast(&self, message: Message) {
        let announcement = {
            let mut local_server = lock(&self.local_server);
            Announcement { sequence: local_server.sequence.next(), message }
        };
        for epoch in self.epochs().iter() {
            let signed = match announcement.sign(self.endpoint.secret_key(), epoch.secret.topic()) {
                Ok(signed) => signed,
                Err(error) => return tracing::error!(%error, "an announcement cannot be encoded"),
            };
            if let Err(error) = epoch.sender.broadcast(signed).await {
                tracing::debug!(%error, "an announcement was not sent");
            }
        }
    }

    fn handle(self: &Arc<Self>, epoch: &Epoch, signed: &[u8]) {
        let Some((sender, announcement)) = Announcement::verify(signed, epoch.secret.topic()) else {
            return tracing::debug!("an announcement has no valid signature");
        };
        let Announcement { sequence, message } = announcement;
        {
            // Refuses replays of earlier announcements.
            let mut sequences = lock(&self.sequences);
            if sequences.get(&sender).is_some_and(|(last, _)| sequence <= *last) {
                return;
            }
            sequences.insert(sender, (sequence, Instant::now()));
        }
        match message {
            Message::Here { record, addrs, ttl_ms } => {
                self.addresses.set_endpoint_info(EndpointAddr::from_parts(sender, addrs));
                let mut bootstrap = lock(&self.bootstrap);
                let announced_at = bootstrap.entry(sender).or_insert(Some(Instant::now()));
                *announced_at = announced_at.map(|_| Instant::now());
                drop(bootstrap);
                let ttl = Duration::from_millis(ttl_ms);
                lock(&self.members).update(peer(self, sender), record, ttl, Instant::now());
            }
            Message::Gone => lock(&self.members).remove(&peer_name(sender)),
            Message::Hello => self.schedule_answer(),
        }
    }
}
