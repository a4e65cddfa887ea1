//! TLS 1.3 with raw public keys (RFC 7250), without certificates.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use sepal_core::PublicKey;

use crate::key::IdentityKey;

/// Name of the protocol of proofs inside TLS.
const ALPN: &[u8] = b"sepal-secret/1";
/// Beginning of an Ed25519 private key in PKCS #8 (RFC 8410). The seed follows.
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// Beginning of an Ed25519 public key as `SubjectPublicKeyInfo` (RFC 8410). The key follows.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

pub(super) fn server_config(identity: &IdentityKey) -> Result<Arc<ServerConfig>, Error> {
    let private = [PKCS8_PREFIX.as_slice(), identity.seed()].concat();
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(private))?;
    let public = [SPKI_PREFIX.as_slice(), &identity.public().0].concat();
    let certified = CertifiedKey::new(vec![CertificateDer::from(public)], key);
    let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Each connection makes its own keys and its own proof.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Returns the options of a client that accepts any key of a server, which must prove that it knows the secret.
pub(super) fn client_config() -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = RawKeyVerifier { algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Name of every server, which is not sent.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::from([0, 0, 0, 0]))
}

/// Returns the key of a server's handshake; `None` if it is of another kind.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    PublicKey::from_bytes(certificate.as_ref().strip_prefix(SPKI_PREFIX.as_slice())?)
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// Checks that a server owns the key that it presents.
#[derive(Debug)]
struct RawKeyVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for RawKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match public_key(end_entity) {
            Some(_) => Ok(ServerCertVerified::assertion()),
            None => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
