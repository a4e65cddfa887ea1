//! What members say to each other, and hear.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use iroh::{EndpointAddr, EndpointId};
use iroh_gossip::api::{Event, GossipReceiver};

use super::announcement::{Announcement, Saying};
use super::node::{Shared, name, peer};
use crate::lock;
use crate::notice::Notice;

/// How often a server says that it is there, and how long that holds.
const EVERY: Duration = Duration::from_secs(5);
const TTL: Duration = Duration::from_secs(16);
/// How long what is known of members that are not heard of is kept.
const REMEMBER: Duration = Duration::from_mins(10);
/// How many lost members are looked for at a time.
const SOME: usize = 4;
/// How long nobody who asks is answered after something was said.
const SAY_AGAIN: Duration = Duration::from_millis(500);

pub(super) type Describe = Arc<dyn Fn() -> Option<Notice> + Send + Sync>;

/// What this machine says of itself.
#[derive(Default)]
pub(super) struct Own {
    pub(super) describe: Option<Describe>,
    last_number: u64,
    said_at: Option<Instant>,
    /// An answer to whoever asks is on its way.
    will_say: bool,
}

/// Hears what is said.
pub(super) async fn listen(shared: Arc<Shared>, mut receiver: GossipReceiver) {
    while let Some(event) = receiver.next().await {
        match event {
            Ok(Event::NeighborUp(_)) => {
                shared.neighbours.send_modify(|n| *n += 1);
                // Whoever has just come knows nobody, and we may be the one who has.
                shared.say(Saying::Hello).await;
                shared.say_here().await;
            }
            Ok(Event::NeighborDown(_)) => shared.neighbours.send_modify(|n| *n = n.saturating_sub(1)),
            Ok(Event::Received(message)) => shared.hear(&message.content).await,
            Ok(Event::Lagged) => tracing::warn!("some announcements of the swarm were missed"),
            Err(error) => {
                tracing::warn!(%error, "the swarm's announcements are heard no longer");
                return;
            }
        }
    }
}

/// Says at intervals that this server is there, forgets those that do not, and looks for those that are lost.
pub(super) async fn tick(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(EVERY).await;
        shared.say_here().await;
        lock(&shared.members).expire(Instant::now());
        shared.forget();
        // Those who are gone may be back, or may be all there without us: a swarm that was split finds together again.
        let peers = shared.lost();
        if !peers.is_empty()
            && let Err(error) = shared.sender.join_peers(peers).await
        {
            tracing::debug!(%error, "no neighbour");
        }
    }
}

impl Shared {
    /// Members to look for: all that are known of, if there is no neighbour; else some that are not heard of any more.
    fn lost(&self) -> Vec<EndpointId> {
        let has_neighbour = *self.neighbours.borrow() > 0;
        let known: Vec<EndpointId> = lock(&self.bootstrap).keys().copied().collect();
        let members = lock(&self.members);
        let lost = known.into_iter().filter(|id| !has_neighbour || !members.knows(&name(*id)));
        lost.take(if has_neighbour { SOME } else { usize::MAX }).collect()
    }

    /// Forgets members that were not heard of for long, but for those of the ticket.
    fn forget(&self) {
        let is_recent = |at: Instant| at.elapsed() < REMEMBER;
        lock(&self.numbers).retain(|_, (_, at)| is_recent(*at));
        lock(&self.bootstrap).retain(|id, heard| {
            let keeps = heard.is_none_or(is_recent);
            if !keeps {
                self.book.remove_endpoint_info(*id);
            }
            keeps
        });
    }

    pub(super) async fn say_here(&self) {
        let describe = lock(&self.own).describe.clone();
        let Some(notice) = describe.and_then(|describe| describe()) else { return };
        lock(&self.own).said_at = Some(Instant::now());
        let addrs = self.addr().addrs.into_iter().collect();
        self.say(Saying::Here { notice, addrs, ttl_ms: TTL.as_millis() as u64 }).await;
    }

    /// Says that the server here is there: once for all who ask within a moment.
    fn answer_hello(self: &Arc<Self>) {
        let mut own = lock(&self.own);
        if std::mem::replace(&mut own.will_say, true) {
            return;
        }
        let pause = own.said_at.map_or(Duration::ZERO, |at| SAY_AGAIN.saturating_sub(at.elapsed()));
        let shared = Arc::clone(self);
        self.ends.runtime.spawn(async move {
            tokio::time::sleep(pause).await;
            lock(&shared.own).will_say = false;
            shared.say_here().await;
        });
    }

    pub(super) async fn say(&self, saying: Saying) {
        let announcement = {
            let mut own = lock(&self.own);
            let announcement = Announcement::new(saying, own.last_number);
            own.last_number = announcement.number;
            announcement
        };
        let message = match announcement.sign(self.endpoint.secret_key(), self.secret.topic()) {
            Ok(message) => message,
            Err(error) => return tracing::error!(%error, "an announcement cannot be written"),
        };
        if let Err(error) = self.sender.broadcast(message).await {
            tracing::debug!(%error, "an announcement was not sent");
        }
    }

    async fn hear(self: &Arc<Self>, message: &[u8]) {
        let Some((speaker, announcement)) = Announcement::verify(message, self.secret.topic()) else {
            return tracing::debug!("an announcement that nobody has signed");
        };
        let Announcement { number, saying } = announcement;
        {
            // What was said before is not believed again.
            let mut numbers = lock(&self.numbers);
            if numbers.get(&speaker).is_some_and(|(last, _)| number <= *last) {
                return;
            }
            numbers.insert(speaker, (number, Instant::now()));
        }
        match saying {
            Saying::Here { notice, addrs, ttl_ms } => {
                self.book.set_endpoint_info(EndpointAddr::from_parts(speaker, addrs));
                let mut bootstrap = lock(&self.bootstrap);
                let heard = bootstrap.entry(speaker).or_insert(Some(Instant::now()));
                *heard = heard.map(|_| Instant::now());
                drop(bootstrap);
                let ttl = Duration::from_millis(ttl_ms);
                lock(&self.members).heard(peer(self, speaker), notice, ttl, Instant::now());
            }
            Saying::Gone => lock(&self.members).left(&name(speaker)),
            Saying::Hello => self.answer_hello(),
        }
    }
}
