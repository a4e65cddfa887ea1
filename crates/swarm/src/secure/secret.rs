use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use sepal_core::PublicKey;

use super::Rights;
use crate::key::{IdentityKey, KeyError};

/// Beginning of a secret's text, without the version.
const NAME: &str = "sepal-secret";
const PREFIX: &str = "sepal-secret1";
/// Beginning of the text of a ticket.
const TICKET_PREFIX: &str = "sepal";
const CHECK_DIGITS: usize = 8;

/// Size of a key for proofs.
pub(super) const KEY_BYTES: usize = 32;

/// Secret that admits its holder to servers, with the rights of an observer, a client or a server.
///
/// A founder's secret has the rights of a server. All others are derived from it, one for each rights and epoch, so that they
/// make no other secret. Every secret holds the public key with which servers prove that they know the founder's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    rights: Rights,
    epoch: u32,
    key: [u8; KEY_BYTES],
    swarm: PublicKey,
}

/// Error of a text that is no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("no secret: {problem}")]
pub struct SecretTextError {
    pub problem: &'static str,
}

impl Secret {
    /// Returns a new founder's secret.
    ///
    /// # Errors
    /// [`KeyError`] if the system has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut key).map_err(|_| KeyError)?;
        Self::from_founders_key(key, 0)
    }

    /// Returns the founder's secret of a key that the caller made, in an epoch.
    ///
    /// # Errors
    /// [`KeyError`] if the key signs nothing.
    pub fn from_founders_key(key: [u8; 32], epoch: u32) -> Result<Self, KeyError> {
        let swarm = swarm_key(&key)?.public();
        Ok(Self { rights: Rights::Server, epoch, key, swarm })
    }

    /// Key of a founder's secret.
    pub fn founders_key(&self) -> Option<&[u8; 32]> {
        self.is_founders().then_some(&self.key)
    }

    /// Rights of the holder.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Epoch of the secret. Servers accept observers and clients of their own epoch, in a swarm for a time also of the one before.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// True if the secret is a founder's, from which others are derived.
    pub fn is_founders(&self) -> bool {
        self.rights == Rights::Server
    }

    /// Returns the secret of lesser rights in the present epoch; `None` if this secret is not a founder's.
    pub fn derive(&self, rights: Rights) -> Option<Self> {
        self.is_founders().then(|| match rights {
            Rights::Server => self.clone(),
            Rights::Observer | Rights::Client => {
                Self { rights, key: self.derived_key(rights, self.epoch), ..self.clone() }
            }
        })
    }

    /// Returns the founder's secret of the next epoch, in which all derived secrets are new; `None` if this secret is not a
    /// founder's or no epoch is left.
    pub fn next_epoch(&self) -> Option<Self> {
        let epoch = self.epoch.checked_add(1)?;
        self.is_founders().then(|| Self { epoch, ..self.clone() })
    }

    /// True if both secrets are derived from one founder's, of any epoch.
    pub fn is_of_same_swarm(&self, other: &Self) -> bool {
        self.swarm == other.swarm
    }

    /// True if a later epoch has replaced this secret by the other one.
    pub(super) fn is_earlier_than(&self, other: &Self) -> bool {
        self.is_of_same_swarm(other) && self.epoch < other.epoch
    }

    /// True for the text of a secret, perhaps one with a mistake, and false for the path of a file.
    pub fn is_text(text: &str) -> bool {
        text.trim_start().starts_with(NAME) && text.contains(':')
    }

    /// Returns the text of the secret, for a file that only its owner can read.
    pub fn to_text(&self) -> String {
        let Self { rights, epoch, key, swarm } = self;
        // The key has the length and the notation of a public key.
        let body = format!("{PREFIX}:{rights}:{epoch}:{}:{swarm}", PublicKey(*key));
        let check = check_digits(&body);
        format!("{body}:{check}")
    }

    /// Key of the holder's proofs.
    pub(super) fn proof_key(&self) -> [u8; KEY_BYTES] {
        if self.is_founders() { self.derived_key(Rights::Server, 0) } else { self.key }
    }

    /// Key of the proofs of other holders, if this secret is a founder's. Servers have no epoch.
    pub(super) fn derived_key(&self, rights: Rights, epoch: u32) -> [u8; KEY_BYTES] {
        let epoch = if rights == Rights::Server { 0 } else { epoch };
        derive(&self.key, &[b"sepal rights", &[rights.code()], &epoch.to_be_bytes()])
    }

    /// Public half of the key with which servers prove that they know the founder's secret.
    pub(super) fn swarm(&self) -> PublicKey {
        self.swarm
    }

    /// Key with which a server proves that it knows the founder's secret.
    pub(super) fn swarm_key(&self) -> Result<IdentityKey, KeyError> {
        swarm_key(&self.key)
    }
}

