//! Signed announcements of members.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use iroh::{EndpointId, SecretKey, Signature, TransportAddr};
use iroh_gossip::proto::TopicId;
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
const SIGNATURE_BYTES: usize = Signature::LENGTH;

impl Announcement {
    /// Returns an announcement whose sequence number is above `last_sequence`, and above those before a restart.
    pub(crate) fn new(message: Message, last_sequence: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Self { sequence: u64::try_from(now).unwrap_or(u64::MAX).max(last_sequence + 1), message }
    }

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
        Some((sender, serde_json::from_slice(body).ok()?))
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
        let announcement = Announcement::new(Message::Hello, 0);
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
    fn sequence_numbers_grow() {
        let first = Announcement::new(Message::Gone, 0);
        let second = Announcement::new(Message::Gone, first.sequence);
        assert!(second.sequence > first.sequence);
        assert_eq!(Announcement::new(Message::Gone, u64::MAX - 1).sequence, u64::MAX);
    }
}
