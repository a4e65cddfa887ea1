//! Signed announcements of members.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use iroh::{EndpointId, SecretKey, Signature, TransportAddr};
use iroh_gossip::proto::TopicId;
use sepal_swarm::replace_private_file;
use serde::{Deserialize, Serialize};

use crate::record::ServerRecord;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// Presence of a server at these addresses.
    Here {
        #[serde(rename = "notice")]
        record: ServerRecord,
        addrs: Vec<TransportAddr>,
        ttl_ms: u64,
    },
    Gone,
    /// Request of a new member for the servers that are present.
    Hello,
}

/// Message with its sequence number, which grows with each announcement of a sender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Announcement {
    #[serde(rename = "number")]
    pub(crate) sequence: u64,
    #[serde(rename = "saying")]
    pub(crate) message: Message,
}

const KEY_BYTES: usize = 32;
/// Most addresses of a server.
const MAX_ADDRESSES: usize = 64;
const SIGNATURE_BYTES: usize = Signature::LENGTH;

/// Source of sequence numbers. They are microseconds of the clock, but grow even if the clock steps back, and with a file
/// beyond a restart too.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    last: u64,
    /// Numbers up to this one are used by no later process.
    reserved: u64,
    file: Option<PathBuf>,
}

/// Numbers that are reserved at a time: those of a minute.
const RESERVE: u64 = 60_000_000;

impl Sequence {
    /// Continues after the numbers that the file reserves, if it exists.
    pub(crate) fn open(file: PathBuf) -> Self {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let reserved = text.trim().parse().unwrap_or(0);
        Self { last: reserved, reserved, file: Some(file) }
    }

    /// Returns the next number.
    pub(crate) fn next(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        self.next_at(u64::try_from(now).unwrap_or(u64::MAX))
    }

    fn next_at(&mut self, now: u64) -> u64 {
        self.last = now.max(self.last.saturating_add(1));
        if let Some(file) = self.file.as_ref().filter(|_| self.last > self.reserved) {
            let reserved = self.last.saturating_add(RESERVE);
            match replace_private_file(file, &reserved.to_string()) {
                Ok(()) => self.reserved = reserved,
                // Without the file, a restart may use a number twice only if the clock steps back meanwhile.
                Err(error) => tracing::debug!(%error, "the sequence of announcements was not saved"),
            }
        }
        self.last
    }
}

impl Announcement {
    /// Encodes key, signature, and the announcement as JSON. The signature is valid for one swarm.
    pub(crate) fn sign(&self, key: &SecretKey, topic: TopicId) -> serde_json::Result<Bytes> {
        let body = serde_json::to_vec(self)?;
        let signature = key.sign(&signed_bytes(topic, &body));
        Ok([key.public().as_bytes().as_slice(), &signature.to_bytes(), &body].concat().into())
    }

    /// Decodes an announcement and its sender; `None` if the signature is wrong.
    pub(crate) fn verify(bytes: &[u8], topic: TopicId) -> Option<(EndpointId, Self)> {
        let (key, bytes) = bytes.split_first_chunk::<KEY_BYTES>()?;
        let (signature, body) = bytes.split_first_chunk::<SIGNATURE_BYTES>()?;
        let sender = EndpointId::from_bytes(key).ok()?;
        sender.verify(&signed_bytes(topic, body), &Signature::from_bytes(signature)).ok()?;
        let announcement: Self = serde_json::from_slice(body).ok()?;
        Some((sender, announcement.validated()?))
    }

    /// Returns an announcement of another machine; `None` for one that no server makes.
    fn validated(self) -> Option<Self> {
        let message = match self.message {
            Message::Here { addrs, .. } if addrs.len() > MAX_ADDRESSES => return None,
            Message::Here { record, addrs, ttl_ms } => Message::Here { record: record.validated()?, addrs, ttl_ms },
            message @ (Message::Gone | Message::Hello) => message,
        };
        Some(Self { message, ..self })
    }
}

fn signed_bytes(topic: TopicId, body: &[u8]) -> Vec<u8> {
    [b"sepal announcement".as_slice(), topic.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_accepts_only_signatures_for_the_swarm() {
        let (key, topic) = (SecretKey::from_bytes(&[5; 32]), TopicId::from_bytes([1; 32]));
        let announcement = Announcement { sequence: 7, message: Message::Hello };
        let signed = announcement.sign(&key, topic).expect("signed");
        assert_eq!(Announcement::verify(&signed, topic), Some((key.public(), announcement)));
        assert_eq!(Announcement::verify(&signed, TopicId::from_bytes([2; 32])), None);
        for i in 0..signed.len() {
            let mut damaged = signed.to_vec();
            damaged[i] ^= 1;
            assert_eq!(Announcement::verify(&damaged, topic), None, "byte {i}");
            assert_eq!(Announcement::verify(&signed[..i], topic), None, "{i} bytes");
        }
    }

    #[test]
    fn signed_announcements_of_impossible_servers_are_refused() {
        let (key, topic) = (SecretKey::from_bytes(&[5; 32]), TopicId::from_bytes([1; 32]));
        let read = |record| {
            let announcement =
                Announcement { sequence: 1, message: Message::Here { record, addrs: Vec::new(), ttl_ms: 9 } };
            Announcement::verify(&announcement.sign(&key, topic).expect("signed"), topic).map(|(_, read)| read)
        };
        let record = ServerRecord::sample("x");
        assert!(read(record.clone()).is_some());
        assert_eq!(read(ServerRecord { n_blocks: 4_000_000_000, ..record.clone() }), None);
        assert_eq!(read(ServerRecord { n_blocks: 1, ..record }), None);
    }

    #[test]
    fn sequence_grows_when_the_clock_steps_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sequence");
        let day = 86_400_000_000;
        let mut sequence = Sequence::open(file.clone());
        let first = [10 * day, 10 * day, 3 * day, 10 * day + 5].map(|now| sequence.next_at(now));
        assert_eq!(first, [10 * day, 10 * day + 1, 10 * day + 2, 10 * day + 5]);
        // A restart with a clock of a week earlier.
        let mut sequence = Sequence::open(file.clone());
        let second = [3 * day, 3 * day + 1].map(|now| sequence.next_at(now));
        assert!(second[0] > first[3] && second[1] > second[0], "{first:?}, {second:?}");
        let mut sequence = Sequence::open(file);
        assert!(sequence.next_at(4 * day) > second[1]);
        assert_eq!(sequence.next_at(20 * day), 20 * day, "the clock's time again");
    }

    #[test]
    fn sequence_without_a_file_follows_the_clock() {
        let mut sequence = Sequence::default();
        let first = sequence.next();
        assert!(sequence.next() > first && first > RESERVE);
        assert_eq!(sequence.next_at(u64::MAX), u64::MAX);
        assert_eq!(sequence.next(), u64::MAX);
    }
}
