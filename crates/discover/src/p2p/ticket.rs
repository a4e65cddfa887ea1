//! Tickets that admit machines to a swarm.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use iroh::{EndpointAddr, EndpointId, SecretKey};
use iroh_gossip::proto::TopicId;
use sepal_swarm::proof::{self, Answer, Claim};
use sepal_swarm::{AcceptedSecrets, KeyError, Revocation, Rights, Secret, SecurityError, replace_private_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::identity::Identity;

/// Beginning of all texts of tickets and secrets.
const NAME: &str = "sepal";
/// Beginning of the ticket of servers in the first epoch.
const PREFIX: &str = "sepal1";
/// Beginning of all other tickets.
const PREFIX_WITH_RIGHTS: &str = "sepal2";
pub(crate) const OLD_PROOF_BYTES: usize = 32;
const GOSSIP_TAG_BYTES: usize = 8;
/// Longest part of a text that is no ticket in an error. A longer one may be a ticket with a mistake.
const MAX_SHOWN: usize = 64;

/// Secret of a swarm, with the rights of its holder, and the names of the swarm's announcements.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SwarmSecret {
    secret: Secret,
    topic: [u8; 32],
    gossip: [u8; GOSSIP_TAG_BYTES],
}

impl fmt::Debug for SwarmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmSecret({:?})", self.secret)
    }
}

impl SwarmSecret {
    /// Returns the secret of the swarm that a machine founds, which is the same each time.
    pub(crate) fn from_founder(key: &SecretKey) -> Result<Self, KeyError> {
        Self::of_servers(founders_key(key), 0)
    }

    /// Returns the secret of servers. In each epoch, announcements have another topic, which holders of earlier tickets do not
    /// know.
    fn of_servers(key: [u8; 32], epoch: u32) -> Result<Self, KeyError> {
        let of_epoch = epoch.to_be_bytes();
        let epoch_label: &[u8] = if epoch == 0 { &[] } else { &of_epoch };
        let topic = mac(&key, &[b"topic", epoch_label]).finalize().into_bytes().into();
        let name: [u8; 32] = mac(&key, &[b"gossip", epoch_label]).finalize().into_bytes().into();
        let mut gossip = [0; GOSSIP_TAG_BYTES];
        gossip.copy_from_slice(&name[..GOSSIP_TAG_BYTES]);
        Ok(Self { secret: Secret::from_founders_key(key, epoch)?, topic, gossip })
    }

    /// True if the holder is a server.
    pub(crate) fn is_servers(&self) -> bool {
        self.secret.is_founders()
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.secret.epoch()
    }

    /// True for the secret of a later epoch, by which `current` is replaced, and false for one of the same epoch.
    ///
    /// # Errors
    /// The reason for which a node with the secret `current` does not use this one.
    pub(crate) fn replaces(&self, current: &Self) -> Result<bool, String> {
        if !self.secret.is_of_same_swarm(&current.secret) {
            return Err("its ticket is that of another swarm".to_owned());
        }
        if self.secret.rights() < current.secret.rights() {
            return Err(format!("its ticket has the rights `{}` only", self.secret.rights()));
        }
        match (self.epoch(), current.epoch()) {
            (epoch, current) if epoch < current => {
                Err(format!("its ticket is of epoch {epoch}, which epoch {current} has replaced"))
            }
            (epoch, current) => Ok(epoch > current),
        }
    }

    /// True if the secret is used for a time beside `next`, which replaces it. A server accepts clients of the epoch directly
    /// before its own; a client may meet servers that are late.
    pub(crate) fn is_accepted_beside(&self, next: &Self) -> bool {
        !next.is_servers() || self.epoch().checked_add(1) == Some(next.epoch())
    }

    /// Secrets that a server with this secret accepts, perhaps beside an earlier one.
    pub(crate) fn accepted(&self, previous: Option<&Self>) -> AcceptedSecrets {
        AcceptedSecrets::new(&self.secret, previous.map(Self::epoch))
    }

    /// Revocation of a client that this secret has admitted with these rights.
    pub(crate) fn revocation(&self, rights: Rights, accepted: watch::Receiver<AcceptedSecrets>) -> Revocation {
        Revocation::of_rights(&self.secret, rights, accepted)
    }

