//! Discovery on the local network by multicast DNS.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use sepal_core::{NotBuilt, ServerName};
use sepal_swarm::{Addr, ClientSecurity, Dial, Endpoint, Sightings};

use crate::discovery::{Discovery, Member};
use crate::lock::lock;
use crate::members::Members;
use crate::record::ServerRecord;

/// No error, because the build has this discovery.
pub const NOT_BUILT: Option<NotBuilt> = None;

const SERVICE: &str = "_sepal._tcp.local.";
/// Interval between checks for a changed record.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between announcements of an unchanged record.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(20);
/// Most services that are listed. Any machine of the network can announce any number.
const MAX_SERVICES: usize = 1024;
const WITHDRAW_TIMEOUT: Duration = Duration::from_millis(500);

/// Error of multicast DNS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LanError {
    /// Failure of the system or of the record's encoding.
    #[error("look for servers on the local network")]
    Mdns(#[from] mdns_sd::Error),
    /// Failure to start a thread.
    #[error("start a thread")]
    Thread(#[from] io::Error),
}

/// Discovery on the local network. Dropping it ends the search and withdraws the announcement.
pub struct Lan {
    daemon: ServiceDaemon,
    /// Unique name of the service instance.
    id: String,
    members: Arc<Mutex<Members>>,
    announcement: Mutex<Option<Announcement>>,
}

struct Announcement {
    fullname: String,
    /// Dropping it ends the thread.
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Lan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lan")
    }
}

impl Lan {
    /// Starts the search on one interface, given by its name or an address, or on all. Connections to the servers that it finds
    /// are secured, if there is a secret.
    ///
    /// # Errors
    /// [`LanError`] if multicast DNS is not available.
    pub fn start(interface: Option<&str>, security: Option<ClientSecurity>) -> Result<Self, LanError> {
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
        let own_fullname = format!("{id}.{SERVICE}");
        let members = Arc::new(Mutex::new(Members::default()));
        let mut services = ResolvedServices { members: Arc::clone(&members), names: HashMap::new() };
        // The thread ends with the daemon.
        thread::Builder::new().name("sepal-lan".into()).spawn(move || {
            for event in events {
                match event {
                    // The daemon also reports its own announcement.
                    ServiceEvent::ServiceResolved(service) if service.get_fullname() != own_fullname => {
                        if let Some((addr, record)) = read_service(&service) {
                            let endpoint = match &security {
                                Some(security) => security.endpoint(addr, None),
                                None => Endpoint::Addr(addr),
                            };
                            services.update(service.get_fullname(), endpoint, record);
                        }
                    }
                    ServiceEvent::ServiceRemoved(_, fullname) => services.remove(&fullname),
                    _ => {}
                }
            }
        })?;
        Ok(Self { daemon, id, members, announcement: Mutex::default() })
    }

    /// Announces a server that listens on `addr`, now and after each change of its record.
    ///
    /// # Errors
    /// [`LanError`] if the announcement cannot be sent.
    pub fn announce(
        &self,
        addr: SocketAddr,
        describe: impl Fn() -> Option<ServerRecord> + Send + 'static,
    ) -> Result<(), LanError> {
        let Some(record) = describe() else { return Ok(()) };
        let service = write_service(&self.id, addr, &record)?;
        let fullname = service.get_fullname().to_owned();
        self.daemon.register(service)?;
        let (stop, stopped) = mpsc::channel();
        let (daemon, id) = (self.daemon.clone(), self.id.clone());
        let thread = thread::Builder::new().name("sepal-lan-announce".into()).spawn(move || {
            let (mut announced, mut announced_at) = (record, Instant::now());
            while stopped.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(record) = describe() else { continue };
                let has_changed = (record.span, record.draining) != (announced.span, announced.draining);
                if !has_changed && announced_at.elapsed() < ANNOUNCE_INTERVAL {
                    continue;
                }
                if let Err(error) = write_service(&id, addr, &record).map(|service| daemon.register(service)) {
                    tracing::debug!(%error, "an announcement was not sent");
                }
                (announced, announced_at) = (record, Instant::now());
            }
        })?;
        *lock(&self.announcement) = Some(Announcement { fullname, stop, thread });
        Ok(())
    }
}

/// Resolved services and the names of their servers.
struct ResolvedServices {
    members: Arc<Mutex<Members>>,
    /// By service name.
    names: HashMap<String, String>,
}

impl ResolvedServices {
    fn update(&mut self, fullname: &str, endpoint: Endpoint, record: ServerRecord) {
        if self.names.len() >= MAX_SERVICES && !self.names.contains_key(fullname) {
            return tracing::debug!("there are more than {MAX_SERVICES} servers on the local network");
        }
        let name = endpoint.to_string();
        if self.names.get(fullname).is_some_and(|previous| *previous != name) {
            self.remove(fullname);
        }
        self.names.insert(fullname.to_owned(), name);
        lock(&self.members).update(endpoint, record, Duration::MAX, Instant::now());
    }

