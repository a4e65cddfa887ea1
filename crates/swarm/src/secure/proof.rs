//! Proofs of secrets, bound to one connection.
//!
//! A client sends a [`claim`] over a value of the connection, which both ends know and no other connection has. The server
//! [checks it](check_claim), and its [`answer`] proves that it knows the founder's secret.

use ring::hmac;

use super::{Rights, Secret, SecurityError};
use crate::key::is_signed_by;

/// Label of the value that both ends of a connection export from its handshake.
pub(super) const EXPORTER: &[u8] = b"EXPORTER-sepal-secret";
/// Value of a connection that is different for each.
pub type Exported = [u8; 32];

const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
/// Size of a claim: version, rights, epoch and MAC.
pub const CLAIM_BYTES: usize = 1 + 1 + 4 + MAC_BYTES;
/// Message of a client that proves its rights.
pub type Claim = [u8; CLAIM_BYTES];

/// Size of an answer: status, epoch of the server if the claim is of another one, and signature if it is valid.
pub const ANSWER_BYTES: usize = 1 + 4 + SIGNATURE_BYTES;
/// Message of a server about a claim.
pub type Answer = [u8; ANSWER_BYTES];
const SIGNATURE_BYTES: usize = 64;

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;
const OTHER_EPOCH: u8 = 2;

/// Returns the message with which a client proves its rights.
pub fn claim(secret: &Secret, exported: &Exported) -> Claim {
    let (rights, epoch) = (secret.rights(), secret.epoch());
    let mut claim = [0; CLAIM_BYTES];
    claim[0] = VERSION;
    claim[1] = rights.code();
    claim[2..6].copy_from_slice(&epoch.to_be_bytes());
    let mac = hmac::sign(&mac_key(&secret.proof_key()), &claimed(rights, epoch, exported));
    claim[6..].copy_from_slice(mac.as_ref());
    claim
}

/// Returns the rights that a claim proves to the holder of the founder's secret.
///
/// # Errors
/// [`SecurityError::Refused`], or [`SecurityError::Epoch`] for a valid claim of another epoch.
pub fn check_claim(founders: &Secret, claim: &Claim, exported: &Exported) -> Result<Rights, SecurityError> {
    let [version, code, epoch_0, epoch_1, epoch_2, epoch_3, mac @ ..] = claim;
    let rights = Rights::from_code(*code).filter(|_| *version == VERSION).ok_or(SecurityError::Refused)?;
    let epoch = u32::from_be_bytes([*epoch_0, *epoch_1, *epoch_2, *epoch_3]);
    let key = mac_key(&founders.derived_key(rights, epoch));
    // Compares in constant time.
    hmac::verify(&key, &claimed(rights, epoch, exported), mac).map_err(|_| SecurityError::Refused)?;
    match founders.epoch() {
        current if rights < Rights::Server && current != epoch => Err(SecurityError::Epoch { epoch, current }),
        _ => Ok(rights),
    }
}

/// Returns the answer to a checked claim.
///
/// # Errors
/// [`SecurityError::Crypto`] if the secret signs nothing.
pub fn answer(
    founders: &Secret,
    checked: Result<Rights, SecurityError>,
    exported: &Exported,
) -> Result<Answer, SecurityError> {
    let mut answer = [0; ANSWER_BYTES];
    match checked {
        Ok(rights) => {
            answer[0] = ACCEPTED;
            let key = founders.swarm_key().map_err(|_| SecurityError::Crypto)?;
            let signature = key.sign(&signed(rights, exported));
            answer[5..].copy_from_slice(signature.get(..SIGNATURE_BYTES).ok_or(SecurityError::Crypto)?);
        }
        Err(SecurityError::Epoch { current, .. }) => {
            answer[0] = OTHER_EPOCH;
            answer[1..5].copy_from_slice(&current.to_be_bytes());
        }
        Err(_) => answer[0] = REFUSED,
    }
    Ok(answer)
}

/// Checks the answer of a server to the claim of `secret`.
///
/// # Errors
/// The refusal that it contains, or [`SecurityError::Stranger`] without a valid signature.
pub fn check_answer(secret: &Secret, answer: &Answer, exported: &Exported) -> Result<(), SecurityError> {
    let [status, epoch_0, epoch_1, epoch_2, epoch_3, signature @ ..] = answer;
    match *status {
        ACCEPTED if is_signed_by(secret.swarm(), &signed(secret.rights(), exported), signature) => Ok(()),
        ACCEPTED => Err(SecurityError::Stranger),
        OTHER_EPOCH => {
            let current = u32::from_be_bytes([*epoch_0, *epoch_1, *epoch_2, *epoch_3]);
            Err(SecurityError::Epoch { epoch: secret.epoch(), current })
        }
        _ => Err(SecurityError::Refused),
    }
}

fn mac_key(key: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key)
}

fn claimed(rights: Rights, epoch: u32, exported: &Exported) -> Vec<u8> {
    [b"sepal client".as_slice(), &[VERSION, rights.code()], &epoch.to_be_bytes(), exported].concat()
}

fn signed(rights: Rights, exported: &Exported) -> Vec<u8> {
    [b"sepal server".as_slice(), &[VERSION, rights.code()], exported].concat()
}