    /// Revocation of a peer of the protocol before rights, which is a member in its epoch only.
    pub(crate) fn old_revocation(&self, accepted: watch::Receiver<AcceptedSecrets>) -> Revocation {
        Revocation::of_epoch(&self.secret, accepted)
    }

    pub(crate) fn topic(&self) -> TopicId {
        TopicId::from_bytes(self.topic)
    }

    /// Protocol name of the swarm's gossip. It is visible to observers and reveals nothing else.
    pub(crate) fn gossip_alpn(&self) -> Vec<u8> {
        format!("sepal-gossip/{}", hex::encode(self.gossip)).into_bytes()
    }

    /// Returns the proof of the holder's rights. It is bound to both ends, which the connection authenticates, and useless to
    /// others.
    pub(crate) fn claim(&self, client: EndpointId, server: EndpointId) -> Claim {
        proof::claim(&self.secret, &ends(client, server))
    }

    /// Returns the rights that a claim proves, and the answer to it.
    pub(crate) fn check_claim(
        &self,
        claim: &Claim,
        client: EndpointId,
        server: EndpointId,
    ) -> Result<(Rights, Answer), SecurityError> {
        if !self.is_servers() {
            return Err(SecurityError::Refused);
        }
        let ends = ends(client, server);
        let rights = proof::check_claim(&self.secret, claim, &ends)?;
        Ok((rights, proof::answer(&self.secret, Ok(rights), &ends)?))
    }

    pub(crate) fn check_answer(
        &self,
        answer: &Answer,
        client: EndpointId,
        server: EndpointId,
    ) -> Result<(), SecurityError> {
        proof::check_answer(&self.secret, answer, &ends(client, server))
    }

    /// True if peers of the protocol before rights may be members. They know the servers' ticket of the first epoch only, and
    /// do not prove it as servers: a holder of a lesser ticket could pose as one of them.
    pub(crate) fn admits_old_peers(&self) -> bool {
        self.is_servers() && self.secret.epoch() == 0
    }

    /// Returns the proof of the protocol before rights, if its peers may be members.
    pub(crate) fn old_proof(&self, client: EndpointId, server: EndpointId) -> Option<[u8; OLD_PROOF_BYTES]> {
        Some(self.old_proof_mac(client, server)?.finalize().into_bytes().into())
    }

    pub(crate) fn verify_old_proof(&self, proof: &[u8], client: EndpointId, server: EndpointId) -> bool {
        self.old_proof_mac(client, server).is_some_and(|mac| mac.verify_slice(proof).is_ok())
    }

    fn old_proof_mac(&self, client: EndpointId, server: EndpointId) -> Option<Hmac<Sha256>> {
        let key = self.secret.founders_key().filter(|_| self.admits_old_peers())?;
        Some(mac(key, &[b"client", client.as_bytes(), server.as_bytes()]))
    }
}

fn founders_key(key: &SecretKey) -> [u8; 32] {
    Sha256::new().chain_update(b"sepal swarm").chain_update(key.to_bytes()).finalize().into()
}

/// Returns the value of a connection between these ends.
fn ends(client: EndpointId, server: EndpointId) -> [u8; 32] {
    let label = Sha256::new().chain_update(b"sepal p2p connection");
    label.chain_update(client.as_bytes()).chain_update(server.as_bytes()).finalize().into()
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    // Zero padding to the block size of the hash, as HMAC defines it for short keys.
    let mut padded = [0; 64];
    padded[..32].copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&padded.into());
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// Secret of a swarm and the addresses of some members. The ticket makes its holder a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) secret: SwarmSecret,
    pub(crate) members: Vec<EndpointAddr>,
}

/// Content of a ticket of servers in the first epoch.
#[derive(Serialize, Deserialize)]
struct ServersTicket {
    key: [u8; 32],
    members: Vec<EndpointAddr>,
}

/// Content of a ticket with rights and an epoch.
#[derive(Serialize, Deserialize)]
struct RightsTicket {
    secret: String,
    topic: [u8; 32],
    gossip: [u8; GOSSIP_TAG_BYTES],
    members: Vec<EndpointAddr>,
}

