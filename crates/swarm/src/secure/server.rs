use std::fmt;
use std::io::{self, Cursor};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::known::KnownSecret;
use super::proof::{self, CLAIM_BYTES, EXPORTER};
use super::{
    AcceptedSecrets, ClientSecurity, Revocation, Rights, SECRET_NEEDED, Secret, SecretFileError, SecurityError, halves,
    tls,
};
use crate::key::IdentityKey;
use crate::{Reader, Stream, Writer};

/// First byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;
/// Limits on what a server reads of a refused client, whose unread bytes could destroy the answer on its way.
const DRAIN_BYTES: u64 = 64 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Secret and identity of a server, with which it accepts connections.
pub struct ServerSecurity {
    secret: Mutex<KnownSecret>,
    accepted: watch::Sender<AcceptedSecrets>,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for ServerSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerSecurity")
    }
}

impl ServerSecurity {
    /// Creates the security of a server from a founder's secret.
    ///
    /// # Errors
    /// [`SecurityError::Crypto`] if the identity is not usable.
    pub fn new(secret: Secret, identity: &IdentityKey) -> Result<Self, SecurityError> {
        Self::with_known(KnownSecret::new(secret), identity)
    }

    /// Creates the security of a server from the file of a founder's secret. A later content of the file holds from the next
    /// [`ServerSecurity::refresh`] or connection on.
    ///
    /// # Errors
    /// [`SecretFileError`] if the file holds no founder's secret.
    pub fn from_file(path: &Path, identity: &IdentityKey) -> Result<Self, SecretFileError> {
        let known = KnownSecret::read(path, Secret::read_founders)?;
        Self::with_known(known, identity).map_err(|_| SecretFileError::Key(crate::KeyError))
    }

    fn with_known(known: KnownSecret, identity: &IdentityKey) -> Result<Self, SecurityError> {
        let config = tls::server_config(identity).map_err(|_| SecurityError::Crypto)?;
        let accepted = watch::Sender::new(AcceptedSecrets::new(known.secret(), None));
        Ok(Self { secret: Mutex::new(known), accepted, acceptor: TlsAcceptor::from(config) })
    }

    /// Encrypts a new connection and checks that its client holds a secret. Returns the client's rights.
    ///
    /// # Errors
    /// [`io::Error`] with a [`SecurityError`] if the client holds none, or the error of the connection. There is no limit of
    /// time.
    pub async fn accept(&self, stream: Stream) -> io::Result<(Stream, Rights)> {
        let Stream { mut reader, writer, progress, .. } = stream;
        let first = reader.read_u8().await?;
        if first != TLS_HANDSHAKE {
            refuse_plain_client(reader, writer).await?;
            return Err(SecurityError::PlainClient.into());
        }
        let joined = tokio::io::join(Cursor::new([first]).chain(reader), writer);
        let mut tls = self.acceptor.accept(joined).await?;
        let exported = tls.get_ref().1.export_keying_material([0; 32], EXPORTER, None);
        let exported = exported.map_err(|_| SecurityError::Crypto)?;
        let mut claim = [0; CLAIM_BYTES];
        tls.read_exact(&mut claim).await?;
        let secret = self.secret();
        let checked = proof::check_claim(&secret, &claim, &exported);
        tls.write_all(&proof::answer(&secret, checked, &exported)?).await?;
        tls.flush().await?;
        let rights = match checked {
            Ok(rights) => rights,
            Err(error) => {
                tls.shutdown().await?;
                return Err(error.into());
            }
        };
        let revocation = Revocation::of_rights(&secret, rights, self.accepted.subscribe());
        let stream = halves::stream(tls).with_progress(progress).with_rights(rights).with_revocation(revocation);
        Ok((stream, rights))
    }

    /// Returns the security of this server's connections to other servers of the secret.
    ///
    /// # Errors
    /// [`SecurityError::Crypto`].
    pub fn dialer(&self) -> Result<ClientSecurity, SecurityError> {
        ClientSecurity::new(self.secret())
    }

    /// Reads the file of the secret if its content is new. The [`Revocation`] of each connection whose secret is no longer
    /// accepted comes at once.
    pub fn refresh(&self) {
        self.secret();
    }

    /// Present secret.
    fn secret(&self) -> Secret {
        let mut known = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        if known.refresh() {
            let secret = known.secret();
            tracing::info!("the secret's file is new: the server accepts epoch {} of it", secret.epoch());
            self.accepted.send_replace(AcceptedSecrets::new(secret, None));
        }
        known.secret().clone()
    }
}

/// Answers a client that does not encrypt in a form that it reads.
async fn refuse_plain_client(reader: Reader, mut writer: Writer) -> io::Result<()> {
    writer.write_all(&SECRET_NEEDED).await?;
    writer.shutdown().await?;
    let mut rest = reader.take(DRAIN_BYTES);
    let mut sink = tokio::io::sink();
    let drain = tokio::io::copy(&mut rest, &mut sink);
    // The client has its answer, or it is too slow for one.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
    Ok(())
}
