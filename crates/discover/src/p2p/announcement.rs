//! What members say to all others, signed.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use iroh::{EndpointId, SecretKey, Signature, TransportAddr};
use iroh_gossip::proto::TopicId;
use serde::{Deserialize, Serialize};

use crate::notice::Notice;

/// What is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Saying {
    /// A server is there, at these addresses.
    Here {
        notice: Notice,
        addrs: Vec<TransportAddr>,
        /// How long this holds.
        ttl_ms: u64,
    },
    /// A server has left.
    Gone,
    /// A member has come and wants to know who is there.
    Hello,
}

/// A saying, and which of its speaker's it is: a later one has a larger number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) number: u64,
    pub(crate) saying: Saying,
}

const KEY: usize = 32;
const SIGNATURE: usize = Signature::LENGTH;

impl Announcement {
    /// A saying of now; its number is larger than `last`, also after a restart.
    pub(crate) fn new(saying: Saying, last: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Self { number: u64::try_from(now).unwrap_or(u64::MAX).max(last + 1), saying }
    }

    /// Key, signature, and the announcement as JSON. The signature is for one swarm.
    pub(crate) fn sign(&self, key: &SecretKey, topic: TopicId) -> serde_json::Result<Bytes> {
        let body = serde_json::to_vec(self)?;
        let signature = key.sign(&signed(topic, &body));
        Ok([key.public().as_bytes().as_slice(), &signature.to_bytes(), &body].concat().into())
    }

    /// Who says what; `None` if it is not what its speaker signed.
    pub(crate) fn verify(message: &[u8], topic: TopicId) -> Option<(EndpointId, Self)> {
        let (key, rest) = message.split_first_chunk::<KEY>()?;
        let (signature, body) = rest.split_first_chunk::<SIGNATURE>()?;
        let speaker = EndpointId::from_bytes(key).ok()?;
        speaker.verify(&signed(topic, body), &Signature::from_bytes(signature)).ok()?;
        Some((speaker, serde_json::from_slice(body).ok()?))
    }
}

fn signed(topic: TopicId, body: &[u8]) -> Vec<u8> {
    [b"sepal announcement".as_slice(), topic.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_for_this_swarm_counts() {
        let (key, topic) = (SecretKey::from_bytes(&[5; 32]), TopicId::from_bytes([1; 32]));
        let announcement = Announcement::new(Saying::Hello, 0);
        let message = announcement.sign(&key, topic).expect("signed");
        assert_eq!(Announcement::verify(&message, topic), Some((key.public(), announcement)));
        assert_eq!(Announcement::verify(&message, TopicId::from_bytes([2; 32])), None);
        for i in 0..message.len() {
            let mut wrong = message.to_vec();
            wrong[i] ^= 1;
            assert_eq!(Announcement::verify(&wrong, topic), None, "byte {i}");
            assert_eq!(Announcement::verify(&message[..i], topic), None, "{i} bytes");
        }
    }

    #[test]
    fn numbers_grow() {
        let first = Announcement::new(Saying::Gone, 0);
        let second = Announcement::new(Saying::Gone, first.number);
        assert!(second.number > first.number);
        assert_eq!(Announcement::new(Saying::Gone, u64::MAX - 1).number, u64::MAX);
    }
}