fn swarm_key(founder: &[u8; KEY_BYTES]) -> Result<IdentityKey, KeyError> {
    IdentityKey::from_seed(derive(founder, &[b"sepal swarm key"]))
}

/// Returns the HMAC-SHA256 of a label under a key.
fn derive(key: &[u8; KEY_BYTES], label: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    label.iter().for_each(|part| context.update(part));
    let (mut derived, tag) = ([0; KEY_BYTES], context.sign());
    derived.copy_from_slice(tag.as_ref());
    derived
}

fn check_digits(body: &str) -> String {
    let digest = digest::digest(&digest::SHA256, body.as_bytes());
    digest.as_ref().iter().take(CHECK_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

impl FromStr for Secret {
    type Err = SecretTextError;

    fn from_str(text: &str) -> Result<Self, SecretTextError> {
        let error = |problem| SecretTextError { problem };
        let text = text.trim();
        let fields: Vec<&str> = text.split(':').collect();
        let [prefix, rights, epoch, key, swarm, check] = fields[..] else {
            return Err(error(match text {
                _ if text.starts_with(NAME) => "it is incomplete",
                _ if text.starts_with(TICKET_PREFIX) => "it is a ticket",
                _ => "it does not begin with `sepal-secret`",
            }));
        };
        if prefix != PREFIX {
            let is_other = prefix.starts_with(NAME);
            let problem = if is_other { "it is of another version" } else { "it does not begin with `sepal-secret`" };
            return Err(error(problem));
        }
        let body = text.strip_suffix(check).and_then(|body| body.strip_suffix(':')).unwrap_or_default();
        if check_digits(body) != check {
            return Err(error("characters are wrong or missing"));
        }
        let number = |text: &str| text.parse::<PublicKey>().map_err(|_| error("a key is damaged"));
        let secret = Self {
            rights: rights.parse().map_err(|_| error("its rights are unknown"))?,
            epoch: epoch.parse().map_err(|_| error("its epoch is no number"))?,
            key: number(key)?.0,
            swarm: number(swarm)?,
        };
        if secret.is_founders() && secret.swarm_key().map(|key| key.public()) != Ok(secret.swarm) {
            return Err(error("its keys do not belong together"));
        }
        Ok(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, epoch {})", self.rights, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_text_round_trip_is_exact() {
        let founder = Secret::generate().expect("a secret");
        for secret in Rights::ALL.map(|rights| founder.derive(rights).expect("a founder's")) {
            let text = secret.to_text();
            assert_eq!(format!(" {text}\n").parse(), Ok(secret.clone()));
            assert!(!format!("{secret:?}").contains(&text[40..60]), "the key is not shown");
            for (i, letter) in text.char_indices() {
                let other = if letter == 'a' { 'b' } else { 'a' };
                let wrong = format!("{}{other}{}", &text[..i], &text[i + 1..]);
                assert!(wrong.parse::<Secret>().is_err() && text[..i].parse::<Secret>().is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn founders_secret_with_another_swarm_key_is_refused() {
        let founder = Secret::generate().expect("a secret");
        let other = Secret { swarm: Secret::generate().expect("a secret").swarm, ..founder };
        let error = other.to_text().parse::<Secret>().expect_err("no secret");
        assert_eq!(error.problem, "its keys do not belong together");
    }

    #[test]
    fn text_of_another_kind_is_named() {
        for (text, expected) in [
            ("sepal1abc", "it is a ticket"),
            ("sepal-secret1:server:0", "it is incomplete"),
            ("sepal-secret9:server:0:a:b:c", "it is of another version"),
            ("0123", "it does not begin with `sepal-secret`"),
            ("", "it does not begin with `sepal-secret`"),
        ] {
            assert_eq!(text.parse::<Secret>().expect_err(text).problem, expected);
        }
    }

    #[test]
    fn derived_secret_makes_no_other_secret() {
        let founder = Secret::generate().expect("a secret");
        let next = founder.next_epoch().expect("an epoch");
        let client = founder.derive(Rights::Client).expect("a founder's");
        assert_eq!(
            (client.derive(Rights::Observer), client.derive(Rights::Server), client.next_epoch()),
            Default::default()
        );
        let observer = founder.derive(Rights::Observer).expect("a founder's");
        let new_client = next.derive(Rights::Client).expect("a founder's");
        let keys = [&founder, &client, &observer, &new_client].map(Secret::proof_key);
        assert!((0..keys.len()).all(|i| keys.iter().filter(|key| **key == keys[i]).count() == 1), "all differ");
        assert_eq!(next.proof_key(), founder.proof_key(), "servers have no epoch");
        assert_eq!((new_client.swarm(), new_client.epoch()), (founder.swarm(), 1));
    }
}
