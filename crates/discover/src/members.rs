//! Who is known to be there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sepal_swarm::{Endpoint, Sighting, Sightings};
use tokio::sync::mpsc;

use crate::notice::Notice;

/// The longest that anything said of a server holds.
const LONGEST_TTL: Duration = Duration::from_mins(10);

/// A server that was heard of.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, and how it is reached.
    pub endpoint: Endpoint,
    /// What it last said.
    pub notice: Notice,
}

/// The servers that are known, and those who want to know.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// By name.
    known: BTreeMap<String, Known>,
    listeners: Vec<Listener>,
}

#[derive(Debug)]
struct Known {
    member: Member,
    expires: Instant,
}

#[derive(Debug)]
struct Listener {
    digest: String,
    sightings: mpsc::UnboundedSender<Sighting>,
}

impl Members {
    /// A server said this of itself, and it holds for `ttl`.
    pub(crate) fn heard(&mut self, endpoint: Endpoint, notice: Notice, ttl: Duration, now: Instant) {
        let (name, digest) = (endpoint.to_string(), notice.digest.clone());
        // One that is about to leave takes nothing new, but is not gone.
        let sighting = Sighting::Present(endpoint.clone());
        let draining = notice.draining;
        let expires = now + ttl.min(LONGEST_TTL);
        self.known.insert(name, Known { member: Member { endpoint, notice }, expires });
        if !draining {
            self.tell(&digest, &sighting);
        }
    }

    /// A server has left.
    pub(crate) fn left(&mut self, name: &str) {
        if let Some(known) = self.known.remove(name) {
            self.tell(&known.member.notice.digest, &Sighting::Gone(name.to_owned()));
        }
    }

    /// Whether a server of this name is there.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Forgets those that were not heard of for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        let expired = self.known.iter().filter(|(_, known)| known.expires <= now);
        let names: Vec<String> = expired.map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.left(name));
    }

    /// Those of a model that are there and those that come.
    pub(crate) fn listen(&mut self, digest: &str) -> Sightings {
        let (sightings, receiver) = mpsc::unbounded_channel();
        self.listeners.push(Listener { digest: digest.to_owned(), sightings });
        let is_wanted = |known: &&Known| known.member.notice.digest == digest && !known.member.notice.draining;
        for Known { member, .. } in self.known.values().filter(is_wanted) {
            // The receiver is here.
            let _ = self.listeners[self.listeners.len() - 1].sightings.send(Sighting::Present(member.endpoint.clone()));
        }
        receiver
    }

    /// All that are known, by name.
    pub(crate) fn all(&self) -> Vec<Member> {
        self.known.values().map(|known| known.member.clone()).collect()
    }

    fn tell(&mut self, digest: &str, sighting: &Sighting) {
        // Those that listen no more are forgotten.
        self.listeners.retain(|listener| {
            !listener.sightings.is_closed()
                && (listener.digest != digest || listener.sightings.send(sighting.clone()).is_ok())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str) -> Endpoint {
        Endpoint::Addr(name.parse().expect("an address"))
    }

    /// What has been told, in words.
    fn told(sightings: &mut Sightings) -> Vec<String> {
        let text = |sighting| match sighting {
            Sighting::Present(endpoint) => format!("here {endpoint}"),
            Sighting::Gone(name) => format!("gone {name}"),
        };
        std::iter::from_fn(|| sightings.try_recv().ok()).map(text).collect()
    }

    #[test]
    fn listeners_hear_of_their_model_alone_and_of_what_was_there_before() {
        let (mut members, now, ttl) = (Members::default(), Instant::now(), Duration::from_secs(10));
        members.heard(endpoint("a:1"), Notice::sample("x"), ttl, now);
        members.heard(endpoint("b:1"), Notice::sample("y"), ttl, now);
        let mut sightings = members.listen("x");
        members.heard(endpoint("c:1"), Notice::sample("x"), ttl, now);
        members.heard(endpoint("d:1"), Notice { draining: true, ..Notice::sample("x") }, ttl, now);
        assert_eq!(told(&mut sightings), ["here a:1", "here c:1"]);
        members.left("c:1");
        members.left("b:1");
        assert_eq!(told(&mut sightings), ["gone c:1"]);
    }

    #[test]
    fn who_is_not_heard_of_is_forgotten() {
        let (mut members, now, ttl) = (Members::default(), Instant::now(), Duration::from_secs(10));
        let mut sightings = members.listen("x");
        members.heard(endpoint("a:1"), Notice::sample("x"), ttl, now);
        members.heard(endpoint("b:1"), Notice::sample("x"), ttl, now + ttl / 2);
        members.expire(now + ttl);
        assert_eq!(told(&mut sightings), ["here a:1", "here b:1", "gone a:1"]);
        let names: Vec<String> = members.all().iter().map(|member| member.endpoint.to_string()).collect();
        assert_eq!(names, ["b:1"]);
    }
}