    /// Removes a service, and its server unless another service announces the same address.
    fn remove(&mut self, fullname: &str) {
        let Some(name) = self.names.remove(fullname) else { return };
        if !self.names.values().any(|other| *other == name) {
            lock(&self.members).remove(&name);
        }
    }
}

impl Discovery for Lan {
    fn members(&self) -> Vec<Member> {
        lock(&self.members).to_vec()
    }

    fn sightings(&self, digest: &str) -> Sightings {
        lock(&self.members).subscribe(digest)
    }

    fn withdraw(&self) {
        let Some(Announcement { fullname, stop, thread }) = lock(&self.announcement).take() else { return };
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("the announcement thread panicked");
        }
        if let Ok(done) = self.daemon.unregister(&fullname) {
            // Without the withdrawal, the announcement expires.
            let _ = done.recv_timeout(WITHDRAW_TIMEOUT);
        }
    }
}

impl Dial for Lan {
    fn find(&self, name: &str) -> Option<Endpoint> {
        let members = lock(&self.members).to_vec();
        members.into_iter().map(|member| member.endpoint).find(|endpoint| endpoint.to_string() == name)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.withdraw();
        if let Ok(done) = self.daemon.shutdown() {
            let _ = done.recv_timeout(WITHDRAW_TIMEOUT);
        }
    }
}

fn write_service(id: &str, addr: SocketAddr, record: &ServerRecord) -> Result<ServiceInfo, mdns_sd::Error> {
    let (instance, host) = (id, format!("{id}.local."));
    let properties = [
        ("digest", record.digest.clone()),
        ("family", record.family.clone()),
        ("blocks", record.n_blocks.to_string()),
        ("span", record.span.to_string()),
        ("dtype", record.dtype.to_string()),
        ("rate", format!("{:e}", record.rate)),
        ("queue", record.queue.to_string()),
        ("tapes", record.free_tape_bytes.to_string()),
        ("draining", u8::from(record.draining).to_string()),
        ("software", record.software.clone()),
        ("name", record.name.as_ref().map(ServerName::to_string).unwrap_or_default()),
    ];
    match addr.ip() {
        ip if ip.is_unspecified() => {
            Ok(ServiceInfo::new(SERVICE, instance, &host, (), addr.port(), &properties[..])?.enable_addr_auto())
        }
        ip => ServiceInfo::new(SERVICE, instance, &host, ip, addr.port(), &properties[..]),
    }
}

/// Reads a service; `None` if it does not describe a reachable server.
fn read_service(service: &ResolvedService) -> Option<(Addr, ServerRecord)> {
    let text = |key| service.get_property_val_str(key);
    let record = ServerRecord {
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
        name: text("name").and_then(ServerName::from_peer),
    };
    let record = record.validated()?;
    let mut addresses: Vec<IpAddr> = service.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
    // Prefers an address that other machines reach, with a stable order. Link-local addresses lack their interface.
    addresses.retain(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    addresses.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    let addr = SocketAddr::new(*addresses.first()?, service.get_port());
    Some((Addr::Tcp(addr.to_string()), record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ServerRecord {
        ServerRecord { draining: true, ..ServerRecord::sample("x") }
    }

    fn endpoint(name: &str) -> Endpoint {
        Endpoint::Addr(name.parse().expect("an address"))
    }

    #[test]
    fn service_round_trip_keeps_record() {
        let addr: SocketAddr = "10.0.0.5:4000".parse().expect("an address");
        let service = write_service("sepal-1", addr, &record()).expect("a record").as_resolved_service();
        let (addr, found) = read_service(&service).expect("a server");
        assert_eq!((addr.to_string(), found), ("10.0.0.5:4000".to_owned(), record()));
    }

    #[test]
    fn services_beyond_the_limit_are_not_listed() {
        let mut services = ResolvedServices { members: Arc::default(), names: HashMap::new() };
        for index in 0..MAX_SERVICES + 9 {
            services.update(&format!("service {index}"), endpoint(&format!("a:{}", index + 1)), record());
        }
        assert_eq!(lock(&services.members).to_vec().len(), MAX_SERVICES);
        services.remove("service 3");
        services.update("another", endpoint("b:1"), record());
        assert_eq!(lock(&services.members).to_vec().len(), MAX_SERVICES);
    }

    #[test]
    fn server_with_several_service_names_is_listed_once() {
        let mut services = ResolvedServices { members: Arc::default(), names: HashMap::new() };
        let names = |services: &ResolvedServices| -> Vec<String> {
            lock(&services.members).to_vec().iter().map(|member| member.endpoint.to_string()).collect()
        };
        services.update("one", endpoint("a:1"), record());
        services.update("one", endpoint("b:1"), record());
        assert_eq!(names(&services), ["b:1"], "changed address");
        // A restarted server has a new service name before the old one expires.
        services.update("two", endpoint("b:1"), record());
        services.remove("one");
        assert_eq!(names(&services), ["b:1"]);
        services.remove("two");
        assert!(names(&services).is_empty());
    }
}
