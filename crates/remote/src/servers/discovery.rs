use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use sepal_swarm::{Endpoint, Sighting, Sightings};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::registry::Servers;
use crate::connection::Peer;
use crate::error::{CallError, PROTOCOL, RemoteError};
use crate::shared::SharedState;

/// Source of servers.
pub(crate) enum Source {
    /// A fixed list.
    Fixed(Vec<Endpoint>),
    /// Discovery of servers that arrive and leave.
    Discovered(Sightings),
}

impl Source {
    /// True unless there is never more than one server.
    pub(crate) fn may_have_replicas(&self) -> bool {
        match self {
            Self::Fixed(endpoints) => endpoints.len() > 1,
            Self::Discovered(_) => true,
        }
    }
}

impl Servers {
    /// Connects to servers until they hold all blocks. Returns them with the sightings that follow.
    pub(crate) async fn start(source: Source, shared: SharedState) -> Result<(Rc<Self>, Sightings), RemoteError> {
        let servers = Self::new(shared)?;
        let sightings = match source {
            Source::Fixed(endpoints) => {
                servers.connect_all(endpoints).await?;
                // A closed channel: no other servers are sighted.
                mpsc::unbounded_channel().1
            }
            Source::Discovered(sightings) => servers.discover(sightings).await?,
        };
        Ok((servers, sightings))
    }

    /// Connects to all endpoints at once. Unreachable ones are retried in the background if the others hold all blocks.
    async fn connect_all(self: &Rc<Self>, endpoints: Vec<Endpoint>) -> Result<(), RemoteError> {
        let peers: Vec<Rc<Peer>> = endpoints.into_iter().map(|endpoint| self.new_peer(endpoint)).collect();
        let outcomes = join_all(peers.iter().map(|peer| peer.connect())).await;
        let (mut retried, mut unreachable, mut other_model) = (Vec::new(), Vec::new(), None);
        for (peer, outcome) in peers.into_iter().zip(outcomes) {
            match outcome {
                Ok(info) => self.register(peer, &info),
                // Another server may hold its blocks.
                Err(CallError::Unusable(error)) => {
                    tracing::warn!(%error, "a server is not used");
                    unreachable.push(error.to_string());
                    if matches!(&error, RemoteError::WrongModel { what, .. } if *what != PROTOCOL) {
                        other_model.get_or_insert(error);
                    }
                }
                Err(error) => {
                    tracing::warn!(server = %peer.endpoint, %error, "a server could not be reached");
                    unreachable.push(format!("server {} could not be reached ({error})", peer.endpoint));
                    retried.push(peer);
                }
            }
        }
        if let Some(missing) = self.uncovered()? {
            return Err(other_model.unwrap_or(RemoteError::Uncovered { missing, unreachable }));
        }
        for peer in retried {
            tokio::task::spawn_local(Rc::clone(self).keep_connecting(peer, sepal_route::FIRST_BAN));
        }
        Ok(())
    }

    /// Connects to discovered servers until they hold all blocks.
    async fn discover(self: &Rc<Self>, mut sightings: Sightings) -> Result<Sightings, RemoteError> {
        let deadline = Instant::now() + self.options().wait();
        loop {
            let mut arrival = std::pin::pin!(self.arrivals.notified());
            arrival.as_mut().enable();
            let Some(missing) = self.uncovered()? else { return Ok(sightings) };
            tokio::select! {
                () = arrival => {}
                Some(sighting) = sightings.recv() => self.handle_sighting(sighting),
                () = tokio::time::sleep_until(deadline) => {
                    let n_servers = self.infos().len();
                    let were = if n_servers == 1 { "server of this model was" } else { "servers of this model were" };
                    let mut unreachable = vec![format!("{n_servers} {were} found and could be reached")];
                    unreachable.extend(self.unusable.borrow().iter().cloned());
                    return Err(RemoteError::Uncovered { missing, unreachable });
                }
            }
        }
    }

    /// Updates a discovered server, or starts connecting to a new one.
    pub(crate) fn handle_sighting(self: &Rc<Self>, sighting: Sighting) {
        let name = match &sighting {
            Sighting::Present(endpoint) => endpoint.to_string(),
            Sighting::Gone(name) => name.clone(),
        };
        let known = self.discovered.borrow().get(&name).cloned();
        match (known, sighting) {
            (Some(peer), Sighting::Present(_)) => {
                peer.is_gone.set(false);
                peer.sighted.notify_waiters();
            }
            (Some(peer), Sighting::Gone(_)) => {
                peer.is_gone.set(true);
                if !peer.is_registered.get() {
                    self.discovered.borrow_mut().remove(&name);
                    peer.sighted.notify_waiters();
                }
            }
            (None, Sighting::Present(endpoint)) => {
                let peer = self.new_peer(endpoint);
                self.discovered.borrow_mut().insert(name, Rc::clone(&peer));
                tokio::task::spawn_local(Rc::clone(self).keep_connecting(peer, Duration::ZERO));
            }
            (None, Sighting::Gone(_)) => {}
        }
    }

    /// Tries to connect to a server, with backoff, until it succeeds or the server is gone or unusable.
    async fn keep_connecting(self: Rc<Self>, peer: Rc<Peer>, mut delay: Duration) {
        loop {
            peer.until_probe(Instant::now() + delay).await;
            if peer.is_gone.get() {
                return;
            }
            match peer.connect().await {
                // The server left in the meantime. Another sighting makes a new peer.
                Ok(_) if peer.is_gone.get() => return,
                Ok(info) => {
                    tracing::info!(server = %peer.endpoint, span = %info.span, "a server has arrived");
                    return self.register(peer, &info);
                }
                Err(CallError::Unusable(error)) => {
                    // A server that restarts there with another model is sighted again.
                    tracing::warn!(%error, "a server is not used");
                    self.unusable.borrow_mut().insert(error.to_string());
                    self.discovered.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, &peer));
                    return;
                }
                Err(error) => tracing::debug!(server = %peer.endpoint, %error, "a server is still unreachable"),
            }
            delay = (2 * delay).clamp(sepal_route::FIRST_BAN, sepal_route::LONGEST_BAN);
        }
    }
}
