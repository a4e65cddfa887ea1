//! Files of secrets.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use sepal_swarm::{Rights, Secret, proof};
use sha2::{Digest, Sha256};

use crate::with_files;

/// Value of a connection.
const EXPORTED: proof::Exported = [7; 32];
/// Bytes of the digest behind the text of a secret.
const CHECK_BYTES: usize = 4;

/// The file of a secret, as it is and with valid check digits.
pub(crate) fn secret_files(bytes: &[u8]) {
    read(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let text = text.trim();
        read(checked(text.rsplit_once(':').map_or(text, |(body, _)| body)).as_bytes());
    }
}

/// Returns the text of a secret with its check digits.
fn checked(body: &str) -> String {
    let digest = Sha256::digest(body);
    let digits: String = digest.iter().take(CHECK_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("{body}:{digits}")
}

fn read(bytes: &[u8]) {
    with_files(&[("secret", bytes)], |folder| {
        let path = folder.join("secret");
        if set_permissions(&path, Permissions::from_mode(0o600)).is_err() {
            return;
        }
        if let Ok(secret) = Secret::read(&path) {
            check(&secret);
        }
        let _ = Secret::read_or_create(&path).map_err(|error| error.to_string()).is_ok();
    });
}

/// Uses a secret as servers and clients do. Its text must give the same secret again.
fn check(secret: &Secret) {
    assert_eq!(secret.to_text().parse::<Secret>().ok().as_ref(), Some(secret));
    let derived = Rights::ALL.iter().filter_map(|&rights| secret.derive(rights));
    for holder in derived.chain(secret.next_epoch()).chain([secret.clone()]) {
        let claim = proof::claim(&holder, &EXPORTED);
        let checked = proof::check_claim(secret, &claim, &EXPORTED);
        let answer = proof::answer(secret, checked, &EXPORTED);
        let _ = answer.map(|answer| proof::check_answer(&holder, &answer, &EXPORTED).is_ok());
    }
}

/// Secrets of all rights, of the first epoch and of the last.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let founders = [0, u32::MAX].into_iter().filter_map(|epoch| Secret::from_founders_key([7; 32], epoch).ok());
    let secrets = founders.flat_map(|founders| Rights::ALL.map(|rights| founders.derive(rights)));
    secrets.flatten().map(|secret| secret.to_text().into_bytes()).collect()
}
