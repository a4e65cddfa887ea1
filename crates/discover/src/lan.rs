//! Servers on the local network, by multicast DNS.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use sepal_swarm::{Addr, Endpoint, Sightings};
use tokio::sync::watch;

use crate::members::{Member, Members};
use crate::notice::Notice;
use crate::{Discovery, lock};

const SERVICE: &str = "_sepal._tcp.local.";
/// How often a server looks whether what it says of itself has changed, and how often it says it anyway.
const LOOK: Duration = Duration::from_secs(2);
const SAY: Duration = Duration::from_secs(20);
/// Goodbyes are waited for so long.
const GOODBYE: Duration = Duration::from_millis(500);

/// Multicast DNS that does not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LanError {
    /// The system, or the packets' format, does not allow it.
    #[error("look for servers on the local network")]
    Mdns(#[from] mdns_sd::Error),
    /// No thread.
    #[error("start a thread")]
    Thread(#[from] io::Error),
}

/// The servers of the local network. Dropping it ends the search, and takes back what was announced.
pub struct Lan {
    daemon: ServiceDaemon,
    /// Told apart from all others by this.
    id: String,
    members: Arc<Mutex<Members>>,
    announced: Mutex<Option<Announced>>,
}

struct Announced {
    fullname: String,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Lan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lan")
    }
}

impl Lan {
    /// Begins to look; on one interface (its name, or one of its addresses) or on all.
    ///
    /// # Errors
    /// [`LanError`].
    pub fn start(interface: Option<&str>) -> Result<Self, LanError> {
        let daemon = ServiceDaemon::new()?;
        if let Some(name) = interface {
            daemon.disable_interface(IfKind::All)?;
            let kind = match name.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) if ip.is_loopback() => IfKind::LoopbackV4,
                Ok(ip) => IfKind::Addr(ip),
                Err(_) => IfKind::Name(name.to_owned()),
            };
            daemon.enable_interface(kind)?;
        }
        let events = daemon.browse(SERVICE)?;
        let id = format!("sepal-{:016x}", rand::random::<u64>());
        let own = format!("{id}.{SERVICE}");
        let members = Arc::new(Mutex::new(Members::default()));
        let mut seen = Seen { members: Arc::clone(&members), names: HashMap::new() };
        // It ends with the daemon.
        thread::Builder::new().name("sepal-lan".into()).spawn(move || {
            for event in events {
                match event {
                    // What it says itself comes back to it.
                    ServiceEvent::ServiceResolved(service) if service.get_fullname() != own => {
                        if let Some((endpoint, notice)) = read(&service) {
                            seen.heard(service.get_fullname(), endpoint, notice);
                        }
                    }
                    ServiceEvent::ServiceRemoved(_, fullname) => seen.removed(&fullname),
                    _ => {}
                }
            }
        })?;
        Ok(Self { daemon, id, members, announced: Mutex::default() })
    }

    /// Tells the network of a server that listens at `addr`, from now on and as it changes.
    ///
    /// # Errors
    /// [`LanError`].
    pub fn announce(
        &self,
        addr: SocketAddr,
        describe: impl Fn() -> Option<Notice> + Send + 'static,
    ) -> Result<(), LanError> {
        let Some(notice) = describe() else { return Ok(()) };
        let service = write(&self.id, addr, &notice)?;
        let fullname = service.get_fullname().to_owned();
        self.daemon.register(service)?;
        let (stop, mut stopped) = watch::channel(false);
        let (daemon, id) = (self.daemon.clone(), self.id.clone());
        let thread = thread::Builder::new().name("sepal-lan-say".into()).spawn(move || {
            let (mut said, mut said_at) = (notice, Instant::now());
            while !wait(&mut stopped, LOOK) {
                let Some(notice) = describe() else { continue };
                let has_changed = (notice.span, notice.draining) != (said.span, said.draining);
                if !has_changed && said_at.elapsed() < SAY {
                    continue;
                }
                if let Err(error) = write(&id, addr, &notice).map(|service| daemon.register(service)) {
                    tracing::debug!(%error, "an announcement was not sent");
                }
                (said, said_at) = (notice, Instant::now());
            }
        })?;
        *lock(&self.announced) = Some(Announced { fullname, stop, thread });
        Ok(())
    }
}

/// Which server each announcement is of.
struct Seen {
    members: Arc<Mutex<Members>>,
    names: HashMap<String, String>,
}

impl Seen {
    fn heard(&mut self, fullname: &str, endpoint: Endpoint, notice: Notice) {
        let name = endpoint.to_string();
        if self.names.get(fullname).is_some_and(|before| *before != name) {
            self.removed(fullname);
        }
        self.names.insert(fullname.to_owned(), name);
        lock(&self.members).heard(endpoint, notice, Duration::MAX, Instant::now());
    }

