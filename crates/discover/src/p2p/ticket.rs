//! Tickets that admit machines to a swarm.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use iroh::{EndpointAddr, EndpointId, SecretKey};
use iroh_gossip::proto::TopicId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::identity::private_file;

const PREFIX: &str = "sepal1";
pub(crate) const PROOF_BYTES: usize = 32;

/// Shared secret of the members of a swarm.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SwarmSecret([u8; 32]);

impl fmt::Debug for SwarmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmSecret")
    }
}

impl SwarmSecret {
    /// Returns the secret of the swarm that a machine founds, which is the same each time.
    pub(crate) fn from_founder(key: &SecretKey) -> Self {
        Self(Sha256::new().chain_update(b"sepal swarm").chain_update(key.to_bytes()).finalize().into())
    }

    pub(crate) fn topic(&self) -> TopicId {
        TopicId::from_bytes(self.mac(&[b"topic"]).finalize().into_bytes().into())
    }

    /// Protocol name of the swarm's gossip. It is visible to observers and reveals nothing else.
    pub(crate) fn gossip_alpn(&self) -> Vec<u8> {
        let name = self.mac(&[b"gossip"]).finalize().into_bytes();
        format!("sepal-gossip/{}", hex::encode(&name[..8])).into_bytes()
    }

    /// Returns the proof that a client knows the secret. It is bound to both ends, which the connection authenticates, and
    /// useless to others.
    pub(crate) fn proof(&self, client: EndpointId, server: EndpointId) -> [u8; PROOF_BYTES] {
        self.proof_mac(client, server).finalize().into_bytes().into()
    }

    pub(crate) fn verify_proof(&self, proof: &[u8], client: EndpointId, server: EndpointId) -> bool {
        self.proof_mac(client, server).verify_slice(proof).is_ok()
    }

    fn proof_mac(&self, client: EndpointId, server: EndpointId) -> Hmac<Sha256> {
        self.mac(&[b"client", client.as_bytes(), server.as_bytes()])
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // Zero padding to the block size of the hash, as HMAC defines it for short keys.
        let mut key = [0; 64];
        key[..32].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&key.into());
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

/// Secret of a swarm and the addresses of some members. The ticket makes its holder a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub(crate) secret: SwarmSecret,
    pub(crate) members: Vec<EndpointAddr>,
}

/// Error of reading a ticket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TicketError {
    /// Text that is not a ticket.
    #[error("not a ticket: {problem}; copy the complete ticket, from `{PREFIX}` on")]
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
        if text.trim_start().starts_with(PREFIX) {
            return text.parse();
        }
        let path = PathBuf::from(text);
        std::fs::read_to_string(&path).map_err(|source| TicketError::File { path, source })?.parse()
    }

    /// Writes the ticket atomically to a file that only its owner can read.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        private_file(path, self.to_string().as_bytes(), |temporary| std::fs::rename(temporary, path))
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem| TicketError::Text { problem };
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(error("it has another prefix"))?;
        let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes());
        let bytes = bytes.map_err(|_| error("it has invalid characters, or its end is missing"))?;
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(error("it is too short"))?;
        if crc32fast::hash(body).to_le_bytes() != *crc {
            return Err(error("characters are wrong or missing"));
        }
        postcard::from_bytes(body).map_err(|_| error("it is of another version"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let member = EndpointAddr::new(SecretKey::from_bytes(&[3; 32]).public())
            .with_ip_addr("127.0.0.1:4000".parse().expect("an address"));
        Ticket { secret: SwarmSecret::from_founder(&SecretKey::from_bytes(&[2; 32])), members: vec![member] }
    }

    #[test]
    fn ticket_text_round_trip_is_exact() {
        let text = ticket().to_string();
        assert_eq!(text.parse::<Ticket>().expect("a ticket"), ticket());
        assert_eq!(format!(" {text}\n").parse::<Ticket>().expect("a ticket"), ticket());
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
        let (secret, other) = (ticket().secret, SwarmSecret::from_founder(&SecretKey::from_bytes(&[9; 32])));
        let proof = secret.proof(id(1), id(2));
        assert!(secret.verify_proof(&proof, id(1), id(2)));
        assert!(!secret.verify_proof(&proof, id(2), id(1)) && !secret.verify_proof(&proof, id(3), id(2)));
        assert!(!other.verify_proof(&proof, id(1), id(2)) && !secret.verify_proof(&proof[1..], id(1), id(2)));
        assert_ne!(secret.topic(), other.topic());
    }
}