/// Error of reading a ticket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TicketError {
    /// Text that is not a ticket.
    #[error("not a ticket: {problem}; copy the complete ticket, from `{PREFIX}` or `{PREFIX_WITH_RIGHTS}` on")]
    Text { problem: &'static str },
    /// File that cannot be read.
    #[error("neither a ticket (they begin with `{PREFIX}`) nor a file that can be read: {path}")]
    File { path: PathBuf, source: io::Error },
}

impl Ticket {
    /// Reads a ticket, given as its text or as the path of a file that holds it.
    ///
    /// # Errors
    /// [`TicketError`] if it is neither.
    pub fn read(text: &str) -> Result<Self, TicketError> {
        if Self::is_text(text) {
            return text.parse();
        }
        let is_path = text.len() <= MAX_SHOWN || text.contains('/');
        Self::read_file(Path::new(text)).map_err(|error| match error {
            TicketError::File { source, .. } if !is_path => {
                TicketError::File { path: format!("a text of {} bytes", text.len()).into(), source }
            }
            error => error,
        })
    }

    /// Reads the ticket that a file holds.
    ///
    /// # Errors
    /// [`TicketError`] if it holds none.
    pub fn read_file(path: &Path) -> Result<Self, TicketError> {
        let failed = |source| TicketError::File { path: path.to_owned(), source };
        std::fs::read_to_string(path).map_err(failed)?.parse()
    }

    /// Path of the file that holds the ticket; `None` if the text is the ticket itself.
    pub fn file(text: &str) -> Option<&Path> {
        (!Self::is_text(text)).then(|| Path::new(text))
    }

    /// True if a text is that of a ticket, and not the path of its file.
    fn is_text(text: &str) -> bool {
        let text = text.trim_start();
        text.strip_prefix(NAME).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    }

    /// Rights of the holder.
    pub fn rights(&self) -> Rights {
        self.secret.secret.rights()
    }

    /// Epoch of the ticket. Servers accept observers and clients of their own epoch, and for a time of the one before.
    pub fn epoch(&self) -> u32 {
        self.secret.epoch()
    }

    /// True for the ticket of a later epoch of the same swarm, with at least the rights of `current`.
    pub fn replaces(&self, current: &Self) -> bool {
        self.secret.replaces(&current.secret) == Ok(true)
    }

    /// True if the machine of this identity has founded the swarm.
    pub fn is_founded_by(&self, identity: &Identity) -> bool {
        self.secret.secret.founders_key() == Some(&founders_key(&identity.key))
    }

    /// Returns the ticket of lesser rights; `None` if this ticket is not that of servers.
    pub fn derive(&self, rights: Rights) -> Option<Self> {
        let secret = SwarmSecret { secret: self.secret.secret.derive(rights)?, ..self.secret.clone() };
        Some(Self { secret, members: self.members.clone() })
    }

    /// Returns the servers' ticket of the next epoch; `None` if this ticket is not that of servers.
    pub fn next_epoch(&self) -> Option<Self> {
        let next = self.secret.secret.next_epoch()?;
        let secret = SwarmSecret::of_servers(*next.founders_key()?, next.epoch()).ok()?;
        Some(Self { secret, members: self.members.clone() })
    }