    /// The server has left, unless it, or another at its place, is announced under another name as well.
    fn removed(&mut self, fullname: &str) {
        let Some(name) = self.names.remove(fullname) else { return };
        if !self.names.values().any(|other| *other == name) {
            lock(&self.members).left(&name);
        }
    }
}

impl Discovery for Lan {
    fn members(&self) -> Vec<Member> {
        lock(&self.members).all()
    }

    fn sightings(&self, digest: &str) -> Sightings {
        lock(&self.members).listen(digest)
    }

    fn withdraw(&self) {
        let Some(Announced { fullname, stop, thread }) = lock(&self.announced).take() else { return };
        stop.send_replace(true);
        if thread.join().is_err() {
            tracing::error!("the thread that announces panicked");
        }
        if let Ok(said) = self.daemon.unregister(&fullname) {
            // Others find out by themselves otherwise.
            let _ = said.recv_timeout(GOODBYE);
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.withdraw();
        if let Ok(done) = self.daemon.shutdown() {
            let _ = done.recv_timeout(GOODBYE);
        }
    }
}

/// Waits so long, or until told to stop; says whether it was.
fn wait(stopped: &mut watch::Receiver<bool>, time: Duration) -> bool {
    const STEP: Duration = Duration::from_millis(50);
    let until = Instant::now() + time;
    while Instant::now() < until {
        if *stopped.borrow_and_update() {
            return true;
        }
        thread::sleep(STEP);
    }
    *stopped.borrow()
}

fn write(id: &str, addr: SocketAddr, notice: &Notice) -> Result<ServiceInfo, mdns_sd::Error> {
    let (instance, host) = (id, format!("{id}.local."));
    let number = |n: f64| format!("{n:e}");
    let properties = [
        ("digest", notice.digest.clone()),
        ("family", notice.family.clone()),
        ("blocks", notice.n_blocks.to_string()),
        ("span", notice.span.to_string()),
        ("dtype", notice.dtype.to_string()),
        ("rate", number(notice.rate)),
        ("queue", notice.queue.to_string()),
        ("tapes", notice.free_tape_bytes.to_string()),
        ("draining", u8::from(notice.draining).to_string()),
        ("software", notice.software.clone()),
    ];
    match addr.ip() {
        ip if ip.is_unspecified() => {
            Ok(ServiceInfo::new(SERVICE, instance, &host, (), addr.port(), &properties[..])?.enable_addr_auto())
        }
        ip => ServiceInfo::new(SERVICE, instance, &host, ip, addr.port(), &properties[..]),
    }
}

/// A server, if the record is of one and tells where it is.
fn read(service: &ResolvedService) -> Option<(Endpoint, Notice)> {
    let text = |key| service.get_property_val_str(key);
    let notice = Notice {
        digest: text("digest")?.to_owned(),
        family: text("family")?.to_owned(),
        n_blocks: text("blocks")?.parse().ok()?,
        span: text("span")?.parse().ok()?,
        dtype: text("dtype")?.parse().ok()?,
        rate: text("rate")?.parse().ok()?,
        queue: text("queue")?.parse().ok()?,
        free_tape_bytes: text("tapes")?.parse().ok()?,
        draining: text("draining")? == "1",
        software: text("software")?.to_owned(),
    };
    let mut addresses: Vec<IpAddr> = service.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
    // Of several the one that others can reach, too, and always the same. A link-local one is nothing without its link.
    addresses.retain(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    addresses.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    let addr = SocketAddr::new(*addresses.first()?, service.get_port());
    Some((Endpoint::Addr(Addr::Tcp(addr.to_string())), notice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice {
        Notice { draining: true, ..Notice::sample("x") }
    }

    fn endpoint(name: &str) -> Endpoint {
        Endpoint::Addr(name.parse().expect("an address"))
    }

    #[test]
    fn a_record_says_what_was_announced() {
        let addr: SocketAddr = "10.0.0.5:4000".parse().expect("an address");
        let service = write("sepal-1", addr, &notice()).expect("a record").as_resolved_service();
        let (endpoint, found) = read(&service).expect("a server");
        assert_eq!((endpoint.to_string(), found), ("10.0.0.5:4000".to_owned(), notice()));
    }

    #[test]
    fn a_server_is_known_once_whatever_its_announcements_are_called() {
        let mut seen = Seen { members: Arc::default(), names: HashMap::new() };
        let names = |seen: &Seen| -> Vec<String> {
            lock(&seen.members).all().iter().map(|member| member.endpoint.to_string()).collect()
        };
        seen.heard("one", endpoint("a:1"), notice());
        seen.heard("one", endpoint("b:1"), notice());
        assert_eq!(names(&seen), ["b:1"], "it has another address now");
        // Started again at the same place: the old name is forgotten later.
        seen.heard("two", endpoint("b:1"), notice());
        seen.removed("one");
        assert_eq!(names(&seen), ["b:1"]);
        seen.removed("two");
        assert!(names(&seen).is_empty());
    }
}
