use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sepal_core::PublicKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::known::KnownSecret;
use super::proof::{self, ANSWER_BYTES, EXPORTER};
use super::{Secret, SecretFileError, SecurityError, halves, tls};
use crate::{Addr, Connect, Connecting, Endpoint, Stream};

/// Secret of a client, with which it opens connections. Clones share it.
#[derive(Clone)]
pub struct ClientSecurity {
    secret: Arc<Mutex<KnownSecret>>,
    connector: TlsConnector,
}

impl fmt::Debug for ClientSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecurity")
    }
}

impl ClientSecurity {
    /// Creates the security of a client with a secret of any rights.
    ///
    /// # Errors
    /// [`SecurityError::Crypto`].
    pub fn new(secret: Secret) -> Result<Self, SecurityError> {
        Self::with_known(KnownSecret::new(secret))
    }

    /// Creates the security of a client from the file of a secret. A later content of the file holds from the next connection
    /// on.
    ///
    /// # Errors
    /// [`SecretFileError`] if the file holds no secret.
    pub fn from_file(path: &Path) -> Result<Self, SecretFileError> {
        let known = KnownSecret::read(path, Secret::read)?;
        Self::with_known(known).map_err(|_| SecretFileError::Key(crate::KeyError))
    }

    fn with_known(known: KnownSecret) -> Result<Self, SecurityError> {
        let config = tls::client_config().map_err(|_| SecurityError::Crypto)?;
        Ok(Self { secret: Arc::new(Mutex::new(known)), connector: TlsConnector::from(config) })
    }

    /// Present secret.
    fn secret(&self) -> Secret {
        let mut known = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        known.refresh();
        known.secret().clone()
    }

    /// Encrypts a connection, proves the secret, and checks that the server knows it and has the key `pinned`, if there is
    /// one.
    ///
    /// # Errors
    /// [`io::Error`] with a [`SecurityError`], or the error of the connection. There is no limit of time.
    pub async fn connect(&self, stream: Stream, pinned: Option<PublicKey>) -> io::Result<Stream> {
        let Stream { reader, writer, progress, .. } = stream;
        let connecting = self.connector.connect(tls::server_name(), tokio::io::join(reader, writer));
        let mut tls = connecting.await.map_err(handshake_error)?;
        let connection = tls.get_ref().1;
        let certificate = connection.peer_certificates().and_then(|certificates| certificates.first());
        let found = certificate.and_then(tls::public_key).ok_or(SecurityError::Crypto)?;
        if let Some(expected) = pinned.filter(|expected| *expected != found) {
            return Err(SecurityError::OtherKey { expected, found }.into());
        }
        let exported = connection.export_keying_material([0; 32], EXPORTER, None);
        let exported = exported.map_err(|_| SecurityError::Crypto)?;
        let secret = self.secret();
        tls.write_all(&proof::claim(&secret, &exported)).await?;
        tls.flush().await?;
        let mut answer = [0; ANSWER_BYTES];
        tls.read_exact(&mut answer).await?;
        proof::check_answer(&secret, &answer, &exported)?;
        Ok(halves::stream(tls).with_progress(progress))
    }

    /// Returns the server at an address, for connections with this secret.
    pub fn endpoint(&self, addr: Addr, pinned: Option<PublicKey>) -> Endpoint {
        Endpoint::Custom(Arc::new(SecuredServer { addr, pinned, security: self.clone() }))
    }
}

/// Returns the cause of a handshake that failed. A server without TLS closes the connection, or sends other data.
fn handshake_error(error: io::Error) -> io::Error {
    let is_plain = match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => true,
        _ => {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            matches!(cause, Some(rustls::Error::InvalidMessage(_)))
        }
    };
    if is_plain { SecurityError::PlainServer.into() } else { error }
}

/// Server at an address that accepts only holders of a secret.
#[derive(Debug)]
struct SecuredServer {
    addr: Addr,
    pinned: Option<PublicKey>,
    security: ClientSecurity,
}

impl Connect for SecuredServer {
    fn name(&self) -> String {
        self.addr.to_string()
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let stream = Endpoint::Addr(self.addr.clone()).connect().await?;
            self.security.connect(stream, self.pinned).await
        })
    }

    fn is_reachable(&self) -> bool {
        matches!(self.addr, Addr::Tcp(_))
    }
}