    /// Writes the ticket atomically to a file that only its owner can read.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace_private_file(path, &self.to_string())
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SwarmSecret { secret, topic, gossip } = &self.secret;
        let members = self.members.clone();
        let (prefix, encoded) = match secret.founders_key() {
            // Programs from before epochs read it, too.
            Some(&key) if secret.epoch() == 0 => (PREFIX, postcard::to_stdvec(&ServersTicket { key, members })),
            _ => {
                let ticket = RightsTicket { secret: secret.to_text(), topic: *topic, gossip: *gossip, members };
                (PREFIX_WITH_RIGHTS, postcard::to_stdvec(&ticket))
            }
        };
        let mut bytes = encoded.map_err(|_| fmt::Error)?;
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        write!(f, "{prefix}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem| TicketError::Text { problem };
        let text = text.trim();
        let (encoded, has_rights) = match (text.strip_prefix(PREFIX), text.strip_prefix(PREFIX_WITH_RIGHTS)) {
            (Some(encoded), _) => (encoded, false),
            (None, Some(encoded)) => (encoded, true),
            (None, None) if Self::is_text(text) => return Err(error("it is of another version")),
            (None, None) if text.starts_with("sepal-secret") => {
                return Err(error("it is the secret of listed servers"));
            }
            (None, None) => return Err(error("it has another prefix")),
        };
        let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes());
        let bytes = bytes.map_err(|_| error("it has invalid characters, or its end is missing"))?;
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(error("it is too short"))?;
        if crc32fast::hash(body).to_le_bytes() != *crc {
            return Err(error("characters are wrong or missing"));
        }
        let other_version = || error("it is of another version");
        if !has_rights {
            let ticket: ServersTicket = postcard::from_bytes(body).map_err(|_| other_version())?;
            let secret = SwarmSecret::of_servers(ticket.key, 0).map_err(|_| error("its key is not usable"))?;
            return Ok(Self { secret, members: ticket.members });
        }
        let ticket: RightsTicket = postcard::from_bytes(body).map_err(|_| other_version())?;
        let RightsTicket { secret, topic, gossip, members } = ticket;
        let secret = secret.parse().map_err(|_| other_version())?;
        Ok(Self { secret: SwarmSecret { secret, topic, gossip }, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let member = EndpointAddr::new(SecretKey::from_bytes(&[3; 32]).public())
            .with_ip_addr("127.0.0.1:4000".parse().expect("an address"));
        Ticket { secret: founder(2), members: vec![member] }
    }

    fn founder(n: u8) -> SwarmSecret {
        SwarmSecret::from_founder(&SecretKey::from_bytes(&[n; 32])).expect("a secret")
    }

    fn derived(ticket: &Ticket, rights: Rights) -> Ticket {
        ticket.derive(rights).expect("a servers' ticket")
    }

    #[test]
    fn ticket_text_round_trip_is_exact() {
        let next = ticket().next_epoch().expect("a servers' ticket");
        let lesser = [Rights::Observer, Rights::Client].map(|rights| derived(&next, rights));
        for (ticket, prefix) in [(ticket(), "sepal1"), (derived(&ticket(), Rights::Client), "sepal2"), (next, "sepal2")]
            .into_iter()
            .chain(lesser.map(|ticket| (ticket, "sepal2")))
        {
            let text = ticket.to_string();
            assert!(text.starts_with(prefix) && Ticket::is_text(&text), "{text}");
            assert_eq!(text.parse::<Ticket>().expect("a ticket"), ticket);
            assert_eq!(format!(" {text}\n").parse::<Ticket>().expect("a ticket"), ticket);
        }
    }

    #[test]
    fn text_of_another_kind_is_named_and_not_shown() {
        let problem = |text: &str| Ticket::read(text).expect_err("no ticket").to_string();
        assert!(problem("sepal9abc").contains("it is of another version"));
        let secret = "sepal-secret1:server".parse::<Ticket>().expect_err("no ticket").to_string();
        assert!(secret.contains("it is the secret of listed servers"), "{secret}");
        let mistaken = ticket().to_string().replace("sepal1", "Sepal1");
        assert!(!problem(&mistaken).contains(&mistaken[10..20]), "{}", problem(&mistaken));
    }

    #[test]
    fn derived_ticket_has_its_rights_in_its_epoch_alone() {
        let id = |n: u8| SecretKey::from_bytes(&[n; 32]).public();
        let (servers, next) = (ticket().secret, ticket().next_epoch().expect("a servers' ticket"));
        for rights in [Rights::Observer, Rights::Client] {
            let derived = derived(&ticket(), rights);
            assert!(derived.derive(Rights::Observer).is_none() && derived.next_epoch().is_none());
            let claim = derived.secret.claim(id(1), id(2));
            let (granted, answer) = servers.check_claim(&claim, id(1), id(2)).expect("a member");
            assert_eq!(granted, rights);
            assert_eq!(derived.secret.check_answer(&answer, id(1), id(2)), Ok(()));
            assert_eq!(derived.secret.check_answer(&answer, id(3), id(2)), Err(SecurityError::Stranger));
            // A member of lesser rights is no server.
            assert_eq!(derived.secret.check_claim(&claim, id(1), id(2)), Err(SecurityError::Refused));
            let revoked = next.secret.check_claim(&claim, id(1), id(2));
            assert_eq!(revoked, Err(SecurityError::Epoch { epoch: 0, current: 1 }));
            assert_eq!(
                (derived.secret.topic(), derived.secret.gossip_alpn()),
                (servers.topic(), servers.gossip_alpn())
            );
            assert_eq!(derived.secret.old_proof(id(1), id(2)), None);
        }
        assert_ne!((next.secret.topic(), next.secret.gossip_alpn()), (servers.topic(), servers.gossip_alpn()));
        let proof = servers.old_proof(id(1), id(2)).expect("a proof of the first epoch");
        assert_eq!(next.secret.old_proof(id(1), id(2)), None);
        assert!(!next.secret.verify_old_proof(&proof, id(1), id(2)), "old peers are of the first epoch");
        let (identity, other) = (Identity::ephemeral(), Identity::ephemeral());
        let own = Ticket { secret: SwarmSecret::from_founder(&identity.key).expect("a secret"), members: Vec::new() };
        let own = own.next_epoch().expect("a servers' ticket");
        assert!(own.is_founded_by(&identity) && !own.is_founded_by(&other));
    }

    #[test]
    fn ticket_is_replaced_by_later_epochs_of_its_swarm_only() {
        let first = ticket();
        let next = first.next_epoch().expect("a servers' ticket");
        let after_next = next.next_epoch().expect("a servers' ticket");
        let replaces = |ticket: &Ticket, current: &Ticket| ticket.secret.replaces(&current.secret);
        assert_eq!([replaces(&next, &first), replaces(&first, &first)], [Ok(true), Ok(false)]);
        let other = Ticket { secret: founder(9), ..first.clone() }.next_epoch().expect("a servers' ticket");
        let client = derived(&next, Rights::Client);
        for (ticket, current, expected) in [
            (&first, &next, "of epoch 0, which epoch 1 has replaced"),
            (&other, &first, "of another swarm"),
            (&client, &first, "the rights `client` only"),
        ] {
            let problem = replaces(ticket, current).expect_err("not used");
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(first.secret.is_accepted_beside(&next.secret) && !first.secret.is_accepted_beside(&after_next.secret));
        let after_next = derived(&after_next, Rights::Client);
        assert!(derived(&first, Rights::Client).secret.is_accepted_beside(&after_next.secret), "servers may be late");
    }

    #[test]
    fn read_accepts_text_and_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ticket");
        let name = path.to_str().expect("a name");
        let error = Ticket::read(name).expect_err("no file");
        assert!(error.to_string().starts_with("neither a ticket"), "{error}");
        ticket().write(&path).expect("written");
        assert_eq!(Ticket::read(name).expect("a ticket"), ticket());
        assert_eq!((Ticket::file(name), Ticket::file(&ticket().to_string())), (Some(path.as_path()), None));
        assert_eq!(Ticket::read(&ticket().to_string()).expect("a ticket"), ticket());
    }

    #[test]
    fn parse_detects_every_wrong_or_missing_character() {
        let text = ticket().to_string();
        for (i, letter) in text.char_indices() {
            let other = if letter == 'a' { 'b' } else { 'a' };
            let wrong = format!("{}{other}{}", &text[..i], &text[i + 1..]);
            assert!(wrong.parse::<Ticket>().is_err(), "{wrong}");
            assert!(text[..i].parse::<Ticket>().is_err(), "{}", &text[..i]);
        }
    }

    #[test]
    fn proof_is_bound_to_client_server_and_swarm() {
        let id = |n: u8| SecretKey::from_bytes(&[n; 32]).public();
        let (secret, other) = (ticket().secret, founder(9));
        let claim = secret.claim(id(1), id(2));
        assert!(secret.check_claim(&claim, id(1), id(2)).is_ok());
        assert!(secret.check_claim(&claim, id(2), id(1)).is_err() && secret.check_claim(&claim, id(3), id(2)).is_err());
        assert!(other.check_claim(&claim, id(1), id(2)).is_err());
        assert_ne!(secret.topic(), other.topic());
        let proof = secret.old_proof(id(1), id(2)).expect("a servers' secret");
        assert!(secret.verify_old_proof(&proof, id(1), id(2)));
        assert!(!secret.verify_old_proof(&proof, id(2), id(1)) && !secret.verify_old_proof(&proof, id(3), id(2)));
        assert!(!other.verify_old_proof(&proof, id(1), id(2)) && !secret.verify_old_proof(&proof[1..], id(1), id(2)));
    }
}
