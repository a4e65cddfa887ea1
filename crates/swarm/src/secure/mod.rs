//! Encrypted connections that only holders of a secret open.
//!
//! A connection is TLS 1.3, in which the server presents its identity key without a certificate. Inside, the client proves
//! that it holds a secret: an HMAC over a value that both ends export from this handshake (RFC 8446, section 7.5), so that no
//! proof is of use on another connection or to another server. A server answers a valid proof with a signature over the
//! same value that only holders of the founder's secret can make. The secret itself is never sent, and other machines learn
//! nothing but that a server listens and which public key it has.

mod client;
mod halves;
mod known;
pub mod proof;
mod revocation;
mod rights;
mod secret;
mod secret_file;
mod server;
#[cfg(test)]
mod tests;
mod tls;

use std::io;

use sepal_core::PublicKey;

pub use client::ClientSecurity;
pub use revocation::{AcceptedSecrets, Revocation};
pub use rights::{Rights, RightsError};
pub use secret::{Secret, SecretTextError};
pub use secret_file::SecretFileError;
pub use server::ServerSecurity;

/// Answer of a server to a client that sends plain messages. It has the size of the header of a message, which clients of all
/// versions read.
pub const SECRET_NEEDED: [u8; 20] = *b"SPLS\0secret needed\0\n";

/// Refusal of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum SecurityError {
    /// Client without TLS.
    #[error("the client sends plain messages, but this server accepts only encrypted ones of clients with its secret")]
    PlainClient,
    /// Server without TLS.
    #[error(
        "the server does not encrypt: it runs without a secret, is older than secrets, or had no room for the connection; \
         give it the secret, or connect without one"
    )]
    PlainServer,
    /// Proof of another secret.
    #[error("the secret is not that of the server, or not of this version")]
    Refused,
    /// Proof of a secret of another epoch.
    #[error(
        "the secret is of epoch {epoch}, but the server accepts epoch {current}: it was revoked, or the server's file is old"
    )]
    Epoch { epoch: u32, current: u32 },
    /// Server that cannot prove that it knows the secret.
    #[error("the server does not know the secret")]
    Stranger,
    /// Server with another key than the expected one.
    #[error("the server has the key {found}, expected {expected}")]
    OtherKey { expected: PublicKey, found: PublicKey },
    /// Failure of the cryptography.
    #[error("prepare an encrypted connection")]
    Crypto,
}

impl From<SecurityError> for io::Error {
    fn from(error: SecurityError) -> Self {
        io::Error::new(io::ErrorKind::PermissionDenied, error)
    }
}
