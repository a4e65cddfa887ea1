//! Keys that identify machines.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use sepal_core::PublicKey;

/// Key pair (Ed25519) of a machine. It signs receipts and authenticates connections.
pub struct IdentityKey {
    seed: [u8; IdentityKey::SEED_BYTES],
    pair: Ed25519KeyPair,
}

/// Failure of the system's random numbers, or a seed that makes no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("make an identity key")]
pub struct KeyError;

impl IdentityKey {
    /// Size of the seed, which is the private key.
    pub const SEED_BYTES: usize = 32;

    /// Returns a new random key.
    ///
    /// # Errors
    /// [`KeyError`] if the system has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; Self::SEED_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError)?;
        Self::from_seed(seed)
    }

    /// Returns the key of a seed.
    ///
    /// # Errors
    /// [`KeyError`] if the seed makes no key.
    pub fn from_seed(seed: [u8; Self::SEED_BYTES]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError)?;
        Ok(Self { seed, pair })
    }

    /// Private half.
    pub fn seed(&self) -> &[u8; Self::SEED_BYTES] {
        &self.seed
    }

    /// Public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; PublicKey::BYTES];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public())
    }
}

/// True if `signature` is that of the owner of `key` under `message`.
pub fn is_signed_by(key: PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.0).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_bound_to_key_and_message() {
        let (key, other) = (IdentityKey::generate().expect("a key"), IdentityKey::generate().expect("a key"));
        let signature = key.sign(b"message");
        assert!(is_signed_by(key.public(), b"message", &signature));
        assert!(!is_signed_by(other.public(), b"message", &signature));
        assert!(!is_signed_by(key.public(), b"messagE", &signature));
        assert!(!is_signed_by(key.public(), b"message", &signature[1..]) && !is_signed_by(key.public(), b"", &[]));
    }

    #[test]
    fn seed_gives_the_public_key_of_rfc_8032() {
        let seed =
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse::<PublicKey>().expect("hex").0;
        let key = IdentityKey::from_seed(seed).expect("a key");
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(key.public().to_string(), public);
        assert_eq!(key.seed(), &seed);
        assert!(!format!("{key:?}").contains("9d61b1"), "the private half is not shown");
    }
}
