use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sepal_swarm::{Endpoint, Sighting, Sightings};
use tokio::sync::mpsc;

use crate::discovery::Member;
use crate::record::ServerRecord;

const MAX_TTL: Duration = Duration::from_mins(10);

/// Known servers and the subscribers to their changes.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// By name.
    entries: BTreeMap<String, Entry>,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    #[cfg_attr(not(any(test, feature = "p2p")), expect(dead_code, reason = "mDNS itself reports what expires"))]
    expires_at: Instant,
}

#[derive(Debug)]
struct Subscriber {
    digest: String,
    sightings: mpsc::UnboundedSender<Sighting>,
}

impl Members {
    /// Adds or updates a server, which expires after `ttl` without an update.
    pub(crate) fn update(&mut self, endpoint: Endpoint, record: ServerRecord, ttl: Duration, now: Instant) {
        let (name, digest) = (endpoint.to_string(), record.digest.clone());
        let sighting = Sighting::Present(endpoint.clone());
        let draining = record.draining;
        let expires_at = now + ttl.min(MAX_TTL);
        self.entries.insert(name, Entry { member: Member { endpoint, record }, expires_at });
        // A draining server accepts no new calls, but is still present.
        if !draining {
            self.notify(&digest, &sighting);
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(entry) = self.entries.remove(name) {
            self.notify(&entry.member.record.digest, &Sighting::Gone(name.to_owned()));
        }
    }

    #[cfg(feature = "p2p")]
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    #[cfg(any(test, feature = "p2p"))]
    pub(crate) fn remove_expired(&mut self, now: Instant) {
        let expired = self.entries.iter().filter(|(_, entry)| entry.expires_at <= now);
        let names: Vec<String> = expired.map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.remove(name));
    }

    /// Returns the present and all future servers of a model.
    pub(crate) fn subscribe(&mut self, digest: &str) -> Sightings {
        let (sightings, receiver) = mpsc::unbounded_channel();
        let is_available = |entry: &&Entry| entry.member.record.digest == digest && !entry.member.record.draining;
        for Entry { member, .. } in self.entries.values().filter(is_available) {
            // The receiver is alive.
            let _ = sightings.send(Sighting::Present(member.endpoint.clone()));
        }
        self.subscribers.push(Subscriber { digest: digest.to_owned(), sightings });
        receiver
    }

    pub(crate) fn to_vec(&self) -> Vec<Member> {
        self.entries.values().map(|entry| entry.member.clone()).collect()
    }

    fn notify(&mut self, digest: &str, sighting: &Sighting) {
        // Closed subscriptions are removed.
        self.subscribers.retain(|subscriber| {
            !subscriber.sightings.is_closed()
                && (subscriber.digest != digest || subscriber.sightings.send(sighting.clone()).is_ok())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str) -> Endpoint {
        Endpoint::Addr(name.parse().expect("an address"))
    }

    /// Returns the sightings so far as text.
    fn received(sightings: &mut Sightings) -> Vec<String> {
        let text = |sighting| match sighting {
            Sighting::Present(endpoint) => format!("here {endpoint}"),
            Sighting::Gone(name) => format!("gone {name}"),
        };
        std::iter::from_fn(|| sightings.try_recv().ok()).map(text).collect()
    }

    #[test]
    fn subscription_reports_present_and_future_servers_of_its_model() {
        let (mut members, now, ttl) = (Members::default(), Instant::now(), Duration::from_secs(10));
        members.update(endpoint("a:1"), ServerRecord::sample("x"), ttl, now);
        members.update(endpoint("b:1"), ServerRecord::sample("y"), ttl, now);
        let mut sightings = members.subscribe("x");
        members.update(endpoint("c:1"), ServerRecord::sample("x"), ttl, now);
        members.update(endpoint("d:1"), ServerRecord { draining: true, ..ServerRecord::sample("x") }, ttl, now);
        assert_eq!(received(&mut sightings), ["here a:1", "here c:1"]);
        members.remove("c:1");
        members.remove("b:1");
        assert_eq!(received(&mut sightings), ["gone c:1"]);
    }

    #[test]
    fn server_without_updates_expires() {
        let (mut members, now, ttl) = (Members::default(), Instant::now(), Duration::from_secs(10));
        let mut sightings = members.subscribe("x");
        members.update(endpoint("a:1"), ServerRecord::sample("x"), ttl, now);
        members.update(endpoint("b:1"), ServerRecord::sample("x"), ttl, now + ttl / 2);
        members.remove_expired(now + ttl);
        assert_eq!(received(&mut sightings), ["here a:1", "here b:1", "gone a:1"]);
        let names: Vec<String> = members.to_vec().iter().map(|member| member.endpoint.to_string()).collect();
        assert_eq!(names, ["b:1"]);
    }
}
